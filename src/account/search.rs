//! Finds accounts for operators, a page at a time.

use serde::Serialize;
use sqlx::PgExecutor;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::serialize_rfc3339;
use crate::email_address::EmailAddress;

/// An account as a list shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Found {
    /// Its id.
    pub id: Uuid,
    /// Its address, as stored.
    pub email: String,
    /// `active` or `disabled`.
    pub state: String,
    /// The language of its emails.
    pub locale: Option<String>,
    /// Its id in another system: the member `external_id` of its traits.
    pub external_id: Option<String>,
    /// When it was created, in the other system if it was imported.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub created_at: OffsetDateTime,
    /// Since when emails to its address bounce, as far as is known.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub bouncing_since: Option<OffsetDateTime>,
}

/// At most `limit` accounts after the id `after`, ordered by id.
pub async fn all(executor: impl PgExecutor<'_>, after: Uuid, limit: i64) -> Result<Vec<Found>, sqlx::Error> {
    sqlx::query_as!(
        Found,
        "SELECT id, email, state, locale, traits->>'external_id' AS external_id, created_at, bouncing_since
         FROM account WHERE id > $1 ORDER BY id LIMIT $2",
        after,
        limit,
    )
    .fetch_all(executor)
    .await
}

/// The account with this id.
pub async fn by_id(executor: impl PgExecutor<'_>, id: Uuid) -> Result<Option<Found>, sqlx::Error> {
    sqlx::query_as!(
        Found,
        "SELECT id, email, state, locale, traits->>'external_id' AS external_id, created_at, bouncing_since
         FROM account WHERE id = $1",
        id,
    )
    .fetch_optional(executor)
    .await
}

/// The account of an address.
pub async fn by_email(
    executor: impl PgExecutor<'_>,
    email: &EmailAddress,
) -> Result<Option<Found>, sqlx::Error> {
    sqlx::query_as!(
        Found,
        "SELECT id, email, state, locale, traits->>'external_id' AS external_id, created_at, bouncing_since
         FROM account WHERE email = $1",
        email.as_str(),
    )
    .fetch_optional(executor)
    .await
}

/// At most `limit` accounts whose address begins with `prefix`, ordered by address, after the
/// account `after`. If that account has been erased since, this returns the first page again.
///
/// Addresses are ordered by their octets: in the order of a language, PostgreSQL could not use an
/// index for a prefix. Every stored address is printable ASCII, so U+007F sorts after each of its
/// characters.
pub async fn by_prefix(
    executor: impl PgExecutor<'_>,
    prefix: &str,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Found>, sqlx::Error> {
    sqlx::query_as!(
        Found,
        r#"SELECT id, email, state, locale, traits->>'external_id' AS external_id, created_at, bouncing_since
           FROM account
           WHERE email COLLATE "C" >= $1 AND email COLLATE "C" < $2
               AND email COLLATE "C" > coalesce((SELECT email FROM account WHERE id = $3), '')
           ORDER BY email COLLATE "C" LIMIT $4"#,
        prefix,
        format!("{prefix}\u{7f}"),
        after,
        limit,
    )
    .fetch_all(executor)
    .await
}

/// At most `limit` accounts with this id in another system, ordered by id, after the id `after`.
pub async fn by_external_id(
    executor: impl PgExecutor<'_>,
    external_id: &str,
    after: Uuid,
    limit: i64,
) -> Result<Vec<Found>, sqlx::Error> {
    sqlx::query_as!(
        Found,
        "SELECT id, email, state, locale, traits->>'external_id' AS external_id, created_at, bouncing_since
         FROM account
         WHERE left(traits->>'external_id', 200) = left($1, 200) AND traits->>'external_id' = $1 AND id > $2
         ORDER BY left(traits->>'external_id', 200), id LIMIT $3",
        external_id,
        after,
        limit,
    )
    .fetch_all(executor)
    .await
}
