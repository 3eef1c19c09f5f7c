//! The log of failed statements, kept short. The first failure is logged at once. While the same
//! failure continues, one line a minute counts the repetitions.

use std::collections::HashMap;
use std::mem::take;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{DISK_FULL, cause, is_statement_error};

/// How long repetitions of a failure are counted before the log names it again.
const PERIOD: Duration = Duration::from_mins(1);

/// One for the whole process, like the log.
static FAILURES: LazyLock<Mutex<Failures>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct Failures {
    seen: HashMap<(&'static str, String), Seen>,
    disk_full: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    logged_at: Instant,
    fault: bool,
    /// How many failures came since `logged_at`.
    more: u64,
}

/// Logs or counts that PostgreSQL failed to do `what`.
pub fn note(what: &'static str, error: &sqlx::Error) {
    let (cause, fault) = (cause(error), is_statement_error(error));
    let mut failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
    if error.as_database_error().is_some_and(|error| error.code().as_deref() == Some(DISK_FULL)) {
        failures.disk_full = Some(Instant::now());
    }
    if failures.is_first(what, &cause, fault, Instant::now()) {
        drop(failures);
        tracing::warn!(what, cause, fault, "a database operation failed");
    }
}

/// Logs the failures that have been counted for a minute. Call it about every second.
pub fn log_counted() {
    let counted = FAILURES.lock().unwrap_or_else(PoisonError::into_inner).counted(Instant::now());
    for ((what, cause), fault, more) in counted {
        tracing::warn!(what, cause, fault, more, "a database operation failed repeatedly");
    }
}

/// Whether a statement failed within this time because PostgreSQL's disk was full.
pub fn met_full_disk_within(time: Duration) -> bool {
    let failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
    failures.disk_full.is_some_and(|met| met.elapsed() < time)
}

impl Failures {
    fn is_first(&mut self, what: &'static str, cause: &str, fault: bool, now: Instant) -> bool {
        let mut is_first = false;
        let seen = self.seen.entry((what, cause.to_owned())).or_insert_with(|| {
            is_first = true;
            Seen { logged_at: now, fault, more: 0 }
        });
        seen.more += u64::from(!is_first);
        is_first
    }

    /// The failures whose period has ended and that were repeated in it, with the number of
    /// repetitions. Forgets those that were not repeated.
    fn counted(&mut self, now: Instant) -> Vec<((&'static str, String), bool, u64)> {
        self.seen.retain(|_, seen| seen.more > 0 || now - seen.logged_at < PERIOD);
        let ended = self.seen.iter_mut().filter(|(_, seen)| now - seen.logged_at >= PERIOD);
        ended
            .map(|(key, seen)| {
                seen.logged_at = now;
                (key.clone(), seen.fault, take(&mut seen.more))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_logged_at_once_and_then_counted_by_the_minute() {
        let (mut failures, began) = (Failures::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let is_first = |failures: &mut Failures, what, cause, seconds| {
            failures.is_first(what, cause, false, at(seconds))
        };
        assert!(is_first(&mut failures, "store starts", "SQLSTATE 53100", 0));
        for second in 1..50 {
            assert!(!is_first(&mut failures, "store starts", "SQLSTATE 53100", second));
        }
        assert!(is_first(&mut failures, "store starts", "SQLSTATE 57P03", 50), "another cause");
        assert!(is_first(&mut failures, "read the outbox", "SQLSTATE 53100", 50), "other work");
        assert_eq!(failures.counted(at(59)), []);
        let key = ("store starts", "SQLSTATE 53100".to_owned());
        assert_eq!(failures.counted(at(60)), [(key, false, 49)]);
        assert_eq!(failures.counted(at(120)), [], "none has come since");
        assert!(is_first(&mut failures, "store starts", "SQLSTATE 53100", 121), "the next is news again");
    }
}
