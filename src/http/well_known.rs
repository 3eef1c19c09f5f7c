//! What operators and clients look up: health, readiness, the API's description, the figures.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::app::App;
use crate::database::health::Health;
use crate::error::{Error, Problem};
use crate::http::Site;
use crate::http::error::Parts;
use crate::http::extract::locale_of;
use crate::jwt::JWKS_MAX_AGE;
use crate::locale::Locale;

/// What a client is told to wait when this replica should not be asked.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const OPENAPI_VI: &str = include_str!("../../openapi/openapi.oms.vi.json");
const OPENAPI_EN: &str = include_str!("../../openapi/openapi.oms.en.json");

/// `GET /healthz`: the process lives. Asks nothing else, so that a sick database restarts nobody.
pub async fn healthz() -> Response {
    Json(json!({ "status": "ok" })).into_response()
}

/// `GET /readyz`: whether requests should come here, and which part is in the way. The relay is told but does not
/// count: without it `start` answers 502 by itself, and everything else works.
pub async fn readyz(State(site): State<Site>) -> Response {
    let database = site.app.health.check().await;
    let draining = site.draining.load(Ordering::Relaxed);
    let parts = json!({
        "database": database.as_str(),
        "relays": site.app.gateway.states(),
        "mail": if site.app.gateway.is_up() { "ok" } else { "unavailable" },
        "server": if draining { "stopping" } else { "ok" },
    });
    if database == Health::Ok && !draining {
        return Json(json!({ "status": "ready", "parts": parts })).into_response();
    }
    let mut response = Error::retry_after(Problem::NotReady, RETRY_AFTER).into_response();
    response.extensions_mut().insert(Parts(parts));
    response
}

/// `GET /openapi.json?lang=vi|en`: the description of this API; without `lang`, in the language that is asked for.
///
/// # Errors
///
/// `QueryInvalid` for any other parameter, another language, or a doubled one.
pub async fn openapi(RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Error> {
    let query = query.unwrap_or_default();
    let mut parameters = url::form_urlencoded::parse(query.as_bytes());
    let locale = match (parameters.next(), parameters.next()) {
        (None, _) => locale_of(&headers).unwrap_or(Locale::En),
        (Some((name, value)), None) if name == "lang" => value.parse().map_err(|()| Problem::QueryInvalid)?,
        _ => return Err(Problem::QueryInvalid.into()),
    };
    let document = match locale {
        Locale::Vi => OPENAPI_VI,
        Locale::En => OPENAPI_EN,
    };
    let head = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "public, max-age=300"),
        (VARY, "accept-language"),
    ];
    Ok((head, document).into_response())
}

/// `GET /.well-known/jwks.json`: the public keys that verify the JWTs.
pub async fn jwks(State(site): State<Site>) -> Response {
    let cached = format!("public, max-age={}", JWKS_MAX_AGE.as_secs());
    let keys = site.app.jwt_keys.jwks(site.app.clock.now());
    ([(CACHE_CONTROL, cached)], Json(keys)).into_response()
}

/// `GET /metrics`, on the private address: OpenMetrics for a client that accepts it, else the text format 0.0.4.
#[must_use]
pub fn metrics(app: &App, headers: &HeaderMap) -> Response {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (content_type, page) = if accepted.any(|types| types.contains("application/openmetrics-text")) {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", app.metrics.open_metrics())
    } else {
        ("text/plain; version=0.0.4; charset=utf-8", app.metrics.text())
    };
    ([(CONTENT_TYPE, content_type)], page).into_response()
}
