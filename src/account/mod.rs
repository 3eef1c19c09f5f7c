//! Owns `account`: who may sign in.

pub mod hashes;
pub mod import;
pub mod record;

use serde_json::{Map, Value};
use sqlx::{Connection as _, PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::audit;
use crate::clock::new_id;
use crate::email_address::EmailAddress;
use crate::locale::Locale;
use crate::password::{Cost, Password};

/// An active account, as far as its owner may see it.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its id.
    pub id: Uuid,
    /// Its address, as stored.
    pub email: String,
    /// What is known of the person.
    pub traits: Value,
}

/// An account that somebody tries to sign in to.
#[derive(Clone)]
pub struct Candidate {
    /// The account.
    pub account: Account,
    /// Whether it is active.
    pub active: bool,
    /// What its password is verified against.
    pub password_hash: Option<String>,
}

/// The account of an address, whatever its state.
pub async fn candidate(
    executor: impl PgExecutor<'_>,
    email: &EmailAddress,
) -> Result<Option<Candidate>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT id, email, traits, state, password_hash FROM account WHERE email = $1",
        email.as_str()
    );
    Ok(row.fetch_optional(executor).await?.map(|row| Candidate {
        account: Account { id: row.id, email: row.email, traits: row.traits },
        active: row.state == "active",
        password_hash: row.password_hash,
    }))
}

/// An active account, by its id.
pub async fn active(executor: impl PgExecutor<'_>, id: Uuid) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(Account, "SELECT id, email, traits FROM account WHERE id = $1 AND state = 'active'", id)
        .fetch_optional(executor)
        .await
}

/// An active account, by its stored address.
pub async fn active_by_email(
    executor: impl PgExecutor<'_>,
    email: &str,
) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(
        Account,
        "SELECT id, email, traits FROM account WHERE email = $1 AND state = 'active'",
        email
    )
    .fetch_optional(executor)
    .await
}

/// The active account of an address, for the recovery of this number: none if the account has ended it.
pub async fn in_recovery(
    executor: impl PgExecutor<'_>,
    email: &str,
    number: i64,
) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(
        Account,
        "SELECT id, email, traits FROM account WHERE email = $1 AND state = 'active' AND recoveries_ended < $2",
        email,
        number
    )
    .fetch_optional(executor)
    .await
}

/// The same, and locks its row as [`lock`] does.
pub async fn lock_in_recovery(
    transaction: &mut PgConnection,
    email: &str,
    number: i64,
) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(
        Account,
        "SELECT id, email, traits FROM account
         WHERE email = $1 AND state = 'active' AND recoveries_ended < $2 FOR NO KEY UPDATE",
        email,
        number
    )
    .fetch_optional(transaction)
    .await
}

/// What the password of an active account is verified against.
pub async fn password_hash(executor: impl PgExecutor<'_>, id: Uuid) -> Result<Option<String>, sqlx::Error> {
    let hash =
        sqlx::query_scalar!("SELECT password_hash FROM account WHERE id = $1 AND state = 'active'", id);
    Ok(hash.fetch_optional(executor).await?.flatten())
}

/// Locks the row of an active account until the transaction ends: whatever changes or uses a password goes one by one.
/// With `password_hash`, only if its password is still verified against that: without this a login that was verified
/// before a reset would end after it.
pub async fn lock(
    transaction: &mut PgConnection,
    id: Uuid,
    password_hash: Option<&str>,
) -> Result<Option<Account>, sqlx::Error> {
    sqlx::query_as!(
        Account,
        "SELECT id, email, traits FROM account
         WHERE id = $1 AND state = 'active' AND ($2::text IS NULL OR password_hash = $2) FOR NO KEY UPDATE",
        id,
        password_hash
    )
    .fetch_optional(transaction)
    .await
}

/// Sets a new password of a locked account, which ends its recoveries.
pub async fn set_password(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    password_hash: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE account SET password_hash = $2, password_changed_at = $3, updated_at = $3,
             recoveries_ended = nextval('recovery_number')
         WHERE id = $1",
        id,
        password_hash,
        now
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Notes that the owner of a locked account has signed in, so that no import changes it any more. `rehashed`: the same
/// password, hashed anew.
pub async fn mark_used(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    rehashed: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE account SET password_hash = coalesce($2, password_hash), updated_at = $3
         WHERE id = $1 AND ($2::text IS NOT NULL OR imported_at = updated_at)",
        id,
        rehashed,
        now
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Takes the mark of a bounce from an account whose owner has entered a code from a mail. If there is one, this locks the row: call it
/// before any other row is locked ([`lock`]).
pub async fn mark_reached(transaction: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE account SET bouncing_since = NULL WHERE id = $1 AND bouncing_since IS NOT NULL", id)
        .execute(transaction)
        .await?;
    Ok(())
}

/// An account that is to be created.
#[derive(Debug)]
pub struct NewAccount {
    /// Its address; no other account may have it.
    pub email: EmailAddress,
    /// The language of its mails; `None`: that of each request.
    pub locale: Option<Locale>,
    /// What is known of the person beside the address, such as a name. The address is kept in there too.
    pub traits: Map<String, Value>,
    /// `None`: the owner recovers by mail first.
    pub password: Option<Password>,
}

/// Why an account was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The address has an account.
    #[error("there is an account with this email already")]
    EmailTaken,
    /// The password could not be hashed.
    #[error("the password could not be hashed: {0}")]
    Hashing(#[from] tokio::task::JoinError),
    /// What PostgreSQL answered.
    #[error(transparent)]
    Storage(#[from] sqlx::Error),
}

/// Creates an active account and says so in the audit log, both or neither.
///
/// # Errors
///
/// [`CreateError::EmailTaken`], or what PostgreSQL answers.
pub async fn create(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    new: NewAccount,
) -> Result<Uuid, CreateError> {
    let id = new_id(now);
    let mut traits = new.traits;
    traits.insert("email".into(), new.email.as_str().into());
    let password_hash = match new.password {
        Some(password) => Some(tokio::task::spawn_blocking(move || password.hash(Cost::default())).await?),
        None => None,
    };
    let mut transaction = connection.begin().await?;
    sqlx::query!(
        "INSERT INTO account (id, email, locale, traits, password_hash, password_changed_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
        id,
        new.email.as_str(),
        new.locale.map(<&str>::from),
        Value::Object(traits),
        password_hash,
        password_hash.is_some().then_some(now),
        now,
    )
    .execute(&mut *transaction)
    .await
    .map_err(|error| match error.as_database_error().and_then(|error| error.constraint()) {
        Some("account_email_key") => CreateError::EmailTaken,
        _ => error.into(),
    })?;
    audit::record(&mut *transaction, now, audit::Event::AccountCreated, id, None).await?;
    transaction.commit().await?;
    Ok(id)
}
