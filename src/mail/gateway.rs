//! The way to the relays: which ones there are, whether they are usable, and one conversation at a time.
//!
//! lettre's pool is not used: it puts an abandoned conversation back, and the next mail then reads the wrong answer and
//! counts as sent; and its timeout covers connecting alone. Here a [`Sender`] owns its connection, one deadline covers
//! the whole conversation, and a connection whose conversation did not end well is dropped.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Noop, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::Response;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::config::{Config, ConfigError, is_local};
use crate::mail::message::Mail;
use crate::metrics::{Metrics, RelayLabel};

/// How long a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// A connection that idled longer is not used again: relays close idle ones, some after a minute.
const MAX_IDLE: Duration = Duration::from_secs(30);

/// Every relay, in order of preference, with what the probe last found.
#[derive(Debug)]
pub struct Gateway {
    relays: Vec<Relay>,
    hello: ClientId,
    deadline: Duration,
}

struct Relay {
    host: String,
    port: u16,
    tls: Tls,
    credentials: Option<Credentials>,
    /// Set by the probe alone. A send must not touch it: sends happen for real accounts only, so its failure would
    /// change what the next `start` answers, and tell.
    up: AtomicBool,
}

#[expect(clippy::enum_variant_names, reason = "STARTTLS is called so")]
enum Tls {
    Plain,
    StartTls(TlsParameters),
    Implicit(TlsParameters),
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Where a conversation ended that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the SMTP step of that name")]
pub enum Stage {
    NoRelay,
    Connect,
    Tls,
    Auth,
    Mail,
    Rcpt,
    Data,
    Message,
    Deadline,
}

impl Stage {
    /// The name in metrics and in the outbox.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoRelay => "no_relay",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Message => "message",
            Self::Deadline => "deadline",
        }
    }
}

/// A mail that was not handed over. Holds no word of the relay's, which may contain the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// Where it ended.
    pub stage: Stage,
    /// The relay's answer, if there was one.
    pub code: Option<u16>,
}

impl NotSent {
    fn at(stage: Stage) -> impl Fn(SmtpError) -> Self {
        move |error| Self { stage, code: error.status().map(Into::into) }
    }

    /// Whether trying again is pointless: the relay knows for good that there is no such recipient. Anything else may
    /// be the relay's fault or ours, and may pass.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.stage == Stage::Rcpt && self.code.is_some_and(|code| (500..600).contains(&code))
    }
}

/// `rcpt 450`: the stage and the relay's code, for the outbox and the log.
impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.stage.as_str())?;
        self.code.map_or(Ok(()), |code| write!(f, " {code}"))
    }
}

impl Gateway {
    /// Reads `SMTP_RELAYS` and the `SMTP_*` settings.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable; it quotes nothing of a URL, which may hold a password.
    pub fn new(config: &Config, urls: &[String]) -> Result<Self, ConfigError> {
        let ca = config.smtp_ca_file.as_deref().map(read_ca).transpose()?;
        let relays = urls
            .iter()
            .map(|url| Relay::parse(url, ca.as_ref()).map_err(|why| ConfigError::new("SMTP_RELAYS", why)))
            .collect::<Result<Vec<_>, _>>()?;
        if relays.is_empty() {
            return Err(ConfigError::new("SMTP_RELAYS", "names no relay"));
        }
        Ok(Self {
            relays,
            hello: ClientId::Domain(config.smtp_ehlo_name.clone()),
            deadline: config.smtp_deadline,
        })
    }

