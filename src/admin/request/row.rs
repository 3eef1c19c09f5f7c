//! A row of `operator_request`: its columns, and the statements that read and write it.

use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor, PgPool};
use strum::IntoStaticStr;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Actor;
use crate::account::record;
use crate::clock::{first_id_of, new_id, serialize_rfc3339};
use crate::config::APPROVAL_LIFETIME;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, Serialize, sqlx::Type)]
#[strum(serialize_all = "snake_case")]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Kind {
    /// A recovery ticket for a protected account.
    Ticket,
    /// Another address for an account.
    Address,
}

/// The state of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, Serialize, sqlx::Type)]
#[strum(serialize_all = "snake_case")]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// Another operator may approve it within 10 minutes.
    Asked,
    /// It is approved: the address change takes effect later, or the ticket can be issued for 10
    /// minutes.
    Approved,
    /// The address was changed, or the ticket was issued.
    Done,
    /// The account's owner stopped it.
    Stopped,
    /// An operator cancelled it, or the account was disabled or got another address.
    Cancelled,
    /// Nobody approved it in time, or the approved ticket was not issued in time.
    Expired,
    /// It could not take effect: another account has the address, or this account is disabled or
    /// has had another address since.
    Failed,
}

/// A request. It contains email addresses: do not print it as a whole.
#[derive(Clone, Serialize)]
pub struct Request {
    /// Its id.
    pub id: Uuid,
    /// What is asked for.
    pub kind: Kind,
    /// The account that it is about.
    pub account_id: Uuid,
    /// Its state.
    pub state: State,
    /// The operator who asked.
    pub asked_by: String,
    /// Why the operator asked.
    pub reason: String,
    /// When the operator asked.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub asked_at: OffsetDateTime,
    /// The operator who approved it.
    pub approved_by: Option<String>,
    /// When it was approved.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub approved_at: Option<OffsetDateTime>,
    /// The stored address when an address change was asked for.
    pub old_email: Option<String>,
    /// The address that the account is to get.
    pub new_email: Option<String>,
    /// When an approved address change takes effect, at the earliest.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub effective_at: Option<OffsetDateTime>,
    /// The email that tells the owner of an approved address change.
    #[serde(skip)]
    pub notice_id: Option<Uuid>,
    /// When it ended.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub ended_at: Option<OffsetDateTime>,
    /// The operator who cancelled it, or who was given the ticket.
    pub ended_by: Option<String>,
}

impl Request {
    /// The request at `now`. An open request that is too old has expired, even if its row does not
    /// say so yet.
    #[must_use]
    fn at(self, now: OffsetDateTime) -> Self {
        let since = match (self.state, self.kind) {
            (State::Asked, _) => Some(self.asked_at),
            (State::Approved, Kind::Ticket) => self.approved_at,
            _ => None,
        };
        let has_expired = since.is_some_and(|since| now - since >= APPROVAL_LIFETIME);
        Self { state: if has_expired { State::Expired } else { self.state }, ..self }
    }
}

/// Stores a request: for another address if `addresses` (old, new) are given, otherwise for a
/// ticket.
pub(super) async fn insert(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    actor: Actor<'_>,
    account_id: Uuid,
    addresses: Option<(&str, &str)>,
) -> Result<Uuid, sqlx::Error> {
    let id = new_id(now);
    let kind = if addresses.is_some() { Kind::Address } else { Kind::Ticket };
    sqlx::query!(
        "INSERT INTO operator_request (id, kind, account_id, asked_by, reason, asked_at, old_email, new_email)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        id,
        <&str>::from(kind),
        account_id,
        actor.name(),
        actor.operator.reason.unwrap_or_default(),
        now,
        addresses.map(|(old, _)| old),
        addresses.map(|(_, new)| new),
    )
    .execute(transaction)
    .await?;
    Ok(id)
}

