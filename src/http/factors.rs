//! Handlers of `/api/auth/factors`: second factors of a signed-in user.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::serde::rfc3339;
use uuid::Uuid;

use crate::client::Client;
use crate::error::{Error, Problem};
use crate::factor_change;
use crate::http::AppState;
use crate::http::extract::{SessionToken, StrictJson};
use crate::http::session::Status;
use crate::password::Password;
use crate::second_factor::Presented;
use crate::secret::BackupCode;
use crate::session;

/// The body of `POST /api/auth/factors/totp`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginRequest {
    password: String,
    name: String,
}

/// The body of `POST /api/auth/factors/{id}/confirm`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    code: String,
}

/// The body of a change that needs a second factor besides the password.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithFactorRequest {
    password: String,
    method: String,
    code: String,
}

/// The answer of `GET /api/auth/factors`.
#[derive(Debug, Serialize)]
pub struct FactorList {
    factors: Vec<ListedFactor>,
    unused_backup_codes: i64,
}

#[derive(Debug, Serialize)]
struct ListedFactor {
    id: Uuid,
    kind: String,
    name: String,
    #[serde(with = "rfc3339")]
    confirmed_at: OffsetDateTime,
    #[serde(with = "rfc3339::option")]
    last_used_at: Option<OffsetDateTime>,
}

/// The answer to a begun enrolment.
#[derive(Debug, Serialize)]
pub struct BegunFactor {
    id: Uuid,
    secret: String,
    uri: String,
    /// The URI as a QR code, in SVG.
    qr_code: String,
}

/// The answer that shows new backup codes.
#[derive(Debug, Serialize)]
pub struct NewCodes {
    status: &'static str,
    backup_codes: Vec<String>,
}

fn shown(codes: &[BackupCode]) -> Vec<String> {
    codes.iter().map(BackupCode::expose).collect()
}

fn factor_id(id: Result<Path<Uuid>, PathRejection>) -> Result<Uuid, Error> {
    id.map(|Path(id)| id).map_err(|_| Problem::FactorNotFound.into())
}

impl WithFactorRequest {
    fn read(self) -> Result<(Password, Presented), Error> {
        let method =
            self.method.parse().map_err(|_| Error::in_field(Problem::SecondFactorInvalid, "method"))?;
        Ok((Password::new(&self.password), Presented { method, code: self.code }))
    }
}

/// `GET /api/auth/factors`: the factors of the token's account.
///
/// # Errors
///
/// 401 if there is no such session or it has ended, 502.
pub async fn list(
    State(state): State<AppState>,
    SessionToken(token): SessionToken,
) -> Result<Json<FactorList>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let (listed, unused_backup_codes) = factor_change::list(&state.app, &by).await?;
    let factors = listed.into_iter().map(|one| ListedFactor {
        id: one.id,
        kind: one.kind,
        name: one.name,
        confirmed_at: one.confirmed_at,
        last_used_at: one.last_used_at,
    });
    Ok(Json(FactorList { factors: factors.collect(), unused_backup_codes }))
}

/// `POST /api/auth/factors/totp`: begins to enrol an authenticator app.
///
/// # Errors
///
/// 401 as above; 400 for a wrong password, a bad name or a bad request; 404 if the service offers no
/// second factors; 429, 502, 503.
pub async fn begin(
    State(state): State<AppState>,
    SessionToken(token): SessionToken,
    body: Result<StrictJson<BeginRequest>, Error>,
) -> Result<Json<BegunFactor>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let StrictJson(request) = body?;
    let begun =
        factor_change::begin(&state.app, &by, &Password::new(&request.password), &request.name).await?;
    let qr_code =
        qrcode::QrCode::new(&begun.uri).map(|code| code.render::<qrcode::render::svg::Color<'_>>().build());
    Ok(Json(BegunFactor {
        id: begun.id,
        secret: begun.secret.expose(),
        uri: begun.uri,
        qr_code: qr_code.unwrap_or_default(),
    }))
}

/// `POST /api/auth/factors/{id}/confirm`: ends an enrolment with a first code of the app.
///
/// # Errors
///
/// 401 as above; 400 for a wrong code or a bad request; 404 without such an enrolment; 429, 502.
pub async fn confirm(
    State(state): State<AppState>,
    client: Client,
    SessionToken(token): SessionToken,
    id: Result<Path<Uuid>, PathRejection>,
    body: Result<StrictJson<ConfirmRequest>, Error>,
) -> Result<Json<NewCodes>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let (id, StrictJson(request)) = (factor_id(id)?, body?);
    let codes = factor_change::confirm(&state.app, &by, id, &request.code, &client).await?;
    Ok(Json(NewCodes { status: "confirmed", backup_codes: shown(&codes) }))
}

/// `POST /api/auth/factors/{id}/rename`: gives a factor another name.
///
/// # Errors
///
/// 401 as above; 400 for a wrong password, a bad name or a bad request; 404 without such a factor;
/// 429, 502, 503.
pub async fn rename(
    State(state): State<AppState>,
    SessionToken(token): SessionToken,
    id: Result<Path<Uuid>, PathRejection>,
    body: Result<StrictJson<BeginRequest>, Error>,
) -> Result<Json<Status>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let (id, StrictJson(request)) = (factor_id(id)?, body?);
    factor_change::rename(&state.app, &by, &Password::new(&request.password), id, &request.name).await?;
    Ok(Json(Status { status: "renamed" }))
}

/// `POST /api/auth/factors/{id}/remove`: removes a factor, given the password and a second factor.
///
/// # Errors
///
/// 401 as above; 400 for a wrong password or second factor, or a bad request; 404 without such a
/// factor; 429, 502, 503.
pub async fn remove(
    State(state): State<AppState>,
    client: Client,
    SessionToken(token): SessionToken,
    id: Result<Path<Uuid>, PathRejection>,
    body: Result<StrictJson<WithFactorRequest>, Error>,
) -> Result<Json<Status>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let (id, StrictJson(request)) = (factor_id(id)?, body?);
    let (password, presented) = request.read()?;
    factor_change::remove(&state.app, &by, &password, id, &presented, &client).await?;
    Ok(Json(Status { status: "removed" }))
}

/// `POST /api/auth/factors/backup-codes`: replaces all backup codes, given the password and a second
/// factor.
///
/// # Errors
///
/// 401 as above; 400 for a wrong password or second factor, or a bad request; 429, 502, 503.
pub async fn replace_codes(
    State(state): State<AppState>,
    client: Client,
    SessionToken(token): SessionToken,
    body: Result<StrictJson<WithFactorRequest>, Error>,
) -> Result<Json<NewCodes>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let StrictJson(request) = body?;
    let (password, presented) = request.read()?;
    let codes = factor_change::replace_codes(&state.app, &by, &password, &presented, &client).await?;
    Ok(Json(NewCodes { status: "replaced", backup_codes: shown(&codes) }))
}
