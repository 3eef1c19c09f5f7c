//! An account as operators see and change it, in any state.

use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::email_address::EmailAddress;
use crate::locale::Locale;

/// An account with all its columns except `recoveries_ended`. It has the password hash: do not
/// print it as a whole.
pub struct Record {
    /// Its id.
    pub id: Uuid,
    /// Its address, as stored.
    pub email: String,
    /// `active` or `disabled`.
    pub state: String,
    /// The language of its emails.
    pub locale: Option<String>,
    /// Data about the person, as stored.
    pub traits: Value,
    /// The hash that its password is verified against.
    pub password_hash: Option<String>,
    /// When the password was last changed.
    pub password_changed_at: Option<OffsetDateTime>,
    /// When it was created, in the other system if it was imported.
    pub created_at: OffsetDateTime,
    /// When it was last changed in this service.
    pub updated_at: OffsetDateTime,
    /// When it was imported from another system.
    pub imported_at: Option<OffsetDateTime>,
    /// Since when emails to its address bounce, as far as is known.
    pub bouncing_since: Option<OffsetDateTime>,
}

/// How an operator names an account.
#[derive(Clone, Debug)]
pub enum Name {
    /// By its id.
    Id(Uuid),
    /// By its address.
    Email(EmailAddress),
}

impl std::str::FromStr for Name {
    type Err = crate::email_address::InvalidEmail;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.trim().parse().map_or_else(|_| EmailAddress::parse(text).map(Self::Email), |id| Ok(Self::Id(id)))
    }
}

/// The account with this id or address.
pub async fn find(executor: impl PgExecutor<'_>, name: &Name) -> Result<Option<Record>, sqlx::Error> {
    let (id, email) = match name {
        Name::Id(id) => (Some(*id), None),
        Name::Email(email) => (None, Some(email.as_str())),
    };
    sqlx::query_as!(
        Record,
        "SELECT id, email, state, locale, traits, password_hash, password_changed_at, created_at, updated_at, imported_at,
             bouncing_since
         FROM account WHERE id = $1 OR email = $2",
        id,
        email,
    )
    .fetch_optional(executor)
    .await
}

/// At most `limit` accounts after the id `after`, ordered by id.
pub async fn page(
    executor: impl PgExecutor<'_>,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Record>, sqlx::Error> {
    sqlx::query_as!(
        Record,
        "SELECT id, email, state, locale, traits, password_hash, password_changed_at, created_at, updated_at, imported_at,
             bouncing_since
         FROM account WHERE id > $1 ORDER BY id LIMIT $2",
        after,
        limit,
    )
    .fetch_all(executor)
    .await
}

/// The accounts with these ids, in no particular order.
pub async fn all(executor: impl PgExecutor<'_>, ids: &[Uuid]) -> Result<Vec<Record>, sqlx::Error> {
    sqlx::query_as!(
        Record,
        "SELECT id, email, state, locale, traits, password_hash, password_changed_at, created_at, updated_at, imported_at,
             bouncing_since
         FROM account WHERE id = ANY($1)",
        ids,
    )
    .fetch_all(executor)
    .await
}

/// A number from `recovery_number`: every recovery of the account with this or a lower number has
/// ended (docs/decisions/0007).
pub async fn recoveries_ended(executor: impl PgExecutor<'_>, id: Uuid) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar!("SELECT recoveries_ended FROM account WHERE id = $1", id)
        .fetch_optional(executor)
        .await
}

/// Whether there is an account with this id, in any state.
pub async fn exists(executor: impl PgExecutor<'_>, id: Uuid) -> Result<bool, sqlx::Error> {
    let found = sqlx::query_scalar!("SELECT 1 AS one FROM account WHERE id = $1", id);
    Ok(found.fetch_optional(executor).await?.is_some())
}

/// Locks the row of an account in any state, and returns its address and whether it is active.
pub async fn lock_in_any_state(
    transaction: &mut PgConnection,
    id: Uuid,
) -> Result<Option<(String, bool)>, sqlx::Error> {
    let row = sqlx::query!("SELECT email, state FROM account WHERE id = $1 FOR NO KEY UPDATE", id);
    Ok(row.fetch_optional(transaction).await?.map(|row| (row.email, row.state == "active")))
}

/// Makes a locked account active, or disables it and ends its recoveries.
pub async fn set_active(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    active: bool,
) -> Result<(), sqlx::Error> {
    let state = if active { "active" } else { "disabled" };
    sqlx::query!(
        "UPDATE account SET state = $2, updated_at = $3,
             recoveries_ended = CASE WHEN $4 THEN recoveries_ended ELSE nextval('recovery_number') END
         WHERE id = $1",
        id,
        state,
        now,
        active
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Marks the address of a locked account as bouncing. The mark is no change by a person, so imports
/// may still change the account. Returns false if it was already marked.
pub async fn mark_bouncing(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
) -> Result<bool, sqlx::Error> {
    let marked = sqlx::query!(
        "UPDATE account SET bouncing_since = $2 WHERE id = $1 AND bouncing_since IS NULL",
        id,
        now
    );
    Ok(marked.execute(transaction).await?.rows_affected() > 0)
}

/// Gives a locked account another address, also in its traits if they have an `email`. Ends its
/// recoveries and removes the bouncing mark. Returns false if another account has the address.
pub async fn set_email(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    email: &EmailAddress,
) -> Result<bool, sqlx::Error> {
    let set = sqlx::query!(
        "UPDATE account SET email = $2, traits = jsonb_set(traits, '{email}', to_jsonb($2::text), false), updated_at = $3,
             recoveries_ended = nextval('recovery_number'), bouncing_since = NULL
         WHERE id = $1",
        id,
        email.as_str(),
        now
    );
    match set.execute(transaction).await {
        Ok(_) => Ok(true),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("account_email_key") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets the language of an account's emails. Returns false if it was already that language or the
/// account does not exist.
pub async fn set_locale(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    locale: Option<Locale>,
) -> Result<bool, sqlx::Error> {
    let set = sqlx::query!(
        "UPDATE account SET locale = $2, updated_at = $3 WHERE id = $1 AND locale IS DISTINCT FROM $2",
        id,
        locale.map(<&str>::from),
        now
    );
    Ok(set.execute(transaction).await?.rows_affected() > 0)
}

/// Deletes a locked account and, with it, its sessions.
pub async fn delete(transaction: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM account WHERE id = $1", id).execute(transaction).await?;
    Ok(())
}