/// A request, as it is at `now`.
pub async fn find(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    id: Uuid,
) -> Result<Option<Request>, sqlx::Error> {
    let request = sqlx::query_as!(
        Request,
        r#"SELECT id, kind AS "kind: Kind", account_id, state AS "state: State", asked_by, reason, asked_at, approved_by,
               approved_at, old_email, new_email, effective_at, notice_id, ended_at, ended_by
           FROM operator_request WHERE id = $1"#,
        id
    );
    Ok(request.fetch_optional(executor).await?.map(|request| request.at(now)))
}

/// At most `limit` requests older than the request `before`, the newest first. With `open`, only
/// those that have not ended: they wait for an approval, for their ticket to be issued, or for the
/// time at which their address change takes effect.
pub async fn list(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    open: bool,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Request>, sqlx::Error> {
    let requests = sqlx::query_as!(
        Request,
        r#"SELECT id, kind AS "kind: Kind", account_id, state AS "state: State", asked_by, reason, asked_at, approved_by,
               approved_at, old_email, new_email, effective_at, notice_id, ended_at, ended_by
           FROM operator_request
           WHERE id < $1 AND (NOT $3
               OR state = 'asked' AND asked_at > $4 OR state = 'approved' AND (kind = 'address' OR approved_at > $4))
           ORDER BY id DESC LIMIT $2"#,
        before.unwrap_or(Uuid::max()),
        limit,
        open,
        now - APPROVAL_LIFETIME
    );
    Ok(requests.fetch_all(executor).await?.into_iter().map(|request| request.at(now)).collect())
}

/// A request, and its account, whose row is locked.
pub(super) struct Locked {
    pub request: Request,
    /// The account's stored address.
    pub email: String,
    pub is_active: bool,
}

/// Locks the account of a request, and returns both: a change of a request needs that lock.
pub(super) async fn lock(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
) -> Result<Option<Locked>, sqlx::Error> {
    let account = sqlx::query_scalar!("SELECT account_id FROM operator_request WHERE id = $1", id);
    let Some(account) = account.fetch_optional(&mut *transaction).await? else { return Ok(None) };
    let account = record::lock_in_any_state(transaction, account).await?;
    let Some((email, is_active)) = account else { return Ok(None) };
    let request = find(transaction, now, id).await?;
    Ok(request.map(|request| Locked { request, email, is_active }))
}

/// The open request of this kind of a locked account. Ends a request that has expired.
pub(super) async fn open_request(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    kind: Kind,
) -> Result<Option<Request>, sqlx::Error> {
    let id = sqlx::query_scalar!(
        "SELECT id FROM operator_request WHERE account_id = $1 AND kind = $2 AND state IN ('asked', 'approved')",
        account_id,
        <&str>::from(kind),
    );
    let Some(id) = id.fetch_optional(&mut *transaction).await? else { return Ok(None) };
    match find(&mut *transaction, now, id).await? {
        Some(request) if request.state == State::Expired => {
            end(transaction, now, id, State::Expired, None).await?;
            Ok(None)
        }
        request => Ok(request),
    }
}

/// Ends a request whose account is locked.
pub(super) async fn end(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    state: State,
    by: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE operator_request SET state = $2, ended_at = $3, ended_by = $4 WHERE id = $1",
        id,
        <&str>::from(state),
        now,
        by,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Deletes at most `limit` requests that were made more than `age` ago and did not end within the
/// last `retention`, except approved address changes that have not taken effect yet.
pub async fn sweep(
    pool: &PgPool,
    now: OffsetDateTime,
    (age, retention): (Duration, Duration),
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "DELETE FROM operator_request WHERE id = ANY(ARRAY(
             SELECT id FROM operator_request
             WHERE id < $1 AND NOT (kind = 'address' AND state = 'approved') AND (ended_at IS NULL OR ended_at < $3)
             ORDER BY id LIMIT $2
         ))",
        first_id_of(now - age),
        limit,
        now - retention
    );
    Ok(done.execute(pool).await?.rows_affected())
}
