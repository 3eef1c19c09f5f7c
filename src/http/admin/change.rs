//! Calls that change something. Each needs a reason.
//!
//! Repeating a call has no further effect, with two exceptions: another ticket is given, and
//! another refill of rate limits counts towards the limit of refills.

use axum::body::Body;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sqlx::Connection as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::AdminState;
use super::access::{Caller, Recorded};
use super::read::{Id, account};
use crate::account::{self, CreateError, NewAccount};
use crate::admin::{self, EmailSet, Help, Ticket, Unblocked};
use crate::app::App;
use crate::audit::{self, Outcome};
use crate::clock::{first_id_of, rfc3339};
use crate::database::within_operator_deadline;
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::http::extract::{parse_typed, read_json};
use crate::locale::Locale;
use crate::metrics::OperatorLabel;
use crate::outbox::inspect as outbox;
use crate::password::{self, Password};

/// A JSON body as in [`crate::http::extract::StrictJson`], but its members may have other types
/// than strings.
#[derive(Debug)]
pub struct Typed<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<AdminState> for Typed<T> {
    type Rejection = Error;

    async fn from_request(request: Request<Body>, admin: &AdminState) -> Result<Self, Error> {
        let body = read_json(request, admin.app.config.connections.body_timeout).await?;
        parse_typed(&body).map(Self)
    }
}

/// The body of `POST /admin/accounts`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    email: String,
    #[serde(default)]
    locale: Option<String>,
    #[serde(default)]
    traits: Map<String, Value>,
    #[serde(default)]
    password: Option<String>,
}

/// The body of a request that names an address.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailRequest {
    pub(super) email: String,
}

/// The body of `PUT /admin/accounts/{id}/locale`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocaleRequest {
    // Without this, a missing member would count as null.
    #[serde(deserialize_with = "Option::deserialize")]
    locale: Option<String>,
}

/// The body of `POST /admin/outbox/retry`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetryRequest {
    #[serde(default)]
    id: Option<Uuid>,
}

/// An answer that says whether the call changed something.
#[derive(Debug, Serialize)]
struct Changed {
    changed: bool,
}

/// The answer to a call. `recorded`: whether the transaction of the change has already recorded the
/// call in the audit log.
pub(super) fn changed(body: impl Serialize, recorded: bool) -> Response {
    let mut response = Json(body).into_response();
    if recorded {
        response.extensions_mut().insert(Recorded);
    }
    response
}

pub(super) fn email(text: &str) -> Result<EmailAddress, Error> {
    EmailAddress::parse(text).map_err(|_| Error::in_field(Problem::EmailInvalid, "email"))
}

fn locale(text: Option<&str>) -> Result<Option<Locale>, Error> {
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|_| Error::in_field(Problem::FieldInvalid, "locale"))
}

pub(super) fn help<'a>(app: &'a App, caller: &'a Caller) -> Help<'a> {
    Help {
        actor: Some(caller.actor(app)),
        notice_retention: app.config.mail.notice_retention,
        protected_trait: app.config.support.protected_trait.as_deref(),
    }
}

/// Counts a recovery that the operator helped with, and wakes the courier, because a notice may be
/// pending.
pub(super) fn helped(app: &App, caller: &Caller, now: OffsetDateTime) {
    let label = OperatorLabel { operator: caller.operator.name.clone() };
    app.metrics.recoveries_helped.get_or_create(&label).inc();
    app.wakeup.wake(first_id_of(now));
}

pub(super) fn throttled(problem: Problem, now: OffsetDateTime, until: OffsetDateTime) -> Error {
    Error::retry_after(problem, (until - now).try_into().unwrap_or_default())
}

