//! One relay: how to reach it, what it may be asked to bear, and its connections.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::TlsParameters;
use percent_encoding::percent_decode_str;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;
use url::Url;

use crate::config::{RelaySettings, is_local};
use crate::mail::conversation::Connection;
use crate::mail::not_sent::NotSent;
use crate::mail::oauth::Tokens;
use crate::mail::sign_in::SignIn;
use crate::mail::tls::{Authorities, Implicit, starttls};

/// A relay of `SMTP_RELAYS`.
pub(super) struct Relay {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Tls,
    pub(super) sign_in: SignIn,
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

#[expect(clippy::enum_variant_names, reason = "STARTTLS is called so")]
pub(super) enum Tls {
    Plain,
    StartTls(TlsParameters),
    Implicit(Implicit),
}

/// Host and port alone: the rest holds a password.
impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// The options of a relay's URL, with what the settings give those it does not name.
struct Options {
    plain: bool,
    xoauth2: bool,
    connections: u32,
    per_second: Option<NonZeroU32>,
}

impl Options {
    fn parse(url: &Url, settings: &RelaySettings) -> Result<Self, String> {
        let mut options =
            Self { plain: false, xoauth2: false, connections: settings.smtp_connections, per_second: None };
        for (name, value) in url.query_pairs() {
            match (&*name, &*value) {
                ("tls", "none") => options.plain = true,
                ("auth", "xoauth2") => options.xoauth2 = true,
                ("connections", number) => {
                    options.connections = number
                        .parse()
                        .ok()
                        .filter(|number| (1..=256).contains(number))
                        .ok_or("has an entry whose connections= is not between 1 and 256")?;
                }
                ("per_second", number) => {
                    let number = number.parse().map_err(
                        |_| "has an entry whose per_second= is not a whole number of mails, at least 1",
                    )?;
                    options.per_second = Some(number);
                }
                _ => {
                    return Err("has an entry with an option that is none of tls=none, auth=xoauth2, connections=N and per_second=N".into());
                }
            }
        }
        Ok(options)
    }
}

impl Relay {
    /// `smtp://` is STARTTLS, required; `smtps://` is TLS from the first byte; `smtp://…?tls=none` is plain text and
    /// for this machine alone. `auth=xoauth2` signs in with a token of `tokens`. `connections=N` and `per_second=N` bound
    /// what it is asked to bear. User and password are percent-encoded (RFC 3986 §2.1).
    ///
    /// # Errors
    ///
    /// What is wrong, to go on after the variable's name; it quotes neither user nor password.
    pub(super) fn parse(
        text: &str,
        settings: &RelaySettings,
        ca: Option<&Authorities>,
        tokens: Option<&Arc<Tokens>>,
    ) -> Result<Self, String> {
        if has_stray_percent(text) {
            return Err("has an entry with a % that begins no escape such as %40: write it as %25".into());
        }
        let url = Url::parse(text)
            .map_err(|_| "has an entry that is not a URL such as smtps://USER:PASSWORD@HOST:465")?;
        let host = url.host_str().ok_or("has an entry without a host")?.to_owned();
        let options = Options::parse(&url, settings)?;
        let name = host.trim_matches(['[', ']']);
        let unchecked = || format!("names {host}, which no certificate can be checked for");
        let (tls, port) = match (url.scheme(), options.plain) {
            ("smtps", false) => (Tls::Implicit(Implicit::new(name, ca).ok_or_else(unchecked)?), 465),
            ("smtp", false) => (Tls::StartTls(starttls(name, ca).ok_or_else(unchecked)?), 587),
            ("smtp", true) if is_local(url.host()) || is_local_name(&host) => (Tls::Plain, 25),
            ("smtp", true) => {
                return Err(format!(
                    "would send codes to {host} in plain text: drop tls=none, or use smtps://"
                ));
            }
            ("smtps", true) => return Err("has an entry with both smtps:// and tls=none".into()),
            _ => return Err("has an entry that begins with neither smtp:// nor smtps://".into()),
        };
        let decoded = |text: &str| {
            let text = percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned);
            text.map_err(|_| "has a user or password that is not UTF-8 when percent-decoded")
        };
        let sign_in = match (url.username(), url.password(), options.xoauth2) {
            ("", None, false) => SignIn::Nothing,
            (user, Some(password), false) if !user.is_empty() => {
                SignIn::Password(Credentials::new(decoded(user)?, decoded(password)?))
            }
            (user, None, true) if !user.is_empty() => {
                let tokens =
                    tokens.ok_or("has an entry with auth=xoauth2, which needs SMTP_OAUTH_TOKEN_URL")?;
                SignIn::Token { user: decoded(user)?, tokens: Arc::clone(tokens) }
            }
            (.., true) => {
                return Err("has an entry with auth=xoauth2, which needs a user and no password".into());
            }
            (.., false) => return Err("has an entry with a user or a password, but not both".into()),
        };
        Ok(Self {
            host,
            port: url.port().unwrap_or(port),
            tls,
            sign_in,
            up: AtomicBool::new(false),
            trouble: Mutex::default(),
            preferred: Mutex::default(),
            slots: Arc::new(Semaphore::new(options.connections as usize)),
            // No burst: a relay that counts by the second must never see more in any.
            pace: options
                .per_second
                .map(|mails| RateLimiter::direct(Quota::per_second(mails).allow_burst(NonZeroU32::MIN))),
            idle: Mutex::default(),
            max_idle: settings.smtp_idle,
            mails_per_connection: settings.smtp_mails_per_connection,
            leaving: TaskTracker::new(),
        })
    }

