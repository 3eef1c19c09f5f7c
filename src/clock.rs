//! The clock: the only place that reads the system clock.
//!
//! Every rule that depends on time takes `now` as an argument, and `now` comes from here. So a test
//! can set the time instead of waiting. Times are whole microseconds, because PostgreSQL stores no
//! more.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use serde::{Serialize as _, Serializer};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};
use uuid::{NoContext, Timestamp, Uuid};

/// The largest allowed difference between this machine's clock and PostgreSQL's.
pub const MAX_SKEW: Duration = Duration::from_secs(1);

/// A source of the time.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's clock.
    System(SystemClock),
    /// A clock for tests, which changes only when a test moves it.
    Manual(ManualClock),
}

impl Clock {
    /// The machine's clock. It is not trusted before the first comparison with PostgreSQL's.
    #[must_use]
    pub fn system() -> Self {
        Self::System(SystemClock { started: Instant::now(), agreed_offset: Arc::new(AtomicI64::new(NEVER)) })
    }

    /// The present, in UTC, in whole microseconds.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        match self {
            Self::System(_) => SystemClock::now(),
            Self::Manual(clock) => clock.now(),
        }
    }

    /// The present, for rules that a wrong clock would break; `None` while the clock is not
    /// trusted. A fast clock would delete emails whose codes are valid; a slow clock would accept
    /// expired codes.
    ///
    /// The machine's clock is trusted after it agreed with PostgreSQL's, until it is set or a later
    /// comparison differs.
    #[must_use]
    pub fn trusted_now(&self) -> Option<OffsetDateTime> {
        // The order matters: if the clock is set in between, the time read before is still good.
        let now = self.now();
        self.is_trusted().then_some(now)
    }

    /// Whether [`Clock::trusted_now`] returns a time. A [`ManualClock`] is always trusted.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        match self {
            Self::System(clock) => clock.is_trusted(),
            Self::Manual(_) => true,
        }
    }

    /// Records a comparison with PostgreSQL's clock. `now` is this clock's time, read at `read_at`.
    pub fn record_comparison(&self, now: OffsetDateTime, read_at: Instant, agrees: bool) {
        if let Self::System(clock) = self {
            let offset = if agrees { clock.offset(now, read_at) } else { NEVER };
            clock.agreed_offset.store(offset, Ordering::Relaxed);
        }
    }

    /// The time since a fixed moment, by a clock that cannot be set. The rate limits in memory use
    /// it: by the system clock, they would refuse every client for an hour after a clock that was
    /// an hour fast is corrected.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        match self {
            Self::System(clock) => clock.started.elapsed(),
            Self::Manual(clock) => {
                Duration::try_from(clock.now() - OffsetDateTime::UNIX_EPOCH).unwrap_or_default()
            }
        }
    }
}

/// The machine's clock, with its monotonic clock, which cannot be set. Clones share the result of
/// comparisons.
#[derive(Clone, Debug)]
pub struct SystemClock {
    started: Instant,
    /// The clock minus the monotonic clock, in microseconds, when the clock last agreed with
    /// PostgreSQL's; or [`NEVER`].
    agreed_offset: Arc<AtomicI64>,
}

/// The clocks differed at the last comparison, or there was none.
const NEVER: i64 = i64::MIN;

impl SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the place where the time is read")]
    fn now() -> OffsetDateTime {
        let now = OffsetDateTime::now_utc();
        now.replace_nanosecond(now.microsecond() * 1000).unwrap_or(now)
    }

    fn offset(&self, now: OffsetDateTime, read_at: Instant) -> i64 {
        let (wall, monotonic) =
            (now.unix_timestamp_nanos() / 1000, read_at.saturating_duration_since(self.started).as_micros());
        let monotonic = u64::try_from(monotonic).unwrap_or(0);
        i64::try_from(wall).unwrap_or_default().saturating_sub_unsigned(monotonic)
    }

    fn is_trusted(&self) -> bool {
        let agreed = self.agreed_offset.load(Ordering::Relaxed);
        let moved_by = self.offset(Self::now(), Instant::now()).abs_diff(agreed);
        agreed != NEVER && u128::from(moved_by) <= MAX_SKEW.as_micros()
    }
}

/// A new `UUIDv7` (RFC 9562) of the time `now`: ids sort by time of creation.
///
/// It is not a secret. Its random part comes from a generator in this process, which saves each
/// start three system calls.
#[must_use]
pub fn new_id(now: OffsetDateTime) -> Uuid {
    Uuid::new_v7(uuid_timestamp(now))
}

/// The smallest `UUIDv7` of the time `at`. Ids of earlier times sort below it, so a primary key can
/// be searched by time.
#[must_use]
pub fn first_id_of(at: OffsetDateTime) -> Uuid {
    let millis = u64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid()
}

fn uuid_timestamp(at: OffsetDateTime) -> Timestamp {
    Timestamp::from_unix(NoContext, u64::try_from(at.unix_timestamp()).unwrap_or_default(), at.nanosecond())
}

/// A time as operators read it: RFC 3339 in UTC, cut to the second.
#[must_use]
pub fn rfc3339(at: OffsetDateTime) -> String {
    at.to_offset(UtcOffset::UTC).truncate_to_second().format(&Rfc3339).unwrap_or_default()
}

/// Serializes a time, or one that may be absent, as [`rfc3339`] writes it.
pub fn serialize_rfc3339<S: Serializer>(
    at: &(impl Copy + Into<Option<OffsetDateTime>>),
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let at: Option<OffsetDateTime> = (*at).into();
    at.map(rfc3339).serialize(serializer)
}

/// A clock for tests. Clones share one time.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// A clock whose time is `now`.
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

    #[test]
    fn an_operator_reads_times_in_utc_to_the_second() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_800_000_000_999_999_000).unwrap();
        let elsewhere = at.to_offset(UtcOffset::from_hms(7, 0, 0).unwrap());
        assert_eq!([rfc3339(at), rfc3339(elsewhere)], ["2027-01-15T08:00:00Z"; 2]);
    }

    #[test]
    fn a_clock_is_trusted_when_it_agreed_and_has_not_been_moved_since() {
        let clock = Clock::system();
        assert_eq!(clock.trusted_now(), None, "never compared");
        let (now, read_at) = (clock.now(), Instant::now());
        clock.record_comparison(now, read_at, true);
        assert!(clock.trusted_now().is_some_and(|trusted| trusted >= now));
        assert!(clock.clone().is_trusted(), "clones share the comparison");
        // As if the clock had been set by two seconds since the comparison.
        for moved in [time::Duration::seconds(-2), time::Duration::seconds(2)] {
            clock.record_comparison(now + moved, read_at, true);
            assert!(!clock.is_trusted());
        }
        clock.record_comparison(now, read_at, true);
        assert!(clock.is_trusted());
        clock.record_comparison(now, read_at, false);
        assert!(!clock.is_trusted());
    }
}
