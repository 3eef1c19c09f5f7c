//! Calls that read. None returns a code or a token. Only the export with `hashes` returns password
//! hashes.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use uuid::Uuid;

use super::access::{Caller, Recorded};
use super::{AdminState, OPERATIONS, query};
use crate::account::record::{self, Name};
use crate::admin::history::{self, AuditEntry};
use crate::admin::inspect::{self, Overview};
use crate::admin::search;
use crate::audit::{self, Event};
use crate::error::{Error, Problem};
use crate::operator::Operator;
use crate::outbox::inspect as outbox;
use crate::transfer::import::identity::to_json;

/// How many pending emails `GET /admin/outbox` lists.
const OLDEST_MAILS: i64 = 50;

/// The account's id in a path.
pub(super) type Id = Result<Path<Uuid>, PathRejection>;

/// The account of a path.
///
/// # Errors
///
/// `AccountNotFound` if the path contains no valid id.
pub(super) fn account(id: Id) -> Result<Uuid, Error> {
    id.map(|Path(id)| id).map_err(|_| Problem::AccountNotFound.into())
}

/// `GET /admin/self`: the operator who calls, and the calls that the role may make.
pub async fn caller(Extension(caller): Extension<Caller>) -> Json<Value> {
    let Operator { name, role } = &caller.operator;
    let may = OPERATIONS.iter().filter(|operation| operation.role <= *role);
    let may: Vec<_> = may.map(|operation| operation.name).collect();
    Json(json!({ "name": name, "role": role, "may": may }))
}

/// `GET /admin/accounts`: a page of accounts. They are found by their address, by its beginning, by
/// id, or by their id in another system; without a criterion, all accounts.
///
/// # Errors
///
/// 400 for a bad query. Every call of the admin API may also answer 401, 403, 429 or 502.
pub async fn find(State(admin): State<AdminState>, RawQuery(text): RawQuery) -> Result<Json<Value>, Error> {
    let wanted = query::search(&text.unwrap_or_default())?;
    let page = wanted.page;
    let find = async |connection: &mut sqlx::PgConnection| {
        search::accounts(connection, &wanted.query, page.from, page.limit).await
    };
    let accounts = admin.query("find accounts", find).await?;
    let next = next(page, accounts.len(), accounts.last().map(|last| last.id));
    Ok(Json(json!({ "accounts": accounts, "next": next })))
}

/// The id after which the next page begins; `None` if this page is not full.
pub(super) fn next(page: query::Page, found: usize, last: Option<Uuid>) -> Option<Uuid> {
    last.filter(|_| i64::try_from(found) == Ok(page.limit))
}

/// `GET /admin/accounts/{id}`: an account with its sessions, recoveries, rate limits and emails.
///
/// # Errors
///
/// 404 if there is no such account.
pub async fn show(State(admin): State<AdminState>, id: Id) -> Result<Json<Overview>, Error> {
    let (id, now) = (account(id)?, admin.app.time()?);
    let (idle, limit) = (admin.app.config.sessions.session_idle, admin.app.address_limit);
    let show = async |connection: &mut sqlx::PgConnection| {
        let Some(record) = record::find(&mut *connection, &Name::Id(id)).await? else { return Ok(None) };
        inspect::overview(connection, now, &record, idle, limit).await
    };
    let shown = admin.query("show account", show).await?;
    Ok(Json(shown.ok_or(Problem::AccountNotFound)?))
}

/// `GET /admin/accounts/{id}/events`: a page of the audit events of an account, the newest first.
/// It also answers for an erased account.
///
/// # Errors
///
/// 400 for a bad query, 404 if the path contains no valid id.
pub async fn account_events(
    State(admin): State<AdminState>,
    id: Id,
    RawQuery(text): RawQuery,
) -> Result<Json<Value>, Error> {
    let (id, page) = (account(id)?, query::page(&text.unwrap_or_default(), "before")?);
    let read = async |connection: &mut sqlx::PgConnection| {
        history::of_account(connection, id, page.from, page.limit).await
    };
    let events = admin.query("read events", read).await?;
    Ok(events_page(page, &events))
}

fn events_page(page: query::Page, events: &[AuditEntry]) -> Json<Value> {
    let next = next(page, events.len(), events.last().map(|last| last.id));
    Json(json!({ "events": events, "next": next }))
}

/// `GET /admin/operators/{name}/events`: a page of the audit events that an operator caused, the
/// newest first.
///
/// # Errors
///
/// 400 for a bad query, 404 if no operator can have the name.
pub async fn operator_events(
    State(admin): State<AdminState>,
    name: Result<Path<String>, PathRejection>,
    RawQuery(text): RawQuery,
) -> Result<Json<Value>, Error> {
    let Path(name) = name.map_err(|_| Problem::NotFound)?;
    let page = query::page(&text.unwrap_or_default(), "before")?;
    if name.contains('\0') {
        return Err(Problem::NotFound.into());
    }
    let read = async |connection: &mut sqlx::PgConnection| {
        history::of_operator(connection, &name, page.from, page.limit).await
    };
    let events = admin.query("read events", read).await?;
    Ok(events_page(page, &events))
}

/// `GET /admin/outbox`: which relays are up, how many emails are pending, and the oldest of them
/// without their addresses.
///
/// # Errors
///
/// 401, 403, 429 or 502, as every call of the admin API.
pub async fn outbox(State(admin): State<AdminState>) -> Result<Json<Value>, Error> {
    let now = admin.app.time()?;
    let read = async |connection: &mut sqlx::PgConnection| {
        let backlog = outbox::backlog(&mut *connection).await?;
        Ok((backlog, outbox::list(connection, OLDEST_MAILS).await?))
    };
    let (backlog, oldest) = admin.query("read the outbox", read).await?;
    let oldest: Vec<_> = oldest.into_iter().map(|mail| mail.seen(now)).collect();
    let gateway = &admin.app.gateway;
    Ok(Json(json!({
        "mail": if gateway.is_up() { "ok" } else { "unavailable" },
        "relays": gateway.states(),
        "backlog": backlog,
        "oldest": oldest,
    })))
}

/// `GET /admin/export`: a page of all accounts in the format of Kratos's admin API, one JSON object
/// a line. The last line's id is the `after` of the next page; an empty page is the end. The audit
/// log records an export with `hashes` as `accounts_exported`, and one without as any other call.
///
/// # Errors
///
/// 400 for a bad query.
pub async fn export(
    State(admin): State<AdminState>,
    Extension(caller): Extension<Caller>,
    RawQuery(text): RawQuery,
) -> Result<Response, Error> {
    let (page, hashes) = query::export(&text.unwrap_or_default())?;
    let now = admin.app.time()?;
    let read = async |connection: &mut sqlx::PgConnection| {
        let accounts = record::page(&mut *connection, page.from.unwrap_or_default(), page.limit).await?;
        if hashes {
            audit::record(connection, now, Event::AccountsExported, None, caller.by()).await?;
        }
        Ok(accounts)
    };
    let accounts = admin.query("export accounts", read).await?;
    let mut lines = String::new();
    for mut account in accounts {
        if !hashes {
            account.password_hash = None;
        }
        lines.push_str(&to_json(&account).to_string());
        lines.push('\n');
    }
    let mut response = ([(CONTENT_TYPE, "application/x-ndjson")], lines).into_response();
    if hashes {
        response.extensions_mut().insert(Recorded);
    }
    Ok(response)
}
