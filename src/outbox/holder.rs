//! Which couriers live. Each takes a session-level advisory lock on a connection of its own and names its id, the holder id,
//! on the rows that it claims. PostgreSQL releases the lock when the process is gone, and the rows of a holder without a lock
//! are due again before their leases end (docs/decisions/0030).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use sqlx::{Connection as _, PgConnection, PgPool};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use crate::clock::Clock;
use crate::database::{failures, in_time};
use crate::metrics::Metrics;

/// The first half of the key of every courier's lock, `vosa` in ASCII. The second half is the holder id.
const CLASS: i32 = 0x766f_7361;
/// How often a courier looks who holds a lock, itself included.
const LOOK: Duration = Duration::from_millis(500);
/// How long a look may take; also how long connecting and taking the lock may take together.
const LOOK_DEADLINE: Duration = Duration::from_secs(1);
/// The pause between two attempts to connect.
const RETRY: Duration = Duration::from_millis(250);
/// How old the last look may be for a claim to name the holder.
const FRESH: Duration = Duration::from_millis(1500);
/// How long a holder is without its lock before others take its rows, by their clocks; and how long after the last look that
/// found its lock a courier begins to send what it has claimed, by its own. The lock was there when that look was asked for,
/// so the second ends before the first.
const GRACE: Duration = Duration::from_secs(2);
/// Instead of [`GRACE`] for a courier that has lost its own lock less than this ago: PostgreSQL was probably away for all.
const CAUTION: Duration = Duration::from_secs(10);
/// How long a courier behind a pooler waits before it tries again to have a session of its own.
const POOLED: Duration = Duration::from_mins(1);

/// Under which id this process claims.
#[derive(Debug)]
pub struct Holder(Mutex<Tenure>);

/// The time for which others have seen the lock without a gap of [`GRACE`].
#[derive(Debug)]
struct Tenure {
    id: i32,
    /// When the last look that found the lock was asked for; before the first, when the process began.
    seen: Instant,
    /// Whether the last look found it.
    held: bool,
    /// Whether sessions are a pooler's.
    pooled: bool,
}

/// What a claim may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimPermit {
    /// Claim, and name this holder.
    AsHolder(i32),
    /// Claim, and name none: the lease alone counts.
    LeaseOnly,
    /// Claim nothing: the lock is being taken.
    NotYet,
}

impl ClaimPermit {
    /// The holder that a claim names.
    #[must_use]
    pub fn holder(self) -> Option<i32> {
        match self {
            Self::AsHolder(id) => Some(id),
            Self::LeaseOnly | Self::NotYet => None,
        }
    }
}

impl Default for Holder {
    fn default() -> Self {
        Self(Mutex::new(Tenure { id: new_holder_id(), seen: Instant::now(), held: false, pooled: false }))
    }
}

impl Holder {
    /// What a claim may do now. A courier that has no lock for two seconds goes on by leases alone.
    #[must_use]
    pub fn claim_permit(&self) -> ClaimPermit {
        let tenure = self.tenure();
        let age = tenure.seen.elapsed();
        if tenure.pooled || age >= GRACE {
            ClaimPermit::LeaseOnly
        } else if tenure.held && age < FRESH {
            ClaimPermit::AsHolder(tenure.id)
        } else {
            ClaimPermit::NotYet
        }
    }

    /// Whether no other courier can have taken a row yet that was claimed under this id.
    #[must_use]
    pub fn keeps(&self, claimed_as: Option<i32>) -> bool {
        let tenure = self.tenure();
        claimed_as.is_none_or(|id| id == tenure.id && tenure.seen.elapsed() < GRACE)
    }

    fn tenure(&self) -> MutexGuard<'_, Tenure> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a holder's lock, and has the mails of holders that are gone sent.
#[derive(Debug)]
pub struct Keeper<F> {
    /// Whose lock.
    pub holder: Arc<Holder>,
    /// Where rows are released. The lock has a connection beside it, opened in the same way.
    pub pool: PgPool,
    /// The time.
    pub clock: Clock,
    /// Its figures.
    pub metrics: Arc<Metrics>,
    /// Called when mails may be due that could not be claimed before: the lock is taken, or a holder is gone.
    pub wake: F,
}

/// Why a session with a lock was left.
enum Left {
    /// PostgreSQL or the way to it failed.
    Lost(sqlx::Error),
    /// Another session answers: a pooler's.
    Pooled,
}

impl From<sqlx::Error> for Left {
    fn from(error: sqlx::Error) -> Self {
        Self::Lost(error)
    }
}

impl<F: Fn()> Keeper<F> {
    /// Takes the lock, again when its connection is lost, and looks after the others. Goes on until it is dropped.
    pub async fn run(self) {
        let (mut peers, mut lost) = (Peers::default(), false);
        loop {
            match self.session(&mut peers, lost).await {
                Left::Lost(error) => {
                    self.metrics.courier_lock_lost.set(1);
                    failures::note("hold the courier's lock", &error);
                    let held = std::mem::take(&mut self.holder.tenure().held);
                    lost |= held;
                    // The first attempt after a loss is made at once.
                    if !held {
                        sleep(RETRY).await;
                    }
                }
                Left::Pooled => {
                    self.metrics.courier_lock_lost.set(0);
                    if !std::mem::replace(&mut self.holder.tenure().pooled, true) {
                        tracing::info!(
                            "the session is a pooler's: claims name no holder, and last for their lease"
                        );
                    }
                    sleep(POOLED).await;
                }
            }
        }
    }

