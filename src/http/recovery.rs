//! `/api/auth/recovery/…`

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use tower_cookies::Cookies;

use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::http::extract::StrictJson;
use crate::http::{Site, cookie};
use crate::recovery::Client;

/// The contract's `AuthRecoveryStartRequest`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartRequest {
    email: String,
}

/// The contract's `AuthRecoveryStartResponse`.
#[derive(Debug, Serialize)]
pub struct StartResponse {
    status: &'static str,
}

/// `POST /api/auth/recovery/start`: sends a code to the address, if somebody owns it, and sets the session's cookie, in
/// any case.
///
/// # Errors
///
/// 400 for what has to be corrected, 429 when a budget is spent, 502 when mail or storage is away.
pub async fn start(
    State(site): State<Site>,
    client: Client,
    cookies: Cookies,
    headers: HeaderMap,
    StrictJson(request): StrictJson<StartRequest>,
) -> Result<Json<StartResponse>, Error> {
    let email =
        EmailAddress::parse(&request.email).map_err(|_| Error::in_field(Problem::EmailInvalid, "email"))?;
    let started = site.recovery.start(email, cookie::recovery_token(&headers), client).await?;
    cookie::set_recovery(&cookies, &started.token, started.lifetime);
    Ok(Json(StartResponse { status: "code_sent" }))
}
