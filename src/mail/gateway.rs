//! The way to the relays: which of them is usable, which takes the next mail, and one conversation at a time.
//!
//! lettre's pool is not used: it puts an abandoned conversation back, and the next mail then reads the wrong answer and
//! counts as sent; and its timeout covers connecting alone. Here a mail has a connection to itself, one deadline covers
//! the whole conversation, and a connection is kept only if its mail was taken; in any other case it is dropped.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Noop, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::Response;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument as _, info_span};

use crate::config::{Config, ConfigError};
use crate::mail::message::Mail;
use crate::mail::relay::{Relay, read_ca};
use crate::metrics::{Metrics, RelayLabel};

/// How long a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// How much of that a connection that was kept may take to answer, before a new one is tried.
const KEPT_PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// Every relay, in order of preference, with what the probe last found.
#[derive(Debug)]
pub struct Gateway {
    relays: Vec<Relay>,
    hello: ClientId,
    deadline: Duration,
}

/// A relay as an operator may see it: `0 (mail.example.com:587)`.
#[derive(Debug)]
pub struct Named<'a> {
    /// Its place in `SMTP_RELAYS`, from 0, as in metrics and logs.
    pub place: usize,
    relay: &'a Relay,
}

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.place, self.relay)
    }
}

/// A place for one mail at one relay, which is free again when this is dropped.
#[derive(Debug)]
pub struct Slot {
    relay: usize,
    _permit: OwnedSemaphorePermit,
}

/// Where an attempt ended that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the step of that name, most of them of SMTP")]
pub enum Stage {
    Compose,
    NoRelay,
    Rate,
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
            Self::Compose => "compose",
            Self::NoRelay => "no_relay",
            Self::Rate => "rate",
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

/// A mail that was not handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// Where it ended.
    pub stage: Stage,
    /// The relay's answer, if there was one.
    pub code: Option<u16>,
    /// What this machine has to say about it. Never a word of the relay's, which may contain the address.
    pub why: Option<String>,
}

impl NotSent {
    /// Nothing is known but where it ended.
    pub(crate) const fn just(stage: Stage) -> Self {
        Self { stage, code: None, why: None }
    }

    pub(super) fn at(stage: Stage) -> impl Fn(SmtpError) -> Self {
        move |error| Self { stage, code: error.status().map(Into::into), why: None }
    }

    /// With the reason, for the stages before the relay has heard of any address.
    pub(super) fn explained(stage: Stage, error: &SmtpError) -> Self {
        use std::error::Error as _;
        let code = error.status().map(Into::into);
        // Without an answer of the relay's, the words are those of this machine's network and TLS.
        let why = error.source().filter(|_| code.is_none()).map(ToString::to_string);
        Self { stage, code, why }
    }

    /// Whether trying again is pointless: the relay knows for good that there is no such recipient. Anything else may
    /// be the relay's fault or ours, and may pass.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.stage == Stage::Rcpt && self.code.is_some_and(|code| (500..600).contains(&code))
    }
}

