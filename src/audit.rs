//! Owns `audit_event`: what happened to which account, append only. No code, token or password is ever in it.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use sqlx::{PgConnection, PgExecutor, PgPool};
use strum::{IntoStaticStr, VariantArray};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::client::Client;
use crate::clock::{first_id_of, new_id};

/// Something that happened.
#[derive(Clone, Copy, Debug, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Event {
    /// An operator created the account.
    AccountCreated,
    /// An operator imported accounts; each says when in `imported_at`.
    AccountsImported,
    /// An operator exported all accounts, with what their passwords are verified against.
    AccountsExported,
    /// An operator disabled the account.
    AccountDisabled,
    /// An operator made the account active again.
    AccountEnabled,
    /// An operator gave the account another address.
    EmailChanged,
    /// An operator ended the account's sessions, or everybody's.
    SessionsRevoked,
    /// An operator erased the account and what was stored of its owner.
    AccountErased,
    /// An operator filled the budgets of the account's address.
    AccountUnblocked,
    /// An operator printed a recovery ticket.
    RecoveryTicketIssued,
    /// A recovery code was handed to a relay.
    RecoverySent,
    /// Somebody signed in with the password.
    SignedIn,
    /// Somebody tried to sign in and failed.
    SignInFailed,
    /// A session was ended by whoever had its token.
    SignedOut,
    /// The owner ended other sessions.
    SessionsEnded,
    /// The mailed code was entered.
    RecoveryVerified,
    /// A mail to the account's address bounced, the first one since its last right code.
    EmailBounced,
    /// The password was set anew after a recovery.
    PasswordReset,
    /// The password was changed while signed in.
    PasswordChanged,
    /// The mail about a changed password was handed to a relay.
    PasswordNoticeSent,
}

/// The client that asked for it, where there was one.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// Its address.
    pub client_ip: IpAddr,
    /// Its User-Agent, cut to 200 characters.
    pub user_agent: &'a str,
}

impl<'a> From<&'a Client> for Source<'a> {
    fn from(client: &'a Client) -> Self {
        Self { client_ip: client.ip, user_agent: &client.user_agent }
    }
}

/// An event to be appended.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// When it happened.
    pub at: OffsetDateTime,
    /// What.
    pub event: Event,
    /// To whom; nobody in particular if it is of many.
    pub account_id: Option<Uuid>,
    /// Who asked for it.
    pub source: Option<Source<'a>>,
}

/// Appends an event, of no account in particular if it is of many. Give it the transaction of what it tells of.
pub async fn record(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    event: Event,
    account_id: impl Into<Option<Uuid>>,
    source: Option<Source<'_>>,
) -> Result<(), sqlx::Error> {
    record_all(executor, &[Entry { at: now, event, account_id: account_id.into(), source }]).await
}

/// The same for many.
async fn record_all(executor: impl PgExecutor<'_>, events: &[Entry<'_>]) -> Result<(), sqlx::Error> {
    let events: Columns<'_> = events.iter().copied().collect();
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

/// Events by column, each with its id, for a statement that appends them with other work.
#[derive(Debug, Default)]
pub struct Columns<'a> {
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

impl<'a> FromIterator<Entry<'a>> for Columns<'a> {
    fn from_iter<I: IntoIterator<Item = Entry<'a>>>(events: I) -> Self {
        let mut columns = Self::default();
        for Entry { at, event, account_id, source } in events {
            columns.ids.push(new_id(at));
            columns.what.push(event.into());
            columns.account_ids.push(account_id);
            columns.times.push(at);
            columns.client_ips.push(source.map(|source| source.client_ip));
            columns.user_agents.push(source.map(|source| source.user_agent));
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

/// Takes from the events of an account what could name its owner: network addresses and devices. The one change that an
/// event ever sees.
pub async fn forget_clients(transaction: &mut PgConnection, account_id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE audit_event SET client_ip = NULL, user_agent = NULL WHERE account_id = $1 AND client_ip IS NOT NULL",
        account_id
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// The accounts that were erased, for as long as events are kept.
pub async fn erased(executor: impl PgExecutor<'_>) -> Result<HashSet<Uuid>, sqlx::Error> {
    let ids = sqlx::query_scalar!(
        r#"SELECT account_id AS "account_id!" FROM audit_event WHERE what = 'account_erased' AND account_id IS NOT NULL"#
    );
    Ok(ids.fetch_all(executor).await?.into_iter().collect())
}

/// When what another system keeps of an account was last changed here, by a person: a sign-in and its new hash of the same
/// password are no change.
#[derive(Clone, Copy, Debug)]
pub struct Changes {
    /// The account.
    pub account_id: Uuid,
    /// The password, or the whole account if it was created here.
    pub password: Option<OffsetDateTime>,
    /// The address.
    pub email: Option<OffsetDateTime>,
    /// Whether it is active.
    pub state: Option<OffsetDateTime>,
}

/// The accounts that were changed here since then, in the order of their ids, for as long as events are kept.
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
