//! Ends the sessions of one account or of all, and counts those that would be ended.

use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

/// Ends the sessions of a locked account except `but`, and returns how many.
pub(crate) async fn revoke_all(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    but: Option<Uuid>,
) -> Result<u64, sqlx::Error> {
    let ended = sqlx::query!(
        "UPDATE session SET revoked_at = $2
         WHERE account_id = $1 AND revoked_at IS NULL AND expires_at > $2 AND id IS DISTINCT FROM $3",
        account_id,
        now,
        but,
    );
    Ok(ended.execute(transaction).await?.rows_affected())
}

/// How many sessions of an account `revoke_all` would end. Some of them may have ended by being
/// idle.
pub async fn count_unended(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    account_id: Uuid,
) -> Result<u64, sqlx::Error> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM session
           WHERE account_id = $1 AND revoked_at IS NULL AND expires_at > $2"#,
        account_id,
        now
    );
    Ok(count.fetch_one(executor).await?.unsigned_abs())
}

/// How many sessions of all accounts have not been revoked or expired, and how many accounts have
/// such sessions. Reads the whole table.
pub async fn count_all_unended(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
) -> Result<(u64, u64), sqlx::Error> {
    let counts = sqlx::query!(
        r#"SELECT count(*) AS "sessions!", count(DISTINCT account_id) AS "accounts!" FROM session
           WHERE revoked_at IS NULL AND expires_at > $1"#,
        now
    );
    let counts = counts.fetch_one(executor).await?;
    Ok((counts.sessions.unsigned_abs(), counts.accounts.unsigned_abs()))
}

/// Looks at the next `limit` sessions after the id `after`, and ends those that have not ended.
/// Returns how many it ended, and the id to continue with, or `None` at the table's end. It takes
/// no account's lock: it is meant for a stopped service.
pub(crate) async fn revoke_page(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    after: Uuid,
    limit: i64,
) -> Result<(u64, Option<Uuid>), sqlx::Error> {
    let page = sqlx::query!(
        r#"WITH page AS MATERIALIZED (SELECT id FROM session WHERE id > $2 ORDER BY id LIMIT $3),
           ended AS (
               UPDATE session SET revoked_at = $1
               WHERE id = ANY(ARRAY(SELECT id FROM page)) AND revoked_at IS NULL AND expires_at > $1
               RETURNING 1
           )
           SELECT (SELECT count(*) FROM ended) AS "ended!", (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last"#,
        now,
        after,
        limit
    );
    let page = page.fetch_one(executor).await?;
    Ok((page.ended.unsigned_abs(), page.last))
}