/// `POST /admin/accounts`: creates an active account. Without a password in the request, the owner
/// must set one through the recovery flow.
///
/// # Errors
///
/// 400 for a bad request or a refused password, 409 if another account has the address; 503 if too
/// many passwords wait to be hashed.
pub async fn create(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    Typed(request): Typed<CreateRequest>,
) -> Result<Response, Error> {
    let (email, locale) = (email(&request.email)?, locale(request.locale.as_deref())?);
    let password = request.password.as_deref().map(Password::new);
    let password_hash = match &password {
        Some(password) => {
            let context = password::context(email.as_str(), &admin.app.config.mail.product_names());
            Some(admin.app.hasher.place()?.hash_new(password, context).await?)
        }
        None => None,
    };
    let now = admin.app.time()?;
    let new = NewAccount { email, locale, traits: request.traits, password_hash };
    let created = within_operator_deadline("create account", async {
        let mut connection = admin.pool.acquire().await?;
        match account::create(&mut connection, now, new, caller.by()).await {
            Ok(id) => Ok(Ok(id)),
            Err(CreateError::EmailTaken) => Ok(Err(Problem::EmailTaken.into())),
            Err(CreateError::TraitsNotStorable) => Ok(Err(Error::in_field(Problem::FieldInvalid, "traits"))),
            Err(CreateError::Storage(error)) => Err(error),
        }
    })
    .await?;
    let mut response = changed(json!({ "id": created? }), true);
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

/// `POST /admin/accounts/{id}/ticket`: gives a recovery ticket, with which one recovery can be
/// started although the rate limit of the address is exhausted. The code is sent to the account's
/// stored address, which also gets a notice. For a protected account, the answer is 202 until
/// another operator has approved the ticket; then the same call gives it.
///
/// # Errors
///
/// 404 without such an account, 409 if it is disabled, 429 if the operator has helped too often.
pub async fn ticket(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Response, Error> {
    let (id, now, app) = (account(id)?, admin.app.time()?, &admin.app);
    let give = async |connection: &mut sqlx::PgConnection| {
        admin::give_ticket(connection, now, id, &app.device_keys, help(app, &caller)).await
    };
    match admin.query("give ticket", give).await? {
        Ticket::Given(ticket, until) => {
            helped(app, &caller, now);
            let origin = app.config.clients.public_origin.as_ref();
            let link = origin.map(|origin| format!("{origin}/recovery#t={ticket}"));
            Ok(changed(json!({ "ticket": ticket, "link": link, "expires_at": rfc3339(until) }), true))
        }
        Ticket::NotFound => Err(Problem::AccountNotFound.into()),
        Ticket::Disabled => Err(Problem::AccountDisabled.into()),
        Ticket::NotBefore(until) => Err(throttled(Problem::OperatorThrottled, now, until)),
        Ticket::Asked(request) => Ok(awaits_approval(request, true)),
        Ticket::Pending(request) => Ok(awaits_approval(request, false)),
        // Every caller of this API is an operator.
        Ticket::NoOperator => Err(Problem::OperatorUnknown.into()),
    }
}

fn awaits_approval(request: Uuid, recorded: bool) -> Response {
    let mut response = changed(json!({ "request": request }), recorded);
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// `PUT /admin/accounts/{id}/email`: gives an account another address. The old address gets a
/// notice.
///
/// # Errors
///
/// 400 for a bad request, 404 without such an account, 409 if another account has the address or
/// this one is protected, 429 if the operator has helped too often.
pub async fn set_email(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Id,
    Typed(request): Typed<EmailRequest>,
) -> Result<Response, Error> {
    let (id, email) = (account(id)?, email(&request.email)?);
    let (now, app) = (admin.app.time()?, &admin.app);
    let set = async |connection: &mut sqlx::PgConnection| {
        admin::set_email(connection, now, id, &email, help(app, &caller)).await
    };
    match admin.query("set address", set).await? {
        EmailSet::Set => {
            helped(app, &caller, now);
            Ok(changed(Changed { changed: true }, true))
        }
        EmailSet::AlreadySet => Ok(changed(Changed { changed: false }, false)),
        EmailSet::Taken => Err(Problem::EmailTaken.into()),
        EmailSet::NotFound => Err(Problem::AccountNotFound.into()),
        EmailSet::Protected => Err(Problem::AccountProtected.into()),
        EmailSet::NotBefore(until) => Err(throttled(Problem::OperatorThrottled, now, until)),
    }
}

/// `PUT /admin/accounts/{id}/locale`: sets the language of the emails to an account.
///
/// # Errors
///
/// 400 for a bad request, 404 without such an account.
pub async fn set_locale(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Id,
    Typed(request): Typed<LocaleRequest>,
) -> Result<Response, Error> {
    let (id, locale, now) = (account(id)?, locale(request.locale.as_deref())?, admin.app.time()?);
    let set = async |connection: &mut sqlx::PgConnection| {
        let set = admin::set_locale(connection, now, id, locale, caller.by()).await?;
        existing(connection, id, set).await
    };
    done(admin.query("set language", set).await?)
}

/// Whether a change was made; `None` if nothing changed because there is no such account.
async fn existing(
    connection: &mut sqlx::PgConnection,
    id: Uuid,
    made: bool,
) -> Result<Option<bool>, sqlx::Error> {
    if made {
        return Ok(Some(true));
    }
    Ok(account::record::exists(connection, id).await?.then_some(false))
}

fn done(made: Option<bool>) -> Result<Response, Error> {
    let made = made.ok_or(Problem::AccountNotFound)?;
    Ok(changed(Changed { changed: made }, made))
}

/// `POST /admin/accounts/{id}/disable`: disables an account, which ends its sessions and
/// recoveries.
///
/// # Errors
///
/// 404 without such an account.
pub async fn disable(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Response, Error> {
    set_active(&admin, &caller, id, false).await
}

/// `POST /admin/accounts/{id}/enable`: makes a disabled account active again.
///
/// # Errors
///
/// As [`disable`].
pub async fn enable(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Response, Error> {
    set_active(&admin, &caller, id, true).await
}

async fn set_active(admin: &AdminState, caller: &Caller, id: Id, active: bool) -> Result<Response, Error> {
    let (id, now) = (account(id)?, admin.app.time()?);
    let set = async |connection: &mut sqlx::PgConnection| {
        let set = admin::set_active(connection, now, id, active, caller.by()).await?;
        existing(connection, id, set).await
    };
    done(admin.query("disable or enable account", set).await?)
}

/// `DELETE /admin/accounts/{id}/sessions`: ends every session of an account. Its JWTs stay valid
/// for at most 10 minutes.
///
/// # Errors
///
/// 404 without such an account.
pub async fn end_sessions(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Response, Error> {
    let (id, now) = (account(id)?, admin.app.time()?);
    let end = async |connection: &mut sqlx::PgConnection| {
        let ended = admin::revoke_sessions(connection, now, id, caller.by()).await?;
        Ok(existing(connection, id, ended > 0).await?.map(|_| ended))
    };
    let ended = admin.query("end sessions", end).await?.ok_or(Problem::AccountNotFound)?;
    Ok(changed(json!({ "ended": ended }), ended > 0))
}

/// `DELETE /admin/accounts/{id}`: erases an account and all data of its owner.
///
/// # Errors
///
/// 404 without such an account.
pub async fn erase(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Id,
) -> Result<Response, Error> {
    let (id, now) = (account(id)?, admin.app.time()?);
    let erase =
        async |connection: &mut sqlx::PgConnection| admin::erase(connection, now, id, caller.by()).await;
    done(admin.query("erase account", erase).await?.then_some(true))
}

/// `POST /admin/limits/lift`: refills the rate limits of an address, whether or not it has an
/// account. At most 3 times in 24 hours for one address.
///
/// # Errors
///
/// 400 for a bad request, 429 if they were refilled too often.
pub async fn lift(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    Typed(request): Typed<EmailRequest>,
) -> Result<Response, Error> {
    let (email, now) = (email(&request.email)?, admin.app.time()?);
    let lift = async |connection: &mut sqlx::PgConnection| {
        admin::unblock(connection, now, &email, caller.by()).await
    };
    match admin.query("lift limits", lift).await? {
        Unblocked::Filled(lifted) => Ok(changed(json!({ "lifted": lifted }), true)),
        Unblocked::NotBefore(until) => Err(throttled(Problem::LiftThrottled, now, until)),
    }
}

/// `POST /admin/outbox/retry`: sends notices again: the one with the id, or all that were given up.
///
/// # Errors
///
/// 400 for a bad request, 404 if there is no notice with the id that can be sent again.
pub async fn retry(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    Typed(request): Typed<RetryRequest>,
) -> Result<Response, Error> {
    let now = admin.app.time()?;
    let retry = async |connection: &mut sqlx::PgConnection| {
        let mut transaction = connection.begin().await?;
        let retried = outbox::retry(&mut transaction, now, request.id).await?;
        if !retried.is_empty() {
            let call = caller.call(None, Outcome::Allowed);
            audit::record_call(&mut *transaction, now, &call).await?;
        }
        transaction.commit().await?;
        Ok(retried)
    };
    let retried = admin.query("retry notices", retry).await?;
    if retried.is_empty() && request.id.is_some() {
        return Err(Problem::NotFound.into());
    }
    if let Some(oldest) = retried.iter().min() {
        admin.app.wakeup.wake(*oldest);
    }
    Ok(changed(json!({ "retried": retried.len() }), !retried.is_empty()))
}
