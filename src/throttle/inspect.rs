//! What an operator sees of the rate limits of an address.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::PgExecutor;
use strum::IntoStaticStr;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{BucketKey, RateLimit, device_key, login_key, password_key, recovery_key, unblock_key};
use crate::clock::serialize_rfc3339;
use crate::email_address::EmailAddress;

/// A bucket of an address, and what is left in it. Browsers that have signed in with the address
/// have buckets of their own, which are found only by their cookies.
#[derive(Clone, Debug, Serialize)]
pub struct Level {
    /// What it limits.
    pub name: LevelName,
    /// How many units it holds.
    pub capacity: u32,
    /// How many units are left.
    pub left: u32,
    /// When it is full again; the present if it is full.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub full_at: OffsetDateTime,
}

impl Level {
    /// Whether no unit is missing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.left == self.capacity
    }
}

/// What a bucket limits. Each limit has a short bucket and one for a day, except `Unblocks`, whose
/// two buckets are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, Serialize)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum LevelName {
    /// Recoveries.
    Recoveries,
    /// Recoveries a day.
    RecoveriesPerDay,
    /// Failed logins.
    FailedLogins,
    /// Failed logins a day.
    FailedLoginsPerDay,
    /// Browsers that become known.
    NewBrowsers,
    /// Browsers that become known a day.
    NewBrowsersPerDay,
    /// Wrong current passwords of the account.
    WrongPasswords,
    /// Wrong current passwords of the account a day.
    WrongPasswordsPerDay,
    /// Refills by operators.
    Unblocks,
}

/// The buckets of an address and, if it has an account, of the account. `address_limit` is the rate
/// limit of recoveries, which the settings define.
pub async fn levels(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    address: &EmailAddress,
    account_id: Option<Uuid>,
    address_limit: RateLimit,
) -> Result<Vec<Level>, sqlx::Error> {
    use LevelName::{
        FailedLogins, FailedLoginsPerDay, NewBrowsers, NewBrowsersPerDay, Recoveries, RecoveriesPerDay,
        Unblocks, WrongPasswords, WrongPasswordsPerDay,
    };
    let failures = RateLimit::for_failures();
    let limits: Vec<(BucketKey, RateLimit, LevelName, Option<LevelName>)> = [
        Some((recovery_key(address, None), address_limit, Recoveries, Some(RecoveriesPerDay))),
        Some((login_key(address, None), failures, FailedLogins, Some(FailedLoginsPerDay))),
        Some((device_key(address), RateLimit::for_new_devices(), NewBrowsers, Some(NewBrowsersPerDay))),
        account_id.map(|id| (password_key(id), failures, WrongPasswords, Some(WrongPasswordsPerDay))),
        // Its two buckets are equal, so only one is shown.
        Some((unblock_key(address), RateLimit::for_unblocks(), Unblocks, None)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let keys: Vec<_> = limits.iter().map(|(key, ..)| &key[..]).collect();
    let rows = sqlx::query!("SELECT key, short_at, long_at FROM throttle WHERE key = ANY($1)", &keys as _);
    let rows = rows.fetch_all(executor).await?;
    let stored: HashMap<_, _> = rows.iter().map(|row| (&row.key[..], (row.short_at, row.long_at))).collect();
    let levels = limits.iter().flat_map(|(key, limit, short, long)| {
        let (short_at, long_at) = stored.get(&key[..]).copied().unwrap_or((now, now));
        let short = level(*short, limit.short_burst, limit.short_refill, short_at, now);
        let long = long.map(|long| level(long, limit.long_burst, limit.long_refill, long_at, now));
        std::iter::once(short).chain(long)
    });
    Ok(levels.collect())
}

fn level(
    name: LevelName,
    capacity: u32,
    refill: Duration,
    full_at: OffsetDateTime,
    now: OffsetDateTime,
) -> Level {
    let full_at = full_at.max(now);
    let missing = (full_at - now).unsigned_abs().as_nanos().div_ceil(refill.as_nanos().max(1));
    let left = capacity.saturating_sub(u32::try_from(missing).unwrap_or(u32::MAX));
    Level { name, capacity, left, full_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_counts_as_left_when_it_can_be_drawn() {
        let (now, refill) = (OffsetDateTime::UNIX_EPOCH, Duration::from_mins(5));
        let left = |after: i64| {
            let full_at = now + time::Duration::seconds(after);
            level(LevelName::Recoveries, 3, refill, full_at, now).left
        };
        assert_eq!([-1, 0, 1, 300, 301, 600, 601, 900, 9000].map(left), [3, 3, 2, 2, 1, 1, 0, 0, 0]);
    }
}
