//! Reads events: for operators, and for the export to Kratos, which needs the accounts that were
//! changed in this service.

use std::net::IpAddr;

use serde::Serialize;
use sqlx::PgExecutor;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::{first_id_of, serialize_rfc3339};

/// When a person last changed an account's password, address and state in this service. A sign-in
/// is no such change, nor is the rehash of the same password.
#[derive(Clone, Copy, Debug)]
pub struct Changes {
    /// The account.
    pub account_id: Uuid,
    /// When the password changed, or the account was created in this service.
    pub password: Option<OffsetDateTime>,
    /// When the address changed.
    pub email: Option<OffsetDateTime>,
    /// When the account was disabled or enabled.
    pub state: Option<OffsetDateTime>,
}

/// The accounts that were changed or erased in this service since `since`, ordered by id. Changes
/// are known only for as long as events are kept.
pub async fn changed_since(
    executor: impl PgExecutor<'_>,
    since: OffsetDateTime,
) -> Result<Vec<Changes>, sqlx::Error> {
    sqlx::query_as!(
        Changes,
        r#"SELECT account_id AS "account_id!",
               max(created_at) FILTER (WHERE what IN ('password_reset', 'password_changed', 'account_created')) AS password,
               max(created_at) FILTER (WHERE what = 'email_changed') AS email,
               max(created_at) FILTER (WHERE what IN ('account_disabled', 'account_enabled')) AS state
           FROM audit_event
           WHERE id >= $1 AND created_at >= $2 AND account_id IS NOT NULL AND what IN ('password_reset', 'password_changed',
               'account_created', 'email_changed', 'account_disabled', 'account_enabled', 'account_erased')
           GROUP BY account_id ORDER BY account_id"#,
        first_id_of(since),
        since
    )
    .fetch_all(executor)
    .await
}

/// An event as it is stored, for operators.
#[derive(Clone, Debug, Serialize)]
pub struct AuditEntry {
    /// Its id. Ids sort by time.
    pub id: Uuid,
    /// When it happened.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub at: OffsetDateTime,
    /// What happened: the name of an [`super::Event`], of this or another release.
    pub what: String,
    /// The account; `None` if the event is about many accounts.
    pub account_id: Option<Uuid>,
    /// The IP address of the client that caused it. An operator's stays when the account is erased,
    /// others are removed.
    pub client_ip: Option<IpAddr>,
    /// The User-Agent of that client.
    pub user_agent: Option<String>,
    /// The operator who called the admin API or is named by a command, or the holder of the token
    /// that was issued or revoked.
    pub operator: Option<String>,
    /// Why, in the operator's words.
    pub reason: Option<String>,
    /// Which call of the admin API, if it changed no account.
    pub call: Option<String>,
    /// How the operator's call of the admin API was answered: `allowed`, `refused` or `failed`.
    pub outcome: Option<String>,
}

/// At most `limit` events of an account before the event `before`, the newest first.
pub async fn of_account(
    executor: impl PgExecutor<'_>,
    account_id: Uuid,
    before: Uuid,
    limit: i64,
) -> Result<Vec<AuditEntry>, sqlx::Error> {
    sqlx::query_as!(
        AuditEntry,
        r#"SELECT id, created_at AS at, what, account_id, client_ip AS "client_ip: IpAddr", user_agent, operator, reason,
               call, outcome
           FROM audit_event WHERE account_id = $1 AND id < $2 ORDER BY account_id, id DESC LIMIT $3"#,
        account_id,
        before,
        limit
    )
    .fetch_all(executor)
    .await
}

/// At most `limit` events that an operator caused before the event `before`, the newest first.
pub async fn of_operator(
    executor: impl PgExecutor<'_>,
    operator: &str,
    before: Uuid,
    limit: i64,
) -> Result<Vec<AuditEntry>, sqlx::Error> {
    sqlx::query_as!(
        AuditEntry,
        r#"SELECT id, created_at AS at, what, account_id, client_ip AS "client_ip: IpAddr", user_agent, operator, reason,
               call, outcome
           FROM audit_event WHERE operator = $1 AND id < $2 ORDER BY operator, id DESC LIMIT $3"#,
        operator,
        before,
        limit
    )
    .fetch_all(executor)
    .await
}

/// At most `limit` events since `since` about emails to an account, the newest first.
pub async fn mails_of_account(
    executor: impl PgExecutor<'_>,
    account_id: Uuid,
    since: OffsetDateTime,
    limit: i64,
) -> Result<Vec<AuditEntry>, sqlx::Error> {
    sqlx::query_as!(
        AuditEntry,
        r#"SELECT id, created_at AS at, what, account_id, client_ip AS "client_ip: IpAddr", user_agent, operator, reason,
               call, outcome
           FROM audit_event
           WHERE account_id = $1 AND id >= $2
               AND what IN ('recovery_sent', 'recovery_not_sent', 'password_notice_sent', 'ticket_notice_sent',
                   'email_notice_sent', 'address_change_notice_sent', 'new_address_notice_sent', 'email_bounced')
           ORDER BY account_id, id DESC LIMIT $3"#,
        account_id,
        first_id_of(since),
        limit
    )
    .fetch_all(executor)
    .await
}
