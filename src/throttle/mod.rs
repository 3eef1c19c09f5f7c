//! Rate limits: how many codes an address may be sent and how many logins may fail for it (table `throttle`), how many
//! requests a network may make ([`SourceLimits`], in memory).
//!
//! Both are the generic cell rate algorithm (ITU-T I.371): a bucket is the time at which it would be full again. The
//! buckets of addresses are in PostgreSQL, because the bound on guesses (promise 4) rests on them across replicas and
//! restarts; those of networks protect this process alone, so memory is enough.

mod network;
mod presented;
mod sources;
mod turn;

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::postgres::types::PgInterval;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::network::{Limiter, Source, network_of};
pub use self::sources::SourceLimits;
pub use self::turn::{Turn, Turns};
use crate::config::{RateLimitSettings, TICKET_LIFETIME};
use crate::database::within_deadline;
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::known_device::DeviceId;

const DAY: Duration = Duration::from_hours(24);
const SHORT_REFILL: Duration = Duration::from_mins(5);

/// The two buckets of an address: how much each holds, and how long one unit takes to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// What the short bucket holds.
    pub short_burst: u32,
    /// One unit of the short bucket comes back in this time.
    pub short_refill: Duration,
    /// What the long bucket holds.
    pub long_burst: u32,
    /// One unit of the long bucket comes back in this time.
    pub long_refill: Duration,
}

impl RateLimit {
    /// The budget of one address: `ADDRESS_BURST` at once and one more every 5 minutes, `ADDRESS_PER_DAY` at once and
    /// as many a day. With 3 and 10, at most 19 in any 24 hours.
    #[must_use]
    pub fn of_address(settings: &RateLimitSettings) -> Self {
        Self {
            short_burst: settings.address_burst,
            short_refill: SHORT_REFILL,
            long_burst: settings.address_per_day,
            long_refill: DAY / settings.address_per_day,
        }
    }

    /// Failed logins of one identifier, or wrong current passwords of one account: 10 at once, one more every 5 minutes,
    /// 100 a day.
    #[must_use]
    pub fn of_failures() -> Self {
        Self { short_burst: 10, short_refill: SHORT_REFILL, long_burst: 100, long_refill: DAY / 100 }
    }

    /// Browsers that become known with one address: 10 at once, one more every 5 minutes, 10 a day. Each has budgets of its
    /// own from then on.
    #[must_use]
    pub fn of_devices() -> Self {
        Self { short_burst: 10, short_refill: SHORT_REFILL, long_burst: 10, long_refill: DAY / 10 }
    }

    /// A ticket: once for as long as it lives.
    #[must_use]
    pub fn of_a_ticket() -> Self {
        Self { short_burst: 1, short_refill: TICKET_LIFETIME, long_burst: 1, long_refill: TICKET_LIFETIME }
    }

    /// How often an operator may fill the buckets of an address: twice at once, one more every 12 hours; 3 times in any 24.
    #[must_use]
    pub fn of_unblocks() -> Self {
        Self { short_burst: 2, short_refill: DAY / 2, long_burst: 2, long_refill: DAY / 2 }
    }

    /// A bucket that is full again within this time has a unit left now.
    fn room(self) -> (Duration, Duration) {
        (self.short_refill * (self.short_burst - 1), self.long_refill * (self.long_burst - 1))
    }

    /// No bound worth the name, for `DEV_NO_LIMITS=1`.
    #[must_use]
    pub fn unlimited() -> Self {
        let (burst, refill) = (1_000_000, Duration::from_micros(1));
        Self { short_burst: burst, short_refill: refill, long_burst: burst, long_refill: refill }
    }
}

/// The row of one budget: SHA-256 of its purpose and its subject.
pub type Key = [u8; 32];

/// Recovery mails to `address`, the same whether anybody owns it or not; from a browser that has signed in with it
/// before, that browser's own.
#[must_use]
pub fn recovery_key(address: &EmailAddress, device: Option<DeviceId>) -> Key {
    key_of("recovery", address, device)
}

/// Failed logins with `address`, in the same way.
#[must_use]
pub fn login_key(address: &EmailAddress, device: Option<DeviceId>) -> Key {
    key_of("login", address, device)
}

/// Wrong current passwords of an account, by whoever has a session of it.
#[must_use]
pub fn password_key(account_id: Uuid) -> Key {
    Sha256::new().chain_update(b"password|").chain_update(account_id).finalize().into()
}

/// Requests that end sessions of an account.
#[must_use]
pub fn sessions_key(account_id: Uuid) -> Key {
    Sha256::new().chain_update(b"sessions|").chain_update(account_id).finalize().into()
}

/// Browsers that become known with `address`.
#[must_use]
pub fn device_key(address: &EmailAddress) -> Key {
    key_of("new-device", address, None)
}

/// The use of a ticket.
#[must_use]
pub fn ticket_key(ticket: DeviceId) -> Key {
    Sha256::new().chain_update(b"ticket|").chain_update(ticket.as_bytes()).finalize().into()
}

/// Times that an operator filled the buckets of `address`.
#[must_use]
pub fn unblock_key(address: &EmailAddress) -> Key {
    key_of("unblock", address, None)
}

fn key_of(purpose: &str, address: &EmailAddress, device: Option<DeviceId>) -> Key {
    let hash = Sha256::new().chain_update(purpose);
    let hash = match device {
        Some(device) => hash.chain_update(b"-device|").chain_update(device.as_bytes()),
        None => hash.chain_update(b"|"),
    };
    hash.chain_update(address.as_str()).finalize().into()
}

