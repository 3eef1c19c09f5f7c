//! All relays: which of them are usable, and in which order the courier tries them.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lettre::transport::smtp::extension::ClientId;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, info_span};

use crate::config::{ConfigError, ConfigErrors, OauthSecrets, RelaySettings};
use crate::mail::demotion::Demotion;
use crate::mail::message::Mail;
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::oauth::Tokens;
use crate::mail::relay::Relay;
use crate::mail::relay_url::RelayUrl;
use crate::mail::sender;
use crate::mail::tls::Authorities;

/// The relays in order of preference.
#[derive(Debug)]
pub struct Gateway {
    pub(super) relays: Vec<Relay>,
    /// One for each relay, set by sends. They change the courier's order, never `start`'s answer.
    demotions: Vec<Mutex<Demotion>>,
    /// How many claimed emails wait for a slot in [`Gateway::next_slot`].
    waiting: AtomicUsize,
    pub(super) ehlo_name: ClientId,
    deadline: Duration,
    pub(super) tokens: Option<Arc<Tokens>>,
}

/// A relay as operators see it: `0 (mail.example.com:587)`.
#[derive(Debug)]
pub struct RelayName<'a> {
    /// Its place in `SMTP_RELAYS`, from 0, as in metrics and logs.
    pub place: usize,
    relay: &'a Relay,
}

impl fmt::Display for RelayName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.place, self.relay)
    }
}

