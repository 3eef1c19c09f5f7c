//! Detects couriers that have died, so that their claimed emails are sent before the leases end
//! (docs/decisions/0030).
//!
//! Each courier has a random holder id. It takes a session-level advisory lock for that id, on a
//! connection of its own, and writes the id to the rows that it claims. When the process ends,
//! PostgreSQL releases the lock. The other couriers notice that, and make the rows of that holder
//! due again.

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

/// The first half of every lock's key, `vosa` in ASCII. The second half is the holder id.
const LOCK_CLASS: i32 = 0x766f_7361;
/// How often a courier checks which locks are held, its own included.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a check may take; also how long connecting and taking the lock may take together.
const CHECK_DEADLINE: Duration = Duration::from_secs(1);
/// The pause between two attempts to connect.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// How old the last check that found this courier's lock may be for a claim to name the holder.
const MAX_CHECK_AGE: Duration = Duration::from_millis(1500);
/// Two times, which make sure that no two couriers send the same email:
///
/// - how long a holder must be without its lock before other couriers release its rows;
/// - how long after its own lock was last seen a courier still starts to send what it has claimed.
///
/// The second ends first, because it counts from the start of a check that found the lock.
const GRACE: Duration = Duration::from_secs(2);
/// Replaces [`GRACE`] for this long after this courier lost its lock: the other couriers have
/// probably lost theirs, too.
const CAUTIOUS_GRACE: Duration = Duration::from_secs(10);
/// The pause before a courier behind a connection pooler tries to get a session of its own.
const POOLED_RETRY_PAUSE: Duration = Duration::from_mins(1);

/// The holder id under which this process claims, and the state of its lock.
#[derive(Debug)]
pub struct Holder(Mutex<LockState>);

/// What this process knows of its own lock.
#[derive(Debug)]
struct LockState {
    id: i32,
    /// When the last check that found the lock started; at first, when the process started.
    last_seen: Instant,
    /// Whether the last check found the lock.
    is_held: bool,
    /// Whether a connection pooler shares sessions, so that no lock can be kept.
    is_pooled: bool,
}

/// Whether the courier may claim, and under which id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimPermit {
    /// Claim, and name this holder.
    AsHolder(i32),
    /// Claim without a holder: only the lease protects the claim.
    LeaseOnly,
    /// Claim nothing yet: the lock is being taken, or was not seen lately.
    NotYet,
}

impl ClaimPermit {
    /// The holder to name in the claimed rows.
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
        let id = new_holder_id();
        Self(Mutex::new(LockState { id, last_seen: Instant::now(), is_held: false, is_pooled: false }))
    }
}

impl Holder {
    /// Whether the courier may claim now. A courier without a lock for `GRACE` claims without a
    /// holder.
    #[must_use]
    pub fn claim_permit(&self) -> ClaimPermit {
        let lock = self.lock_state();
        let age = lock.last_seen.elapsed();
        if lock.is_pooled || age >= GRACE {
            ClaimPermit::LeaseOnly
        } else if lock.is_held && age < MAX_CHECK_AGE {
            ClaimPermit::AsHolder(lock.id)
        } else {
            ClaimPermit::NotYet
        }
    }

    /// Whether no other courier can have released rows that were claimed as `claimed_as`.
    #[must_use]
    pub fn still_holds(&self, claimed_as: Option<i32>) -> bool {
        let lock = self.lock_state();
        claimed_as.is_none_or(|id| id == lock.id && lock.last_seen.elapsed() < GRACE)
    }