    /// Whether any relay was usable when it was last probed.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.preferred().is_some()
    }

    fn preferred(&self) -> Option<usize> {
        self.relays.iter().position(|relay| relay.up.load(Ordering::Relaxed))
    }

    /// Probes every relay once, and then each at every interval, until the returned tasks are dropped.
    pub async fn watch(
        self: &Arc<Self>,
        interval: Duration,
        metrics: &Arc<Metrics>,
    ) -> tokio::task::JoinSet<()> {
        let mut probes = tokio::task::JoinSet::new();
        let (report, mut first) = tokio::sync::mpsc::channel(self.relays.len());
        for place in 0..self.relays.len() {
            let (gateway, metrics, report) = (Arc::clone(self), Arc::clone(metrics), report.clone());
            probes.spawn(async move {
                let mut kept = None;
                loop {
                    gateway.probe(place, &mut kept, &metrics).await;
                    let _ = report.try_send(());
                    tokio::time::sleep(interval).await;
                }
            });
        }
        for _ in 0..self.relays.len() {
            first.recv().await;
        }
        probes
    }

    async fn probe(&self, place: usize, kept: &mut Option<AsyncSmtpConnection>, metrics: &Metrics) {
        let relay = &self.relays[place];
        let asked = tokio::time::timeout(PROBE_DEADLINE, async {
            if let Some(mut connection) = kept.take()
                && connection.command(Noop).await.is_ok()
            {
                return Ok(connection);
            }
            let mut connection = relay.connect(&self.hello, PROBE_DEADLINE).await?;
            connection.command(Noop).await.map_err(NotSent::at(Stage::Connect))?;
            Ok(connection)
        });
        let found = asked.await.unwrap_or(Err(NotSent { stage: Stage::Deadline, code: None }));
        let up = found.is_ok();
        if relay.up.swap(up, Ordering::Relaxed) != up || !up {
            match &found {
                Ok(_) => tracing::info!(relay = place, "relay is usable"),
                Err(why) => tracing::warn!(relay = place, %why, "relay is not usable"),
            }
        }
        metrics.relay_up.get_or_create(&RelayLabel { relay: place }).set(i64::from(up));
        *kept = found.ok();
    }
}

impl Relay {
    /// `smtp://` is STARTTLS, required; `smtps://` is TLS from the first byte; `smtp://…?tls=none` is plain text and
    /// for this machine alone.
    fn parse(text: &str, ca: Option<&Certificate>) -> Result<Self, String> {
        let url = Url::parse(text)
            .map_err(|_| "has an entry that is not a URL such as smtps://USER:PASSWORD@HOST:465")?;
        let host = url.host_str().ok_or("has an entry without a host")?.to_owned();
        let tls = || {
            let mut builder = TlsParameters::builder(host.trim_matches(['[', ']']).to_owned());
            if let Some(ca) = ca {
                builder = builder.add_root_certificate(ca.clone());
            }
            builder.build().map_err(|_| format!("names {host}, which no certificate can be checked for"))
        };
        let (tls, port) = match (url.scheme(), url.query()) {
            ("smtps", None) => (Tls::Implicit(tls()?), 465),
            ("smtp", None) => (Tls::StartTls(tls()?), 587),
            ("smtp", Some("tls=none")) if is_local(url.host()) || is_local_name(&host) => (Tls::Plain, 25),
            ("smtp", Some("tls=none")) => {
                return Err(format!(
                    "would send codes to {host} in plain text: drop ?tls=none, or use smtps://"
                ));
            }
            _ => {
                return Err(
                    "has an entry that begins with neither smtp:// nor smtps://, or has unknown options"
                        .into(),
                );
            }
        };
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned);
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (user, Some(password)) if !user.is_empty() => Some(
                decoded(user)
                    .and_then(|user| Ok(Credentials::new(user, decoded(password)?)))
                    .map_err(|_| "has a user or password that is not UTF-8 when percent-decoded")?,
            ),
            _ => return Err("has an entry with a user or a password, but not both".into()),
        };
        Ok(Self { host, port: url.port().unwrap_or(port), tls, credentials, up: AtomicBool::new(false) })
    }

    async fn connect(&self, hello: &ClientId, timeout: Duration) -> Result<AsyncSmtpConnection, NotSent> {
        let at = NotSent::at;
        let implicit = match &self.tls {
            Tls::Implicit(parameters) => Some(parameters.clone()),
            Tls::Plain | Tls::StartTls(_) => None,
        };
        let server = (self.host.trim_matches(['[', ']']), self.port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(server, Some(timeout), hello, implicit, None)
                .await
                .map_err(|error| at(if error.is_tls() { Stage::Tls } else { Stage::Connect })(error))?;
        if let Tls::StartTls(parameters) = &self.tls {
            connection.starttls(parameters.clone(), hello).await.map_err(at(Stage::Tls))?;
        }
        if let Some(credentials) = &self.credentials {
            let mechanisms = [Mechanism::Plain, Mechanism::Login];
            connection.auth(&mechanisms, credentials).await.map_err(at(Stage::Auth))?;
        }
        Ok(connection)
    }
}

