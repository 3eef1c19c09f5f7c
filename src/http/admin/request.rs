//! Calls about requests that two operators have to agree on: another address for an account, or a
//! ticket for a protected account.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::{Extension, Json};
use serde_json::{Value, json};
use uuid::Uuid;

use super::access::Caller;
use super::change::{EmailRequest, Typed, changed, email, helped, throttled};
use super::read::{Id, account, next};
use super::{AdminState, query};
use crate::admin::request::{self, Approved, Asked, Cancelled, Kind};
use crate::clock::{first_id_of, rfc3339};
use crate::config::APPROVAL_LIFETIME;
use crate::error::{Error, Problem};
use crate::operator::Role;

/// The request's id in a path.
fn request_id(id: Result<Path<Uuid>, PathRejection>) -> Result<Uuid, Error> {
    id.map(|Path(id)| id).map_err(|_| Problem::RequestNotFound.into())
}

/// `POST /admin/accounts/{id}/recover-to`: asks for another address for an account whose owner
/// cannot read the stored one. Another operator has to approve the request within 10 minutes.
///
/// # Errors
///
/// 400 for a bad request, 404 without such an active account; 409 if the address belongs to another
/// account or already to this one, or if this account has an open request for an address; 429 if
/// the operator has helped too often.
pub async fn recover_to(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Id,
    Typed(request): Typed<EmailRequest>,
) -> Result<Response, Error> {
    let (id, email) = (account(id)?, email(&request.email)?);
    let (now, app) = (admin.app.time()?, &admin.app);
    let ask = async |connection: &mut sqlx::PgConnection| {
        let actor = caller.actor(app);
        request::ask_address(connection, now, actor, id, &email).await
    };
    match admin.query("ask for another address", ask).await? {
        Asked::Asked(id) => {
            helped(app, &caller, now);
            let until = rfc3339(now + APPROVAL_LIFETIME);
            let mut response = changed(json!({ "request": id, "approve_by": until }), true);
            *response.status_mut() = StatusCode::CREATED;
            Ok(response)
        }
        Asked::Pending(_) => Err(Problem::RequestPending.into()),
        Asked::AlreadySet => Err(Problem::EmailUnchanged.into()),
        Asked::Taken => Err(Problem::EmailTaken.into()),
        Asked::NotFound => Err(Problem::AccountNotFound.into()),
        Asked::NotBefore(until) => Err(throttled(Problem::OperatorThrottled, now, until)),
    }
}

/// `GET /admin/requests`: a page of the requests for a second operator, the newest first.
///
/// # Errors
///
/// 400 for a bad query.
pub async fn list(State(admin): State<AdminState>, RawQuery(text): RawQuery) -> Result<Json<Value>, Error> {
    let ((page, open), now) = (query::requests(&text.unwrap_or_default())?, admin.app.time()?);
    let read = async |connection: &mut sqlx::PgConnection| {
        request::list(connection, now, open, page.from, page.limit).await
    };
    let requests = admin.query("list requests", read).await?;
    let next = next(page, requests.len(), requests.last().map(|last| last.id));
    Ok(Json(json!({ "requests": requests, "next": next })))
}

/// `POST /admin/requests/{id}/approve`: approves what another operator asked for. A change of the
/// address requires the role `Admin`.
///
/// # Errors
///
/// 403 for the operator who asked, or without the required role; 404 without such a request; 409 if
/// it cannot be approved any more, the account has changed, or another account has the address.
pub async fn approve(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, Error> {
    let (id, now, app) = (request_id(id)?, admin.app.time()?, &admin.app);
    let terms = (app.config.support.address_change_delay, app.config.mail.notice_retention);
    let may_change = caller.operator.role >= Role::Admin;
    let approve = async |connection: &mut sqlx::PgConnection| {
        let found = request::find(&mut *connection, now, id).await?;
        if !may_change && found.is_some_and(|found| found.kind == Kind::Address) {
            return Ok(None);
        }
        let actor = caller.actor(app);
        request::approve(connection, now, actor, id, terms).await.map(Some)
    };
    match admin.query("approve request", approve).await?.ok_or(Problem::RoleInsufficient)? {
        Approved::Address(at) => {
            app.wakeup.wake(first_id_of(now));
            Ok(changed(json!({ "effective_at": rfc3339(at) }), true))
        }
        Approved::Ticket => Ok(changed(json!({ "effective_at": null }), true)),
        Approved::SameOperator => Err(Problem::SecondOperatorRequired.into()),
        Approved::NotAsked(_) => Err(Problem::RequestEnded.into()),
        Approved::AccountChanged => Err(Problem::AccountChanged.into()),
        Approved::Taken => Err(Problem::EmailTaken.into()),
        Approved::NotFound => Err(Problem::RequestNotFound.into()),
    }
}

/// `DELETE /admin/requests/{id}`: cancels an open request, also an approved address change that has
/// not taken effect.
///
/// # Errors
///
/// 404 without such a request, 409 if it has ended.
pub async fn cancel(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Response, Error> {
    let (id, now, app) = (request_id(id)?, admin.app.time()?, &admin.app);
    let cancel = async |connection: &mut sqlx::PgConnection| {
        let actor = caller.actor(app);
        request::cancel(connection, now, actor, id).await
    };
    match admin.query("cancel request", cancel).await? {
        Cancelled::Cancelled => Ok(changed(json!({ "changed": true }), true)),
        Cancelled::Ended(_) => Err(Problem::RequestEnded.into()),
        Cancelled::NotFound => Err(Problem::RequestNotFound.into()),
    }
}
