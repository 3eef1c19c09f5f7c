//! The courier: takes mails out of the outbox and hands them to a relay.
//!
//! It wakes at once after a commit of this process, and looks through the whole outbox at every poll interval for what
//! another process left. A mail is never sent inside a transaction. No more mails are claimed than the relays have free
//! slots, so a claimed mail starts at once.
//!
//! A lease outlives what is done under it: see [`lease`]. The courier has a thread of its own, so that requests are read
//! and answered meanwhile (docs/decisions/21).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::RngExt as _;
use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, Span, info_span};
use uuid::Uuid;

use crate::clock::Clock;
use crate::config::{CODE_LIFE_ON_ARRIVAL, Config, STORAGE_DEADLINE};
use crate::database::{failures, in_time, is_statements_fault};
use crate::group_commit::{self, Arrivals, Batch, GroupCommit};
use crate::locale::Locale;
use crate::mail::gateway::{Gateway, Slot};
use crate::mail::message::{About, Composer, Mail};
use crate::mail::not_sent::{NotSent, Stage};
use crate::metrics::{MailOutcome, Metrics};
use crate::outbox::{self, Claim, ClaimedMail, Content, Taken};
use crate::secret::Keys;

/// Claims are at least this far apart. Each is a commit of its own; one after every commit of a start would have the two
/// wait for each other's flush (docs/decisions/2).
const PACE: Duration = Duration::from_millis(30);
/// The same while more mails are owed than the relays have free slots: then mails wait for claims.
const BUSY_PACE: Duration = Duration::from_millis(2);
/// How many rows a claim then looks through for each mail that can begin.
const ROWS_A_SLOT: usize = 8;
/// Mails that are struck off in one transaction at most.
const STRUCK_OFF: usize = 256;

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
pub struct Bell(Arc<Ringing>);

#[derive(Debug)]
struct Ringing {
    notify: Notify,
    /// The first half of the first id that has to be looked at; past all of them, if it is none.
    from: AtomicU64,
}

impl Default for Ringing {
    fn default() -> Self {
        Self { notify: Notify::default(), from: AtomicU64::new(u64::MAX) }
    }
}

impl Bell {
    /// Wakes the courier, now or when it next listens: mails may be owed that were not before, none with an id below `from`.
    pub fn ring(&self, from: Uuid) {
        self.remember(from);
        self.0.notify.notify_one();
    }

    fn remember(&self, from: Uuid) {
        self.0.from.fetch_min(from.as_u64_pair().0, Ordering::Relaxed);
    }