/// Permission to send one email through one relay. Dropping it frees the slot.
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
    /// A sentence for each unusable variable. It quotes no URL, which may contain a password.
    pub fn new(config: &RelaySettings, urls: &[String], oauth: &OauthSecrets) -> Result<Self, ConfigErrors> {
        let mut problems = ConfigErrors::default();
        let ca = config.smtp_ca_file.as_deref().and_then(|file| problems.take(Authorities::read(file)));
        let ehlo_name = sender::ehlo_name(&config.smtp_ehlo_name);
        let ehlo_name = problems.take(ehlo_name.map_err(|why| ConfigError::new("SMTP_EHLO_NAME", why)));
        // Without valid token settings, each relay with `auth=xoauth2` would seem wrong too.
        let Some(tokens) = problems.take(Tokens::new(&config.smtp_oauth, oauth)) else {
            return Err(problems);
        };
        let parse = |url: &String| RelayUrl::parse(url, config, ca.as_ref(), tokens.as_ref());
        let relays = urls.iter().map(|url| parse(url).map(|url| Relay::new(url, config)));
        let relays: Result<Vec<_>, _> = relays.collect();
        let relays = relays.map_err(|why| ConfigError::new("SMTP_RELAYS", why));
        let relays = problems.take(relays).unwrap_or_default();
        if relays.is_empty() {
            problems.add(ConfigError::new("SMTP_RELAYS", "names no relay"));
        } else if tokens.is_some() && !relays.iter().any(Relay::uses_tokens) {
            let why = "is given, but no relay of SMTP_RELAYS has auth=xoauth2";
            problems.add(ConfigError::new("SMTP_OAUTH_TOKEN_URL", why));
        }
        problems.or(ehlo_name).map(|ehlo_name| Self {
            demotions: relays.iter().map(|_| Mutex::default()).collect(),
            relays,
            waiting: AtomicUsize::new(0),
            ehlo_name,
            deadline: config.smtp_deadline,
            tokens,
        })
    }

    /// The names of the relays, in order of preference.
    pub fn relays(&self) -> impl Iterator<Item = RelayName<'_>> {
        self.relays.iter().enumerate().map(|(place, relay)| RelayName { place, relay })
    }

    /// Sends an email through one relay, even if the probe found it unusable.
    ///
    /// # Errors
    ///
    /// [`NotSent`], with the stage at which the conversation ended.
    pub async fn send_via(&self, place: usize, mail: &Mail) -> Result<(), NotSent> {
        let deadline = Instant::now() + self.deadline;
        let conversation = self.relays[place].send(&self.ehlo_name, deadline, mail);
        timeout_at(deadline, conversation).await.unwrap_or(Err(NotSent::just(Stage::Deadline)))
    }

    /// Whether the last probe of any relay found it usable.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.relays.iter().any(Relay::is_up)
    }

    /// The result of each relay's last probe: `ok`, or the stage at which it failed.
    #[must_use]
    pub fn states(&self) -> Vec<&'static str> {
        let state = |relay: &Relay| relay.failure().as_ref().map_or("ok", |why| why.stage.into());
        self.relays.iter().map(state).collect()
    }

    /// The longest duration of one conversation.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        self.deadline
    }

    /// How many emails can be sent now: the free slots of the relays that a new email may start at,
    /// minus the emails that wait for a slot.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        let candidates = self.candidates(1, Instant::now());
        let free: usize = candidates.map(|place| self.relays[place].free_slots()).sum();
        free.saturating_sub(self.waiting.load(Ordering::Relaxed))
    }

    /// A slot for an email that is claimed for the `attempts`th time, at the first relay in the
    /// courier's order with a free one. Demoted relays count only if no other relay is up.
    #[must_use]
    pub fn slot(&self, attempts: i32) -> Option<Slot> {
        self.free_slot(self.candidates(attempts, Instant::now()))
    }

    /// A slot for an email that the relays in `tried` did not accept, at the next other relay that
    /// is up, in the courier's order. If no slot is free, it waits for one until `until`. `None` if
    /// there is no such relay or no time left.
    pub async fn next_slot(&self, attempts: i32, tried: &[usize], until: Instant) -> Option<Slot> {
        let now = Instant::now();
        let untried = self.order(attempts, now).map(|mut group| {
            group.retain(|place| !tried.contains(place));
            group
        });
        let group = untried.into_iter().find(|group| !group.is_empty()).filter(|_| now < until)?;
        if let Some(slot) = self.free_slot(group.iter().copied()) {
            return Some(slot);
        }
        let relay = group[0];
        let _guard = WaitingGuard::new(&self.waiting);
        let permit = tokio::time::timeout_at(until, self.relays[relay].wait_for_slot()).await.ok()??;
        Some(Slot { relay, _permit: permit })
    }

    /// Whether every relay that is up is in `tried`.
    #[must_use]
    pub fn has_tried_all(&self, tried: &[usize]) -> bool {
        self.relays.iter().enumerate().all(|(place, relay)| !relay.is_up() || tried.contains(&place))
    }

    /// Waits until the rate limit of the slot's relay allows another email.
    ///
    /// # Errors
    ///
    /// [`NotSent`] at [`Stage::Rate`] if that takes longer than a conversation may, or longer than
    /// `until`.
    pub async fn wait_for_rate(&self, slot: &Slot, until: Instant) -> Result<(), NotSent> {
        let until = until.min(Instant::now() + self.deadline);
        let ready = tokio::time::timeout_at(until, self.relays[slot.relay].wait_for_rate()).await;
        // `timeout_at` lets a future that is ready at once succeed even after the deadline.
        ready.ok().filter(|()| Instant::now() < until).ok_or(NotSent::just(Stage::Rate))
    }

    /// Sends an email through the relay of `slot`. Success means that the relay answered 250 after
    /// the final dot, within the deadline. Dropping the future drops the connection.
    ///
    /// # Errors
    ///
    /// [`NotSent`], with the stage at which the conversation ended.
    pub async fn send(&self, slot: &Slot, mail: &Mail) -> Result<(), NotSent> {
        let span = info_span!("smtp", otel.kind = "client", relay = slot.relay);
        let sent = self.send_via(slot.relay, mail).instrument(span).await;
        self.record_result(slot.relay, mail, &sent, Instant::now());
        sent
    }

    /// Closes the idle connections with QUIT. It takes at most a second for each relay.
    pub async fn close(&self) {
        for relay in &self.relays {
            relay.close().await;
        }
    }

    /// Whether a relay is demoted because it refuses emails by policy.
    pub(super) fn is_demoted(&self, place: usize, now: Instant) -> bool {
        let mut demotion = self.demotion(place);
        if demotion.expire(now) {
            tracing::info!(relay = place, "relay's demotion has expired: it is tried in its usual order");
        }
        demotion.is_active(now)
    }

    /// Records the result of a send, for the courier's order.
    fn record_result(&self, place: usize, mail: &Mail, sent: &Result<(), NotSent>, now: Instant) {
        let mut demotion = self.demotion(place);
        match sent {
            Ok(()) if demotion.record_acceptance() => {
                tracing::info!(
                    relay = place,
                    "relay accepted an email and is tried in its usual order again"
                );
            }
            Err(why) if why.is_by_policy() => {
                let domain = mail.envelope.to().first().map_or("", |to| to.domain());
                if let Some(duration) = demotion.record_refusal(&domain.to_ascii_lowercase(), now) {
                    let seconds = duration.as_secs();
                    tracing::warn!(relay = place, %why, seconds, "relay refuses emails by policy and is tried last");
                }
            }
            Ok(()) | Err(_) => {}
        }
    }

    fn demotion(&self, place: usize) -> MutexGuard<'_, Demotion> {
        self.demotions[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The courier's order of the relays that are up, in two groups: those that are not demoted,
    /// then the demoted ones, each in order of preference.
    ///
    /// Each further attempt of an email begins one relay later in its group. Otherwise a relay that
    /// answers the probe and then stalls could hold the email until its code expires.
    fn order(&self, attempts: i32, now: Instant) -> [Vec<usize>; 2] {
        let up = (0..self.relays.len()).filter(|place| self.relays[*place].is_up());
        let (mut demoted, mut usual): (Vec<_>, Vec<_>) = up.partition(|place| self.is_demoted(*place, now));
        let earlier_attempts = attempts.max(1).unsigned_abs() as usize - 1;
        for group in [&mut usual, &mut demoted] {
            let steps = earlier_attempts.checked_rem(group.len()).unwrap_or(0);
            group.rotate_left(steps);
        }
        [usual, demoted]
    }

    /// The relays that a claimed email may start at: those not demoted; if there are none, all.
    fn candidates(&self, attempts: i32, now: Instant) -> impl Iterator<Item = usize> {
        self.order(attempts, now).into_iter().find(|group| !group.is_empty()).into_iter().flatten()
    }

    fn free_slot(&self, mut places: impl Iterator<Item = usize>) -> Option<Slot> {
        places.find_map(|relay| self.relays[relay].slot().map(|permit| Slot { relay, _permit: permit }))
    }
}

