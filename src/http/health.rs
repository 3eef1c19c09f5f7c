//! Health and readiness, for proxies, orchestrators and operators.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::database::health::Health;
use crate::error::{Error, Problem};
use crate::http::AppState;
use crate::http::error::Parts;

/// How long a client should wait before it repeats a `/readyz` request that was answered "not
/// ready".
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// `GET /healthz`: the process is alive. The handler checks nothing else, so that orchestrators do
/// not restart replicas during an outage of the database.
pub async fn healthz() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// `GET /readyz`: whether this replica should receive requests, and which part is not ready. Relays
/// are reported but do not count: without a relay only `start` fails, with 502.
pub async fn readyz(State(state): State<AppState>) -> Response {
    let database = state.app.health.check().await;
    let draining = state.draining.load(Ordering::Relaxed);
    let parts = json!({
        "database": <&str>::from(database),
        "relays": state.app.gateway.states(),
        "mail": if state.app.gateway.is_up() { "ok" } else { "unavailable" },
        "server": if draining { "stopping" } else { "ok" },
    });
    if database == Health::Ok && !draining {
        return Json(json!({ "status": "ready", "parts": parts })).into_response();
    }
    let mut response = Error::retry_after(Problem::NotReady, RETRY_AFTER).into_response();
    response.extensions_mut().insert(Parts(parts));
    response
}