    /// Where to look from, for what was rung for since this was asked last.
    fn take(&self) -> Uuid {
        Uuid::from_u64_pair(self.0.from.swap(u64::MAX, Ordering::Relaxed), 0)
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
        // Every mail that is under way has its place, so that the queue is never full.
        let (taken, arrivals) = group_commit::channel(Semaphore::MAX_PERMITS, STRUCK_OFF, Duration::MAX);
        let mut striking_off = JoinSet::new();
        striking_off.spawn(Arc::clone(&courier).strike_off_all(arrivals));
        let freed = Arc::<Notify>::default();
        let mut busy: JoinSet<()> = JoinSet::new();
        let mut poll = tokio::time::interval(config.outbox_poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look_everywhere = true;
        let mut mails_wait = false;
        let mut stopped_at = None;
        loop {
            while busy.try_join_next().is_some() {}
            courier.metrics.courier_rounds.inc();
            let claimed_at = Instant::now();
            let free = courier.gateway.free();
            let window = if mails_wait && free > 0 { free * ROWS_A_SLOT } else { outbox::WINDOW };
            let mut more = false;
            let rung_from = courier.bell.take();
            let from = if look_everywhere { Uuid::nil() } else { rung_from };
            match courier.claim(from, stopped_at, free, window, lease).await {
                Ok((now, claim)) => {
                    let held = Held { now, claimed_at, lease };
                    courier.count("no_recipient", "none", claim.no_recipient);
                    courier.count("expired", "none", claim.expired);
                    let full = free > 0 && claim.mails.len() == free;
                    mails_wait = full || (free == 0 && !busy.is_empty());
                    // In a small window there may have been nothing but rows that another replica was claiming.
                    let looked_through = claim.no_recipient + claim.expired == 0 && window == outbox::WINDOW;
                    more = claim.more && !full && !looked_through;
                    for mail in claim.mails {
                        let slot = courier.gateway.slot(mail.attempts);
                        let span = span_of(&mail);
                        let (mail, ways) = (Arc::new(mail), (taken.clone(), Arc::clone(&freed)));
                        busy.spawn(Arc::clone(&courier).deliver(slot, mail, held, ways).instrument(span));
                    }
                }
                Err(error) => {
                    mails_wait = false;
                    failures::note("read the outbox", &error);
                }
            }
            if stopped_at.is_some() && busy.is_empty() && !more {
                drop(taken);
                striking_off.join_all().await;
                let _ = tokio::time::timeout(STORAGE_DEADLINE, courier.pool.close()).await;
                return;
            }
            tokio::time::sleep_until(claimed_at + if mails_wait { BUSY_PACE } else { PACE }).await;
            look_everywhere = more
                || tokio::select! {
                    () = stop.cancelled(), if stopped_at.is_none() => {
                        stopped_at = Some(courier.clock.now());
                        true
                    }
                    () = freed.notified(), if mails_wait => true,
                    // A mail whose task panicked stays owed: its lease will end.
                    Some(_) = busy.join_next(), if stopped_at.is_some() || mails_wait => true,
                    () = courier.bell.0.notify.notified(), if stopped_at.is_none() && !mails_wait => false,
                    _ = poll.tick() => true,
                };
        }
    }

    /// Writes down which mails were taken, all that have been taken meanwhile at once, until nobody sends any more.
    async fn strike_off_all(self: Arc<Self>, mut arrivals: Arrivals<Taken, ()>) {
        while let Some(batch) = arrivals.next().await {
            // No row may fail another's: whichever the statement stumbled over is found one by one.
            if let Err(batch) = self.strike_off(batch).await {
                for single in batch.split() {
                    let _ = self.strike_off(single).await;
                }
            }
        }
    }

    /// Gives the mails back if it is their own fault that they cannot be struck off.
    async fn strike_off(&self, batch: Batch<Taken, ()>) -> Result<(), Batch<Taken, ()>> {
        let size = batch.requests.len();
        let Err(error) = in_time(outbox::sent(&self.pool, &batch.requests)).await else {
            batch.answer(std::iter::repeat_n((), size));
            return Ok(());
        };
        failures::note("delete delivered mails", &error);
        if is_statements_fault(&error) { Err(batch) } else { Ok(()) }
    }

    /// With no slot free, rows that need no mail are still finished. What could not be looked through stays rung for.
    async fn claim(
        &self,
        from: Uuid,
        owed_by: Option<OffsetDateTime>,
        free: usize,
        window: usize,
        lease: Duration,
    ) -> Result<(OffsetDateTime, Claim), sqlx::Error> {
        let Some(now) = self.clock.trusted_now() else {
            self.bell.remember(from);
            return Ok((self.clock.now(), Claim::default()));
        };
        let claim = in_time(outbox::claim(&self.pool, now, from, owed_by, free, window, lease)).await;
        Ok((now, claim.inspect_err(|_| self.bell.remember(from))?))
    }

    async fn deliver(
        self: Arc<Self>,
        slot: Option<Slot>,
        owed: Arc<ClaimedMail>,
        held: Held,
        (taken, freed): (GroupCommit<Taken, ()>, Arc<Notify>),
    ) {
        tracing::trace!(outbox_id = %owed.id, attempts = owed.attempts, "mail is claimed");
        let outcome = match (self.compose(&owed, held.now()), &slot) {
            (Some(mail), Some(slot)) => self.hand_over(slot, &mail, &owed, held).await,
            // The relay was found down between the claim and now.
            (Some(_), None) => Err(NotSent::just(Stage::NoRelay)),
            (None, _) => {
                // Another replica may have the secret that this one lacks, in the middle of a rotation.
                tracing::error!(outbox_id = %owed.id, "the mail cannot be built; is its secret gone?");
                Err(NotSent::just(Stage::Compose))
            }
        };
        // The next mail need not wait until this one is written down.
        drop(slot);
        freed.notify_one();
        match outcome {
            Ok(()) => {
                Span::current().record("mail.outcome", "sent");
                self.count("sent", "none", 1);
                self.metrics.mail_latency.observe((held.now() - owed.created_at).as_seconds_f64());
                self.finish(&owed, held, Finish::Sent(&taken)).await;
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

    async fn hand_over(
        &self,
        slot: &Slot,
        mail: &Mail,
        owed: &ClaimedMail,
        held: Held,
    ) -> Result<(), NotSent> {
        self.gateway.ready(slot).await?;
        // While it waited for the relay's rate its code may have become too old.
        if owed.expires_at < held.now() + CODE_LIFE_ON_ARRIVAL {
            return Err(NotSent::just(Stage::Rate));
        }
        self.gateway.send(slot, mail).await
    }

    /// `None` if the code's secret has been rotated away, or the stored address fits no mail.
    fn compose(&self, owed: &ClaimedMail, now: OffsetDateTime) -> Option<Mail> {
        let locale = [&owed.account_locale, &owed.request_locale].into_iter().flatten().next();
        let about = About {
            id: owed.id,
            account_id: owed.account_id,
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
    async fn finish(&self, owed: &Arc<ClaimedMail>, held: Held, finish: Finish<'_>) {
        const PAUSE: Duration = Duration::from_millis(500);
        loop {
            let written = match finish {
                Finish::Sent(taken) => {
                    let mail = Arc::clone(owed);
                    // Why it was not is said by the one who struck off.
                    taken.submit(Taken { mail, at: held.now() }).await.is_ok()
                }
                Finish::Retry(at, why) => self.is_written(outbox::retry_at(&self.pool, at, owed, why)).await,
                Finish::GiveUp(why) => self.is_written(outbox::give_up(&self.pool, owed, why)).await,
            };
            if written || held.claimed_at.elapsed() + PAUSE >= held.lease {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn is_written(&self, write: impl Future<Output = Result<(), sqlx::Error>>) -> bool {
        let written = in_time(write).await;
        if let Err(error) = &written {
            failures::note("write the outbox", error);
        }
        written.is_ok()
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
    Sent(&'a GroupCommit<Taken, ()>),
    Retry(OffsetDateTime, &'a str),
    GiveUp(&'a str),
}
