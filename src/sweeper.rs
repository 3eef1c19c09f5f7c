//! Deletes what is over, a little at a time, so that nothing grows without bound. Each module says what of its own
//! table that is.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::{audit, recovery, throttle};

/// How often the sweeper looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// Rows that one statement deletes at most: short locks, and replication keeps up.
const ROWS: i64 = 1000;
/// Statements in a row at most for each table, before the sweeper rests.
const ROUNDS: u32 = 50;

/// Sweeps until `stop`.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        let swept = stop.run_until_cancelled(sweep(&app)).await;
        if let Some(Err(error)) = swept {
            tracing::warn!(%error, "what is over cannot be deleted; it is tried again");
        }
    }
}

/// Deletes what is over by now, all of it unless there is very much.
///
/// # Errors
///
/// What PostgreSQL answers.
pub async fn sweep(app: &App) -> Result<(), sqlx::Error> {
    let networks = app.network_limiter.sweep();
    app.metrics.throttled_networks.set(i64::try_from(networks).unwrap_or(i64::MAX));
    for _ in 0..ROUNDS {
        let now = app.clock.now();
        let deleted = [
            recovery::sweep(&app.pool, now, ROWS).await?,
            throttle::sweep(&app.pool, now, ROWS).await?,
            audit::sweep(&app.pool, now, app.config.audit_retention, ROWS).await?,
        ];
        app.metrics.swept_rows.inc_by(deleted.iter().sum());
        if deleted.iter().all(|rows| *rows < ROWS.unsigned_abs()) {
            break;
        }
    }
    Ok(())
}
