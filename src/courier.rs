//! The courier: takes mails out of the outbox and hands them to a relay.
//!
//! It wakes at once after a commit of this process, and looks through the whole outbox at every poll interval for what
//! another process left. A mail is never sent inside a transaction. No more mails are claimed than the relays have free
//! slots, so a claimed mail starts at once.
//!
//! A lease outlives what is done under it: see [`lease`].

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};

use crate::clock::Clock;
use crate::config::{Config, STORAGE_DEADLINE};
use crate::database::{cause, in_time};
use crate::locale::Locale;
use crate::mail::gateway::{Gateway, NotSent, Slot, Stage};
use crate::mail::message::{About, Composer, Mail};
use crate::metrics::{MailOutcome, Metrics};
use crate::outbox::{self, Claim, ClaimedMail, Content, Reach};
use crate::secret::Keys;

/// Claims are at least this far apart. Each is a commit of its own; one after every commit of a start would have the two
/// wait for each other's flush.
const PACE: Duration = Duration::from_millis(10);

/// How long a claimed mail is its claimer's: one deadline for the wait that the relay's rate may impose, one for the
/// conversation, each enforced by [`Gateway::send`]; and ten of PostgreSQL's, of which the claim takes one at most and
/// the end of the mail the rest (`Courier::finish` stops with the lease). So as long as the clocks of the replicas
/// agree, no two of them hold one mail; when they do not, a replica claims nothing ([`Clock::trusted_now`]).
#[must_use]
pub fn lease(smtp_deadline: Duration) -> Duration {
    2 * smtp_deadline + 10 * STORAGE_DEADLINE
}

/// Tells the courier that something was committed. Ringing costs nothing; rings that come together are one.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<Notify>);

impl Bell {
    /// Wakes the courier, now or when it next listens.
    pub fn ring(&self) {
        self.0.notify_one();
    }
}

/// What the courier works with.
#[derive(Debug)]
pub struct Courier {
    /// Its own small pool: requests must not wait for mails, nor mails for requests.
    pub pool: PgPool,
    /// The time.
    pub clock: Clock,
    /// What codes are derived from.
    pub code_keys: Keys,
    /// The way to the relays.
    pub gateway: Arc<Gateway>,
    /// What mails say.
    pub composer: Composer,
    /// Its figures.
    pub metrics: Arc<Metrics>,
    /// Rings after a commit.
    pub bell: Bell,
}

