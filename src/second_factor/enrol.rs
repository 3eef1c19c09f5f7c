//! Adds, names and removes second factors. The callers have checked the owner's password.

use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

use super::Sealed;
use super::totp::Secret;
use crate::clock::new_id;
use crate::secret::{BackupCode, Keys};

/// How many backup codes an account has.
pub const BACKUP_CODES: usize = 10;
/// How many factors an account may have, those that are not confirmed included.
pub const MOST: i64 = 10;

/// A factor, as its owner sees it.
#[derive(Debug)]
pub struct Listed {
    /// Its id.
    pub id: Uuid,
    /// `totp`.
    pub kind: String,
    /// The owner's name for it.
    pub name: String,
    /// When it was confirmed.
    pub confirmed_at: OffsetDateTime,
    /// When it was last used to sign in or to recover.
    pub last_used_at: Option<OffsetDateTime>,
}

/// The confirmed factors of an account, in the order of their enrolment.
pub async fn list(executor: impl PgExecutor<'_>, account_id: Uuid) -> Result<Vec<Listed>, sqlx::Error> {
    sqlx::query_as!(
        Listed,
        r#"SELECT id, kind, name, confirmed_at AS "confirmed_at!", last_used_at FROM second_factor
           WHERE account_id = $1 AND confirmed_at IS NOT NULL ORDER BY account_id, id"#,
        account_id
    )
    .fetch_all(executor)
    .await
}

/// How many backup codes of an account are unused.
pub async fn unused_backup_codes(
    executor: impl PgExecutor<'_>,
    account_id: Uuid,
) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM backup_code WHERE account_id = $1 AND used_at IS NULL"#,
        account_id
    )
    .fetch_one(executor)
    .await
}

/// Begins an enrolment of a locked account and returns the factor's id and secret. One that was
/// begun before is given up. `None` if the account has too many factors.
pub async fn begin(
    transaction: &mut PgConnection,
    keys: &Keys,
    now: OffsetDateTime,
    account_id: Uuid,
    name: &str,
) -> Result<Option<(Uuid, Secret)>, sqlx::Error> {
    sqlx::query!("DELETE FROM second_factor WHERE account_id = $1 AND confirmed_at IS NULL", account_id)
        .execute(&mut *transaction)
        .await?;
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM second_factor WHERE account_id = $1"#,
        account_id
    );
    if count.fetch_one(&mut *transaction).await? >= MOST {
        return Ok(None);
    }
    let (id, secret, key) = (new_id(now), Secret::random(), keys.newest());
    sqlx::query!(
        "INSERT INTO second_factor (id, account_id, kind, name, key_id, secret, created_at)
         VALUES ($1, $2, 'totp', $3, $4, $5, $6)",
        id,
        account_id,
        name,
        &**key.id(),
        key.seal(id.as_bytes(), secret.as_bytes()),
        now
    )
    .execute(transaction)
    .await?;
    Ok(Some((id, secret)))
}

/// What an enrolment ended with.
#[derive(Debug)]
pub enum Finished {
    /// The factor counts from now on. With the first factor the account gets backup codes.
    Confirmed(Vec<BackupCode>),
    /// The code is not that of the factor.
    Wrong,
    /// The account has begun no such enrolment.
    NotFound,
}

/// Confirms a factor of a locked account by a first code, if it was begun after `begun_after`.
pub async fn finish(
    transaction: &mut PgConnection,
    keys: &Keys,
    now: OffsetDateTime,
    begun_after: OffsetDateTime,
    account_id: Uuid,
    id: Uuid,
    code: &str,
) -> Result<Finished, sqlx::Error> {
    let begun = sqlx::query_as!(
        Sealed,
        "SELECT id, key_id, secret, last_step FROM second_factor
         WHERE account_id = $1 AND id = $2 AND confirmed_at IS NULL AND created_at > $3",
        account_id,
        id,
        begun_after
    );
    let Some(secret) = begun.fetch_optional(&mut *transaction).await?.and_then(|begun| begun.open(keys))
    else {
        return Ok(Finished::NotFound);
    };
    let Some(step) = secret.step_of(code, now, 0) else { return Ok(Finished::Wrong) };
    let is_first = list(&mut *transaction, account_id).await?.is_empty();
    sqlx::query!("UPDATE second_factor SET confirmed_at = $2, last_step = $3 WHERE id = $1", id, now, step)
        .execute(&mut *transaction)
        .await?;
    let codes = if is_first { replace_backup_codes(transaction, account_id).await? } else { Vec::new() };
    Ok(Finished::Confirmed(codes))
}

/// Gives a locked account new backup codes in place of all it had.
pub async fn replace_backup_codes(
    transaction: &mut PgConnection,
    account_id: Uuid,
) -> Result<Vec<BackupCode>, sqlx::Error> {
    let codes: Vec<_> = std::iter::repeat_with(BackupCode::random).take(BACKUP_CODES).collect();
    let hashes: Vec<_> = codes.iter().map(|code| code.hash().to_vec()).collect();
    sqlx::query!("DELETE FROM backup_code WHERE account_id = $1", account_id)
        .execute(&mut *transaction)
        .await?;
    sqlx::query!(
        "INSERT INTO backup_code (account_id, code_hash) SELECT $1, unnest($2::bytea[])",
        account_id,
        &hashes
    )
    .execute(transaction)
    .await?;
    Ok(codes)
}

/// Gives a confirmed factor another name. Returns whether the account has it.
pub async fn rename(
    transaction: &mut PgConnection,
    account_id: Uuid,
    id: Uuid,
    name: &str,
) -> Result<bool, sqlx::Error> {
    let renamed = sqlx::query!(
        "UPDATE second_factor SET name = $3 WHERE account_id = $1 AND id = $2 AND confirmed_at IS NOT NULL",
        account_id,
        id,
        name
    );
    Ok(renamed.execute(transaction).await?.rows_affected() > 0)
}

/// Removes a confirmed factor of a locked account, and with the last one the backup codes. Returns
/// whether the account had it.
pub async fn remove(transaction: &mut PgConnection, account_id: Uuid, id: Uuid) -> Result<bool, sqlx::Error> {
    let removed = sqlx::query!(
        "DELETE FROM second_factor WHERE account_id = $1 AND id = $2 AND confirmed_at IS NOT NULL",
        account_id,
        id
    );
    if removed.execute(&mut *transaction).await?.rows_affected() == 0 {
        return Ok(false);
    }
    if list(&mut *transaction, account_id).await?.is_empty() {
        sqlx::query!("DELETE FROM backup_code WHERE account_id = $1", account_id)
            .execute(transaction)
            .await?;
    }
    Ok(true)
}
