//! Owns `account`: the accounts that users sign in to.

pub mod hashes;
pub mod import;
pub mod record;
pub mod search;

use serde_json::{Map, Value};
use sqlx::{Connection as _, PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::audit::{self, By};
use crate::clock::new_id;
use crate::email_address::EmailAddress;
use crate::locale::Locale;

/// The fields of an active account that its owner may see.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its id.
    pub id: Uuid,
    /// Its address, as stored.
    pub email: String,
    /// Data about the person, as stored.
    pub traits: Value,
}

/// The account that a login is for.
#[derive(Clone)]
pub struct LoginCandidate {
    /// The account.
    pub account: Account,
    /// Whether it is active.
    pub active: bool,
    /// The hash that its password is verified against.
    pub password_hash: Option<String>,
}

/// The account of an address, in any state.
pub async fn login_candidate(
    executor: impl PgExecutor<'_>,
    email: &EmailAddress,
) -> Result<Option<LoginCandidate>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT id, email, traits, state, password_hash FROM account WHERE email = $1",
        email.as_str()
    );
    Ok(row.fetch_optional(executor).await?.map(|row| LoginCandidate {
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

/// The active account of an address, if its recovery with this number has not ended.
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

/// Like [`in_recovery`], but also locks the row, as [`lock`] does.
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

/// The password hash of an active account.
pub async fn password_hash(executor: impl PgExecutor<'_>, id: Uuid) -> Result<Option<String>, sqlx::Error> {
    let hash =
        sqlx::query_scalar!("SELECT password_hash FROM account WHERE id = $1 AND state = 'active'", id);
    Ok(hash.fetch_optional(executor).await?.flatten())
}

/// When the password of an account was set; `None` if that is unknown.
pub async fn password_changed_at(
    executor: impl PgExecutor<'_>,
    id: Uuid,
) -> Result<Option<OffsetDateTime>, sqlx::Error> {
    let at = sqlx::query_scalar!("SELECT password_changed_at FROM account WHERE id = $1", id);
    Ok(at.fetch_optional(executor).await?.flatten())
}

/// Locks the row of an active account until the transaction ends, so that changes and uses of its
/// password run one after another. With `password_hash`, only if that hash is still stored:
/// otherwise a login that was verified before a reset would open a session after it.
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

/// Sets a new password of a locked account and ends its recoveries.
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

/// Records that a locked account was signed in to, so that imports no longer change it. `rehashed`
/// is a new hash of the same password.
pub async fn mark_signed_in(
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

/// Removes the bouncing mark of an account after a code from an email was entered. If there is a
/// mark, this locks the row, so call it before any other row is locked ([`lock`]).
pub async fn clear_bouncing(transaction: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE account SET bouncing_since = NULL WHERE id = $1 AND bouncing_since IS NOT NULL", id)
        .execute(transaction)
        .await?;
    Ok(())
}

/// An account to create.
#[derive(Debug)]
pub struct NewAccount {
    /// Its address; no other account may have it.
    pub email: EmailAddress,
    /// The language of its emails; `None` for the language of each request.
    pub locale: Option<Locale>,
    /// Data about the person, such as a name. The address is added to it.
    pub traits: Map<String, Value>,
    /// The hash of the password; `None` if the owner has to recover by email first.
    pub password_hash: Option<String>,
}

/// Why an account was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The address has an account.
    #[error("an account with this email already exists")]
    EmailTaken,
    /// PostgreSQL cannot store the traits.
    #[error("the traits contain U+0000 or a number of 1e300 or more, which cannot be stored: remove it")]
    TraitsNotStorable,
    /// An error of PostgreSQL.
    #[error(transparent)]
    Storage(#[from] sqlx::Error),
}

/// Whether PostgreSQL can store these traits and the service can read them again. `jsonb` cannot
/// contain U+0000. It returns a number with all its digits, and the largest numbers cannot be read
/// in that form.
#[must_use]
pub fn can_store(traits: &Map<String, Value>) -> bool {
    fn is_storable(value: &Value) -> bool {
        match value {
            Value::String(text) => !text.contains('\0'),
            Value::Number(number) => number.as_f64().is_some_and(|number| number.abs() < 1e300),
            Value::Array(values) => values.iter().all(is_storable),
            Value::Object(members) => can_store(members),
            Value::Null | Value::Bool(_) => true,
        }
    }
    traits.iter().all(|(name, value)| !name.contains('\0') && is_storable(value))
}

/// Creates an active account and records it in the audit log, in one transaction. `by` is the
/// operator who called the admin API.
///
/// # Errors
///
/// [`CreateError::EmailTaken`], or another [`CreateError`].
pub async fn create(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    new: NewAccount,
    by: Option<By<'_>>,
) -> Result<Uuid, CreateError> {
    if !can_store(&new.traits) {
        return Err(CreateError::TraitsNotStorable);
    }
    let id = new_id(now);
    let mut traits = new.traits;
    traits.insert("email".into(), new.email.as_str().into());
    let mut transaction = connection.begin().await?;
    sqlx::query!(
        "INSERT INTO account (id, email, locale, traits, password_hash, password_changed_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
        id,
        new.email.as_str(),
        new.locale.map(<&str>::from),
        Value::Object(traits),
        new.password_hash,
        new.password_hash.is_some().then_some(now),
        now,
    )
    .execute(&mut *transaction)
    .await
    .map_err(|error| match error.as_database_error().and_then(|error| error.constraint()) {
        Some("account_email_key") => CreateError::EmailTaken,
        _ => error.into(),
    })?;
    audit::record(&mut *transaction, now, audit::Event::AccountCreated, id, by).await?;
    transaction.commit().await?;
    Ok(id)
}