/// `rcpt 450`, `tls (…)`: the stage, and the relay's code or what this machine says, for the outbox and the log.
impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.stage.as_str())?;
        self.code.map_or(Ok(()), |code| write!(f, " {code}"))?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
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
            .map(|url| {
                Relay::parse(url, config, ca.as_ref()).map_err(|why| ConfigError::new("SMTP_RELAYS", why))
            })
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

    /// The relays, in order of preference, as an operator may see them.
    pub fn relays(&self) -> impl Iterator<Item = Named<'_>> {
        self.relays.iter().enumerate().map(|(place, relay)| Named { place, relay })
    }

    /// Hands a mail to one relay, whatever the probe found.
    ///
    /// # Errors
    ///
    /// [`NotSent`], with the stage at which the conversation ended.
    pub async fn try_out(&self, place: usize, mail: &Mail) -> Result<(), NotSent> {
        let conversation = tokio::time::timeout(self.deadline, self.converse(&self.relays[place], mail));
        conversation.await.unwrap_or(Err(NotSent::just(Stage::Deadline)))
    }

    /// Whether any relay was usable when it was last probed.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.relays.iter().any(Relay::is_up)
    }

    /// Each relay when it was last probed, in order of preference: `ok`, or the stage at which the probe ended.
    #[must_use]
    pub fn states(&self) -> Vec<&'static str> {
        let state = |relay: &Relay| relay.trouble().as_ref().map_or("ok", |why| why.stage.as_str());
        self.relays.iter().map(state).collect()
    }

    /// How many mails can begin now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.relays.iter().filter(|relay| relay.is_up()).map(Relay::free).sum()
    }

    /// A place for a mail that is tried for the `attempts`th time: at the most preferred relay that is up and has one.
    /// Each further attempt begins its search one relay later, so that a relay which greets the probe and then refuses
    /// every mail holds none for long.
    #[must_use]
    pub fn slot(&self, attempts: i32) -> Option<Slot> {
        let up: Vec<usize> = (0..self.relays.len()).filter(|place| self.relays[*place].is_up()).collect();
        let first = attempts.max(1).unsigned_abs() as usize - 1;
        (0..up.len()).find_map(|n| {
            let relay = up[(first + n) % up.len()];
            self.relays[relay].slot().map(|permit| Slot { relay, _permit: permit })
        })
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
        relay.drop_stale();
        let asked = tokio::time::timeout(PROBE_DEADLINE, async {
            if let Some(mut connection) = kept.take() {
                // Silence may be a lost connection, and says nothing of the relay.
                let answer = tokio::time::timeout(KEPT_PROBE_DEADLINE, connection.command(Noop)).await;
                if matches!(answer, Ok(Ok(_))) {
                    return Ok(connection);
                }
            }
            let mut connection = relay.connect(&self.hello, PROBE_DEADLINE).await?;
            connection.command(Noop).await.map_err(NotSent::at(Stage::Connect))?;
            Ok(connection)
        });
        let found = asked.await.unwrap_or(Err(NotSent::just(Stage::Deadline)));
        let up = found.is_ok();
        if relay.is_found(found.as_ref().err()) {
            match &found {
                Ok(_) => tracing::info!(relay = place, "relay is usable"),
                Err(why) => tracing::warn!(relay = place, %why, "relay is not usable"),
            }
        }
        metrics.relay_up.get_or_create(&RelayLabel { relay: place }).set(i64::from(up));
        *kept = found.ok();
    }

    /// Waits until the rate of the relay of `slot` lets one more mail begin.
    ///
    /// # Errors
    ///
    /// [`NotSent`] at [`Stage::Rate`] when that takes longer than a conversation may.
    pub async fn ready(&self, slot: &Slot) -> Result<(), NotSent> {
        let ready = tokio::time::timeout(self.deadline, self.relays[slot.relay].ready());
        ready.await.map_err(|_| NotSent::just(Stage::Rate))
    }

    /// Hands a mail to the relay of `slot`. Sent means: the relay answered 250 after the final dot, within the deadline.
    /// Dropping the future drops the connection.
    ///
    /// # Errors
    ///
    /// [`NotSent`], with the stage at which the conversation ended.
    pub async fn send(&self, slot: &Slot, mail: &Mail) -> Result<(), NotSent> {
        let span = info_span!("smtp", otel.kind = "client", relay = slot.relay);
        self.try_out(slot.relay, mail).instrument(span).await
    }

    async fn converse(&self, relay: &Relay, mail: &Mail) -> Result<(), NotSent> {
        // In the hands of this function alone: whatever ends it early drops the connection with it.
        let mut connection = if let Some(connection) = begin_on_kept(relay, mail).await {
            connection
        } else {
            let mut fresh = relay.connect(&self.hello, self.deadline).await?;
            fresh.command(mail_from(mail)).await.map_err(NotSent::at(Stage::Mail))?;
            fresh
        };
        for to in mail.envelope.to() {
            connection.command(Rcpt::new(to.clone(), vec![])).await.map_err(NotSent::at(Stage::Rcpt))?;
        }
        // lettre takes any 2xx or 3xx for a yes; only these two are.
        let go_on = connection.command(Data).await.map_err(NotSent::at(Stage::Data))?;
        exactly(&go_on, 354, Stage::Data)?;
        let taken = connection.command(mail.dot_stuffed()).await.map_err(NotSent::at(Stage::Message))?;
        exactly(&taken, 250, Stage::Message)?;
        relay.keep(connection);
        Ok(())
    }
}

/// Begins the mail on a kept connection. `None` if there is none, or if it turns out to be dead: relays close idle
/// connections, and that is no failure of this mail.
async fn begin_on_kept(relay: &Relay, mail: &Mail) -> Option<AsyncSmtpConnection> {
    let mut connection = relay.kept()?;
    connection.command(mail_from(mail)).await.ok()?;
    Some(connection)
}

fn exactly(response: &Response, code: u16, stage: Stage) -> Result<(), NotSent> {
    let answered = response.code().into();
    if answered == code { Ok(()) } else { Err(NotSent { stage, code: Some(answered), why: None }) }
}

/// No parameters: addresses are ASCII, and lettre encodes every body to 7 bits.
fn mail_from(mail: &Mail) -> MailFrom {
    MailFrom::new(mail.envelope.from().cloned(), vec![])
}