/// Spends one unit of a budget for a request.
///
/// # Errors
///
/// `refusal` if nothing is left, with when there will be; `StorageUnavailable`.
pub async fn draw(
    pool: &PgPool,
    now: OffsetDateTime,
    key: &Key,
    budget: RateLimit,
    refusal: Problem,
) -> Result<(), Error> {
    match within_deadline("draw budget", spend(pool, now, key, budget)).await? {
        Draw::Drawn => Ok(()),
        Draw::EmptyUntil(at) => Err(Error::retry_after(refusal, (at - now).try_into().unwrap_or_default())),
    }
}

/// Whether a unit was drawn from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Draw {
    /// It was.
    Drawn,
    /// The bucket is empty until then.
    EmptyUntil(OffsetDateTime),
}

/// Draws one unit from a bucket.
pub async fn spend(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    key: &Key,
    budget: RateLimit,
) -> Result<Draw, sqlx::Error> {
    let (short_room, long_room) = budget.room();
    let row = sqlx::query!(
        "INSERT INTO throttle AS t (key, short_at, long_at, admitted)
         VALUES ($1, $2::timestamptz + $3::interval, $2 + $4::interval, 1)
         ON CONFLICT (key) DO UPDATE SET (short_at, long_at, admitted) = (
             SELECT greatest(t.short_at, $2) + n * $3::interval, greatest(t.long_at, $2) + n * $4::interval, n
             FROM (SELECT (t.short_at <= $5 AND t.long_at <= $6)::int AS n) AS free
         )
         RETURNING short_at, long_at, admitted",
        key,
        now,
        interval(budget.short_refill) as _,
        interval(budget.long_refill) as _,
        now + short_room,
        now + long_room,
    )
    .fetch_one(executor)
    .await?;
    Ok(if row.admitted > 0 {
        Draw::Drawn
    } else {
        Draw::EmptyUntil((row.short_at - short_room).max(row.long_at - long_room))
    })
}

/// When a budget has a unit left: now, or when one has come back. Spends none.
pub async fn free_at(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    key: &Key,
    budget: RateLimit,
) -> Result<OffsetDateTime, sqlx::Error> {
    let (short_room, long_room) = budget.room();
    let row = sqlx::query!("SELECT short_at, long_at FROM throttle WHERE key = $1", key);
    let row = row.fetch_optional(executor).await?;
    Ok(row.map_or(now, |row| (row.short_at - short_room).max(row.long_at - long_room).max(now)))
}

/// Gives back a unit that was spent: the attempt that it was for has succeeded.
pub async fn refund(executor: impl PgExecutor<'_>, key: &Key, budget: RateLimit) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE throttle SET short_at = short_at - $2::interval, long_at = long_at - $3::interval WHERE key = $1",
        key,
        interval(budget.short_refill) as _,
        interval(budget.long_refill) as _,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// A duration as PostgreSQL takes it.
#[must_use]
pub fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

/// Fills the buckets of an address again: its recoveries, its failed logins, and the browsers that become known with it.
/// Those of browsers that are known already are their own. Gives how many had been drawn on.
pub async fn refill(executor: impl PgExecutor<'_>, address: &EmailAddress) -> Result<u64, sqlx::Error> {
    let keys = [recovery_key(address, None), login_key(address, None), device_key(address)];
    let keys: Vec<_> = keys.iter().map(|key| &key[..]).collect();
    let lifted = sqlx::query!("DELETE FROM throttle WHERE key = ANY($1)", &keys as _);
    Ok(lifted.execute(executor).await?.rows_affected())
}

/// Fills every bucket again, for `DEV_NO_LIMITS=1`: [`RateLimit::unlimited`] still refuses where an earlier run with limits has
/// drawn on one.
///
/// # Errors
///
/// What PostgreSQL answers.
pub async fn refill_all(executor: impl PgExecutor<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM throttle WHERE true").execute(executor).await?;
    Ok(())
}

/// Deletes the bucket of an erased account. Those of its address and of its browsers are hashes that any address has, and
/// stay until they are full: that they are gone would tell a stranger that somebody was erased.
pub async fn forget(transaction: &mut PgConnection, account_id: Uuid) -> Result<(), sqlx::Error> {
    let key = password_key(account_id);
    sqlx::query!("DELETE FROM throttle WHERE key = $1", &key[..]).execute(transaction).await?;
    Ok(())
}

/// Looks through `pages` pages of the table, `from` on, and deletes the budgets whose buckets are both full: they say
/// nothing that no row would not say. Gives how many went, and the page to go on with; none at the table's end. Pages are
/// read as they lie there: in the order of their keys, each row would be on another one.
pub async fn sweep(
    pool: &PgPool,
    now: OffsetDateTime,
    from: i64,
    pages: i64,
) -> Result<(u64, Option<i64>), sqlx::Error> {
    let to = from + pages;
    let row = sqlx::query!(
        r#"
        WITH gone AS (
            DELETE FROM throttle WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM throttle
                WHERE ctid >= $1::text::tid AND ctid < $2::text::tid AND short_at <= $3 AND long_at <= $3
                FOR UPDATE SKIP LOCKED
            ))
            RETURNING 1
        )
        SELECT (SELECT count(*) FROM gone) AS "gone!",
            pg_relation_size('throttle') / current_setting('block_size')::bigint AS "pages!"
        "#,
        format!("({from},0)"),
        format!("({to},0)"),
        now,
    );
    let row = row.fetch_one(pool).await?;
    Ok((row.gone.unsigned_abs(), (to < row.pages).then_some(to)))
}
