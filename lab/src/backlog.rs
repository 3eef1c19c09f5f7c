//! A backlog of pending mails, as after an outage.

use sqlx::PgExecutor;

/// The prefix of each address. A number follows it.
pub const PREFIX: &str = "pending";

/// Inserts this many pending mails, each to an account of its own. The first is `seconds` old, and
/// the last is new.
pub async fn insert(database: impl PgExecutor<'_>, mails: u32, seconds: f64) -> Result<(), sqlx::Error> {
    // The ids contain the time, as UUIDv7 does: the courier and the sweeper depend on it.
    let backlog = "
        WITH pending AS MATERIALIZED (
            SELECT n, $3 || n || '@example.com' AS email,
                clock_timestamp() - make_interval(secs => $2 * (1 - n / $1::float)) AS at
            FROM generate_series(1, $1) AS n
        ), named AS MATERIALIZED (
            SELECT *, lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7000'
                    || right(replace(gen_random_uuid()::text, '-', ''), 16) AS id
            FROM pending
        ), accounts AS (
            INSERT INTO account (id, email, created_at, updated_at) SELECT id::uuid, email, at, at FROM named
        ), sessions AS (
            INSERT INTO recovery_session (id, token_hash, email, key_id, created_at, expires_at, client_ip, user_agent)
            SELECT id::uuid, sha256(id::bytea), email, 'test', at, at + interval '10 minutes', '127.0.0.1', ''
            FROM named
        )
        INSERT INTO outbox (id, kind, recovery_session_id, next_attempt_at, expires_at, created_at)
        SELECT id::uuid, 'recovery_code', id::uuid, at, at + interval '10 minutes', at FROM named ORDER BY id";
    sqlx::query(backlog).bind(i64::from(mails)).bind(seconds).bind(PREFIX).execute(database).await?;
    Ok(())
}

/// The number in the address of a mail from [`insert`]; `None` for another address.
pub fn number_of(address: &str) -> Option<u32> {
    address.strip_prefix(PREFIX)?.strip_suffix("@example.com")?.parse().ok()
}

/// The number of pending mails.
pub async fn count(database: impl PgExecutor<'_>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(database).await
}

/// Deletes the rows of an earlier measurement: accounts, recoveries, mails, rate limits, events.
pub async fn clear(database: impl PgExecutor<'_>) -> Result<(), sqlx::Error> {
    let tables = "TRUNCATE account, recovery_session, outbox, throttle, audit_event, event_delivery CASCADE";
    sqlx::raw_sql(tables).execute(database).await?;
    Ok(())
}
