//! Handlers of `/api/auth/recovery/…`.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::serde::rfc3339;
use tower_cookies::Cookies;

use crate::client::Client;
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::http::extract::{RECOVERY_ID, StrictJson, only_parameter, presented, ticket};
use crate::http::session::{AuthLoginResponse, SecondFactorRequest, Status};
use crate::http::{AppState, cookie};
use crate::known_device::KnownDevice;
use crate::password::Password;
use crate::recovery::{Awaited, Progress, RecoveryId, StartCredentials};
use crate::secret::Code;

/// The contract's `AuthRecoveryStartRequest`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    email: String,
}

/// The contract's `AuthRecoveryVerifyRequest`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    code: String,
}

/// The contract's `AuthRecoveryResetRequest`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetRequest {
    password: String,
}

/// The answer of `GET /api/auth/recovery`.
#[derive(Debug, Serialize)]
pub struct RecoveryResponse {
    recovery: RecoveryFacts,
    #[serde(with = "rfc3339")]
    now: OffsetDateTime,
}

#[derive(Debug, Serialize)]
struct RecoveryFacts {
    id: String,
    email: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    methods: Vec<&'static str>,
    #[serde(with = "rfc3339")]
    expires_at: OffsetDateTime,
    attempts_left: i16,
    #[serde(with = "rfc3339")]
    resend_at: OffsetDateTime,
}

impl From<Progress> for RecoveryFacts {
    fn from(progress: Progress) -> Self {
        let state = match progress.awaited {
            Awaited::Code => "code_sent",
            Awaited::SecondFactor(_) => "second_factor_required",
            Awaited::Password => "verified",
        };
        let methods = match &progress.awaited {
            Awaited::SecondFactor(methods) => methods.iter().map(<&str>::from).collect(),
            _ => Vec::new(),
        };
        let Progress { id, email, expires_at, attempts_left, resend_at, .. } = progress;
        let (id, email) = (id.to_string(), email.to_readable());
        Self { id, email, state, methods, expires_at, attempts_left, resend_at }
    }
}

/// The header with the id of the recovery whose cookie the answer sets.
type IdHeader = [(HeaderName, String); 1];

fn id_header(id: RecoveryId) -> IdHeader {
    [(RECOVERY_ID, id.to_string())]
}

/// `GET /api/auth/recovery?required=true|false`: the state of the cookie's recovery. With
/// `required=false`, a request without the cookie is answered 204 instead of 401, because browsers
/// print a 401 to the console.
///
/// # Errors
///
/// `QueryInvalid` for another parameter, another value, or a repeated parameter; 401 without a
/// recovery session that can be continued, 429, 502.
pub async fn progress(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let is_required = only_parameter(query.as_deref(), "required")?.unwrap_or(true);
    if !is_required && !cookie::has_recovery(&headers) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let device = cookie::known_device(&headers, &state.app);
    let progress = state.recovery.progress(cookie::recovery_token(&headers), device).await?;
    Ok(Json(RecoveryResponse { now: progress.now, recovery: progress.into() }).into_response())
}

/// `POST /api/auth/recovery/start`: enqueues an email with a code and sets the recovery cookie, for
/// any address. The email is sent only if an active account has the address.
///
/// # Errors
///
/// 400 for a bad request; 429 if a rate limit is exhausted; 502 if no relay is up, PostgreSQL is
/// unavailable, or too many starts wait for it.
pub async fn start(
    State(state): State<AppState>,
    client: Client,
    cookies: Cookies,
    headers: HeaderMap,
    StrictJson(request): StrictJson<StartRequest>,
) -> Result<(IdHeader, Json<Status>), Error> {
    let email =
        EmailAddress::parse(&request.email).map_err(|_| Error::in_field(Problem::EmailInvalid, "email"))?;
    let of_email = |known: Option<KnownDevice>| known.and_then(|known| known.owned_by(&email));
    let credentials = StartCredentials {
        device: of_email(cookie::known_device(&headers, &state.app)),
        ticket: of_email(ticket(&headers, &state.app)),
    };
    let started = state.recovery.start(email, cookie::recovery_token(&headers), credentials, client).await?;
    cookie::set_recovery(&cookies, &started.token, started.lifetime);
    Ok((id_header(started.id), Json(Status { status: "code_sent" })))
}

/// `POST /api/auth/recovery/verify`: checks the emailed code and rotates the recovery cookie. The
/// session is checked first: without an active one the answer is 401 whatever the body is.
///
/// # Errors
///
/// 401 without a session that waits for its code, or if `X-Recovery-Id` names another one; 400 for
/// a wrong code or a bad request; 429, 502.
pub async fn verify(
    State(state): State<AppState>,
    client: Client,
    cookies: Cookies,
    headers: HeaderMap,
    body: Result<StrictJson<VerifyRequest>, Error>,
) -> Result<(IdHeader, Json<Status>), Error> {
    let code = body.and_then(|StrictJson(request)| {
        Code::parse(&request.code).ok_or_else(|| Error::in_field(Problem::CodeMalformed, "code"))
    });
    let verified = state.recovery.verify(presented(&headers)?, code, &client).await?;
    cookie::set_recovery(&cookies, &verified.token, verified.lifetime);
    Ok((id_header(verified.id), Json(Status { status: "verified" })))
}

/// `POST /api/auth/recovery/second-factor`: accepts the second factor of an account that has enrolled
/// one, between the code and the new password. The session is checked first, as in [`verify`].
///
/// # Errors
///
/// 401 without a verified session, or if `X-Recovery-Id` names another one; 400 for a wrong second
/// factor or a bad request; 429, 502.
pub async fn second_factor(
    State(state): State<AppState>,
    client: Client,
    headers: HeaderMap,
    body: Result<StrictJson<SecondFactorRequest>, Error>,
) -> Result<Json<Status>, Error> {
    let factor = body.and_then(|StrictJson(request)| request.presented());
    let device = cookie::known_device(&headers, &state.app);
    state.recovery.second_factor(presented(&headers)?, factor, device, &client).await?;
    Ok(Json(Status { status: "accepted" }))
}

/// `POST /api/auth/recovery/reset-password`: sets the new password, signs in, and clears the
/// recovery cookie. The session is checked first, as in [`verify`].
///
/// # Errors
///
/// 401 without a verified session, or if `X-Recovery-Id` names another one; 400 for a refused
/// password or a bad request; 429, 502; 503 if too many passwords wait to be hashed.
pub async fn reset_password(
    State(state): State<AppState>,
    client: Client,
    cookies: Cookies,
    headers: HeaderMap,
    body: Result<StrictJson<ResetRequest>, Error>,
) -> Result<Json<AuthLoginResponse>, Error> {
    let password = body.map(|StrictJson(request)| Password::new(&request.password));
    let device = cookie::known_device(&headers, &state.app);
    let signed_in = state.recovery.reset(presented(&headers)?, password, device, &client).await?;
    cookie::clear_recovery(&cookies);
    Ok(AuthLoginResponse::signed_in(signed_in, &cookies))
}
