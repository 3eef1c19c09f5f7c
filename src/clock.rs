//! The only place that reads the time.
//!
//! Every rule that depends on time takes `now` as an argument, and `now` comes from here, so that a test moves time
//! instead of waiting for it. Times go to and from PostgreSQL, hence whole microseconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use time::OffsetDateTime;
use uuid::{NoContext, Timestamp, Uuid};

/// Where the time comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// A clock that stands still until somebody moves it.
    Manual(ManualClock),
}

impl Clock {
    /// The present, in UTC, in whole microseconds.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the place where the time is read")]
    pub fn now(&self) -> OffsetDateTime {
        match self {
            Self::System => {
                let now = OffsetDateTime::now_utc();
                now.replace_nanosecond(now.microsecond() * 1000).unwrap_or(now)
            }
            Self::Manual(clock) => clock.now(),
        }
    }

    /// The present as the time since 1970, for the limiter in memory.
    #[must_use]
    pub fn since_epoch(&self) -> Duration {
        Duration::try_from(self.now() - OffsetDateTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// A new `UUIDv7` (RFC 9562) that carries `now`, so that ids sort by time of creation.
#[must_use]
pub fn new_id(now: OffsetDateTime) -> Uuid {
    Uuid::new_v7(uuid_timestamp(now))
}

/// The smallest `UUIDv7` of `at`: every id made before it sorts below. Lets a primary key serve as an index on time.
#[must_use]
pub fn first_id_of(at: OffsetDateTime) -> Uuid {
    let millis = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

fn uuid_timestamp(at: OffsetDateTime) -> Timestamp {
    Timestamp::from_unix(NoContext, u64::try_from(at.unix_timestamp()).unwrap_or_default(), at.nanosecond())
}

/// A clock that tests hold in their hands. Clones share one time.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// A clock that stands at `now`.
    #[must_use]
    pub fn at(now: OffsetDateTime) -> Self {
        let micros = i64::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or_default();
        Self(Arc::new(AtomicI64::new(micros)))
    }

    /// Moves the time forward.
    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    fn now(&self) -> OffsetDateTime {
        let micros = i128::from(self.0.load(Ordering::SeqCst));
        OffsetDateTime::from_unix_timestamp_nanos(micros * 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_the_time_they_carry() {
        let early = OffsetDateTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_123);
        let late = early + Duration::from_millis(1);
        assert!(new_id(early) < first_id_of(late));
        assert!(first_id_of(early) <= new_id(early));
    }
}
