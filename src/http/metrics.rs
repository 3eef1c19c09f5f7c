//! `/metrics` for Prometheus, only on the listener at METRICS_ADDR.

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::app::App;

/// The routes of the listener at METRICS_ADDR.
pub fn routes(app: Arc<App>) -> Router {
    Router::new().route("/metrics", get(async move |headers: HeaderMap| metrics(&app, &headers)))
}

/// `GET /metrics`: OpenMetrics for a client that accepts it, else Prometheus' text format 0.0.4.
fn metrics(app: &App, headers: &HeaderMap) -> Response {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (content_type, page) = if accepted.any(|types| types.contains("application/openmetrics-text")) {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", app.metrics.open_metrics())
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", app.metrics.text())
    };
    ([(CONTENT_TYPE, content_type)], page).into_response()
}
