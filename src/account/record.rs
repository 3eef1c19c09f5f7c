//! An account as an operator may see and change it, whatever its state.

use serde_json::Value;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::email_address::EmailAddress;

/// All that is stored of an account. Not to be printed as it is: it has the hash.
pub struct Record {
    /// Its id.
    pub id: Uuid,
    /// Its address, as stored.
    pub email: String,
    /// `active` or `disabled`.
    pub state: String,
    /// The language of its mails.
    pub locale: Option<String>,
    /// What is known of the person.
    pub traits: Value,
    /// What its password is verified against.
    pub password_hash: Option<String>,
    /// Since when it has been.
    pub password_changed_at: Option<OffsetDateTime>,
    /// When it was created, there if it was imported.
    pub created_at: OffsetDateTime,
    /// When it was last changed here.
    pub updated_at: OffsetDateTime,
    /// When it came from another system's export.
    pub imported_at: Option<OffsetDateTime>,
    /// Since when mails to its address bounce, as far as is known.
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

/// The account of a name.
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

/// The accounts that follow `after` in the order of their ids.
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

/// The accounts of these ids, in no order.
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

/// Locks the row of an account, whatever its state, and gives its address and whether it is active.
pub async fn lock_in_any_state(
    transaction: &mut PgConnection,
    id: Uuid,
) -> Result<Option<(String, bool)>, sqlx::Error> {
    let row = sqlx::query!("SELECT email, state FROM account WHERE id = $1 FOR NO KEY UPDATE", id);
    Ok(row.fetch_optional(transaction).await?.map(|row| (row.email, row.state == "active")))
}

/// Makes a locked account active, or disables it, which ends its recoveries.
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

/// Notes that mails to the address of a locked account bounce. It is no change by a person, so an import may still change the
/// account. False: it was noted already.
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

/// Gives a locked account another address, in its traits too if they have one under `email`, and ends its recoveries. Nothing is
/// known of bounces there. False: another account has it.
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

/// Deletes a locked account, and its sessions with it.
pub async fn delete(transaction: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM account WHERE id = $1", id).execute(transaction).await?;
    Ok(())
}
