//! One relay: whether it is usable, the load that it accepts, and its idle connections.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use lettre::transport::smtp::extension::ClientId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::config::RelaySettings;
use crate::mail::conversation::Connection;
use crate::mail::message::Mail;
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::oauth::Requester;
use crate::mail::relay_url::RelayUrl;
use crate::mail::sign_in::SignIn;

/// A relay of `SMTP_RELAYS`.
pub(super) struct Relay {
    pub(super) url: RelayUrl,
    /// Only the probe sets it. Emails are sent for existing accounts only: if a failed send set it,
    /// the answer of the next `start` would reveal that an account exists.
    up: AtomicBool,
    /// Why the last probe failed; `None` while the relay is usable.
    failure: Mutex<Option<NotSent>>,
    /// The address that the probe is connected to. New connections try it first. Like `up`, only
    /// the probe sets it.
    preferred: Mutex<Option<IpAddr>>,
    /// One permit for each email that may be sent at once.
    slots: Arc<Semaphore>,
    rate_limiter: Option<DefaultDirectRateLimiter>,
    /// Connections whose last email was accepted, the last used one at the end.
    idle: Mutex<Vec<IdleConnection>>,
    max_idle: Duration,
    mails_per_connection: u32,
    /// Connections that wait for the answer to QUIT.
    quitting: TaskTracker,
}

struct IdleConnection {
    connection: Connection,
    since: Instant,
}

/// Only host and port: the rest of the URL may contain a password.
impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.url.fmt(f)
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("url", &format_args!("{}", self.url)).finish_non_exhaustive()
    }
}

impl Relay {
    pub(super) fn new(url: RelayUrl, settings: &RelaySettings) -> Self {
        Self {
            up: AtomicBool::new(false),
            failure: Mutex::default(),
            preferred: Mutex::default(),
            slots: Arc::new(Semaphore::new(url.connections as usize)),
            // No burst: a relay may count emails in any one second.
            rate_limiter: url
                .per_second
                .map(|mails| RateLimiter::direct(Quota::per_second(mails).allow_burst(NonZeroU32::MIN))),
            idle: Mutex::default(),
            max_idle: settings.smtp_idle,
            mails_per_connection: settings.smtp_mails_per_connection,
            quitting: TaskTracker::new(),
            url,
        }
    }

    /// A new connection; see [`Connection::open`].
    pub(super) async fn connect(
        &self,
        ehlo_name: &ClientId,
        deadline: Instant,
        requester: Requester,
    ) -> Result<Connection, NotSent> {
        // Boxed, because this future is seldom needed and would enlarge the future of every
        // delivery.
        Box::pin(Connection::open(&self.url, self.preferred(), ehlo_name, deadline, requester)).await
    }

    /// Sends an email on an idle connection, or on a new one.
    pub(super) async fn send(
        &self,
        ehlo_name: &ClientId,
        deadline: Instant,
        mail: &Mail,
    ) -> Result<(), NotSent> {
        if let Some(idle) = self.take_idle() {
            // A firewall may have dropped the connection silently, so a new one must have enough
            // time left.
            let mail_deadline = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 4;
            let result = self.send_on(idle, mail_deadline, mail).await;
            if !result.as_ref().is_err_and(is_connection_failure) {
                return result;
            }
        }
        let new = self.connect(ehlo_name, deadline, Requester::Mail).await?;
        self.send_on(new, deadline, mail).await
    }

    /// Sends an email on this connection. The future owns the connection, so dropping the future
    /// drops the connection.
    async fn send_on(
        &self,
        mut connection: Connection,
        mail_deadline: Instant,
        mail: &Mail,
    ) -> Result<(), NotSent> {
        let result = connection.send(mail_deadline, mail).await;
        match &result {
            Ok(()) => self.keep(connection),
            // The relay refused and awaits a command. After 421 the relay closes the connection
            // (RFC 5321 §3.8).
            Err(NotSent { code: Some(code), .. }) if *code >= 400 && *code != 421 => self.quit(connection),
            Err(_) => drop(connection),
        }
        result
    }