/// Counts one waiting email until it is dropped.
struct WaitingGuard<'a>(&'a AtomicUsize);

impl<'a> WaitingGuard<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for WaitingGuard<'_> {
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

    /// Three relays that are up, and emails to three domains.
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
    fn a_relay_that_refuses_three_domains_by_policy_is_tried_last_and_stays_up() {
        let (gateway, mails) = gateway_and_mails();
        let now = Instant::now();
        let refuses = |code, subject, detail, at| {
            for mail in &mails {
                gateway.record_result(0, mail, &refused(code, subject, detail), at);
            }
        };
        // Greylisting, unknown recipients and an unknown sender say nothing about the relay.
        for (code, subject, detail) in [(450, 7, 1), (550, 1, 1), (550, 1, 8)] {
            refuses(code, subject, detail, now);
            assert_eq!(gateway.order(1, now), [vec![0, 1, 2], vec![]], "{code} {subject}.{detail}");
        }
        refuses(554, 7, 1, now);
        assert_eq!(gateway.order(1, now), [vec![1, 2], vec![0]]);
        // Each further attempt begins one relay later in the first group.
        assert_eq!(gateway.order(2, now), [vec![2, 1], vec![0]]);
        assert_eq!(gateway.order(3, now), [vec![1, 2], vec![0]]);
        assert!(gateway.is_up() && gateway.states() == ["ok"; 3]);
        // A demoted relay is used when no other is up.
        for other in [1, 2] {
            gateway.relays[other].record_probe(Some(&NotSent::just(Stage::Connect)));
        }
        assert_eq!(gateway.candidates(1, now).collect::<Vec<_>>(), [0]);
        for other in [1, 2] {
            gateway.relays[other].record_probe(None);
        }
        let later = now + Duration::from_secs(30);
        assert_eq!(gateway.order(1, later), [vec![0, 1, 2], vec![]]);
        refuses(554, 7, 1, later);
        assert_eq!(gateway.order(1, later + Duration::from_secs(59)), [vec![1, 2], vec![0]]);
        gateway.record_result(0, &mails[0], &Ok(()), later);
        assert_eq!(gateway.order(1, later), [vec![0, 1, 2], vec![]]);
    }

    #[tokio::test]
    async fn an_email_is_offered_to_each_relay_once() {
        let (gateway, mails) = gateway_and_mails();
        for mail in &mails {
            gateway.record_result(0, mail, &refused(554, 7, 1), Instant::now());
        }
        let soon = Instant::now() + Duration::from_mins(1);
        let next =
            async |tried: &[usize], until| gateway.next_slot(1, tried, until).await.map(|slot| slot.relay);
        assert_eq!(gateway.slot(1).map(|slot| slot.relay), Some(1));
        assert_eq!(next(&[1], soon).await, Some(2));
        assert_eq!(next(&[1, 2], soon).await, Some(0));
        assert_eq!(next(&[1, 2, 0], soon).await, None);
        assert_eq!(next(&[1], Instant::now()).await, None, "no time is left");
        assert!(gateway.has_tried_all(&[2, 0, 1]) && !gateway.has_tried_all(&[1, 2]));
    }

    /// A waiting email reduces the free slots, so the courier claims no other email for that slot.
    #[tokio::test]
    async fn an_email_waits_for_a_slot_at_the_next_relay_instead_of_using_a_demoted_one() {
        let (gateway, mails) = gateway_and_mails();
        for mail in &mails {
            gateway.record_result(0, mail, &refused(554, 7, 1), Instant::now());
        }
        let held: Vec<_> = std::iter::repeat_with(|| gateway.relays[2].slot()).take(8).collect();
        assert_eq!(gateway.free_slots(), 8, "the slots of the second relay");
        let until = Instant::now() + Duration::from_mins(1);
        let waits = gateway.next_slot(1, &[1], until);
        tokio::pin!(waits);
        tokio::select! {
            biased;
            _ = &mut waits => panic!("there is no free slot"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(gateway.free_slots(), 7);
        drop(held);
        assert_eq!(waits.await.map(|slot| slot.relay), Some(2));
        assert_eq!(gateway.free_slots(), 16);
    }
}
