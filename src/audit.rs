//! Owns `audit_event`: what happened to which account. The table is append-only, and never contains
//! a code, token or password.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor, PgPool};
use strum::{IntoStaticStr, VariantArray};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::client::Client;
use crate::clock::{first_id_of, new_id, serialize_rfc3339};

/// The kind of an event.
#[derive(Clone, Copy, Debug, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Event {
    /// An operator created the account.
    AccountCreated,
    /// An operator imported accounts; each account has the time in `imported_at`.
    AccountsImported,
    /// An operator exported all accounts, including password hashes.
    AccountsExported,
    /// An operator disabled the account.
    AccountDisabled,
    /// An operator made the account active again.
    AccountEnabled,
    /// An operator gave the account another address.
    EmailChanged,
    /// An operator ended the account's sessions, or those of all accounts.
    SessionsRevoked,
    /// An operator erased the account and the stored data of its owner.
    AccountErased,
    /// An operator refilled the buckets of the account's address.
    AccountUnblocked,
    /// An operator printed a recovery ticket.
    RecoveryTicketIssued,
    /// A relay accepted the email with a recovery code.
    RecoverySent,
    /// The email with a recovery code was given up: no relay accepted it.
    RecoveryNotSent,
    /// A client signed in with the password.
    SignedIn,
    /// A login to the account failed.
    SignInFailed,
    /// The holder of a session's token ended the session.
    SignedOut,
    /// The owner ended other sessions.
    SessionsEnded,
    /// The emailed code was entered.
    RecoveryVerified,
    /// An email to the account's address bounced, the first since the last right code.
    EmailBounced,
    /// The password was reset by a recovery.
    PasswordReset,
    /// The password was changed while signed in.
    PasswordChanged,
    /// A relay accepted the notice of a changed password.
    PasswordNoticeSent,
}

/// The client that caused an event.
#[derive(Clone, Copy, Debug)]
pub struct ClientInfo<'a> {
    /// Its IP address.
    pub client_ip: IpAddr,
    /// Its User-Agent, cut to 200 characters.
    pub user_agent: &'a str,
}

impl<'a> From<&'a Client> for ClientInfo<'a> {
    fn from(client: &'a Client) -> Self {
        Self { client_ip: client.ip, user_agent: &client.user_agent }
    }
}

/// An event to append.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// When it happened.
    pub at: OffsetDateTime,
    /// What happened.
    pub event: Event,
    /// The account; `None` if the event is about many accounts.
    pub account_id: Option<Uuid>,
    /// The client that caused it, if there was one.
    pub client: Option<ClientInfo<'a>>,
}

/// Appends an event; `account_id` is `None` if it is about many accounts. Pass the transaction of
/// the change that it records.
pub async fn record(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    event: Event,
    account_id: impl Into<Option<Uuid>>,
    client: Option<ClientInfo<'_>>,
) -> Result<(), sqlx::Error> {
    record_all(executor, &[Entry { at: now, event, account_id: account_id.into(), client }]).await
}

/// Appends many events.
async fn record_all(executor: impl PgExecutor<'_>, events: &[Entry<'_>]) -> Result<(), sqlx::Error> {
    let events: EventColumns<'_> = events.iter().copied().collect();
    sqlx::query!(
        "INSERT INTO audit_event (id, what, account_id, created_at, client_ip, user_agent)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::timestamptz[], $5::inet[], $6::text[])",
        &events.ids,
        &events.what as _,
        &events.account_ids as _,
        &events.times,
        &events.client_ips as _,
        &events.user_agents as _,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Events as columns, each with a new id, for a statement that appends them along with other work.
#[derive(Debug, Default)]
pub struct EventColumns<'a> {
    /// `id`.
    pub ids: Vec<Uuid>,
    /// `what`.
    pub what: Vec<&'static str>,
    /// `account_id`.
    pub account_ids: Vec<Option<Uuid>>,
    /// `created_at`.
    pub times: Vec<OffsetDateTime>,
    /// `client_ip`.
    pub client_ips: Vec<Option<IpAddr>>,
    /// `user_agent`.
    pub user_agents: Vec<Option<&'a str>>,
}

impl<'a> FromIterator<Entry<'a>> for EventColumns<'a> {
    fn from_iter<I: IntoIterator<Item = Entry<'a>>>(events: I) -> Self {
        let mut columns = Self::default();
        for Entry { at, event, account_id, client } in events {
            columns.ids.push(new_id(at));
            columns.what.push(event.into());
            columns.account_ids.push(account_id);
            columns.times.push(at);
            columns.client_ips.push(client.map(|client| client.client_ip));
            columns.user_agents.push(client.map(|client| client.user_agent));
        }
        columns
    }
}

