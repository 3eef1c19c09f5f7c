//! Handlers of `/api/auth/login`, `/api/auth/session`, `/api/auth/sessions`, `/api/auth/logout`,
//! `/api/auth/password` and `/api/auth/address-change/stop`.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::serde::rfc3339;
use tower_cookies::Cookies;
use uuid::Uuid;

use crate::account::Account;
use crate::client::Client;
use crate::email_address::EmailAddress;
use crate::error::{Detail, Error, Problem};
use crate::http::extract::{SessionToken, StrictJson};
use crate::http::{AppState, cookie};
use crate::password::Password;
use crate::second_factor;
use crate::session::{self, Authenticated, Caller, Login, LoginAnswer, Session, SignedIn};
use crate::throttle::Source;
use crate::{address_change, password_change};

/// The contract's `AuthLoginRequest`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    identifier: String,
    password: String,
}

/// The body of `POST /api/auth/password`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ChangePasswordRequest {
    current_password: String,
    new_password: String,
}

/// The body of `POST /api/auth/address-change/stop`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopAddressChangeRequest {
    password: String,
}

/// A second factor, at sign-in and in a recovery.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecondFactorRequest {
    method: String,
    code: String,
}

impl SecondFactorRequest {
    /// # Errors
    ///
    /// `SecondFactorInvalid` for an unknown method.
    pub fn presented(self) -> Result<second_factor::Presented, Error> {
        let method =
            self.method.parse().map_err(|_| Error::in_field(Problem::SecondFactorInvalid, "method"))?;
        Ok(second_factor::Presented { method, code: self.code })
    }
}

/// An answer that only confirms what was done.
#[derive(Debug, Serialize)]
pub struct Status {
    /// What was done, as one word.
    pub status: &'static str,
}

/// The contract's `AuthLoginResponse`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthLoginResponse {
    session_token: String,
    jwt: String,
    session: TokenizedSession,
    tokenized_session: TokenizedSession,
    identity: Identity,
}

#[derive(Clone, Debug, Serialize)]
struct TokenizedSession {
    #[serde(flatten)]
    session: SessionFacts,
    active: bool,
    identity: Identity,
    tokenized: String,
}

#[derive(Clone, Debug, Serialize)]
struct SessionFacts {
    id: Uuid,
    #[serde(with = "rfc3339")]
    authenticated_at: OffsetDateTime,
    #[serde(with = "rfc3339")]
    expires_at: OffsetDateTime,
    devices: [Device; 1],
    /// As in the sessions of Ory Kratos, if the account asks for a second factor.
    #[serde(flatten)]
    assurance: Option<Assurance>,
}

#[derive(Clone, Debug, Serialize)]
struct Assurance {
    authenticator_assurance_level: &'static str,
    authentication_methods: [MethodUsed; 2],
}

#[derive(Clone, Debug, Serialize)]
struct MethodUsed {
    method: &'static str,
    aal: &'static str,
    #[serde(with = "rfc3339")]
    completed_at: OffsetDateTime,
}

impl Assurance {
    fn of(method: second_factor::Method, at: OffsetDateTime) -> Self {
        let used = |method, aal| MethodUsed { method, aal, completed_at: at };
        Self {
            authenticator_assurance_level: "aal2",
            authentication_methods: [used("password", "aal1"), used(method.into(), "aal2")],
        }
    }
}

#[derive(Clone, Debug, Serialize)]
struct Device {
    ip_address: String,
    /// Always empty: the service does not locate addresses.
    location: &'static str,
    user_agent: String,
}

#[derive(Clone, Debug, Serialize)]
struct Identity {
    id: Uuid,
    traits: Value,
}

/// The answer of `GET /api/auth/sessions`.
#[derive(Debug, Serialize)]
pub struct SessionList {
    sessions: Vec<ListedSession>,
}

#[derive(Debug, Serialize)]
struct ListedSession {
    #[serde(flatten)]
    session: SessionFacts,
    #[serde(with = "rfc3339")]
    last_seen_at: OffsetDateTime,
    current: bool,
}

