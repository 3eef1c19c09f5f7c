//! The courier: takes mails out of the outbox and hands them to a relay.
//!
//! It wakes at once after a commit of this process, and looks through the whole outbox at every poll interval for what
//! another process left. A mail is never sent inside a transaction. No more mails are claimed than the relays have free
//! slots, so a claimed mail starts at once.
//!
//! A lease outlives what is done under it: see [`lease`]. What a courier has claimed that is gone is due before: see
//! [`outbox::holder`]. The courier has a thread of its own, so that requests are read
//! and answered meanwhile (docs/decisions/0021).

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

/// What a lease leaves for writing down the end of a mail: `Courier::finish` stops with the lease.
const ENDING: Duration = Duration::from_secs(9 * STORAGE_DEADLINE.as_secs());

/// How long a claimed mail is its claimer's: one of PostgreSQL's deadlines for the claim; one of SMTP's in which
/// conversations may begin, be it after the wait that a relay's rate imposes or after relays that did not take the mail
/// (`Lease::begins_until`); one for the last conversation, enforced by [`Gateway::send`]; and nine of PostgreSQL's for
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
    pub wakeup: Wakeup,
    /// Under which id it claims.
    pub holder: Arc<Holder>,
}

impl Courier {
    /// Works until `stop`; then sends what was pending at that time, as far as it can be sent at once, and ends.
    /// Dropping the future drops the connections of emails under way, and the lock under which they were claimed.
    pub async fn run(self, settings: &RelaySettings, stop: CancellationToken) {
        let courier = Arc::new(self);
        courier.begin_at_zero();
        let mut keeping = JoinSet::new();
        keeping.spawn(courier.keeper().run());
        let mut rounds = Rounds::new(Arc::clone(&courier), settings);
        let mut next = Next::Claim { everywhere: true };
        loop {
            rounds.run(next).await;
            let ended = Instant::now();
            if rounds.are_over() {
                let _ = tokio::time::timeout(STORAGE_DEADLINE, courier.pool.close()).await;
                return;
            }
            next = rounds.next(&stop).await;
            tokio::time::sleep_until(ended + pace::BUSY).await;
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

    /// Writes down what became of a mail. While PostgreSQL is away it is tried again until the lease ends: a mail that
    /// was taken and not struck off is sent twice.
    async fn finish(&self, owed: &Arc<ClaimedMail>, lease: Lease, finish: Finish<'_>) {
        const PAUSE: Duration = Duration::from_millis(500);
        loop {
            let written = match finish {
                Finish::Sent(taken) => {
                    let mail = Arc::clone(owed);
                    // Why it was not is said by the round.
                    taken.submit(Delivered { mail, at: lease.now() }).await.is_ok()
                }
                Finish::Retry(at, why) => self.is_written(outbox::retry_at(&self.pool, at, owed, why)).await,
                Finish::GiveUp(why) => self.is_written(outbox::give_up(&self.pool, owed, why)).await,
            };
            if written || lease.claimed_at.elapsed() + PAUSE >= lease.length {
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

    /// A counter that came with its first event would show that one as no increase, and no alert would see it.
    fn begin_at_zero(&self) {
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

/// A claim that holds.
#[derive(Clone, Copy, Debug)]
struct Lease {
    now: OffsetDateTime,
    claimed_at: Instant,
    length: Duration,
    holder: Option<i32>,
}

impl Lease {
    /// The present, counted from the claim's: a clock that is moved during a conversation must not decide whether the
    /// code is dead.
    fn now(&self) -> OffsetDateTime {
        self.now + self.claimed_at.elapsed()
    }

    /// Until when a conversation may begin, so that it ends with enough of the lease left.
    fn begins_until(&self, smtp_deadline: Duration) -> Instant {
        self.claimed_at + self.length.saturating_sub(smtp_deadline + ENDING)
    }
}

/// What became of a mail; why, as the outbox notes it.
#[derive(Clone, Copy, Debug)]
enum Finish<'a> {
    Sent(&'a GroupCommit<Delivered, ()>),
    Retry(OffsetDateTime, &'a str),
    GiveUp(&'a str),
}
