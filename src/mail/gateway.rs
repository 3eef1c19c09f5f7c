//! The way to the relays: which of them is usable, and which takes the next mail.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lettre::transport::smtp::extension::ClientId;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, info_span};

use crate::config::{ConfigError, OauthSecrets, RelaySettings};
use crate::mail::demotion::Demotion;
use crate::mail::message::Mail;
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::oauth::Tokens;
use crate::mail::relay::Relay;
use crate::mail::sender;
use crate::mail::tls::Authorities;

/// Every relay, in order of preference, with what the probe last found.
#[derive(Debug)]
pub struct Gateway {
    pub(super) relays: Vec<Relay>,
    /// Of each relay. Set by sends, and so for the courier's order alone: nothing that `start` sees may depend on it.
    demotions: Vec<Mutex<Demotion>>,
    /// Mails that one relay has refused and that wait for a place at the next.
    waiting: AtomicUsize,
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

impl Slot {
    /// The relay's place in `SMTP_RELAYS`, from 0.
    #[must_use]
    pub const fn relay(&self) -> usize {
        self.relay
    }
}

impl Gateway {
    /// Reads `SMTP_RELAYS` and the `SMTP_*` settings.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable; it quotes nothing of a URL, which may hold a password.
    pub fn new(settings: &RelaySettings, urls: &[String], oauth: &OauthSecrets) -> Result<Self, ConfigError> {
        let ca = settings.smtp_ca_file.as_deref().map(Authorities::read).transpose()?;
        let tokens = Tokens::new(&settings.smtp_oauth, oauth)?;
        let relays = urls
            .iter()
            .map(|url| {
                Relay::parse(url, settings, ca.as_ref(), tokens.as_ref())
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
        let hello = sender::greeting(&settings.smtp_ehlo_name)
            .map_err(|why| ConfigError::new("SMTP_EHLO_NAME", why))?;
        Ok(Self {
            demotions: relays.iter().map(|_| Mutex::default()).collect(),
            relays,
            waiting: AtomicUsize::new(0),
            hello,
            deadline: settings.smtp_deadline,
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
    pub async fn send_via(&self, place: usize, mail: &Mail) -> Result<(), NotSent> {
        let deadline = Instant::now() + self.deadline;
        let conversation = self.relays[place].hand_over(&self.hello, deadline, mail);
        timeout_at(deadline, conversation).await.unwrap_or(Err(NotSent::just(Stage::Deadline)))
    }

    /// Whether any relay was usable when it was last probed.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.relays.iter().any(Relay::is_up)
    }

    /// Each relay when it was last probed, in order of preference: `ok`, or the stage at which the probe ended.
    #[must_use]
    pub fn states(&self) -> Vec<&'static str> {
        let state = |relay: &Relay| relay.trouble().as_ref().map_or("ok", |why| why.stage.into());
        self.relays.iter().map(state).collect()
    }

    /// The longest that one conversation takes.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How many mails can begin now: as many as the relays that come first have free places, less the mails that wait
    /// for one, so that no more are claimed than there are places for.
    #[must_use]
    pub fn free(&self) -> usize {
        let free: usize = self.first(1, Instant::now()).map(|place| self.relays[place].free()).sum();
        free.saturating_sub(self.waiting.load(Ordering::Relaxed))
    }

    /// A place for a mail that is claimed for the `attempts`th time: at the first relay in the courier's order that has
    /// one. A relay that was put last has none to give while another is up.
    #[must_use]
    pub fn slot(&self, attempts: i32) -> Option<Slot> {
        self.free_slot(self.first(attempts, Instant::now()))
    }

    /// A place for the same mail at the next relay in the courier's order: one that is up and is not among those that
    /// were `asked`. If none has a place it waits for one, but not longer than `until`. `None` if there is no such relay
    /// or no time left.
    pub async fn next_slot(&self, attempts: i32, asked: &[usize], until: Instant) -> Option<Slot> {
        let now = Instant::now();
        let left = self.order(attempts, now).map(|mut group| {
            group.retain(|place| !asked.contains(place));
            group
        });
        let group = left.into_iter().find(|group| !group.is_empty()).filter(|_| now < until)?;
        if let Some(slot) = self.free_slot(group.iter().copied()) {
            return Some(slot);
        }
        let relay = group[0];
        let _waiting = Waiting::among(&self.waiting);
        let permit = tokio::time::timeout_at(until, self.relays[relay].next_slot()).await.ok()??;
        Some(Slot { relay, _permit: permit })
    }

    /// Whether every relay that is up is among those that were `asked`.
    #[must_use]
    pub fn has_asked_all(&self, asked: &[usize]) -> bool {
        self.relays.iter().enumerate().all(|(place, relay)| !relay.is_up() || asked.contains(&place))
    }

    /// Waits until the rate of the relay of `slot` lets one more mail begin.
    ///
    /// # Errors
    ///
    /// [`NotSent`] at [`Stage::Rate`] when that takes longer than a conversation may, or lasts until `until`.
    pub async fn ready(&self, slot: &Slot, until: Instant) -> Result<(), NotSent> {
        let until = until.min(Instant::now() + self.deadline);
        let ready = tokio::time::timeout_at(until, self.relays[slot.relay].ready()).await;
        // A time that is over lets through what need not wait.
        ready.ok().filter(|()| Instant::now() < until).ok_or(NotSent::just(Stage::Rate))
    }

    /// Hands a mail to the relay of `slot`. Sent means: the relay answered 250 after the final dot, within the deadline.
    /// Dropping the future drops the connection.
    ///
    /// # Errors
    ///
    /// [`NotSent`], with the stage at which the conversation ended.
    pub async fn send(&self, slot: &Slot, mail: &Mail) -> Result<(), NotSent> {
        let span = info_span!("smtp", otel.kind = "client", relay = slot.relay);
        let sent = self.send_via(slot.relay, mail).instrument(span).await;
        self.learns(slot.relay, mail, &sent, Instant::now());
        sent
    }

    /// Ends the conversations that wait for a mail, each with QUIT: a second for each relay at most.
    pub async fn close(&self) {
        for relay in &self.relays {
            relay.close().await;
        }
    }

    /// Whether a relay is asked last, because it refuses mails by policy.
    pub(super) fn is_last(&self, place: usize, now: Instant) -> bool {
        let mut demotion = self.demotion(place);
        if demotion.returns(now) {
            tracing::info!(
                relay = place,
                "relay is asked in its place again: its time as the last one is over"
            );
        }
        demotion.is_last(now)
    }

    /// Notes what became of a mail at a relay, for the courier's order.
    fn learns(&self, place: usize, mail: &Mail, sent: &Result<(), NotSent>, now: Instant) {
        let mut demotion = self.demotion(place);
        match sent {
            Ok(()) if demotion.takes() => {
                tracing::info!(relay = place, "relay is asked in its place again: it took a mail");
            }
            Err(why) if why.is_by_policy() => {
                let domain = mail.envelope.to().first().map_or("", |to| to.domain());
                if let Some(time) = demotion.refuses(&domain.to_ascii_lowercase(), now) {
                    let seconds = time.as_secs();
                    tracing::warn!(relay = place, %why, seconds, "relay refuses mails by policy and is asked last");
                }
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn demotion(&self, place: usize) -> MutexGuard<'_, Demotion> {
        self.demotions[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The courier's order of the relays that are up: first those in their place, in order of preference, then those
    /// that were put last. Each further attempt begins one relay later, so that relays which greet the probe and then
    /// stall hold no mail until its code is dead.
    fn order(&self, attempts: i32, now: Instant) -> [Vec<usize>; 2] {
        let up = (0..self.relays.len()).filter(|place| self.relays[*place].is_up());
        let (mut last, mut first): (Vec<_>, Vec<_>) = up.partition(|place| self.is_last(*place, now));
        let before = attempts.max(1).unsigned_abs() as usize - 1;
        for group in [&mut first, &mut last] {
            let steps = before.checked_rem(group.len()).unwrap_or(0);
            group.rotate_left(steps);
        }
        [first, last]
    }

    /// Those that a mail may begin at: the ones in their place, or all if every one was put last.
    fn first(&self, attempts: i32, now: Instant) -> impl Iterator<Item = usize> {
        self.order(attempts, now).into_iter().find(|group| !group.is_empty()).into_iter().flatten()
    }

    fn free_slot(&self, mut places: impl Iterator<Item = usize>) -> Option<Slot> {
        places.find_map(|relay| self.relays[relay].slot().map(|permit| Slot { relay, _permit: permit }))
    }
}

/// One that waits, counted as long as this lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn among(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::MailSettings;
    use crate::locale::Locale;
    use crate::mail::message::{Composer, MailKind};
    use crate::mail::not_sent::Enhanced;
    use crate::secret::Key;

    #[derive(clap::Parser)]
    struct Settings {
        #[command(flatten)]
        mail: MailSettings,
        #[command(flatten)]
        relays: RelaySettings,
    }

    /// Three relays that are up, and mails to three domains.
    fn gateway_and_mails() -> (Gateway, Vec<Mail>) {
        let settings = Settings::parse_from(["test"]);
        let urls: Vec<_> = (1..=3).map(|host| format!("smtps://192.0.2.{host}")).collect();
        let gateway = Gateway::new(&settings.relays, &urls, &OauthSecrets::default()).unwrap();
        for relay in &gateway.relays {
            relay.record_probe(None);
        }
        let composer = Composer::new(&settings.mail, &Key::random("test")).unwrap();
        let at = time::OffsetDateTime::UNIX_EPOCH;
        let mail =
            |domain| composer.sample(MailKind::Test, Locale::En, &format!("a@{domain}.example"), at).unwrap();
        (gateway, ["one", "two", "three"].map(mail).into())
    }

    fn refused(code: u16, subject: u16, detail: u16) -> Result<(), NotSent> {
        let enhanced = Enhanced::Code(subject, detail);
        Err(NotSent { code: Some(code), enhanced, ..NotSent::just(Stage::Rcpt) })
    }

    #[test]
    fn a_relay_that_refuses_three_domains_by_policy_is_asked_last_and_is_up_all_the_same() {
        let (gateway, mails) = gateway_and_mails();
        let now = Instant::now();
        let refuses = |code, subject, detail, at| {
            for mail in &mails {
                gateway.learns(0, mail, &refused(code, subject, detail), at);
            }
        };
        // Greylisting, unknown recipients and an unknown sender say nothing about the relay.
        for (code, subject, detail) in [(450, 7, 1), (550, 1, 1), (550, 1, 8)] {
            refuses(code, subject, detail, now);
            assert_eq!(gateway.order(1, now), [vec![0, 1, 2], vec![]], "{code} {subject}.{detail}");
        }
        refuses(554, 7, 1, now);
        assert_eq!(gateway.order(1, now), [vec![1, 2], vec![0]]);
        // Each further attempt begins one later among those in their place.
        assert_eq!(gateway.order(2, now), [vec![2, 1], vec![0]]);
        assert_eq!(gateway.order(3, now), [vec![1, 2], vec![0]]);
        assert!(gateway.is_up() && gateway.states() == ["ok"; 3]);
        // It is used when no other is up.
        for other in [1, 2] {
            gateway.relays[other].record_probe(Some(&NotSent::just(Stage::Connect)));
        }
        assert_eq!(gateway.first(1, now).collect::<Vec<_>>(), [0]);
        for other in [1, 2] {
            gateway.relays[other].record_probe(None);
        }
        let later = now + Duration::from_secs(30);
        assert_eq!(gateway.order(1, later), [vec![0, 1, 2], vec![]]);
        refuses(554, 7, 1, later);
        assert_eq!(gateway.order(1, later + Duration::from_secs(59)), [vec![1, 2], vec![0]]);
        gateway.learns(0, &mails[0], &Ok(()), later);
        assert_eq!(gateway.order(1, later), [vec![0, 1, 2], vec![]]);
    }

    #[tokio::test]
    async fn a_mail_goes_from_relay_to_relay_and_to_none_twice() {
        let (gateway, mails) = gateway_and_mails();
        for mail in &mails {
            gateway.learns(0, mail, &refused(554, 7, 1), Instant::now());
        }
        let soon = Instant::now() + Duration::from_mins(1);
        let next =
            async |asked: &[usize], until| gateway.next_slot(1, asked, until).await.map(|slot| slot.relay);
        assert_eq!(gateway.slot(1).map(|slot| slot.relay), Some(1));
        assert_eq!(next(&[1], soon).await, Some(2));
        assert_eq!(next(&[1, 2], soon).await, Some(0));
        assert_eq!(next(&[1, 2, 0], soon).await, None);
        assert_eq!(next(&[1], Instant::now()).await, None, "no time is left");
        assert!(gateway.has_asked_all(&[2, 0, 1]) && !gateway.has_asked_all(&[1, 2]));
    }

    /// Nor are there more claimed than there are places for, while some wait.
    #[tokio::test]
    async fn a_mail_waits_for_its_place_at_the_next_relay_rather_than_ask_the_last_one() {
        let (gateway, mails) = gateway_and_mails();
        for mail in &mails {
            gateway.learns(0, mail, &refused(554, 7, 1), Instant::now());
        }
        let held: Vec<_> = std::iter::repeat_with(|| gateway.relays[2].slot()).take(8).collect();
        assert_eq!(gateway.free(), 8, "those of the second relay");
        let until = Instant::now() + Duration::from_mins(1);
        let waits = gateway.next_slot(1, &[1], until);
        tokio::pin!(waits);
        tokio::select! {
            biased;
            _ = &mut waits => panic!("there is no place"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(gateway.free(), 7);
        drop(held);
        assert_eq!(waits.await.map(|slot| slot.relay), Some(2));
        assert_eq!(gateway.free(), 16);
    }
}
