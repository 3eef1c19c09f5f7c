//! HTTP: the routes of the whole API, and the middleware that every request passes. The routes of
//! operators are in [`admin`].

pub mod admin;
mod asset;
pub mod cookie;
pub mod error;
pub mod extract;
pub mod factors;
mod files;
pub mod guard;
pub mod health;
pub mod listener;
pub mod metrics;
pub mod page;
pub mod recovery;
pub mod session;
pub mod stream;
pub mod tls;
pub mod well_known;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use axum::Router;
use axum::http::header::{ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::from_fn_with_state;
use axum::routing::{delete, get, post};
use tower_cookies::CookieManagerLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::app::App;
use crate::config::{ClientSettings, Switch};
use crate::error::{Error, Problem};
use crate::http::extract::{IDEMPOTENCY_KEY, RECOVERY_ID};
use crate::recovery::Recovery;

/// The state that handlers share.
#[derive(Clone, Debug)]
pub struct AppState {
    /// The parts that all features share.
    pub app: Arc<App>,
    /// The recovery flow.
    pub recovery: Recovery,
    /// Whether the service is draining before it stops.
    pub draining: Arc<AtomicBool>,
    /// Warns about proxies that TRUSTED_PROXIES does not name.
    pub untrusted_proxies: Arc<guard::UntrustedProxies>,
}

/// The public API.
///
/// Every request passes the layers of [`with_layers`] first: [`guard::observe`] (request id, client
/// address, log, metrics, error body, default headers), CORS, and the cookie jar. Then, before its
/// body is parsed:
///
/// | Request | Check | Layer |
/// |---|---|---|
/// | costs email or hash | origin, then rate limit | [`guard::admit`], [`guard::admit_login`] |
/// | recovery step | origin, then rate limit of network or cookie | [`guard::admit_recovery`] |
/// | has a session token | rate limit of unknown tokens | [`guard::admit_token`] |
pub fn router(state: AppState) -> Router {
    let guarded = from_fn_with_state(state.clone(), guard::admit);
    let login = from_fn_with_state(state.clone(), guard::admit_login);
    let in_recovery = from_fn_with_state(state.clone(), guard::admit_recovery);
    let by_token = from_fn_with_state(state.clone(), guard::admit_token);
    let config = &state.app.config;
    let page = if config.page.recovery_page == Switch::On { page::routes(config) } else { Router::new() };
    Router::new()
        .route("/api/auth/recovery", get(recovery::progress).route_layer(in_recovery.clone()))
        .route("/api/auth/recovery/start", post(recovery::start).route_layer(guarded.clone()))
        .route("/api/auth/recovery/verify", post(recovery::verify).route_layer(in_recovery.clone()))
        .route(
            "/api/auth/recovery/reset-password",
            post(recovery::reset_password).route_layer(in_recovery.clone()),
        )
        .route("/api/auth/recovery/second-factor", post(recovery::second_factor).route_layer(in_recovery))
        .route("/api/auth/login", post(session::login).route_layer(login))
        .route(
            "/api/auth/login/second-factor",
            post(session::login_second_factor).route_layer(guarded.clone()),
        )
        .route("/api/auth/factors", get(factors::list).route_layer(by_token.clone()))
        .route("/api/auth/factors/totp", post(factors::begin).route_layer(guarded.clone()))
        .route("/api/auth/factors/{id}/confirm", post(factors::confirm).route_layer(guarded.clone()))
        .route("/api/auth/factors/{id}/rename", post(factors::rename).route_layer(guarded.clone()))
        .route("/api/auth/factors/{id}/remove", post(factors::remove).route_layer(guarded.clone()))
        .route("/api/auth/factors/backup-codes", post(factors::replace_codes).route_layer(guarded.clone()))
        .route("/api/auth/password", post(session::change_password).route_layer(guarded.clone()))
        .route("/api/auth/address-change/stop", post(session::stop_address_change).route_layer(guarded))
        .route("/api/auth/session", get(session::session).route_layer(by_token.clone()))
        .route("/api/auth/logout", post(session::logout).route_layer(by_token.clone()))
        .route(
            "/api/auth/sessions",
            get(session::sessions).delete(session::end_others).route_layer(by_token.clone()),
        )
        .route("/api/auth/sessions/{id}", delete(session::end).route_layer(by_token))
        .route("/.well-known/jwks.json", get(well_known::jwks))
        .route("/openapi.json", get(well_known::openapi))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .merge(page)
        .fallback(async || Error::from(Problem::NotFound))
        .method_not_allowed_fallback(async || Error::from(Problem::MethodNotAllowed))
        .with_state(state)
}

/// Adds the layers that every request passes, the outermost first. They are one tuple, because axum
/// clones and boxes each layer for every request.
pub fn with_layers(routes: Router, state: &AppState) -> Router {
    routes.layer((
        from_fn_with_state(state.clone(), guard::observe),
        cors(&state.app.config.clients),
        CookieManagerLayer::new(),
    ))
}

/// CORS for the configured origins only, with credentials.
fn cors(clients: &ClientSettings) -> CorsLayer {
    let origins = clients.public_origin.iter().chain(&clients.allowed_origins);
    let origins = origins.filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers([
            ACCEPT_LANGUAGE,
            AUTHORIZATION,
            CONTENT_TYPE,
            HeaderName::from_static("x-session-token"),
            RECOVERY_ID,
            IDEMPOTENCY_KEY,
            HeaderName::from_static("x-recovery-ticket"),
        ])
        .expose_headers([RETRY_AFTER, RECOVERY_ID, HeaderName::from_static("x-request-id")])
        .max_age(Duration::from_mins(10))
}
