//! The admin API for operators, at its own address: ADMIN_ADDR. [`access`] authenticates and audits
//! each call. The page `/console` uses this API. The public API has none of these routes.

pub mod access;
mod change;
mod console;
pub mod query;
mod read;
mod request;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use sqlx::{PgConnection, PgPool};

use crate::app::App;
use crate::database::within_operator_deadline;
use crate::error::{Error, Problem};
use crate::http::{AppState, guard};
use crate::operator::Role::{self, Admin, Auditor, Support};
use crate::secret::TokenHash;

const OPENAPI: &str = include_str!("../../../openapi/admin.json");

/// One call of the admin API.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its HTTP method.
    pub method: &'static str,
    /// Its path in the router.
    pub path: &'static str,
    /// Its name in audit events.
    pub name: &'static str,
    /// The lowest role that may call it.
    pub role: Role,
    /// Whether it changes something, so that it needs a reason.
    pub changes: bool,
}

const fn reads(path: &'static str, name: &'static str, role: Role) -> Operation {
    Operation { method: "GET", path, name, role, changes: false }
}

const fn changes(method: &'static str, path: &'static str, name: &'static str, role: Role) -> Operation {
    Operation { method, path, name, role, changes: true }
}

/// Who may call what. A call that is not in this table is refused.
pub const OPERATIONS: [Operation; 21] = [
    reads("/admin/self", "operator.self", Auditor),
    reads("/admin/accounts", "account.find", Auditor),
    reads("/admin/accounts/{id}", "account.show", Auditor),
    reads("/admin/accounts/{id}/events", "account.events", Auditor),
    reads("/admin/operators/{name}/events", "operator.events", Auditor),
    reads("/admin/outbox", "outbox.show", Auditor),
    changes("POST", "/admin/accounts/{id}/ticket", "account.ticket", Support),
    changes("DELETE", "/admin/accounts/{id}/sessions", "account.end_sessions", Support),
    changes("POST", "/admin/limits/lift", "limits.lift", Support),
    changes("POST", "/admin/outbox/retry", "outbox.retry", Support),
    reads("/admin/requests", "request.list", Auditor),
    // The handler also requires the role `Admin` to approve a change of the address.
    changes("POST", "/admin/requests/{id}/approve", "request.approve", Support),
    changes("DELETE", "/admin/requests/{id}", "request.cancel", Support),
    changes("POST", "/admin/accounts/{id}/recover-to", "account.recover_to", Admin),
    changes("POST", "/admin/accounts", "account.create", Admin),
    changes("PUT", "/admin/accounts/{id}/email", "account.set_email", Admin),
    changes("PUT", "/admin/accounts/{id}/locale", "account.set_locale", Admin),
    changes("POST", "/admin/accounts/{id}/disable", "account.disable", Admin),
    changes("POST", "/admin/accounts/{id}/enable", "account.enable", Admin),
    changes("DELETE", "/admin/accounts/{id}", "account.erase", Admin),
    reads("/admin/export", "account.export", Admin),
];

/// The state that the handlers of the admin API share.
#[derive(Clone, Debug)]
pub struct AdminState {
    app: Arc<App>,
    /// Connections as a database role that may change accounts.
    pool: PgPool,
    /// Hashes of tokens that were valid at their last use. Calls with these tokens draw on no rate
    /// limit, so failed calls from the same network do not block them.
    accepted: Arc<Mutex<HashSet<TokenHash>>>,
}

impl AdminState {
    /// Runs database work with a connection of the admin API.
    ///
    /// # Errors
    ///
    /// `StorageUnavailable` if PostgreSQL fails or does not answer in time.
    async fn query<T>(
        &self,
        what: &'static str,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        within_operator_deadline(what, async {
            let mut connection = self.pool.acquire().await?;
            work(&mut connection).await
        })
        .await
    }
}

/// The admin API.
///
/// Every request passes [`guard::observe`] (request id, client address, log, metrics, error body,
/// default headers). Calls below `/admin/` then pass [`access::admit`]: credential, role, reason,
/// audit. The OpenAPI description and the files of the console need no credential.
pub fn router(app: &AppState, pool: PgPool) -> Router {
    let state = AdminState { app: Arc::clone(&app.app), pool, accepted: Arc::default() };
    Router::new()
        .route("/admin/self", get(read::caller))
        .route("/admin/accounts", get(read::find).post(change::create))
        .route("/admin/accounts/{id}", get(read::show).delete(change::erase))
        .route("/admin/accounts/{id}/events", get(read::account_events))
        .route("/admin/accounts/{id}/ticket", post(change::ticket))
        .route("/admin/accounts/{id}/sessions", axum::routing::delete(change::end_sessions))
        .route("/admin/accounts/{id}/email", put(change::set_email))
        .route("/admin/accounts/{id}/locale", put(change::set_locale))
        .route("/admin/accounts/{id}/disable", post(change::disable))
        .route("/admin/accounts/{id}/enable", post(change::enable))
        .route("/admin/operators/{name}/events", get(read::operator_events))
        .route("/admin/accounts/{id}/recover-to", post(request::recover_to))
        .route("/admin/requests", get(request::list))
        .route("/admin/requests/{id}", axum::routing::delete(request::cancel))
        .route("/admin/requests/{id}/approve", post(request::approve))
        .route("/admin/limits/lift", post(change::lift))
        .route("/admin/outbox", get(read::outbox))
        .route("/admin/outbox/retry", post(change::retry))
        .route("/admin/export", get(read::export))
        .route_layer(from_fn_with_state(state.clone(), access::admit))
        .route("/openapi.json", get(openapi))
        .merge(console::routes(&app.app.config))
        .fallback(async || Error::from(Problem::NotFound))
        .method_not_allowed_fallback(async || Error::from(Problem::MethodNotAllowed))
        .with_state(state)
        .layer(from_fn_with_state(app.clone(), guard::observe))
        .layer(from_fn(as_connected))
}

/// Removes `X-Forwarded-For`, so that the operator's address is that of the connection.
/// TRUSTED_PROXIES names only the proxies of the public API.
async fn as_connected(mut request: Request, next: Next) -> Response {
    request.headers_mut().remove("x-forwarded-for");
    next.run(request).await
}

/// `GET /openapi.json`: the OpenAPI description of the admin API, for anyone who reaches it.
async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}
