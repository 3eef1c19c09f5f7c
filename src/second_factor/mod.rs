//! Owns `second_factor` and `backup_code`: what an account asks for besides its password, once its
//! owner has enrolled it (docs/decisions/0041).
//!
//! An account is enrolled while it has a confirmed factor. Everything here runs under the lock of
//! the account's row, so that of many parallel codes that are right, one is accepted.

pub mod enrol;
pub mod totp;

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use strum::{EnumString, IntoStaticStr};
use time::OffsetDateTime;
use uuid::Uuid;

use self::totp::Secret;
use crate::secret::{BackupCode, Keys};

/// How a second factor is given. As text it is the name in the API and in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr, Serialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Method {
    /// The code of an authenticator app.
    Totp,
    /// A backup code.
    BackupCode,
}

/// A second factor that a client presents.
#[derive(Clone)]
pub struct Presented {
    /// How it is given.
    pub method: Method,
    /// The code, as its owner typed it.
    pub code: String,
}

impl std::fmt::Debug for Presented {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presented").field("method", &self.method).finish_non_exhaustive()
    }
}

/// The methods that an account can use now; none if it is not enrolled.
pub async fn methods(executor: impl PgExecutor<'_>, account_id: Uuid) -> Result<Vec<Method>, sqlx::Error> {
    let found = sqlx::query!(
        r#"SELECT EXISTS(SELECT FROM second_factor WHERE account_id = $1 AND confirmed_at IS NOT NULL) AS "totp!",
               EXISTS(SELECT FROM backup_code WHERE account_id = $1 AND used_at IS NULL) AS "backup_code!""#,
        account_id
    )
    .fetch_one(executor)
    .await?;
    let all = [(Method::Totp, found.totp), (Method::BackupCode, found.totp && found.backup_code)];
    Ok(all.into_iter().filter(|(_, is_usable)| *is_usable).map(|(method, _)| method).collect())
}

/// Uses up the presented code if it is right for this locked account. Returns whether it was. A
/// code is used up before the caller acts on it, in the same transaction. Without `keys` no code of
/// an app is right.
pub async fn spend(
    transaction: &mut PgConnection,
    keys: Option<&Keys>,
    now: OffsetDateTime,
    account_id: Uuid,
    presented: &Presented,
) -> Result<bool, sqlx::Error> {
    match presented.method {
        Method::Totp => match keys {
            Some(keys) => spend_totp(transaction, keys, now, account_id, &presented.code).await,
            None => Ok(false),
        },
        Method::BackupCode => spend_backup_code(transaction, now, account_id, &presented.code).await,
    }
}

/// A factor of TOTP, as stored.
struct Sealed {
    id: Uuid,
    key_id: String,
    secret: Vec<u8>,
    last_step: i64,
}

impl Sealed {
    /// `None` if its key has been removed from `FACTOR_SECRETS`.
    fn open(&self, keys: &Keys) -> Option<Secret> {
        keys.by_id(&self.key_id)?.open(self.id.as_bytes(), &self.secret).map(Secret::of)
    }
}

async fn spend_totp(
    transaction: &mut PgConnection,
    keys: &Keys,
    now: OffsetDateTime,
    account_id: Uuid,
    code: &str,
) -> Result<bool, sqlx::Error> {
    let stored = sqlx::query_as!(
        Sealed,
        "SELECT id, key_id, secret, last_step FROM second_factor
         WHERE account_id = $1 AND kind = 'totp' AND confirmed_at IS NOT NULL ORDER BY account_id, id",
        account_id
    )
    .fetch_all(&mut *transaction)
    .await?;
    for factor in stored {
        let Some(secret) = factor.open(keys) else { continue };
        let Some(step) = secret.step_of(code, now, factor.last_step) else { continue };
        // Sealed again under the newest key, so that an old key can be removed.
        let newest = keys.newest();
        sqlx::query!(
            "UPDATE second_factor SET last_step = $2, last_used_at = $3, key_id = $4, secret = $5 WHERE id = $1",
            factor.id,
            step,
            now,
            &**newest.id(),
            newest.seal(factor.id.as_bytes(), secret.as_bytes())
        )
        .execute(&mut *transaction)
        .await?;
        return Ok(true);
    }
    Ok(false)
}

async fn spend_backup_code(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    code: &str,
) -> Result<bool, sqlx::Error> {
    let Some(code) = BackupCode::parse(code) else { return Ok(false) };
    let used = sqlx::query!(
        "UPDATE backup_code SET used_at = $3 WHERE account_id = $1 AND code_hash = $2 AND used_at IS NULL",
        account_id,
        &code.hash()[..],
        now
    );
    Ok(used.execute(transaction).await?.rows_affected() > 0)
}
