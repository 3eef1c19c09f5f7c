//! Owns `audit_event`: what happened to which account. Events are only appended, apart from
//! [`sweep`] and [`forget_clients`]. They never contain a code, token or password.

mod read;

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use sqlx::{PgConnection, PgExecutor, PgPool};
use strum::{IntoStaticStr, VariantArray};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::read::{AuditEntry, Changes, changed_since, mails_of_account, of_account, of_operator};
use crate::client::Client;
use crate::clock::{first_id_of, new_id};

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
    /// An operator gave the account another address, or an approved change took effect.
    EmailChanged,
    /// An operator set the language of the account's emails.
    LocaleChanged,
    /// An operator ended the account's sessions, or those of all accounts.
    SessionsRevoked,
    /// An operator erased the account and the stored data of its owner.
    AccountErased,
    /// An operator refilled the buckets of the account's address.
    AccountUnblocked,
    /// An operator was given a recovery ticket.
    RecoveryTicketIssued,
    /// An operator asked for a ticket for a protected account, which another one has to approve.
    TicketAsked,
    /// A second operator approved the ticket.
    TicketApproved,
    /// An operator cancelled the ticket before it was issued.
    TicketCancelled,
    /// An operator asked for another address of the account, which another one has to approve.
    AddressChangeAsked,
    /// A second operator approved the change. It takes effect after `ADDRESS_CHANGE_DELAY`.
    AddressChangeApproved,
    /// An operator cancelled the change, or changed the account in another way.
    AddressChangeCancelled,
    /// The account owner stopped the change, with the password.
    AddressChangeStopped,
    /// The change could not take effect: another account has the address, or this one is disabled
    /// or has had another address since.
    AddressChangeFailed,
    /// A relay accepted the email with a recovery code.
    RecoverySent,
    /// The email with a recovery code was given up: no relay accepted it.
    RecoveryNotSent,
    /// A client signed in with the password.
    SignedIn,
    /// A login to the account failed.
    SignInFailed,
    /// The owner enrolled a second factor.
    SecondFactorAdded,
    /// The owner removed a second factor.
    SecondFactorRemoved,
    /// The owner replaced the backup codes.
    BackupCodesReplaced,
    /// A backup code was used to sign in or to recover.
    BackupCodeUsed,
    /// The holder of a session's token ended the session.
    SignedOut,
    /// The owner ended sessions other than the current one.
    SessionsEnded,
    /// The emailed code was entered.
    RecoveryVerified,
    /// An email to the account's address bounced: the first since the last right code or change of
    /// address.
    EmailBounced,
    /// The password was reset by a recovery.
    PasswordReset,
    /// The password was changed while signed in.
    PasswordChanged,
    /// A relay accepted the notice of a changed password.
    PasswordNoticeSent,
    /// A relay accepted the notice of a recovery ticket.
    TicketNoticeSent,
    /// A relay accepted the notice to the old address that the account has another one.
    EmailNoticeSent,
    /// A relay accepted the notice to the stored address that a change of it was approved.
    AddressChangeNoticeSent,
    /// A relay accepted the notice to the new address.
    NewAddressNoticeSent,
    /// A command issued a token of the admin API. `operator` names its holder.
    OperatorCreated,
    /// A command revoked a token of the admin API. `operator` names its holder.
    OperatorRevoked,
    /// An operator called the admin API, and the call changed no account. [`Call`] has the details.
    OperatorCall,
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

/// The operator who caused an event.
#[derive(Clone, Copy, Debug)]
pub struct OperatorInfo<'a> {
    /// The name, or the identity in the client certificate.
    pub name: &'a str,
    /// Why, in the operator's words.
    pub reason: Option<&'a str>,
    /// The client that called the admin API. `None`: a command names the operator, and cannot check
    /// the name.
    pub client: Option<ClientInfo<'a>>,
}

/// Who caused an event.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// A client of the public API.
    Client(ClientInfo<'a>),
    /// An operator, by the admin API or a command.
    Operator(OperatorInfo<'a>),
}

impl<'a> By<'a> {
    fn client(self) -> Option<ClientInfo<'a>> {
        match self {
            Self::Client(client) => Some(client),
            Self::Operator(operator) => operator.client,
        }
    }

    fn operator(self) -> Option<OperatorInfo<'a>> {
        if let Self::Operator(operator) = self { Some(operator) } else { None }
    }
}

impl<'a> From<&'a Client> for By<'a> {
    fn from(client: &'a Client) -> Self {
        Self::Client(client.into())
    }
}