    pub(super) fn takes_tokens(&self) -> bool {
        matches!(self.sign_in, SignIn::Token { .. })
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

fn is_local_name(host: &str) -> bool {
    // The url crate leaves the host of a scheme it does not know as text.
    is_local(url::Host::parse(host).ok())
}

/// Whether there is a `%` that two hexadecimal digits do not follow.
fn has_stray_percent(text: &str) -> bool {
    let is_escape = |after: &str| matches!(after.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    !text.split('%').skip(1).all(is_escape)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Settings {
        #[command(flatten)]
        config: crate::config::Config,
    }

    #[test]
    fn relays_are_read_and_plain_text_stays_on_this_machine() {
        let config = Settings::parse_from(["test"]).config;
        let parse = |text: &str| Relay::parse(text, &config.relays, None, None);
        assert!(matches!(
            parse("smtps://u:p%40@mx.example.com").unwrap(),
            Relay { port: 465, tls: Tls::Implicit(_), .. }
        ));
        assert!(matches!(
            parse("smtp://mx.example.com:2525").unwrap(),
            Relay { port: 2525, tls: Tls::StartTls(_), .. }
        ));
        for local in
            ["smtp://127.0.0.1:2525?tls=none", "smtp://[::1]:2525?tls=none", "smtp://localhost?tls=none"]
        {
            assert!(matches!(parse(local).unwrap().tls, Tls::Plain), "{local}");
        }
        for bad in [
            "smtp://10.0.0.1?tls=none",
            "smtp://mx.example.com?tls=none",
            "smtp://mx.example.com?tls=maybe",
            "smtps://127.0.0.1?tls=none",
            "smtps://mx.example.com?connections=0",
            "smtps://mx.example.com?connections=257",
            "smtps://mx.example.com?per_second=0",
            "smtps://mx.example.com?per_second=a",
            "http://x",
            "x",
            "smtp://alice@x.vn",
            "smtp://alice@x.vn?auth=xoauth2",
            "smtp://alice:p@x.vn?auth=xoauth2",
            "smtp://x.vn?auth=xoauth2",
            "smtp://alice:p@x.vn?auth=plain",
        ] {
            let why = parse(bad).err().unwrap_or_else(|| panic!("{bad} was taken"));
            assert!(!why.contains("alice"), "{why}");
        }
    }

    #[test]
    fn user_and_password_are_percent_encoded() {
        let config = Settings::parse_from(["test"]).config;
        let parse = |user: &str| Relay::parse(&format!("smtps://{user}@mx.example.com"), &config, None, None);
        for (given, user, password) in [
            ("a%40x.vn:p%40%3A%2F%25%2c%20%3f%23", "a@x.vn", "p@:/%, ?#"),
            ("a:100%25", "a", "100%"),
            ("a:p+q", "a", "p+q"),
            ("a:m%E1%BA%ADt", "a", "mật"),
        ] {
            let expected = Credentials::new(user.into(), password.into());
            let is_read = |sign_in| matches!(sign_in, SignIn::Password(read) if read == expected);
            assert!(is_read(parse(given).unwrap().sign_in), "{given}");
        }
        for stray in ["a:100%", "a:50%off", "a:%4", "a:%%40", "a%:b", "a:%x0"] {
            let why = parse(stray).unwrap_err();
            assert!(why.contains("begins no escape") && !why.contains("off"), "{stray}: {why}");
        }
        assert!(parse("a:%ff").unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn a_relay_says_itself_what_it_bears() {
        let config = Settings::parse_from(["test", "--smtp-connections=5"]).config;
        let parse = |text: &str| Relay::parse(text, &config.relays, None, None).unwrap();
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
