//! The courier claims emails from the outbox and sends them through the relays.
//!
//! - A commit in this process wakes it at once. At every poll interval it also looks through the
//!   whole outbox, for emails that another process enqueued or left behind.
//! - It never sends an email inside a transaction.
//! - It claims at most as many emails as the relays have free slots, so a claimed email is sent at
//!   once.
//! - A lease lasts longer than everything that is done under it: see [`lease`]. If a courier dies,
//!   other couriers may send its emails before their leases end: see [`outbox::holder`].
//! - It runs on its own thread, so that sending does not delay requests (docs/decisions/0021).

mod delivery;
mod pace;
mod rounds;
mod wakeup;

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use strum::VariantArray as _;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::rounds::{Next, Rounds};
pub use self::wakeup::Wakeup;
use crate::clock::Clock;
use crate::config::{RelaySettings, STORAGE_DEADLINE};
use crate::database::{Endpoint, failures, in_time};
use crate::group_commit::GroupCommit;
use crate::mail::gateway::Gateway;
use crate::mail::message::{Composer, MailKind};
use crate::mail::verdict::Verdict;
use crate::metrics::{GivenUpLabel, MailLabel, MailOutcome, Metrics};
use crate::outbox::holder::{Holder, Keeper};
use crate::outbox::{self, ClaimedMail, Delivered};
use crate::secret::Keys;

/// The part of a lease that is kept for recording the result of an email. `Courier::finish` retries
/// until the lease ends.
const FINISH_TIME: Duration = Duration::from_secs(9 * STORAGE_DEADLINE.as_secs());

/// How long a claim reserves an email. It is the sum of:
///
/// 1. one `STORAGE_DEADLINE` for the claim;
/// 2. one `smtp_deadline` in which conversations may start: the email may wait for a relay's rate,
///    or be refused by other relays first;
/// 3. one `smtp_deadline` for the last conversation, which [`Gateway::send`] enforces;
/// 4. nine `STORAGE_DEADLINE` for recording the result.
///
/// While the replicas' clocks agree, no two replicas hold the same email. A replica whose clock is
/// wrong claims nothing ([`Clock::trusted_now`]).
#[must_use]
pub fn lease(smtp_deadline: Duration) -> Duration {
    STORAGE_DEADLINE + 2 * smtp_deadline + FINISH_TIME
}

/// The courier and everything it needs to send emails.
#[derive(Debug)]
pub struct Courier {
    /// The PostgreSQL server, for the connection of its rounds.
    pub database: Endpoint,
    /// A pool of its own, to record emails that were not accepted: requests and emails must not
    /// wait for each other.
    pub pool: PgPool,
    /// The time.
    pub clock: Clock,
    /// The keys that recovery codes are derived from.
    pub code_keys: Keys,
    /// The relays.
    pub gateway: Arc<Gateway>,
    /// Builds the emails.
    pub composer: Composer,
    /// The metrics that it updates.
    pub metrics: Arc<Metrics>,
    /// Wakes it after a commit.
    pub wakeup: Wakeup,
    /// The id under which it claims.
    pub holder: Arc<Holder>,
}

impl Courier {
    /// Sends emails until `stop` is cancelled. It then sends the emails that are due at that time,
    /// and returns. Dropping the future drops the SMTP connections in use, and the lock under which
    /// their emails were claimed.
    pub async fn run(self, settings: &RelaySettings, stop: CancellationToken) {
        let courier = Arc::new(self);
        courier.init_counters();
        let mut keeper = JoinSet::new();
        keeper.spawn(courier.keeper().run());
        let mut rounds = Rounds::new(Arc::clone(&courier), settings);
        let mut next = Next::Claim { everywhere: true };
        loop {
            rounds.run(next).await;
            let ended = Instant::now();
            if rounds.are_finished() {
                let _ = tokio::time::timeout(STORAGE_DEADLINE, courier.pool.close()).await;
                return;
            }
            next = rounds.next(&stop).await;
            tokio::time::sleep_until(ended + pace::MIN_PAUSE).await;
        }
    }

    fn keeper(&self) -> Keeper<impl Fn() + Send + Sync + 'static> {
        let wakeup = self.wakeup.clone();
        Keeper {
            holder: Arc::clone(&self.holder),
            pool: self.pool.clone(),
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            wake: move || wakeup.wake(Uuid::nil()),
        }
    }

    /// Records the result of an email. If PostgreSQL fails, it retries until the lease ends: an
    /// email that was delivered and whose row stays in the outbox is sent again.
    async fn finish(&self, claimed: &Arc<ClaimedMail>, lease: Lease, finish: Finish<'_>) {
        const PAUSE: Duration = Duration::from_millis(500);
        loop {
            let is_recorded = match finish {
                Finish::Sent(delivered) => {
                    let mail = Arc::clone(claimed);
                    // If the deletion fails, the round logs the error.
                    delivered.submit(Delivered { mail, at: lease.now() }).await.is_ok()
                }
                Finish::Retry(at, why) => self.write(outbox::retry_at(&self.pool, at, claimed, why)).await,
                Finish::GiveUp(why) => {
                    self.write(outbox::give_up(&self.pool, lease.now(), claimed, why)).await
                }
            };
            if is_recorded || lease.claimed_at.elapsed() + PAUSE >= lease.duration {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether the statement succeeded; logs its error.
    async fn write(&self, statement: impl Future<Output = Result<(), sqlx::Error>>) -> bool {
        let written = in_time(statement).await;
        if let Err(error) = &written {
            failures::note("write the outbox", error);
        }
        written.is_ok()
    }

    /// Creates the counters at 0. An alert on an increase would miss an event that creates its
    /// counter.
    fn init_counters(&self) {
        for kind in MailKind::IN_OUTBOX {
            for &verdict in Verdict::VARIANTS {
                let label = GivenUpLabel { kind: kind.into(), verdict: verdict.into() };
                drop(self.metrics.mails_given_up.get_or_create(&label));
            }
        }
    }

    fn count(&self, outcome: MailOutcome, stage: &'static str, mails: u64) {
        if mails > 0 {
            self.metrics.mails.get_or_create(&MailLabel { outcome, stage }).inc_by(mails);
        }
    }
}

/// The lease of one claim.
#[derive(Clone, Copy, Debug)]
struct Lease {
    /// The wall-clock time of the claim.
    claim_time: OffsetDateTime,
    claimed_at: Instant,
    duration: Duration,
    holder: Option<i32>,
}

impl Lease {
    /// The present time, as the claim's time plus the time elapsed since: a clock that is set
    /// during a conversation must not decide whether the code has expired.
    fn now(&self) -> OffsetDateTime {
        self.claim_time + self.claimed_at.elapsed()
    }

    /// The latest time at which a conversation may start and still leave [`FINISH_TIME`] of the
    /// lease.
    fn latest_start(&self, smtp_deadline: Duration) -> Instant {
        self.claimed_at + self.duration.saturating_sub(smtp_deadline + FINISH_TIME)
    }
}

/// The result of an email. A `&str` is the reason that is stored in the outbox.
#[derive(Clone, Copy, Debug)]
enum Finish<'a> {
    /// A relay accepted the email. Contains the queue of rows to delete.
    Sent(&'a GroupCommit<Delivered, ()>),
    /// Try again at this time.
    Retry(OffsetDateTime, &'a str),
    GiveUp(&'a str),
}