/// The outcome of an operator's call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The call succeeded.
    Allowed,
    /// The operator's role may not do it.
    Refused,
    /// It was answered with another error.
    Failed,
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
    /// Who caused it; `None` for the service and for commands that name no operator.
    pub by: Option<By<'a>>,
}

/// Appends an event; `account_id` is `None` if it is about many accounts. Pass the transaction of
/// the change that it records.
pub async fn record(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    event: Event,
    account_id: impl Into<Option<Uuid>>,
    by: Option<By<'_>>,
) -> Result<(), sqlx::Error> {
    record_all(executor, &[Entry { at: now, event, account_id: account_id.into(), by }]).await
}

/// Appends many events.
async fn record_all(executor: impl PgExecutor<'_>, events: &[Entry<'_>]) -> Result<(), sqlx::Error> {
    let events: EventColumns<'_> = events.iter().copied().collect();
    sqlx::query!(
        "INSERT INTO audit_event (id, what, account_id, created_at, client_ip, user_agent, operator, reason, outcome)
         SELECT * FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::timestamptz[], $5::inet[], $6::text[], $7::text[],
             $8::text[], $9::text[])",
        &events.ids,
        &events.what as _,
        &events.account_ids as _,
        &events.times,
        &events.client_ips as _,
        &events.user_agents as _,
        &events.operators as _,
        &events.reasons as _,
        &events.outcomes as _,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// A call of the admin API that changed nothing: it only reads, was refused, or failed.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Its name, such as `account.show`.
    pub name: &'static str,
    /// The account in its path.
    pub account_id: Option<Uuid>,
    /// Who called.
    pub operator: OperatorInfo<'a>,
    /// How it was answered.
    pub outcome: Outcome,
}

/// Appends a call of the admin API.
pub async fn record_call(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    call: &Call<'_>,
) -> Result<(), sqlx::Error> {
    let (operator, event) = (call.operator, Event::OperatorCall);
    let client = operator.client;
    sqlx::query!(
        "INSERT INTO audit_event (id, what, account_id, created_at, client_ip, user_agent, operator, reason, call, outcome)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        new_id(now),
        <&str>::from(event),
        call.account_id,
        now,
        client.map(|client| client.client_ip) as _,
        client.map(|client| client.user_agent),
        operator.name,
        operator.reason,
        call.name,
        <&str>::from(call.outcome),
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
    operators: Vec<Option<&'a str>>,
    reasons: Vec<Option<&'a str>>,
    outcomes: Vec<Option<&'static str>>,
}

impl<'a> FromIterator<Entry<'a>> for EventColumns<'a> {
    fn from_iter<I: IntoIterator<Item = Entry<'a>>>(events: I) -> Self {
        let mut columns = Self::default();
        for Entry { at, event, account_id, by } in events {
            let (client, operator) = (by.and_then(By::client), by.and_then(By::operator));
            let is_call = operator.is_some_and(|operator| operator.client.is_some());
            columns.ids.push(new_id(at));
            columns.what.push(event.into());
            columns.account_ids.push(account_id);
            columns.times.push(at);
            columns.client_ips.push(client.map(|client| client.client_ip));
            columns.user_agents.push(client.map(|client| client.user_agent));
            columns.operators.push(operator.map(|operator| operator.name));
            columns.reasons.push(operator.and_then(|operator| operator.reason));
            columns.outcomes.push(is_call.then(|| Outcome::Allowed.into()));
        }
        columns
    }
}

/// When the newest event of this kind of an account happened, at `since` or later.
pub async fn newest(
    executor: impl PgExecutor<'_>,
    account_id: Uuid,
    event: Event,
    since: OffsetDateTime,
) -> Result<Option<OffsetDateTime>, sqlx::Error> {
    let newest = sqlx::query_scalar!(
        "SELECT created_at FROM audit_event WHERE account_id = $1 AND id >= $2 AND what = $3
         ORDER BY account_id, id DESC LIMIT 1",
        account_id,
        first_id_of(since),
        <&str>::from(event)
    );
    newest.fetch_optional(executor).await
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

/// Removes network addresses and user agents from the events of an erased account, except those of
/// operators. No event is ever changed in another way.
pub async fn forget_clients(transaction: &mut PgConnection, account_id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE audit_event SET client_ip = NULL, user_agent = NULL
         WHERE account_id = $1 AND client_ip IS NOT NULL AND operator IS NULL",
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Renaming a variant would give new rows another name than the stored rows of the same event.
    #[test]
    fn names_are_as_in_the_snapshot() {
        let names: Vec<&str> = Event::VARIANTS.iter().map(Into::into).collect();
        insta::assert_snapshot!("events", names.join("\n"));
    }
}