/// Deletes at most `limit` events that are older than `retention`.
pub async fn sweep(
    pool: &PgPool,
    now: OffsetDateTime,
    retention: Duration,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "DELETE FROM audit_event WHERE id = ANY(ARRAY(SELECT id FROM audit_event WHERE id < $1 ORDER BY id LIMIT $2))",
        first_id_of(now - retention),
        limit
    );
    Ok(done.execute(pool).await?.rows_affected())
}

/// Removes network addresses and user agents from the events of an erased account. No event is ever
/// changed in another way.
pub async fn forget_clients(transaction: &mut PgConnection, account_id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE audit_event SET client_ip = NULL, user_agent = NULL WHERE account_id = $1 AND client_ip IS NOT NULL",
        account_id
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// The ids of erased accounts, for as long as events are kept.
pub async fn erased(executor: impl PgExecutor<'_>) -> Result<HashSet<Uuid>, sqlx::Error> {
    let ids = sqlx::query_scalar!(
        r#"SELECT account_id AS "account_id!" FROM audit_event WHERE what = 'account_erased' AND account_id IS NOT NULL"#
    );
    Ok(ids.fetch_all(executor).await?.into_iter().collect())
}

/// When data that another system also stores was last changed here by a person. A sign-in is no
/// such change, nor is the rehash of the same password.
#[derive(Clone, Copy, Debug)]
pub struct Changes {
    /// The account.
    pub account_id: Uuid,
    /// When the password changed, or the account was created here.
    pub password: Option<OffsetDateTime>,
    /// When the address changed.
    pub email: Option<OffsetDateTime>,
    /// When it was disabled or enabled.
    pub state: Option<OffsetDateTime>,
}

/// The accounts that were changed here since `since`, ordered by id, for as long as events are
/// kept.
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
    /// What happened: the name of an [`Event`], of this or another release.
    pub what: String,
    /// The account; `None` if the event is about many accounts.
    pub account_id: Option<Uuid>,
    /// The address of the client that caused it, until the account is erased.
    pub client_ip: Option<IpAddr>,
    /// The User-Agent of that client.
    pub user_agent: Option<String>,
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
        r#"SELECT id, created_at AS at, what, account_id, client_ip AS "client_ip: IpAddr", user_agent
           FROM audit_event WHERE account_id = $1 AND id < $2 ORDER BY account_id, id DESC LIMIT $3"#,
        account_id,
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
        r#"SELECT id, created_at AS at, what, account_id, client_ip AS "client_ip: IpAddr", user_agent
           FROM audit_event
           WHERE account_id = $1 AND id >= $2
               AND what IN ('recovery_sent', 'recovery_not_sent', 'password_notice_sent', 'email_bounced')
           ORDER BY account_id, id DESC LIMIT $3"#,
        account_id,
        first_id_of(since),
        limit
    )
    .fetch_all(executor)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A variant that is renamed would part new rows from those that are stored.
    #[test]
    fn names_are_as_in_the_snapshot() {
        let names: Vec<&str> = Event::VARIANTS.iter().map(Into::into).collect();
        insta::assert_snapshot!("events", names.join("\n"));
    }
}
