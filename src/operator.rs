//! Owns `operator`: who may call the admin API with a token, and in which role.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use sqlx::{Acquire, PgExecutor, Postgres};
use strum::IntoStaticStr;
use time::OffsetDateTime;

use crate::audit::{self, By, Event, OperatorInfo};
use crate::clock::serialize_rfc3339;
pub use crate::config::Role;
use crate::secret::{OperatorToken, TokenHash};

/// The longest name, in characters.
const MAX_NAME: usize = 64;

/// The name of an operator: 1 to 64 letters, digits, dots, hyphens, underscores and @.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorName(String);

impl OperatorName {
    /// The name as it is stored.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The holder of a token, for the audit event of the command that issues or revokes the token.
    fn holder(&self) -> By<'_> {
        By::Operator(OperatorInfo { name: &self.0, reason: None, client: None })
    }
}

impl fmt::Display for OperatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The error is the second half of a sentence.
impl FromStr for OperatorName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |sign: char| sign.is_ascii_alphanumeric() || ".-_@".contains(sign);
        if (1..=MAX_NAME).contains(&text.len()) && text.chars().all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err("must have 1 to 64 letters, digits, dots, hyphens, underscores or @, and nothing else")
    }
}

/// Who calls the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operator {
    /// The name, or the identity in the client certificate.
    pub name: String,
    /// What the operator may do.
    pub role: Role,
}

/// Whether a token is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, Serialize)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum TokenState {
    /// It is valid.
    Active,
    /// It has expired.
    Expired,
    /// It was revoked.
    Revoked,
}

/// A row of `operator`, without the hash of the token.
#[derive(Clone, Debug, Serialize)]
pub struct OperatorRow {
    /// The name.
    pub name: String,
    /// What the operator may do.
    pub role: Role,
    /// Whether the token is valid.
    pub state: TokenState,
    /// When the token was issued.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the token expires.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When the token was revoked.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub revoked_at: Option<OffsetDateTime>,
}

/// Creates an operator with a token. If the operator exists, and the token was revoked or has
/// expired, replaces the token. Returns the token; `None` if the operator has a valid token.
pub async fn create(
    database: impl Acquire<'_, Database = Postgres>,
    now: OffsetDateTime,
    name: &OperatorName,
    role: Role,
    lifetime: Duration,
) -> Result<Option<OperatorToken>, sqlx::Error> {
    let (token, expires_at) = (OperatorToken::random(), now + lifetime);
    let hash = token.hash();
    let mut transaction = database.begin().await?;
    let created = sqlx::query!(
        "INSERT INTO operator AS o (name, role, token_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name) DO UPDATE
             SET role = $2, token_hash = $3, created_at = $4, expires_at = $5, revoked_at = NULL
             WHERE o.revoked_at IS NOT NULL OR o.expires_at <= $4",
        name.as_str(),
        <&str>::from(role),
        hash.as_bytes(),
        now,
        expires_at,
    );
    if created.execute(&mut *transaction).await?.rows_affected() == 0 {
        return Ok(None);
    }
    audit::record(&mut *transaction, now, Event::OperatorCreated, None, Some(name.holder())).await?;
    transaction.commit().await?;
    Ok(Some(token))
}

/// The operator whose valid token has this hash.
pub async fn by_token(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    token: &TokenHash,
) -> Result<Option<Operator>, sqlx::Error> {
    sqlx::query_as!(
        Operator,
        r#"SELECT name, role AS "role: Role" FROM operator
           WHERE token_hash = $1 AND revoked_at IS NULL AND expires_at > $2"#,
        token.as_bytes(),
        now
    )
    .fetch_optional(executor)
    .await
}

/// All operators, by name, and whether their tokens are valid at `now`.
pub async fn list(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
) -> Result<Vec<OperatorRow>, sqlx::Error> {
    let rows = sqlx::query!(
        r#"SELECT name, role AS "role: Role", created_at, expires_at, revoked_at FROM operator ORDER BY name"#
    );
    let rows = rows.fetch_all(executor).await?.into_iter().map(|row| {
        let state = match row.revoked_at {
            Some(_) => TokenState::Revoked,
            None if row.expires_at <= now => TokenState::Expired,
            None => TokenState::Active,
        };
        let (created_at, expires_at, revoked_at) = (row.created_at, row.expires_at, row.revoked_at);
        OperatorRow { name: row.name, role: row.role, state, created_at, expires_at, revoked_at }
    });
    Ok(rows.collect())
}

/// Revokes an operator's token. Returns false if there is no valid token of this name.
pub async fn revoke(
    database: impl Acquire<'_, Database = Postgres>,
    now: OffsetDateTime,
    name: &OperatorName,
) -> Result<bool, sqlx::Error> {
    let mut transaction = database.begin().await?;
    let revoked = sqlx::query!(
        "UPDATE operator SET revoked_at = $2 WHERE name = $1 AND revoked_at IS NULL AND expires_at > $2",
        name.as_str(),
        now
    );
    if revoked.execute(&mut *transaction).await?.rows_affected() == 0 {
        return Ok(false);
    }
    audit::record(&mut *transaction, now, Event::OperatorRevoked, None, Some(name.holder())).await?;
    transaction.commit().await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_plain() {
        for good in ["a", "alice", "Alice.Nguyen-2_b@verolabs.co", &"x".repeat(64)] {
            assert!(good.parse::<OperatorName>().is_ok(), "{good}");
        }
        for bad in ["", " a", "a b", "a\n", "spiffe://a/b", "CN=a", "é", &"x".repeat(65)] {
            assert!(bad.parse::<OperatorName>().is_err(), "{bad}");
        }
    }
}
