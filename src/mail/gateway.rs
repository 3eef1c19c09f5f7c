//! The way to the relays: which of them is usable, and which takes the next mail.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lettre::transport::smtp::extension::ClientId;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{Instrument as _, info_span};

use crate::config::{Config, ConfigError, OauthSecrets};
use crate::mail::message::Mail;
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::oauth::Tokens;
use crate::mail::relay::{Relay, read_ca};

/// Every relay, in order of preference, with what the probe last found.
#[derive(Debug)]
pub struct Gateway {
    pub(super) relays: Vec<Relay>,
    pub(super) hello: ClientId,
    deadline: Duration,
    pub(super) tokens: Option<Arc<Tokens>>,
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

impl Gateway {
    /// Reads `SMTP_RELAYS` and the `SMTP_*` settings.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable; it quotes nothing of a URL, which may hold a password.
    pub fn new(config: &Config, urls: &[String], oauth: &OauthSecrets) -> Result<Self, ConfigError> {
        let ca = config.smtp_ca_file.as_deref().map(read_ca).transpose()?;
        let tokens = Tokens::new(&config.smtp_oauth, oauth)?;
        let relays = urls
            .iter()
            .map(|url| {
                Relay::parse(url, config, ca.as_ref(), tokens.as_ref())
                    .map_err(|why| ConfigError::new("SMTP_RELAYS", why))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if relays.is_empty() {
            return Err(ConfigError::new("SMTP_RELAYS", "names no relay"));
        }
        if tokens.is_some() && !relays.iter().any(Relay::takes_tokens) {
            let why = "is given, but no relay of SMTP_RELAYS has auth=xoauth2";
            return Err(ConfigError::new("SMTP_OAUTH_TOKEN_URL", why));
        }
        Ok(Self {
            relays,
            hello: ClientId::Domain(config.smtp_ehlo_name.clone()),
            deadline: config.smtp_deadline,
            tokens,
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
        let conversation = tokio::time::timeout(
            self.deadline,
            self.relays[place].hand_over(&self.hello, self.deadline, mail),
        );
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
}