    /// One session, from connecting to its end.
    async fn session(&self, peers: &mut Peers, lost: bool) -> Left {
        let mut connection = match soon(self.take()).await {
            Ok(connection) => connection,
            Err(left) => return left,
        };
        self.metrics.courier_lock_lost.set(0);
        peers.may_have_come_back();
        let (began, mut leases_read) = (Instant::now(), lost);
        loop {
            let asked = Instant::now();
            let holders = match soon(self.look(&mut connection)).await {
                Ok(holders) => holders,
                Err(left) => return left,
            };
            let grace = if lost && began.elapsed() < CAUTION { CAUTION } else { GRACE };
            let gone = peers.gone(&holders, asked, Instant::now(), grace);
            if let Some(now) = self.clock.trusted_now() {
                // Only at first: what this process itself has claimed under another id is finished by itself.
                if !leases_read && let Ok(named) = in_time(named_by_leases(&self.pool, now)).await {
                    peers.are_known(&named);
                    leases_read = true;
                }
                if !gone.is_empty() && self.release(now, &gone).await {
                    peers.are_forgotten(&gone);
                }
            }
            sleep_until(asked + LOOK).await;
        }
    }

    /// Connects and takes the lock. If others may have seen a gap of [`GRACE`] by then, it is the lock of a new id.
    async fn take(&self) -> Result<PgConnection, Left> {
        let id = {
            let mut tenure = self.holder.tenure();
            if tenure.seen.elapsed() + LOOK_DEADLINE >= GRACE {
                tenure.id = new_holder_id();
            }
            tenure.id
        };
        // A pooler drops a setting that a client connects with, or refuses it.
        let mark = id.to_string();
        let options = self.pool.connect_options().as_ref().clone().options([("vos_auth.holder", &mark)]);
        let mut connection = PgConnection::connect_with(&options).await?;
        // Shared: of a connection that was lost without a word, the session may be there still.
        let taken = sqlx::query_scalar!(
            "SELECT CASE WHEN current_setting('vos_auth.holder', true) = $1 THEN pg_try_advisory_lock_shared($2, $3) END",
            mark,
            CLASS,
            id
        );
        if taken.fetch_one(&mut connection).await? == Some(true) {
            return Ok(connection);
        }
        connection.close().await?;
        Err(Left::Pooled)
    }

    /// Who else holds a lock; this courier does, or the session is left.
    async fn look(&self, connection: &mut PgConnection) -> Result<Vec<i32>, Left> {
        let asked = Instant::now();
        let locks = sqlx::query!(
            r#"SELECT objid::int AS "holder!", pid = pg_backend_pid() AS "mine!" FROM pg_locks
               WHERE locktype = 'advisory' AND classid::int = $1 AND objsubid = 2 AND granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"#,
            CLASS
        );
        let locks = locks.fetch_all(connection).await?;
        let mut tenure = self.holder.tenure();
        if !locks.iter().any(|lock| lock.mine && lock.holder == tenure.id) {
            return Err(Left::Pooled);
        }
        (tenure.seen, tenure.pooled) = (asked, false);
        if !std::mem::replace(&mut tenure.held, true) {
            (self.wake)();
        }
        Ok(locks.into_iter().map(|lock| lock.holder).filter(|holder| *holder != tenure.id).collect())
    }

    async fn release(&self, now: OffsetDateTime, gone: &[i32]) -> bool {
        match in_time(release(&self.pool, now, gone)).await {
            Ok(mails) => {
                tracing::info!(
                    mails,
                    couriers = gone.len(),
                    "a courier is gone: what it had claimed is due again"
                );
                (self.wake)();
                true
            }
            Err(error) => {
                failures::note("release what a courier had claimed that is gone", &error);
                false
            }
        }
    }
}

/// Couriers other than this one, each with the time since when it has been without a lock.
#[derive(Debug, Default)]
struct Peers(HashMap<i32, Option<Instant>>);

impl Peers {
    fn are_known(&mut self, holders: &[i32]) {
        for holder in holders {
            self.0.entry(*holder).or_default();
        }
    }

    /// Nobody looked for a while: each may have had its lock meanwhile.
    fn may_have_come_back(&mut self) {
        self.0.values_mut().for_each(|since| *since = None);
    }