fn is_local_name(host: &str) -> bool {
    // The url crate leaves the host of a scheme it does not know as text.
    is_local(url::Host::parse(host).ok())
}

fn read_ca(path: &Path) -> Result<Certificate, ConfigError> {
    let pem = std::fs::read(path).map_err(|error| {
        ConfigError::new("SMTP_CA_FILE", format!("names a file that cannot be read: {error}"))
    })?;
    Certificate::from_pem(&pem)
        .map_err(|_| ConfigError::new("SMTP_CA_FILE", "names a file that holds no certificate in PEM form"))
}

/// Sends one mail after the other over a connection of its own.
#[derive(Debug)]
pub struct Sender {
    gateway: Arc<Gateway>,
    kept: Option<Kept>,
}

struct Kept {
    connection: AsyncSmtpConnection,
    relay: usize,
    used: Instant,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("relay", &self.relay).finish_non_exhaustive()
    }
}

impl Sender {
    /// Connects with its first mail.
    #[must_use]
    pub fn new(gateway: &Arc<Gateway>) -> Self {
        Self { gateway: Arc::clone(gateway), kept: None }
    }

    /// Hands a mail to the preferred relay that is up. Sent means: the relay answered 250 after the final dot, within
    /// the deadline. Dropping the future drops the connection.
    ///
    /// # Errors
    ///
    /// [`NotSent`], with the stage at which the conversation ended.
    pub async fn send(&mut self, mail: &Mail) -> Result<(), NotSent> {
        let deadline = self.gateway.deadline;
        let sent = tokio::time::timeout(deadline, self.converse(mail)).await;
        sent.unwrap_or(Err(NotSent { stage: Stage::Deadline, code: None }))
    }

    async fn converse(&mut self, mail: &Mail) -> Result<(), NotSent> {
        let relay = self.gateway.preferred().ok_or(NotSent { stage: Stage::NoRelay, code: None })?;
        // Taken out of `self`: whatever ends this function early drops the connection with it.
        let mut connection = if let Some(connection) = self.begin_on_kept(relay, mail).await {
            connection
        } else {
            let Gateway { relays, hello, deadline } = &*self.gateway;
            let mut fresh = relays[relay].connect(hello, *deadline).await?;
            fresh.command(mail_from(mail)).await.map_err(NotSent::at(Stage::Mail))?;
            fresh
        };
        for to in mail.envelope.to() {
            connection.command(Rcpt::new(to.clone(), vec![])).await.map_err(NotSent::at(Stage::Rcpt))?;
        }
        // lettre takes any 2xx or 3xx for a yes; only these two are.
        let go_on = connection.command(Data).await.map_err(NotSent::at(Stage::Data))?;
        exactly(&go_on, 354, Stage::Data)?;
        let taken = connection.message(&mail.bytes).await.map_err(NotSent::at(Stage::Message))?;
        exactly(&taken, 250, Stage::Message)?;
        self.kept = Some(Kept { connection, relay, used: Instant::now() });
        Ok(())
    }

    /// Begins the mail on the kept connection. `None` if there is none, or if it turns out to be dead: relays close
    /// idle connections, and that is no failure of this mail.
    async fn begin_on_kept(&mut self, relay: usize, mail: &Mail) -> Option<AsyncSmtpConnection> {
        let kept = self.kept.take().filter(|kept| kept.relay == relay && kept.used.elapsed() < MAX_IDLE)?;
        let mut connection = kept.connection;
        connection.command(mail_from(mail)).await.ok()?;
        Some(connection)
    }
}

fn exactly(response: &Response, code: u16, stage: Stage) -> Result<(), NotSent> {
    let answered = response.code().into();
    if answered == code { Ok(()) } else { Err(NotSent { stage, code: Some(answered) }) }
}

/// No parameters: addresses are ASCII, and lettre encodes every body to 7 bits.
fn mail_from(mail: &Mail) -> MailFrom {
    MailFrom::new(mail.envelope.from().cloned(), vec![])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_are_read_and_plain_text_stays_on_this_machine() {
        let parse = |text: &str| Relay::parse(text, None);
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
            "http://x",
            "x",
            "smtp://alice@x.vn",
        ] {
            let why = parse(bad).err().unwrap_or_else(|| panic!("{bad} was taken"));
            assert!(!why.contains("alice"), "{why}");
        }
    }
}