impl Courier {
    /// Works until `stop`; then sends what this service owed at that time, as far as it can be sent at once, and ends.
    /// Dropping the future drops the connections of mails under way; their leases end by themselves.
    pub async fn run(self, config: &Config, stop: CancellationToken) {
        let lease = lease(config.smtp_deadline);
        let courier = Arc::new(self);
        let mut busy: JoinSet<()> = JoinSet::new();
        let mut poll = tokio::time::interval(config.outbox_poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reach = Reach::All;
        let mut stopped_at = None;
        loop {
            while busy.try_join_next().is_some() {}
            courier.metrics.courier_rounds.inc();
            let claimed_at = Instant::now();
            let mut more = false;
            match courier.claim(reach, stopped_at, lease).await {
                Ok((now, claim)) => {
                    let held = Held { now, claimed_at, lease };
                    courier.count("no_recipient", "none", claim.no_recipient);
                    courier.count("expired", "none", claim.expired);
                    more = claim.more && claim.no_recipient + claim.expired > 0;
                    for mail in claim.mails {
                        let slot = courier.gateway.slot(mail.attempts);
                        let span = span_of(&mail);
                        busy.spawn(Arc::clone(&courier).deliver(slot, mail, held).instrument(span));
                    }
                }
                Err(error) => {
                    tracing::warn!(cause = cause(&error), "the outbox cannot be read; it is tried again");
                }
            }
            if stopped_at.is_some() && busy.is_empty() && !more {
                let _ = tokio::time::timeout(STORAGE_DEADLINE, courier.pool.close()).await;
                return;
            }
            tokio::time::sleep_until(claimed_at + PACE).await;
            if more {
                reach = Reach::All;
                continue;
            }
            reach = tokio::select! {
                () = stop.cancelled(), if stopped_at.is_none() => {
                    stopped_at = Some(courier.clock.now());
                    Reach::All
                }
                // A mail whose task panicked stays owed: its lease will end.
                Some(_) = busy.join_next() => Reach::All,
                () = courier.bell.0.notified(), if stopped_at.is_none() => Reach::Recent,
                _ = poll.tick() => Reach::All,
            };
        }
    }

    /// With no slot free, rows that need no mail are still finished.
    async fn claim(
        &self,
        reach: Reach,
        owed_by: Option<OffsetDateTime>,
        lease: Duration,
    ) -> Result<(OffsetDateTime, Claim), sqlx::Error> {
        let Some(now) = self.clock.trusted_now() else { return Ok((self.clock.now(), Claim::default())) };
        let claim =
            in_time(outbox::claim(&self.pool, now, reach, owed_by, self.gateway.free(), lease)).await?;
        Ok((now, claim))
    }

    async fn deliver(self: Arc<Self>, slot: Option<Slot>, owed: ClaimedMail, held: Held) {
        tracing::trace!(outbox_id = %owed.id, attempts = owed.attempts, "mail is claimed");
        let outcome = match (self.compose(&owed, held.now()), &slot) {
            (Some(mail), Some(slot)) => self.gateway.send(slot, &mail).await,
            // The relay was found down between the claim and now.
            (Some(_), None) => Err(NotSent::just(Stage::NoRelay)),
            (None, _) => {
                // Another replica may have the secret that this one lacks, in the middle of a rotation.
                tracing::error!(outbox_id = %owed.id, "the mail cannot be built; is its secret gone?");
                Err(NotSent::just(Stage::Compose))
            }
        };
        match outcome {
            Ok(()) => {
                Span::current().record("mail.outcome", "sent");
                self.count("sent", "none", 1);
                self.metrics.mail_latency.observe((held.now() - owed.created_at).as_seconds_f64());
                self.finish(&owed, held, Finish::Sent).await;
            }
            Err(why) => {
                let next =
                    outbox::backoff(held.now(), &owed, rand::rng().random()).filter(|_| !why.is_final());
                let outcome = if next.is_some() { "retried" } else { "given_up" };
                tracing::warn!(outbox_id = %owed.id, attempts = owed.attempts, %why, outcome, "mail was not taken");
                let stage = why.stage.as_str();
                Span::current().record("mail.outcome", outcome).record("mail.stage", stage);
                self.count(outcome, stage, 1);
                let why = why.to_string();
                let finish = next.map_or(Finish::GiveUp(&why), |at| Finish::Retry(at, &why));
                self.finish(&owed, held, finish).await;
            }
        }
    }

    /// `None` if the code's secret has been rotated away, or the stored address fits no mail.
    fn compose(&self, owed: &ClaimedMail, now: OffsetDateTime) -> Option<Mail> {
        let locale = [&owed.account_locale, &owed.request_locale].into_iter().flatten().next();
        let about = About {
            id: owed.id,
            to: &owed.account_email,
            locale: locale.and_then(|tag| tag.parse().ok()).unwrap_or(Locale::Vi),
            user_agent: &owed.user_agent,
        };
        match &owed.content {
            Content::RecoveryCode { recovery_session_id, key_id, asked_at, .. } => {
                let code = self.code_keys.by_id(key_id)?.code(*recovery_session_id);
                self.composer.recovery_code(&about, &code, *asked_at, owed.expires_at, now)
            }
            Content::PasswordChanged => self.composer.password_changed(&about, owed.created_at, now),
        }
        .ok()
    }

    /// Writes down what became of a mail. While PostgreSQL is away it is tried again until the lease ends: a mail that
    /// was taken and not struck off is sent twice.
    async fn finish(&self, owed: &ClaimedMail, held: Held, finish: Finish<'_>) {
        loop {
            let written = match finish {
                Finish::Sent => in_time(outbox::sent(&self.pool, held.now(), owed)).await,
                Finish::Retry(at, why) => in_time(outbox::retry_at(&self.pool, at, owed, why)).await,
                Finish::GiveUp(why) => in_time(outbox::give_up(&self.pool, owed, why)).await,
            };
            let Err(error) = written else { return };
            tracing::warn!(cause = cause(&error), outbox_id = %owed.id, "the outbox cannot be written");
            let pause = Duration::from_millis(500);
            if held.claimed_at.elapsed() + pause >= held.lease {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn count(&self, outcome: &'static str, stage: &'static str, mails: u64) {
        if mails > 0 {
            self.metrics.mails.get_or_create(&MailOutcome { outcome, stage }).inc_by(mails);
        }
    }
}

/// The trace of a mail. It begins here, and nothing in it leads to who asked, or is written to: see [`crate::traces`].
fn span_of(owed: &ClaimedMail) -> Span {
    let kind = match owed.content {
        Content::RecoveryCode { .. } => "recovery_code",
        Content::PasswordChanged => "password_changed",
    };
    info_span!(
        parent: None,
        "send mail",
        outbox_id = %owed.id,
        mail.kind = kind,
        mail.attempts = owed.attempts,
        mail.outcome = Empty,
        mail.stage = Empty,
    )
}

/// A claim that holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    now: OffsetDateTime,
    claimed_at: Instant,
    lease: Duration,
}

impl Held {
    /// The present, counted from the claim's: a clock that is moved during a conversation must not decide whether the
    /// code is dead.
    fn now(&self) -> OffsetDateTime {
        self.now + self.claimed_at.elapsed()
    }
}

/// What became of a mail; why, as the outbox notes it.
#[derive(Clone, Copy, Debug)]
enum Finish<'a> {
    Sent,
    Retry(OffsetDateTime, &'a str),
    GiveUp(&'a str),
}
