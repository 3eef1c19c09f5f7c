//! Rate limits: how many codes an address may be sent and how many logins may fail for it (table
//! `throttle`), and how many requests a network may make ([`SourceLimits`], in memory).
//!
//! Both use the generic cell rate algorithm (ITU-T I.371): a bucket is stored as the time at which
//! it will be full again. The buckets of addresses are in PostgreSQL, because the bound on guesses
//! (invariant 4 of the crate) must hold across replicas and restarts. The buckets of networks
//! protect only this process, so they are in memory.

pub mod inspect;
mod network;
mod sources;
mod turn;
mod use_counter;

use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::postgres::types::PgInterval;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::network::{Limiter, Source, network_of};
pub use self::sources::SourceLimits;
pub use self::turn::{Turn, Turns};
use crate::config::{AddressLimitSettings, TICKET_LIFETIME};
use crate::database::within_deadline;
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::known_device::DeviceId;

const DAY: Duration = Duration::from_hours(24);
const SHORT_REFILL: Duration = Duration::from_mins(5);

/// A rate limit of two buckets: the capacity of each, and the time until one unit is refilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Capacity of the short bucket.
    pub short_burst: u32,
    /// Time until the short bucket is refilled by one unit.
    pub short_refill: Duration,
    /// Capacity of the long bucket.
    pub long_burst: u32,
    /// Time until the long bucket is refilled by one unit.
    pub long_refill: Duration,
}

impl RateLimit {
    /// Recovery emails of one address. The short bucket holds `ADDRESS_BURST` and is refilled by
    /// one every 5 minutes. The long bucket holds `ADDRESS_PER_DAY` and is refilled by as many a
    /// day. With the defaults (3 and 10), at most 19 emails are sent in any 24 hours.
    #[must_use]
    pub fn for_address(settings: &AddressLimitSettings) -> Self {
        Self {
            short_burst: settings.address_burst,
            short_refill: SHORT_REFILL,
            long_burst: settings.address_per_day,
            long_refill: DAY / settings.address_per_day,
        }
    }

    /// Failed logins with one address, or wrong current passwords of one account. The short bucket
    /// holds 10 and is refilled by one every 5 minutes. The long bucket holds 100 and is refilled
    /// by as many a day.
    #[must_use]
    pub fn for_failures() -> Self {
        Self { short_burst: 10, short_refill: SHORT_REFILL, long_burst: 100, long_refill: DAY / 100 }
    }

    /// Browsers that become known with one address. Both buckets hold 10: the short one is refilled
    /// by one every 5 minutes, the long one by 10 a day. Each known browser has rate limits of its
    /// own.
    #[must_use]
    pub fn for_new_devices() -> Self {
        Self { short_burst: 10, short_refill: SHORT_REFILL, long_burst: 10, long_refill: DAY / 10 }
    }

    /// A ticket: one use within its lifetime.
    #[must_use]
    pub fn for_ticket() -> Self {
        Self { short_burst: 1, short_refill: TICKET_LIFETIME, long_burst: 1, long_refill: TICKET_LIFETIME }
    }

    /// How often operators together may refill the buckets of one address: twice at once, one more
    /// every 12 hours, so at most 3 times in any 24 hours.
    #[must_use]
    pub fn for_unblocks() -> Self {
        Self { short_burst: 2, short_refill: DAY / 2, long_burst: 2, long_refill: DAY / 2 }
    }

    /// How often an operator may help owners, `per_hour` times in any hour: half of them at once,
    /// the others spread over the hour.
    #[must_use]
    pub fn for_operator(per_hour: u32) -> Self {
        let refills = (per_hour / 2).max(1);
        let (burst, refill) = ((per_hour - per_hour / 2).max(1), Duration::from_hours(1) / refills);
        Self { short_burst: burst, short_refill: refill, long_burst: burst, long_refill: refill }
    }

    /// The times until a bucket with exactly one unit left is full. A bucket that needs longer is
    /// empty.
    fn room(self) -> (Duration, Duration) {
        (self.short_refill * (self.short_burst - 1), self.long_refill * (self.long_burst - 1))
    }

    /// Limits that are never reached, for `DEV_NO_LIMITS=1`.
    #[must_use]
    pub fn unlimited() -> Self {
        let (burst, refill) = (1_000_000, Duration::from_micros(1));
        Self { short_burst: burst, short_refill: refill, long_burst: burst, long_refill: refill }
    }
}

/// The key of a bucket's row: SHA-256 of its purpose and its subject.
pub type BucketKey = [u8; 32];

/// The bucket of recovery emails to `address`, whether or not the address has an account. A browser
/// that has signed in with the address before has a bucket of its own.
#[must_use]
pub fn recovery_key(address: &EmailAddress, device: Option<DeviceId>) -> BucketKey {
    key_of("recovery", address, device)
}

/// The bucket of failed logins with `address`. A browser that has signed in with the address before
/// has a bucket of its own.
#[must_use]
pub fn login_key(address: &EmailAddress, device: Option<DeviceId>) -> BucketKey {
    key_of("login", address, device)
}

/// The bucket of wrong current passwords of an account, from any of its sessions.
#[must_use]
pub fn password_key(account_id: Uuid) -> BucketKey {
    Sha256::new().chain_update(b"password|").chain_update(account_id).finalize().into()
}

