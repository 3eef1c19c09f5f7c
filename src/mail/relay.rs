//! One relay: whether it is usable, the load it accepts, and its connections.

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
use crate::mail::oauth::{Asker, Tokens};
use crate::mail::relay_url::RelayUrl;
use crate::mail::sign_in::SignIn;
use crate::mail::tls::Authorities;

/// A relay of `SMTP_RELAYS`.
pub(super) struct Relay {
    pub(super) url: RelayUrl,
    /// Set by the probe alone. A send must not touch it: sends happen for real accounts only, so its failure would
    /// change what the next `start` answers, and tell.
    up: AtomicBool,
    /// Why it is not, as the probe last found.
    trouble: Mutex<Option<NotSent>>,
    /// The address that the probe is connected to, which is tried first. As `up`, it is the probe's alone.
    preferred: Mutex<Option<IpAddr>>,
    /// One for each mail that may be under way at once.
    slots: Arc<Semaphore>,
    pace: Option<DefaultDirectRateLimiter>,
    /// Connections whose last mail was taken, the last used at the end.
    idle: Mutex<Vec<Idle>>,
    max_idle: Duration,
    mails_per_connection: u32,
    /// Connections on which QUIT was said and whose answer has not come.
    leaving: TaskTracker,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// Host and port alone: the rest holds a password.
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
    /// Reads an entry of `SMTP_RELAYS`.
    ///
    /// # Errors
    ///
    /// What is wrong, as [`RelayUrl::parse`] says it.
    pub(super) fn parse(
        text: &str,
        settings: &RelaySettings,
        ca: Option<&Authorities>,
        tokens: Option<&Arc<Tokens>>,
    ) -> Result<Self, String> {
        let url = RelayUrl::parse(text, settings, ca, tokens)?;
        Ok(Self {
            up: AtomicBool::new(false),
            trouble: Mutex::default(),
            preferred: Mutex::default(),
            slots: Arc::new(Semaphore::new(url.connections as usize)),
            // No burst: a relay that counts by the second must never see more in any.
            pace: url
                .per_second
                .map(|mails| RateLimiter::direct(Quota::per_second(mails).allow_burst(NonZeroU32::MIN))),
            idle: Mutex::default(),
            max_idle: settings.smtp_idle,
            mails_per_connection: settings.smtp_mails_per_connection,
            leaving: TaskTracker::new(),
            url,
        })
    }

    /// A new connection; see [`Connection::open`].
    pub(super) async fn connect(
        &self,
        hello: &ClientId,
        deadline: Instant,
        asker: Asker,
    ) -> Result<Connection, NotSent> {
        Connection::open(&self.url, self.preferred(), hello, deadline, asker).await
    }

    /// Hands a mail over: on a connection that was kept, or on one of its own.
    pub(super) async fn hand_over(
        &self,
        hello: &ClientId,
        deadline: Instant,
        mail: &Mail,
    ) -> Result<(), NotSent> {
        if let Some(kept) = self.kept() {
            // A connection that something on the way forgot is silent, and a new one needs time as well.
            let silent = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 4;
            let outcome = self.converse(kept, silent, mail).await;
            if !outcome.as_ref().is_err_and(is_of_the_connection) {
                return outcome;
            }
        }
        let new = self.connect(hello, deadline, Asker::Mail).await?;
        self.converse(new, deadline, mail).await
    }

    /// A connection is in the hands of this function alone: whatever ends it early drops the connection with it.
    async fn converse(
        &self,
        mut connection: Connection,
        mail_deadline: Instant,
        mail: &Mail,
    ) -> Result<(), NotSent> {
        let outcome = connection.send(mail_deadline, mail).await;
        match &outcome {
            Ok(()) => self.keep(connection),
            // Refused, and a command is awaited. After a 421 the relay closes it (RFC 5321 §3.8).
            Err(NotSent { code: Some(code), .. }) if *code >= 400 && *code != 421 => self.leave(connection),
            Err(_) => drop(connection),
        }
        outcome
    }

    pub(super) fn takes_tokens(&self) -> bool {
        matches!(self.url.sign_in, SignIn::Token { .. })
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Why it is not usable; `None` while it is.
    pub(super) fn trouble(&self) -> MutexGuard<'_, Option<NotSent>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the probe found, and says whether that is news: the state, or the reason for it.
    pub(super) fn record_probe(&self, trouble: Option<&NotSent>) -> bool {
        let up = trouble.is_none();
        let changed = self.up.swap(up, Ordering::Relaxed) != up;
        let mut known = self.trouble();
        let other = known.as_ref() != trouble;
        *known = trouble.cloned();
        changed || other
    }

    pub(super) fn free(&self) -> usize {
        self.slots.available_permits()
    }

    pub(super) fn slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Waits for a slot; those who wait are served in turn, before any call of [`Self::slot`].
    pub(super) async fn next_slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }

    /// Waits until the relay may be given another mail.
    pub(super) async fn ready(&self) {
        if let Some(pace) = &self.pace {
            pace.until_ready().await;
        }
    }

    /// The address to try first, if it is known.
    pub(super) fn preferred(&self) -> Option<IpAddr> {
        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes where the probe is connected to.
    pub(super) fn prefers(&self, address: IpAddr) {
        *self.preferred.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }

    /// The connection that was used last. It may be dead: relays close idle ones, and say nothing.
    pub(super) fn kept(&self) -> Option<Connection> {
        self.fresh_idle().pop().map(|idle| idle.connection)
    }

    /// Keeps a connection whose mail was taken: only such a one is known to stand between two mails. One that has carried
    /// as many mails as it may is left.
    pub(super) fn keep(&self, mut connection: Connection) {
        connection.uses += 1;
        if connection.uses < self.mails_per_connection {
            self.fresh_idle().push(Idle { connection, since: Instant::now() });
        } else {
            self.leave(connection);
        }
    }

    /// Says QUIT on a connection; nobody waits for the answer.
    pub(super) fn leave(&self, connection: Connection) {
        self.leaving.spawn(connection.quit());
    }

    /// Leaves the connections that have idled for too long.
    pub(super) fn leave_stale(&self) {
        drop(self.fresh_idle());
    }

    /// Leaves all connections that idle, and waits until all that are being left have ended: a second at most.
    pub(super) async fn close(&self) {
        for idle in self.idle.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            self.leave(idle.connection);
        }
        self.leaving.close();
        self.leaving.wait().await;
    }

    fn fresh_idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        for stale in idle.extract_if(.., |idle| idle.since.elapsed() >= self.max_idle) {
            self.leave(stale.connection);
        }
        idle
    }
}

/// Whether a kept connection failed, and not the mail: the relay had closed it, closes it now, or refuses another mail on
/// it. A mail whose dot was not answered may have been taken, and is tried again as any other.
fn is_of_the_connection(why: &NotSent) -> bool {
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
    fn a_relay_says_itself_what_it_bears() {
        let settings = Settings::parse_from(["test", "--smtp-connections=5"]).relays;
        let parse = |text: &str| Relay::parse(text, &settings, None, None).unwrap();
        let (usual, own) =
            (parse("smtps://mx.example.com"), parse("smtps://mx.example.com?connections=2&per_second=14"));
        assert_eq!((usual.free(), usual.pace.is_some()), (5, false));
        assert_eq!((own.free(), own.pace.is_some()), (2, true));
        let held = (own.slot(), own.slot());
        assert!(held.1.is_some() && own.slot().is_none());
        drop(held);
        assert_eq!(own.free(), 2);
    }
}
