//! The courier: takes mails out of the outbox and hands them to a relay.
//!
//! It wakes at once after a commit of this process, and looks through the whole outbox at every poll interval for what
//! another process left. A mail is never sent inside a transaction. No more mails are claimed than the relays have free
//! slots, so a claimed mail starts at once.
//!
//! A lease outlives what is done under it: see [`lease`]. What a courier has claimed that is gone is due before: see
//! [`outbox::holder`]. The courier has a thread of its own, so that requests are read
//! and answered meanwhile (docs/decisions/0021).

mod bell;
mod delivery;

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

pub use self::bell::Bell;
use crate::clock::Clock;
use crate::config::{Config, STORAGE_DEADLINE};
use crate::database::{Endpoint, KeptConnection, failures, in_time, is_statements_fault};
use crate::group_commit::{self, Batch, GroupCommit};
use crate::mail::gateway::Gateway;
use crate::mail::message::Composer;
use crate::metrics::{MailOutcome, Metrics};
use crate::outbox::holder::{Holder, Keeper, Standing};
use crate::outbox::{self, Claim, ClaimedMail, Reach, Round, Taken};
use crate::secret::Keys;

/// Claims are at least this far apart. Each is a commit of its own; one after every commit of a start would have the two
/// wait for each other's flush (docs/decisions/0002).
const PACE: Duration = Duration::from_millis(30);
/// The same while more mails are pending than the relays have free slots: then mails wait for claims. Rounds are at least this
/// far apart, from the end of one to the next, so that one deletes what several slots have delivered.
const BUSY_PACE: Duration = Duration::from_millis(2);
/// Delivered mails that one round deletes at most.
const DELETED_AT_ONCE: usize = 256;
/// How long the connection of the rounds lasts: after a switch to another primary none to the former one may.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);

/// What a lease leaves for writing down the end of a mail: `Courier::finish` stops with the lease.
const ENDING: Duration = Duration::from_secs(9 * STORAGE_DEADLINE.as_secs());

/// How long a claimed mail is its claimer's: one of PostgreSQL's deadlines for the claim; one of SMTP's in which
/// conversations may begin, be it after the wait that a relay's rate imposes or after relays that did not take the mail
/// (`Held::begins_until`); one for the last conversation, enforced by [`Gateway::send`]; and nine of PostgreSQL's for
/// the end of the mail. So as long as the clocks of the replicas agree, no two of them hold one mail; when they do not, a
/// replica claims nothing ([`Clock::trusted_now`]).
#[must_use]
pub fn lease(smtp_deadline: Duration) -> Duration {
    STORAGE_DEADLINE + 2 * smtp_deadline + ENDING
}

/// What the courier works with.
#[derive(Debug)]
pub struct Courier {
    /// How to reach PostgreSQL, for the connection of its rounds.
    pub database: Endpoint,
    /// A connection for mails that were not accepted. Requests must not wait for mails, nor mails for requests.
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
    /// Under which id it claims.
    pub holder: Arc<Holder>,
}

impl Courier {
    /// Works until `stop`; then sends what this service owed at that time, as far as it can be sent at once, and ends.
    /// Dropping the future drops the connections of mails under way, and the lock under which they were claimed.
    pub async fn run(self, config: &Config, stop: CancellationToken) {
        let lease = lease(config.smtp_deadline);
        let mut rounds = KeptConnection::new(&self.database, CONNECTION_LIFETIME);
        let courier = Arc::new(self);
        // Every mail that is under way has its place, so that the queue is never full.
        let (taken, mut arrivals) =
            group_commit::channel(Semaphore::MAX_PERMITS, DELETED_AT_ONCE, Duration::MAX);
        let mut keeping = JoinSet::new();
        keeping.spawn(courier.keeper().run());
        let freed = Arc::<Notify>::default();
        let mut busy: JoinSet<()> = JoinSet::new();
        let mut poll = tokio::time::interval(config.outbox_poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut reach, mut claimed_at) = (Reach::default(), Instant::now());
        let (mut more, mut mails_wait, mut stopped_at) = (false, false, None);
        // Whether the next round claims, and if it does, whether it looks everywhere.
        let mut look = Some(true);
        loop {
            while busy.try_join_next().is_some() {}
            courier.metrics.courier_rounds.inc();
            let began = Instant::now();
            let mut round = Round::just_deletes(courier.clock.now(), &[]);
            if let Some(everywhere) = look {
                claimed_at = began;
                round = courier.claims(everywhere, stopped_at, &reach, lease).unwrap_or(round);
            }
            match courier.does(round, arrivals.take(), &mut rounds).await {
                Ok(claim) if look.is_some() => {
                    let held = Held { now: round.now, claimed_at, lease, holder: round.holder };
                    courier.count("no_recipient", "none", claim.no_recipient);
                    courier.count("expired", "none", claim.expired);
                    let full = round.senders > 0 && claim.mails.len() == round.senders;
                    mails_wait = full || (round.senders == 0 && !busy.is_empty());
                    // In a small window there may have been nothing but rows that another replica was claiming.
                    let looked_through = claim.finished() == 0 && round.window == outbox::WINDOW;
                    more = claim.more && !full && !looked_through;
                    reach.learns(&claim, full);
                    for mail in claim.mails {
                        let slot = courier.gateway.slot(mail.attempts);
                        let span = delivery::span_of(&mail);
                        let (mail, ways) = (Arc::new(mail), (taken.clone(), Arc::clone(&freed)));
                        busy.spawn(Arc::clone(&courier).deliver(slot, mail, held, ways).instrument(span));
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    (more, mails_wait) = (false, false);
                    courier.bell.remember(round.from);
                    failures::note("read the outbox", &error);
                }
            }
            let ended = Instant::now();
            if stopped_at.is_some() && busy.is_empty() && !more {
                let _ = tokio::time::timeout(STORAGE_DEADLINE, courier.pool.close()).await;
                return;
            }
            let pause = if mails_wait || (more && round.window < outbox::WINDOW) { BUSY_PACE } else { PACE };
            let next_look = async {
                tokio::time::sleep_until(claimed_at + pause).await;
                more || tokio::select! {
                    () = stop.cancelled(), if stopped_at.is_none() => {
                        stopped_at = Some(courier.clock.now());
                        true
                    }
                    () = freed.notified(), if mails_wait => true,
                    // A mail whose task panicked stays owed: its lease will end.
                    Some(_) = busy.join_next(), if stopped_at.is_some() => true,
                    () = courier.bell.is_rung(), if stopped_at.is_none() && !mails_wait => false,
                    _ = poll.tick() => true,
                }
            };
            look = tokio::select! {
                // Delivered mails are deleted at once, with the next claim if mails wait for one.
                _ = arrivals.arrive() => mails_wait.then_some(true),
                everywhere = next_look => Some(everywhere),
            };
            tokio::time::sleep_until(ended + BUSY_PACE).await;
        }
    }

    /// What the next round claims. While the clock is not trusted it is nothing, and what was rung for stays so. With no slot
    /// free, rows that need no mail are still finished.
    fn claims(
        &self,
        everywhere: bool,
        owed_by: Option<OffsetDateTime>,
        reach: &Reach,
        lease: Duration,
    ) -> Option<Round<'static>> {
        let now = self.clock.trusted_now()?;
        let rung_from = self.bell.take();
        let standing = self.holder.standing();
        let senders = if standing == Standing::Waits { 0 } else { self.gateway.free() };
        Some(Round {
            now,
            delivered: &[],
            from: if everywhere { Uuid::nil() } else { rung_from },
            owed_by,
            senders,
            window: reach.window(senders),
            lease,
            holder: standing.holder(),
        })
    }