/// The bucket of wrong second factors of an account. A browser that its owner has signed in on before
/// has a bucket of its own.
#[must_use]
pub fn factor_key(account_id: Uuid, device: Option<DeviceId>) -> BucketKey {
    let hash = Sha256::new().chain_update(b"second-factor|").chain_update(account_id);
    match device {
        Some(device) => hash.chain_update(device.as_bytes()).finalize().into(),
        None => hash.finalize().into(),
    }
}

/// The key of requests that end sessions of an account.
#[must_use]
pub fn sessions_key(account_id: Uuid) -> BucketKey {
    Sha256::new().chain_update(b"sessions|").chain_update(account_id).finalize().into()
}

/// The bucket of browsers that become known with `address`.
#[must_use]
pub fn device_key(address: &EmailAddress) -> BucketKey {
    key_of("new-device", address, None)
}

/// The bucket of a ticket's uses.
#[must_use]
pub fn ticket_key(ticket: DeviceId) -> BucketKey {
    Sha256::new().chain_update(b"ticket|").chain_update(ticket.as_bytes()).finalize().into()
}

/// The bucket of all help by one operator.
#[must_use]
pub fn operator_key(name: &str) -> BucketKey {
    Sha256::new().chain_update(b"operator|").chain_update(name).finalize().into()
}

/// The bucket of refills for `address` by operators.
#[must_use]
pub fn unblock_key(address: &EmailAddress) -> BucketKey {
    key_of("unblock", address, None)
}

fn key_of(purpose: &str, address: &EmailAddress, device: Option<DeviceId>) -> BucketKey {
    let hash = Sha256::new().chain_update(purpose);
    let hash = match device {
        Some(device) => hash.chain_update(b"-device|").chain_update(device.as_bytes()),
        None => hash.chain_update(b"|"),
    };
    hash.chain_update(address.as_str()).finalize().into()
}

/// Draws one unit from a bucket for a request.
///
/// # Errors
///
/// `refusal` with the time to wait, if the bucket is empty; `StorageUnavailable`.
pub async fn draw(
    pool: &PgPool,
    now: OffsetDateTime,
    key: &BucketKey,
    limit: RateLimit,
    refusal: Problem,
) -> Result<(), Error> {
    match within_deadline("draw on rate limit", try_draw(pool, now, key, limit)).await? {
        Draw::Drawn => Ok(()),
        Draw::EmptyUntil(at) => Err(Error::retry_after(refusal, (at - now).try_into().unwrap_or_default())),
    }
}

/// Whether a unit was drawn from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Draw {
    /// A unit was drawn.
    Drawn,
    /// The bucket is empty until this time.
    EmptyUntil(OffsetDateTime),
}

/// Draws one unit from a bucket, if one is left.
pub async fn try_draw(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    key: &BucketKey,
    limit: RateLimit,
) -> Result<Draw, sqlx::Error> {
    let (short_room, long_room) = limit.room();
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
        interval(limit.short_refill) as _,
        interval(limit.long_refill) as _,
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

/// Returns when the bucket has a unit: now, or when one is refilled. Draws none.
pub async fn free_at(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    key: &BucketKey,
    limit: RateLimit,
) -> Result<OffsetDateTime, sqlx::Error> {
    let (short_room, long_room) = limit.room();
    let row = sqlx::query!("SELECT short_at, long_at FROM throttle WHERE key = $1", key);
    let row = row.fetch_optional(executor).await?;
    Ok(row.map_or(now, |row| (row.short_at - short_room).max(row.long_at - long_room).max(now)))
}

/// Returns a drawn unit to its bucket, because the attempt it was for has succeeded.
pub async fn refund(
    executor: impl PgExecutor<'_>,
    key: &BucketKey,
    limit: RateLimit,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE throttle SET short_at = short_at - $2::interval, long_at = long_at - $3::interval WHERE key = $1",
        key,
        interval(limit.short_refill) as _,
        interval(limit.long_refill) as _,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// A duration as a PostgreSQL interval.
#[must_use]
pub fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}

/// Refills the buckets of an address: recoveries, failed logins, newly known browsers. Browsers
/// that are already known have buckets of their own, which this leaves. Returns how many buckets
/// were not full.
pub async fn refill(executor: impl PgExecutor<'_>, address: &EmailAddress) -> Result<u64, sqlx::Error> {
    let keys = [recovery_key(address, None), login_key(address, None), device_key(address)];
    let keys: Vec<_> = keys.iter().map(|key| &key[..]).collect();
    let refilled = sqlx::query!("DELETE FROM throttle WHERE key = ANY($1)", &keys as _);
    Ok(refilled.execute(executor).await?.rows_affected())
}

/// Fills every bucket again, for `DEV_NO_LIMITS=1`: even [`RateLimit::unlimited`] refuses a request
/// whose bucket an earlier run with limits has emptied.
pub async fn refill_all(executor: impl PgExecutor<'_>) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM throttle WHERE true").execute(executor).await?;
    Ok(())
}

/// Deletes the bucket of an erased account. The buckets of its address and browsers exist whether
/// or not the address has an account. They stay until they are full, because deleting them would
/// show that an account was erased.
pub async fn forget(transaction: &mut PgConnection, account_id: Uuid) -> Result<(), sqlx::Error> {
    let key = password_key(account_id);
    sqlx::query!("DELETE FROM throttle WHERE key = $1", &key[..]).execute(transaction).await?;
    Ok(())
}

/// Scans `pages` pages of the table, beginning with page `from`, and deletes rows whose buckets are
/// both full: they mean the same as no row. Returns how many rows it deleted and the next page, or
/// `None` at the table's end. It scans pages in physical order, because in key order each row would
/// be on a different page.
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