impl AuthLoginResponse {
    /// The answer to a user who has just signed in. Sets the cookie that makes the browser known.
    pub fn signed_in(signed_in: SignedIn, cookies: &Cookies) -> Json<Self> {
        if let Some(value) = signed_in.device_cookie {
            cookie::set_device(cookies, value);
        }
        Json(Self::new(signed_in.token.expose(), signed_in.authenticated, signed_in.jwt))
    }

    fn new(session_token: String, by: Authenticated, jwt: String) -> Self {
        let identity = Identity::from(by.account);
        let session = TokenizedSession {
            session: by.session.into(),
            active: true,
            identity: identity.clone(),
            tokenized: jwt.clone(),
        };
        Self { session_token, jwt, tokenized_session: session.clone(), session, identity }
    }
}

impl From<Session> for SessionFacts {
    fn from(session: Session) -> Self {
        Self {
            id: session.id,
            authenticated_at: session.authenticated_at,
            expires_at: session.expires_at,
            devices: [Device {
                ip_address: session.client_ip.to_string(),
                location: "",
                user_agent: session.user_agent,
            }],
            assurance: session.second_factor.map(|method| Assurance::of(method, session.authenticated_at)),
        }
    }
}

impl From<Account> for Identity {
    fn from(account: Account) -> Self {
        Self { id: account.id, traits: account.traits }
    }
}

/// `POST /api/auth/login`: opens a session for a client that knows the password.
///
/// # Errors
///
/// 400 for a bad request; 401 for wrong credentials, whatever the cause; 429, 502; 503 if too many
/// passwords wait to be hashed.
pub async fn login(
    State(state): State<AppState>,
    Extension(source): Extension<Source>,
    client: Client,
    cookies: Cookies,
    headers: HeaderMap,
    StrictJson(request): StrictJson<LoginRequest>,
) -> Result<Json<AuthLoginResponse>, Error> {
    let email = EmailAddress::parse(&request.identifier)
        .map_err(|_| Error::in_field(Problem::EmailInvalid, "identifier"))?;
    let password = Password::new(&request.password);
    let device = cookie::known_device(&headers, &state.app);
    let login = Login { app: Arc::clone(&state.app), source, email, password, client, device };
    match login.run().await? {
        LoginAnswer::SignedIn(signed_in) => Ok(AuthLoginResponse::signed_in(*signed_in, &cookies)),
        LoginAnswer::SecondFactor(step) => {
            cookie::set_login(&cookies, &step.token);
            let methods = step.methods.iter().map(<&str>::from).collect();
            Err(Error::from(Problem::SecondFactorRequired).with(Detail::Methods(methods)))
        }
    }
}

/// `POST /api/auth/login/second-factor`: opens the session of a login whose password was right.
///
/// # Errors
///
/// 401 without a login that waits; 400 for a wrong second factor or a bad request; 429, 502.
pub async fn login_second_factor(
    State(state): State<AppState>,
    client: Client,
    cookies: Cookies,
    headers: HeaderMap,
    body: Result<StrictJson<SecondFactorRequest>, Error>,
) -> Result<Json<AuthLoginResponse>, Error> {
    let token = cookie::login_token(&headers);
    if token.is_none() {
        return Err(Problem::LoginStepMissing.into());
    }
    let factor = body.and_then(|StrictJson(request)| request.presented())?;
    let device = cookie::known_device(&headers, &state.app);
    let caller = Caller { client: &client, device: device.as_ref(), second_factor: None };
    let signed_in = session::complete_login(&state.app, token, &factor, caller).await?;
    cookie::clear_login(&cookies);
    Ok(AuthLoginResponse::signed_in(signed_in, &cookies))
}

/// `GET /api/auth/session`: the session of the token, with a new JWT. Restarts the idle timeout of
/// the session.
///
/// # Errors
///
/// 401 if there is no such session or it has ended, 502.
pub async fn session(
    State(state): State<AppState>,
    SessionToken(token): SessionToken,
) -> Result<Json<AuthLoginResponse>, Error> {
    let text = token.as_ref().map(crate::secret::Token::expose).unwrap_or_default();
    let by = session::authenticate(&state.app, token).await?;
    let jwt = by.jwt(&state.app, state.app.clock.now());
    Ok(Json(AuthLoginResponse::new(text, by, jwt)))
}