    /// A round that deletes what was delivered, too.
    async fn does(
        &self,
        round: Round<'_>,
        delivered: Option<Batch<Taken, ()>>,
        rounds: &mut KeptConnection,
    ) -> Result<Claim, sqlx::Error> {
        let Some(batch) = delivered else { return run(round, rounds).await };
        match run(Round { delivered: &batch.requests, ..round }, rounds).await {
            Ok(claim) => {
                let size = batch.requests.len();
                batch.answer(std::iter::repeat_n((), size));
                Ok(claim)
            }
            Err(error) => {
                failures::note("delete delivered mails", &error);
                // No row may fail another's: whichever the statement stumbled over is found one by one.
                let singles = is_statements_fault(&error).then(|| batch.split());
                for single in singles.into_iter().flatten() {
                    match run(Round::just_deletes(round.now, &single.requests), rounds).await {
                        Ok(_) => single.answer([()]),
                        Err(error) => failures::note("delete delivered mails", &error),
                    }
                }
                // Nor may it hold the claim back. Those who are not answered try again.
                if round.window > 0 { run(round, rounds).await } else { Ok(Claim::default()) }
            }
        }
    }

    fn keeper(&self) -> Keeper<impl Fn() + Send + Sync + 'static> {
        let bell = self.bell.clone();
        Keeper {
            holder: Arc::clone(&self.holder),
            pool: self.pool.clone(),
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            wake: move || bell.ring(Uuid::nil()),
        }
    }

    /// Writes down what became of a mail. While PostgreSQL is away it is tried again until the lease ends: a mail that
    /// was taken and not struck off is sent twice.
    async fn finish(&self, owed: &Arc<ClaimedMail>, held: Held, finish: Finish<'_>) {
        const PAUSE: Duration = Duration::from_millis(500);
        loop {
            let written = match finish {
                Finish::Sent(taken) => {
                    let mail = Arc::clone(owed);
                    // Why it was not is said by the round.
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

async fn run(round: Round<'_>, rounds: &mut KeptConnection) -> Result<Claim, sqlx::Error> {
    in_time(async {
        let mut connection = rounds.take().await?;
        let claim = round.run(&mut connection).await?;
        rounds.put(connection);
        Ok(claim)
    })
    .await
}

/// A claim that holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    now: OffsetDateTime,
    claimed_at: Instant,
    lease: Duration,
    holder: Option<i32>,
}

impl Held {
    /// The present, counted from the claim's: a clock that is moved during a conversation must not decide whether the
    /// code is dead.
    fn now(&self) -> OffsetDateTime {
        self.now + self.claimed_at.elapsed()
    }

    /// Until when a conversation may begin, so that it ends with enough of the lease left.
    fn begins_until(&self, smtp_deadline: Duration) -> Instant {
        self.claimed_at + self.lease.saturating_sub(smtp_deadline + ENDING)
    }
}

/// What became of a mail; why, as the outbox notes it.
#[derive(Clone, Copy, Debug)]
enum Finish<'a> {
    Sent(&'a GroupCommit<Taken, ()>),
    Retry(OffsetDateTime, &'a str),
    GiveUp(&'a str),
}