    /// Notes who held a lock between `asked` and `answered`, and gives those that have been without theirs for `grace`.
    fn gone(&mut self, holders: &[i32], asked: Instant, answered: Instant, grace: Duration) -> Vec<i32> {
        self.0.extend(holders.iter().map(|holder| (*holder, None)));
        let without = self.0.iter_mut().filter(|(holder, _)| !holders.contains(holder));
        let gone = without.filter_map(|(holder, since)| {
            let since = *since.get_or_insert(answered);
            (asked.saturating_duration_since(since) >= grace).then_some(*holder)
        });
        gone.collect()
    }

    fn are_forgotten(&mut self, holders: &[i32]) {
        self.0.retain(|holder, _| !holders.contains(holder));
    }
}

fn new_holder_id() -> i32 {
    rand::rng().random_range(1..i32::MAX)
}

async fn soon<T>(work: impl Future<Output = Result<T, Left>>) -> Result<T, Left> {
    timeout(LOOK_DEADLINE, work).await.unwrap_or(Err(Left::Lost(sqlx::Error::PoolTimedOut)))
}

/// The holders that leases name which have not ended.
async fn named_by_leases(pool: &PgPool, now: OffsetDateTime) -> Result<Vec<i32>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT DISTINCT holder AS "holder!" FROM outbox WHERE id >= $1 AND lease_until > $2 AND holder IS NOT NULL"#,
        Uuid::nil(),
        now
    )
    .fetch_all(pool)
    .await
}

/// Ends the leases of these holders, and gives how many.
async fn release(pool: &PgPool, now: OffsetDateTime, holders: &[i32]) -> Result<u64, sqlx::Error> {
    let released = sqlx::query!(
        "UPDATE outbox SET lease_until = NULL, holder = NULL WHERE ctid = ANY(ARRAY(
             SELECT ctid FROM outbox WHERE id >= $1 AND lease_until > $2 AND holder = ANY($3) FOR UPDATE SKIP LOCKED))",
        Uuid::nil(),
        now,
        holders
    );
    Ok(released.execute(pool).await?.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_gone_when_every_look_of_the_grace_missed_its_lock() {
        let (mut peers, began) = (Peers::default(), Instant::now());
        let look = |peers: &mut Peers, seconds, holders: &[i32], grace| {
            let asked = began + Duration::from_secs(seconds);
            peers.gone(holders, asked, asked + Duration::from_millis(100), grace)
        };
        assert!(look(&mut peers, 0, &[1, 2], GRACE).is_empty());
        assert!(look(&mut peers, 1, &[1], GRACE).is_empty());
        assert!(look(&mut peers, 3, &[1], GRACE).is_empty(), "the first answer without it came 1.9 s before");
        assert_eq!(look(&mut peers, 4, &[1], GRACE), [2]);
        assert_eq!(look(&mut peers, 5, &[1], GRACE), [2], "until it is forgotten");
        peers.are_forgotten(&[2]);
        assert!(look(&mut peers, 6, &[1], GRACE).is_empty());

        assert!(look(&mut peers, 7, &[], CAUTION).is_empty());
        assert!(look(&mut peers, 12, &[], CAUTION).is_empty());
        assert!(look(&mut peers, 13, &[1], CAUTION).is_empty(), "it is back");
        assert!(look(&mut peers, 14, &[], GRACE).is_empty());
        peers.may_have_come_back();
        assert!(look(&mut peers, 17, &[], GRACE).is_empty(), "nobody looked meanwhile");
        peers.are_known(&[3]);
        assert!(look(&mut peers, 18, &[], GRACE).is_empty());
        assert_eq!(look(&mut peers, 20, &[1], GRACE), [] as [i32; 0]);
        assert_eq!(look(&mut peers, 21, &[1], GRACE), [3]);
    }

    #[test]
    fn a_claim_names_the_holder_only_while_its_lock_is_seen() {
        let holder = Holder::default();
        assert_eq!(holder.claim_permit(), ClaimPermit::NotYet, "the lock is being taken");
        let seen = |ago: u64, held, pooled| {
            let mut tenure = holder.tenure();
            tenure.seen = Instant::now().checked_sub(Duration::from_millis(ago)).unwrap();
            (tenure.held, tenure.pooled) = (held, pooled);
        };
        let id = holder.tenure().id;
        seen(0, true, false);
        assert_eq!(holder.claim_permit(), ClaimPermit::AsHolder(id));
        assert!(holder.keeps(Some(id)) && !holder.keeps(Some(id - 1)));
        seen(1600, true, false);
        assert_eq!(holder.claim_permit(), ClaimPermit::NotYet);
        assert!(holder.keeps(Some(id)));
        seen(0, false, false);
        assert_eq!(holder.claim_permit(), ClaimPermit::NotYet);
        seen(2000, true, false);
        assert_eq!(holder.claim_permit(), ClaimPermit::LeaseOnly);
        assert!(!holder.keeps(Some(id)) && holder.keeps(None));
        seen(0, false, true);
        assert_eq!(holder.claim_permit(), ClaimPermit::LeaseOnly);
    }
}