/// `POST /api/auth/logout`: ends the session of the token. The body is ignored.
///
/// # Errors
///
/// 401 if there is no such session or it has ended, 502.
pub async fn logout(
    State(state): State<AppState>,
    client: Client,
    SessionToken(token): SessionToken,
) -> Result<Json<Status>, Error> {
    session::logout(&state.app, token, &client).await?;
    Ok(Json(Status { status: "signed_out" }))
}

/// `GET /api/auth/sessions`: all open sessions of the token's account.
///
/// # Errors
///
/// 401 if there is no such session or it has ended, 502.
pub async fn sessions(
    State(state): State<AppState>,
    SessionToken(token): SessionToken,
) -> Result<Json<SessionList>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let sessions = session::list(&state.app, &by).await?.into_iter().map(|session| ListedSession {
        last_seen_at: session.last_seen_at,
        current: session.id == by.session.id,
        session: session.into(),
    });
    Ok(Json(SessionList { sessions: sessions.collect() }))
}

/// `DELETE /api/auth/sessions/{id}`: ends one session of the token's account.
///
/// # Errors
///
/// 401 as for [`session()`], 404 if the account has no such session, 502.
pub async fn end(
    State(state): State<AppState>,
    client: Client,
    SessionToken(token): SessionToken,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Json<Status>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let Path(id) = id.map_err(|_| Problem::NotFound)?;
    session::end(&state.app, &by, id, &client).await?;
    Ok(Json(Status { status: "signed_out" }))
}

/// `DELETE /api/auth/sessions`: ends all sessions of the token's account except the token's own.
///
/// # Errors
///
/// 401 as for [`session()`], 502.
pub async fn end_others(
    State(state): State<AppState>,
    client: Client,
    SessionToken(token): SessionToken,
) -> Result<Json<Status>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    session::end_others(&state.app, &by, &client).await?;
    Ok(Json(Status { status: "signed_out" }))
}

/// `POST /api/auth/password`: replaces the password, given the current one. Ends every session and
/// opens a new one. The session is checked first: without one the answer is 401 whatever the body
/// is.
///
/// # Errors
///
/// 401 as for [`session()`]; 400 for a refused or wrong password or a bad request; 429, 502, 503.
pub async fn change_password(
    State(state): State<AppState>,
    client: Client,
    cookies: Cookies,
    headers: HeaderMap,
    SessionToken(token): SessionToken,
    body: Result<StrictJson<ChangePasswordRequest>, Error>,
) -> Result<Json<AuthLoginResponse>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let StrictJson(request) = body?;
    let (current, new) = (Password::new(&request.current_password), Password::new(&request.new_password));
    let device = cookie::known_device(&headers, &state.app);
    let caller = Caller { client: &client, device: device.as_ref(), second_factor: by.session.second_factor };
    let signed_in = password_change::change(&state.app, by, &current, &new, caller).await?;
    Ok(AuthLoginResponse::signed_in(signed_in, &cookies))
}

/// `POST /api/auth/address-change/stop`: stops the approved change of the account's address, given
/// the current password. The session is checked first, as in [`change_password`].
///
/// # Errors
///
/// 401 as for [`session()`]; 400 for a wrong password or a bad request; 404 if no change is
/// waiting; 429, 502, 503.
pub async fn stop_address_change(
    State(state): State<AppState>,
    client: Client,
    SessionToken(token): SessionToken,
    body: Result<StrictJson<StopAddressChangeRequest>, Error>,
) -> Result<Json<Status>, Error> {
    let by = session::authenticate(&state.app, token).await?;
    let StrictJson(request) = body?;
    address_change::stop(&state.app, by, &Password::new(&request.password), &client).await?;
    Ok(Json(Status { status: "stopped" }))
}