    pub(super) fn uses_tokens(&self) -> bool {
        matches!(self.url.sign_in, SignIn::Token { .. })
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Why the last probe failed; `None` while the relay is usable.
    pub(super) fn failure(&self) -> MutexGuard<'_, Option<NotSent>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the result of a probe. Returns whether the state or the reason has changed.
    pub(super) fn record_probe(&self, failure: Option<&NotSent>) -> bool {
        let up = failure.is_none();
        let state_changed = self.up.swap(up, Ordering::Relaxed) != up;
        let mut known = self.failure();
        let reason_changed = known.as_ref() != failure;
        *known = failure.cloned();
        state_changed || reason_changed
    }

    pub(super) fn free_slots(&self) -> usize {
        self.slots.available_permits()
    }

    pub(super) fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Waits for a slot. Waiting callers get slots in their order of arrival, before any call of
    /// [`Self::slot`].
    pub(super) async fn wait_for_slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }

    /// Waits until the rate limit allows another email.
    pub(super) async fn wait_for_rate(&self) {
        if let Some(limiter) = &self.rate_limiter {
            limiter.until_ready().await;
        }
    }

    /// The address to try first, if the probe has found one.
    pub(super) fn preferred(&self) -> Option<IpAddr> {
        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the address that the probe is connected to.
    pub(super) fn set_preferred(&self, address: IpAddr) {
        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }

    /// Takes the idle connection that was used last. It may be dead, because relays close idle
    /// connections silently.
    pub(super) fn take_idle(&self) -> Option<Connection> {
        self.fresh_idle().pop().map(|idle| idle.connection)
    }

    /// Keeps a connection whose email was accepted. Only then is it certain that the relay awaits
    /// the next email. A connection that has sent `SMTP_MAILS_PER_CONNECTION` emails is closed.
    pub(super) fn keep(&self, mut connection: Connection) {
        connection.uses += 1;
        if connection.uses < self.mails_per_connection {
            self.fresh_idle().push(IdleConnection { connection, since: Instant::now() });
        } else {
            self.quit(connection);
        }
    }

    /// Closes a connection with QUIT, in the background.
    pub(super) fn quit(&self, connection: Connection) {
        self.quitting.spawn(connection.quit());
    }

    /// Closes the connections that have been idle for too long.
    pub(super) fn quit_stale(&self) {
        drop(self.fresh_idle());
    }

    /// Closes all idle connections, and waits at most a second until every connection has quit.
    pub(super) async fn close(&self) {
        for idle in self.idle.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.quit(idle.connection);
        }
        self.quitting.close();
        self.quitting.wait().await;
    }

    /// The idle connections, after closing those that have been idle for too long.
    fn fresh_idle(&self) -> MutexGuard<'_, Vec<IdleConnection>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for stale in idle.extract_if(.., |idle| idle.since.elapsed() >= self.max_idle) {
            self.quit(stale.connection);
        }
        idle
    }
}

/// Whether the idle connection caused the failure, and not the email: the relay has closed the
/// connection or refuses another email on it. If only the answer to the final dot is missing, the
/// relay may have accepted the email, so the email is not sent again at once on a new connection.
fn is_connection_failure(why: &NotSent) -> bool {
    match (why.stage, why.code) {
        (Stage::Mail | Stage::Deadline, _) | (Stage::Rcpt | Stage::Data, None) => true,
        (_, code) => code == Some(421),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Settings {
        #[command(flatten)]
        relays: RelaySettings,
    }

    #[test]
    fn a_relays_url_limits_its_connections_and_rate() {
        let settings = Settings::parse_from(["test", "--smtp-connections=5"]).relays;
        let parse = |text: &str| Relay::new(RelayUrl::parse(text, &settings, None, None).unwrap(), &settings);
        let (usual, own) =
            (parse("smtps://mx.example.com"), parse("smtps://mx.example.com?connections=2&per_second=14"));
        assert_eq!((usual.free_slots(), usual.rate_limiter.is_some()), (5, false));
        assert_eq!((own.free_slots(), own.rate_limiter.is_some()), (2, true));
        let held = (own.slot(), own.slot());
        assert!(held.1.is_some() && own.slot().is_none());
        drop(held);
        assert_eq!(own.free_slots(), 2);
    }
}
