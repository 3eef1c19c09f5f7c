//! Deletes expired rows in small batches, so that no table grows without bound. Each module defines
//! which of its rows have expired.

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::admin::request;
use crate::app::App;
use crate::config::APPROVAL_LIFETIME;
use crate::database::{failures, in_time};
use crate::{audit, event_hook, recovery, session, throttle};

/// The interval between sweeps.
const INTERVAL: Duration = Duration::from_secs(30);
/// The maximum number of rows that one statement deletes: locks stay short, and replication keeps
/// up.
const ROWS: i64 = 5000;
/// The pages of `throttle` that one statement scans: about [`ROWS`] rows.
const PAGES: i64 = 64;
/// The maximum number of statements for a table in one sweep.
const ROUNDS: u32 = 100;
/// The pause after a statement, as a multiple of its duration: the sweeper uses at most a fifteenth
/// of one connection's time.
const REST: u32 = 14;

/// How long events are recorded for a hook that no replica has.
const KEPT_FOR: Duration = Duration::from_hours(1);

/// The sweeper, with its position in `throttle`.
#[derive(Debug)]
pub struct Sweeper {
    app: Arc<App>,
    /// The page of `throttle` at which the next sweep continues: a large table takes several
    /// sweeps.
    next_page: i64,
    /// Whether the database answered in the previous sweep.
    had_answer: bool,
}

impl Sweeper {
    /// A sweeper that starts at the first page.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self { app, next_page: 0, had_answer: false }
    }

    /// Sweeps until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            stop.run_until_cancelled(self.sweep()).await;
        }
    }

    /// Deletes the rows that have expired, all of them unless there are very many. If one table
    /// fails, the others are swept nevertheless.
    pub async fn sweep(&mut self) {
        let app = Arc::clone(&self.app);
        let networks = app.source_limits.sweep();
        app.metrics.throttled_networks.set(i64::try_from(networks).unwrap_or(i64::MAX));
        let Some(now) = app.clock.trusted_now() else { return };
        self.remove_event_hooks(now).await;
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let Some(now) = app.clock.trusted_now() else { return };
            // Clears columns only, so no deleted row is counted.
            let replays = in_time(recovery::sweep_replays(&app.pool, now, ROWS)).await;
            let replays = replays.inspect_err(|error| failures::note("clear replays", error)).unwrap_or(0);
            let kept = app.config.storage.recovery_retention;
            let recoveries = self
                .count("sweep recovery_session", in_time(recovery::sweep(&app.pool, now, kept, ROWS)).await);
            let age = app.config.sessions.session_lifetime + app.config.storage.session_retention;
            let sessions =
                self.count("sweep session", in_time(session::sweep(&app.pool, now, age, ROWS)).await);
            let kept = app.config.storage.audit_retention;
            let events =
                self.count("sweep audit_event", in_time(audit::sweep(&app.pool, now, kept, ROWS)).await);
            let deliveries = in_time(event_hook::queue::sweep(&app.pool, now, kept, ROWS)).await;
            let deliveries = self.count("sweep event_delivery", deliveries);
            let kept = app.config.storage.recovery_retention;
            let age = APPROVAL_LIFETIME + app.config.support.address_change_delay + kept;
            let requests = in_time(request::sweep(&app.pool, now, (age, kept), ROWS)).await;
            let requests = self.count("sweep operator_request", requests);
            let logins = in_time(session::sweep_login_steps(&app.pool, now, ROWS)).await;
            let logins = self.count("sweep login_step", logins);
            let most =
                recoveries.max(logins).max(sessions).max(events).max(deliveries).max(replays).max(requests);
            if most < ROWS.unsigned_abs() {
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

    /// Removes hooks that no replica has. After an outage of the database, the first sweep removes
    /// none, so that replicas can register their hooks again before the next sweep.
    async fn remove_event_hooks(&mut self, now: OffsetDateTime) {
        let kept_since = if self.had_answer { now - KEPT_FOR } else { OffsetDateTime::UNIX_EPOCH };
        let removed = in_time(event_hook::queue::remove_unset(&self.app.pool, kept_since)).await;
        self.had_answer = removed.inspect_err(|error| failures::note("remove event hooks", error)).is_ok();
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
