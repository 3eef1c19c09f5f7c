//! Statements that fail, in the log: the first one at once, and while it goes on one line a minute that says how many more.
//! What the service does at PostgreSQL is a short list, and so is what it fails with; the log stays short, too.

use std::collections::HashMap;
use std::mem::take;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{DISK_FULL, cause, is_statements_fault};

/// How long the same failure of the same work is counted before the log names it again.
const PERIOD: Duration = Duration::from_mins(1);

/// Of the whole process, as the log is.
static FAILURES: LazyLock<Mutex<Failures>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct Failures {
    seen: HashMap<(&'static str, String), Seen>,
    disk_full: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    logged: Instant,
    fault: bool,
    /// How many came since.
    more: u64,
}

/// Notes that PostgreSQL failed `what` the service did.
pub fn note(what: &'static str, error: &sqlx::Error) {
    let (cause, fault) = (cause(error), is_statements_fault(error));
    let mut failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
    if error.as_database_error().is_some_and(|error| error.code().as_deref() == Some(DISK_FULL)) {
        failures.disk_full = Some(Instant::now());
    }
    if failures.is_first(what, &cause, fault, Instant::now()) {
        drop(failures);
        tracing::warn!(what, cause, fault, "PostgreSQL failed what the service asked of it");
    }
}

/// Logs what has been counted for a minute. To be called every second or so.
pub fn log_counted() {
    let counted = FAILURES.lock().unwrap_or_else(PoisonError::into_inner).counted(Instant::now());
    for ((what, cause), fault, more) in counted {
        let message = "PostgreSQL failed what the service asked of it, again and again";
        tracing::warn!(what, cause, fault, more, "{message}");
    }
}

/// Whether a statement failed for a full disk within that time.
pub fn met_full_disk_within(time: Duration) -> bool {
    let failures = FAILURES.lock().unwrap_or_else(PoisonError::into_inner);
    failures.disk_full.is_some_and(|met| met.elapsed() < time)
}

impl Failures {
    fn is_first(&mut self, what: &'static str, cause: &str, fault: bool, now: Instant) -> bool {
        let mut is_first = false;
        let seen = self.seen.entry((what, cause.to_owned())).or_insert_with(|| {
            is_first = true;
            Seen { logged: now, fault, more: 0 }
        });
        seen.more += u64::from(!is_first);
        is_first
    }

    /// What has come again in a period that is over, with how often; what has not is forgotten.
    fn counted(&mut self, now: Instant) -> Vec<((&'static str, String), bool, u64)> {
        self.seen.retain(|_, seen| seen.more > 0 || now - seen.logged < PERIOD);
        let over = self.seen.iter_mut().filter(|(_, seen)| now - seen.logged >= PERIOD);
        over.map(|(key, seen)| {
            seen.logged = now;
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
