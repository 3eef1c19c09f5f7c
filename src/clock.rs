//! The only place that reads the time.
//!
//! Every rule that depends on time takes `now` as an argument, and `now` comes from here, so that a test moves time
//! instead of waiting for it. Times go to and from PostgreSQL, hence whole microseconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use uuid::{NoContext, Timestamp, Uuid};

/// How far this machine's clock and PostgreSQL's may be apart.
pub const MAX_SKEW: Duration = Duration::from_secs(1);

/// Where the time comes from.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's clock.
    System(SystemClock),
    /// A clock that stands still until somebody moves it.
    Manual(ManualClock),
}

impl Clock {
    /// The machine's clock, which nobody has compared yet.
    #[must_use]
    pub fn system() -> Self {
        Self::System(SystemClock { began: Instant::now(), agreed: Arc::new(AtomicI64::new(NEVER)) })
    }

    /// The present, in UTC, in whole microseconds.
    #[must_use]
    pub fn now(&self) -> OffsetDateTime {
        match self {
            Self::System(_) => SystemClock::now(),
            Self::Manual(clock) => clock.now(),
        }
    }

    /// The present, for a rule that must not be applied at a wrong time; `None` while the machine's clock has not been
    /// found to agree with PostgreSQL's, or has been moved since. A clock that runs ahead would strike off mails whose
    /// codes live, one that is late would let dead codes pass.
    #[must_use]
    pub fn trusted_now(&self) -> Option<OffsetDateTime> {
        // Read before it is judged: a clock that is moved in between has given a good time.
        let now = self.now();
        self.is_trusted().then_some(now)
    }

    /// Whether [`Clock::trusted_now`] gives a time. A clock in a test's hands is always trusted.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        match self {
            Self::System(clock) => clock.is_trusted(),
            Self::Manual(_) => true,
        }
    }

    /// Notes whether the clock agreed with PostgreSQL's when it was `now`, which was read at `read_at`.
    pub fn was_compared(&self, now: OffsetDateTime, read_at: Instant, agrees: bool) {
        if let Self::System(clock) = self {
            let ahead = if agrees { clock.ahead(now, read_at) } else { NEVER };
            clock.agreed.store(ahead, Ordering::Relaxed);
        }
    }

    /// How long some moment of the past is ago, by a clock that nobody can move: for the limiter in memory, which would
    /// refuse everybody for an hour after the machine's clock was an hour ahead.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        match self {
            Self::System(clock) => clock.began.elapsed(),
            Self::Manual(clock) => {
                Duration::try_from(clock.now() - OffsetDateTime::UNIX_EPOCH).unwrap_or_default()
            }
        }
    }
}

/// The machine's clock beside its monotonic one, which nobody can move. Clones share what is known.
#[derive(Clone, Debug)]
pub struct SystemClock {
    began: Instant,
    /// By how many microseconds the clock was ahead of the monotonic one when it agreed with PostgreSQL's.
    agreed: Arc<AtomicI64>,
}

const NEVER: i64 = i64::MIN;

impl SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the place where the time is read")]
    fn now() -> OffsetDateTime {
        let now = OffsetDateTime::now_utc();
        now.replace_nanosecond(now.microsecond() * 1000).unwrap_or(now)
    }

    fn ahead(&self, now: OffsetDateTime, read_at: Instant) -> i64 {
        let (wall, passed) =
            (now.unix_timestamp_nanos() / 1000, read_at.saturating_duration_since(self.began).as_micros());
        i64::try_from(wall).unwrap_or_default().saturating_sub_unsigned(u64::try_from(passed).unwrap_or(0))
    }

    fn is_trusted(&self) -> bool {
        let agreed = self.agreed.load(Ordering::Relaxed);
        let moved = self.ahead(Self::now(), Instant::now()).abs_diff(agreed);
        agreed != NEVER && u128::from(moved) <= MAX_SKEW.as_micros()
    }
}

/// A new `UUIDv7` (RFC 9562) that carries `now`, so that ids sort by time of creation. It is no secret: its random part
/// comes from a generator of this process, which spares a start three calls of the kernel.
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

    #[test]
    fn a_clock_is_trusted_when_it_agreed_and_has_not_been_moved_since() {
        let clock = Clock::system();
        assert_eq!(clock.trusted_now(), None, "never compared");
        let (now, read_at) = (clock.now(), Instant::now());
        clock.was_compared(now, read_at, true);
        assert!(clock.trusted_now().is_some_and(|trusted| trusted >= now));
        assert!(clock.clone().is_trusted(), "clones share what is known");
        // As if it had been two seconds earlier, or later, when it agreed: it was moved meanwhile.
        for moved in [time::Duration::seconds(-2), time::Duration::seconds(2)] {
            clock.was_compared(now + moved, read_at, true);
            assert!(!clock.is_trusted());
        }
        clock.was_compared(now, read_at, true);
        assert!(clock.is_trusted());
        clock.was_compared(now, read_at, false);
        assert!(!clock.is_trusted());
    }
}
