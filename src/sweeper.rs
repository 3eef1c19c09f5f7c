//! Deletes what is over, a little at a time, so that nothing grows without bound. Each module says what of its own
//! table that is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::database::{failures, in_time};
use crate::{audit, recovery, session, throttle};

/// How often the sweeper looks.
const INTERVAL: Duration = Duration::from_secs(30);
/// Rows that one statement deletes at most: short locks, and replication keeps up.
const ROWS: i64 = 5000;
/// Pages of budgets that one statement looks through: about as many rows.
const PAGES: i64 = 64;
/// Statements at most for a table, before the sweeper looks again.
const ROUNDS: u32 = 100;
/// The sweeper rests this many times as long as its statements took: a fifteenth of the time of one connection is all it has.
const REST: u32 = 14;

/// Sweeps, and remembers how far it came.
#[derive(Debug)]
pub struct Sweeper {
    app: Arc<App>,
    /// The page of budgets to go on with: a large table is looked through over several sweeps.
    next_page: i64,
}

impl Sweeper {
    /// Begins at the beginning.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self { app, next_page: 0 }
    }

    /// Sweeps until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            stop.run_until_cancelled(self.sweep()).await;
        }
    }

    /// Deletes what is over by now, all of it unless there is very much. A table that fails holds no other back.
    pub async fn sweep(&mut self) {
        let app = Arc::clone(&self.app);
        let networks = app.source_limits.sweep();
        app.metrics.throttled_networks.set(i64::try_from(networks).unwrap_or(i64::MAX));
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let Some(now) = app.clock.trusted_now() else { return };
            let kept = app.config.storage.recovery_retention;
            let recoveries = self
                .count("sweep recovery_session", in_time(recovery::sweep(&app.pool, now, kept, ROWS)).await);
            let age = app.config.sessions.session_lifetime + app.config.storage.session_retention;
            let sessions =
                self.count("sweep session", in_time(session::sweep(&app.pool, now, age, ROWS)).await);
            let kept = app.config.storage.audit_retention;
            let events =
                self.count("sweep audit_event", in_time(audit::sweep(&app.pool, now, kept, ROWS)).await);
            if recoveries.max(sessions).max(events) < ROWS.unsigned_abs() {
                break;
            }
            tokio::time::sleep(began.elapsed() * REST).await;
        }
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let Some(now) = app.clock.trusted_now() else { return };
            let swept = in_time(throttle::sweep(&app.pool, now, self.next_page, PAGES)).await;
            let next = swept.as_ref().ok().and_then(|(_, next)| *next);
            self.count("sweep throttle", swept.map(|(rows, _)| rows));
            self.next_page = next.unwrap_or_default();
            if next.is_none() {
                break;
            }
            tokio::time::sleep(began.elapsed() * REST).await;
        }
    }

    fn count(&self, what: &'static str, deleted: Result<u64, sqlx::Error>) -> u64 {
        match deleted {
            Ok(rows) => {
                self.app.metrics.swept_rows.inc_by(rows);
                rows
            }
            Err(error) => {
                failures::note(what, &error);
                0
            }
        }
    }
}