    fn lock_state(&self) -> MutexGuard<'_, LockState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps this courier's lock, and releases the rows of couriers that are gone.
#[derive(Debug)]
pub struct Keeper<F> {
    /// The holder whose lock it keeps.
    pub holder: Arc<Holder>,
    /// Releases rows. The lock has a connection of its own, with the same options.
    pub pool: PgPool,
    /// The time.
    pub clock: Clock,
    /// Where it reports a lost lock.
    pub metrics: Arc<Metrics>,
    /// Called when more emails can be claimed: the lock was taken, or rows were released.
    pub wake: F,
}

/// Why the session with the lock ended.
enum SessionEnd {
    /// PostgreSQL or the connection failed.
    Lost(sqlx::Error),
    /// The connection leads to the shared session of a connection pooler.
    Pooled,
}

impl From<sqlx::Error> for SessionEnd {
    fn from(error: sqlx::Error) -> Self {
        Self::Lost(error)
    }
}

impl<F: Fn()> Keeper<F> {
    /// Takes the lock, takes it again after a lost connection, and checks the other couriers. Runs
    /// until it is dropped.
    pub async fn run(self) {
        let (mut peers, mut lost) = (Peers::default(), false);
        loop {
            match self.session(&mut peers, lost).await {
                SessionEnd::Lost(error) => {
                    self.metrics.courier_lock_lost.set(1);
                    failures::note("hold the courier's lock", &error);
                    let was_held = std::mem::take(&mut self.holder.lock_state().is_held);
                    lost |= was_held;
                    // The first attempt after a loss is made at once.
                    if !was_held {
                        sleep(RETRY_PAUSE).await;
                    }
                }
                SessionEnd::Pooled => {
                    self.metrics.courier_lock_lost.set(0);
                    if !std::mem::replace(&mut self.holder.lock_state().is_pooled, true) {
                        tracing::info!(
                            "a connection pooler shares the database session: if a courier dies, its claimed \
                             emails wait until their leases end"
                        );
                    }
                    sleep(POOLED_RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Takes the lock and checks all locks until the session ends. Returns why it ended.
    async fn session(&self, peers: &mut Peers, lost: bool) -> SessionEnd {
        let mut connection = match with_check_deadline(self.acquire_lock()).await {
            Ok(connection) => connection,
            Err(end) => return end,
        };
        self.metrics.courier_lock_lost.set(0);
        peers.reset_absences();
        let (started, mut leases_read) = (Instant::now(), lost);
        loop {
            let asked = Instant::now();
            let holders = match with_check_deadline(self.check_locks(&mut connection)).await {
                Ok(holders) => holders,
                Err(end) => return end,
            };
            let is_cautious = lost && started.elapsed() < CAUTIOUS_GRACE;
            let grace = if is_cautious { CAUTIOUS_GRACE } else { GRACE };
            let gone = peers.gone(&holders, asked, Instant::now(), grace);
            if let Some(now) = self.clock.trusted_now() {
                // Not after a lost lock: the leases then name this process's own former id, whose
                // emails it still sends.
                if !leases_read && let Ok(named) = in_time(holders_of_leases(&self.pool, now)).await {
                    peers.add(&named, self.holder.lock_state().id);
                    leases_read = true;
                }
                if !gone.is_empty() && self.release(now, &gone).await {
                    peers.remove(&gone);
                }
            }
            sleep_until(asked + CHECK_INTERVAL).await;
        }
    }

    /// Connects and takes the lock. Takes a new id if other couriers may have missed the lock for
    /// [`GRACE`] when it is taken.
    async fn acquire_lock(&self) -> Result<PgConnection, SessionEnd> {
        let id = {
            let mut lock = self.holder.lock_state();
            if lock.last_seen.elapsed() + CHECK_DEADLINE >= GRACE {
                lock.id = new_holder_id();
            }
            lock.id
        };
        // The setting reveals a pooler, which drops or refuses settings that a client connects
        // with.
        let mark = id.to_string();
        let options = self.pool.connect_options().as_ref().clone().options([("vos_auth.holder", &mark)]);
        let mut connection = PgConnection::connect_with(&options).await?;
        // A shared lock, because the session of a lost connection may still hold it.
        let taken = sqlx::query_scalar!(
            "SELECT CASE WHEN current_setting('vos_auth.holder', true) = $1 THEN pg_try_advisory_lock_shared($2, $3) END",
            mark,
            LOCK_CLASS,
            id
        );
        if taken.fetch_one(&mut connection).await? == Some(true) {
            return Ok(connection);
        }
        connection.close().await?;
        Err(SessionEnd::Pooled)
    }

    /// The other holders that have a lock. Fails if this courier's own lock is missing.
    async fn check_locks(&self, connection: &mut PgConnection) -> Result<Vec<i32>, SessionEnd> {
        let asked = Instant::now();
        let locks = sqlx::query!(
            r#"SELECT objid::int AS "holder!", pid = pg_backend_pid() AS "mine!" FROM pg_locks
               WHERE locktype = 'advisory' AND classid::int = $1 AND objsubid = 2 AND granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"#,
            LOCK_CLASS
        );
        let locks = locks.fetch_all(connection).await?;
        let mut own = self.holder.lock_state();
        if !locks.iter().any(|lock| lock.mine && lock.holder == own.id) {
            return Err(SessionEnd::Pooled);
        }
        (own.last_seen, own.is_pooled) = (asked, false);
        if !std::mem::replace(&mut own.is_held, true) {
            (self.wake)();
        }
        Ok(locks.into_iter().map(|lock| lock.holder).filter(|holder| *holder != own.id).collect())
    }

    async fn release(&self, now: OffsetDateTime, gone: &[i32]) -> bool {
        match in_time(release(&self.pool, now, gone)).await {
            Ok(mails) => {
                tracing::info!(
                    mails,
                    couriers = gone.len(),
                    "a courier has died: the emails that it had claimed are due again"
                );
                (self.wake)();
                true
            }
            Err(error) => {
                failures::note("release the claims of a dead courier", &error);
                false
            }
        }
    }
}

/// The other couriers, each with the time since which its lock has been missing.
#[derive(Debug, Default)]
struct Peers(HashMap<i32, Option<Instant>>);

impl Peers {
    /// Adds the holders that leases name, without `own`: this courier may have claimed already.
    fn add(&mut self, holders: &[i32], own: i32) {
        for holder in holders.iter().filter(|holder| **holder != own) {
            self.0.entry(*holder).or_default();
        }
    }

    /// Restarts all absences after a time without checks: a holder may have had its lock then.
    fn reset_absences(&mut self) {
        self.0.values_mut().for_each(|since| *since = None);
    }

    /// Records the `holders` that had a lock between `asked` and `answered`. Returns those whose
    /// lock has been missing for `grace`.
    fn gone(&mut self, holders: &[i32], asked: Instant, answered: Instant, grace: Duration) -> Vec<i32> {
        self.0.extend(holders.iter().map(|holder| (*holder, None)));
        let missing = self.0.iter_mut().filter(|(holder, _)| !holders.contains(holder));
        let is_gone = |since: &mut Option<Instant>| {
            asked.saturating_duration_since(*since.get_or_insert(answered)) >= grace
        };
        missing.filter_map(|(holder, since)| is_gone(since).then_some(*holder)).collect()
    }

    fn remove(&mut self, holders: &[i32]) {
        self.0.retain(|holder, _| !holders.contains(holder));
    }
}

fn new_holder_id() -> i32 {
    rand::rng().random_range(1..i32::MAX)
}

async fn with_check_deadline<T>(work: impl Future<Output = Result<T, SessionEnd>>) -> Result<T, SessionEnd> {
    timeout(CHECK_DEADLINE, work).await.unwrap_or(Err(SessionEnd::Lost(sqlx::Error::PoolTimedOut)))
}

/// The holders of the leases that have not ended.
async fn holders_of_leases(pool: &PgPool, now: OffsetDateTime) -> Result<Vec<i32>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT DISTINCT holder AS "holder!" FROM outbox WHERE id >= $1 AND lease_until > $2 AND holder IS NOT NULL"#,
        Uuid::nil(),
        now
    )
    .fetch_all(pool)
    .await
}

/// Ends the leases of these holders. Returns how many it ended.
async fn release(pool: &PgPool, now: OffsetDateTime, holders: &[i32]) -> Result<u64, sqlx::Error> {
    let released = sqlx::query!(
        "UPDATE outbox SET lease_until = NULL, holder = NULL WHERE id = ANY(ARRAY(
             SELECT id FROM outbox WHERE id >= $1 AND lease_until > $2 AND holder = ANY($3) FOR UPDATE SKIP LOCKED))",
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
        assert_eq!(look(&mut peers, 5, &[1], GRACE), [2], "until it is removed");
        peers.remove(&[2]);
        assert!(look(&mut peers, 6, &[1], GRACE).is_empty());

        assert!(look(&mut peers, 7, &[], CAUTIOUS_GRACE).is_empty());
        assert!(look(&mut peers, 12, &[], CAUTIOUS_GRACE).is_empty());
        assert!(look(&mut peers, 13, &[1], CAUTIOUS_GRACE).is_empty(), "it is back");
        assert!(look(&mut peers, 14, &[], GRACE).is_empty());
        peers.reset_absences();
        assert!(look(&mut peers, 17, &[], GRACE).is_empty(), "there was no check meanwhile");
        peers.add(&[3, 4], 4);
        assert!(look(&mut peers, 18, &[], GRACE).is_empty());
        assert_eq!(look(&mut peers, 20, &[1], GRACE), [] as [i32; 0]);
        assert_eq!(look(&mut peers, 21, &[1], GRACE), [3], "4 is this courier itself");
    }

    #[test]
    fn a_claim_names_the_holder_only_while_its_lock_is_seen() {
        let holder = Holder::default();
        assert_eq!(holder.claim_permit(), ClaimPermit::NotYet, "the lock is being taken");
        let set = |ago: u64, is_held, is_pooled| {
            let mut lock = holder.lock_state();
            lock.last_seen = Instant::now().checked_sub(Duration::from_millis(ago)).unwrap();
            (lock.is_held, lock.is_pooled) = (is_held, is_pooled);
        };
        let id = holder.lock_state().id;
        set(0, true, false);
        assert_eq!(holder.claim_permit(), ClaimPermit::AsHolder(id));
        assert!(holder.still_holds(Some(id)) && !holder.still_holds(Some(id - 1)));
        set(1600, true, false);
        assert_eq!(holder.claim_permit(), ClaimPermit::NotYet);
        assert!(holder.still_holds(Some(id)));
        set(0, false, false);
        assert_eq!(holder.claim_permit(), ClaimPermit::NotYet);
        set(2000, true, false);
        assert_eq!(holder.claim_permit(), ClaimPermit::LeaseOnly);
        assert!(!holder.still_holds(Some(id)) && holder.still_holds(None));
        set(0, false, true);
        assert_eq!(holder.claim_permit(), ClaimPermit::LeaseOnly);
    }
}
