//! Owns `outbox`: mails that are owed. Claims them under a lease, reschedules or finishes them.
//!
//! Accepted is kept (promise 2): a row goes only when the relay took its mail, when its code is too old to be of use, or
//! when there is nobody to write to. The loop that sends is `courier.rs`.

use std::net::IpAddr;
use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::audit;
use crate::clock::first_id_of;
use crate::config::{CODE_LIFE_ON_ARRIVAL, CODE_LIFETIME, STORAGE_DEADLINE};

/// Rows that one claim looks through at most.
pub const WINDOW: i64 = 2000;

/// Which rows a claim looks through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those of the last seconds: what a wake-up is about. Under load the index is full of rows that are long deleted,
    /// and looking past them all each time would cost more than the work.
    Recent,
    /// All of them: what another process left, and what is due again.
    All,
}

/// A recovery mail that this process may send until its lease ends.
#[derive(Debug)]
pub struct ClaimedCode {
    /// The row, and the source of the Message-ID.
    pub id: Uuid,
    /// The claim's number: the fence against a later claim of the same row.
    pub attempts: i32,
    /// When the mail came to be owed.
    pub created_at: OffsetDateTime,
    /// When the code dies.
    pub expires_at: OffsetDateTime,
    /// The session that the code belongs to.
    pub recovery_session_id: Uuid,
    /// The secret that the code is derived from.
    pub key_id: String,
    /// When the session began.
    pub asked_at: OffsetDateTime,
    /// The language of the request.
    pub session_locale: Option<String>,
    /// Who asked.
    pub client_ip: IpAddr,
    /// With what.
    pub user_agent: String,
    /// Whose account it is.
    pub account_id: Uuid,
    /// The stored address: the only one that is ever written to.
    pub account_email: String,
    /// The language that the account wants.
    pub account_locale: Option<String>,
}

/// What one claim found.
#[derive(Debug, Default)]
pub struct Claim {
    /// To be sent now.
    pub codes: Vec<ClaimedCode>,
    /// Rows that were finished: nobody to write to.
    pub no_recipient: u64,
    /// Rows that were finished: too late to be of use.
    pub expired: u64,
    /// Whether the window was full, so that there may be more.
    pub more: bool,
}

/// Claims up to `senders` mails, youngest first (docs/decisions), and finishes every row in the window that needs no
/// mail; with `owed_by`, only rows that were owed by then.
///
/// Rows are locked with SKIP LOCKED and `account` is only read: a row locked by a reset must not hide its mail, and two
/// replicas must never wait for each other. Look-ups are LATERAL and deletions go by an array of ids, so that all of it
/// is by index: a plan that was made while the table was empty must not scan it when it is not.
///
/// # Errors
///
/// What PostgreSQL answers.
#[expect(clippy::too_many_lines, reason = "it is one statement")]
pub async fn claim(
    pool: &PgPool,
    now: OffsetDateTime,
    reach: Reach,
    owed_by: Option<OffsetDateTime>,
    senders: usize,
    lease: Duration,
) -> Result<Claim, sqlx::Error> {
    let since = match reach {
        // An id is made before its row is committed, at most the storage deadline earlier.
        Reach::Recent => first_id_of(now - 2 * STORAGE_DEADLINE),
        Reach::All => Uuid::nil(),
    };
    let mut rows = sqlx::query!(
        r#"
        WITH due AS MATERIALIZED (
            SELECT id, recovery_session_id, created_at, expires_at
            FROM outbox
            WHERE id >= $1 AND id < $7 AND kind = 'recovery_code'
                AND next_attempt_at <= $2 AND (lease_until IS NULL OR lease_until <= $2)
            ORDER BY id DESC
            LIMIT $3
        ),
        addressed AS MATERIALIZED (
            SELECT due.*, due.expires_at < $4 AS expired, s.key_id, s.created_at AS asked_at,
                s.locale AS session_locale, s.client_ip, s.user_agent,
                a.id AS account_id, a.email AS account_email, a.locale AS account_locale
            FROM due
            LEFT JOIN LATERAL (
                SELECT * FROM recovery_session WHERE id = due.recovery_session_id AND state = 'code_sent' LIMIT 1
            ) AS s ON true
            LEFT JOIN LATERAL (
                SELECT id, email, locale FROM account WHERE email = s.email AND state = 'active' LIMIT 1
            ) AS a ON true
        ),
        finished AS (
            DELETE FROM outbox WHERE id = ANY(ARRAY(
                SELECT o.id FROM addressed d CROSS JOIN LATERAL (
                    SELECT id FROM outbox WHERE id = d.id AND (lease_until IS NULL OR lease_until <= $2)
                    FOR UPDATE SKIP LOCKED
                ) AS o
                WHERE d.expired OR d.account_id IS NULL
            ))
            RETURNING id
        ),
        claimed AS (
            UPDATE outbox SET attempts = attempts + 1, lease_until = $5
            WHERE id = ANY(ARRAY(
                SELECT o.id FROM (
                    SELECT id FROM addressed WHERE NOT expired AND account_id IS NOT NULL ORDER BY id DESC
                ) AS d CROSS JOIN LATERAL (
                    SELECT id FROM outbox WHERE id = d.id AND (lease_until IS NULL OR lease_until <= $2)
                    FOR UPDATE SKIP LOCKED
                ) AS o
                LIMIT $6
            ))
            RETURNING id, attempts
        ),
        counted AS (
            SELECT (SELECT count(*) FROM due) AS due,
                count(*) FILTER (WHERE d.expired) AS expired,
                count(*) FILTER (WHERE NOT d.expired) AS no_recipient
            FROM finished f JOIN addressed d USING (id)
        )
        SELECT n.due AS "due!", n.expired AS "expired!", n.no_recipient AS "no_recipient!",
            d.id AS "id?", c.attempts AS "attempts?", d.created_at AS "created_at?", d.expires_at AS "expires_at?",
            d.recovery_session_id AS "recovery_session_id?", d.key_id AS "key_id?", d.asked_at AS "asked_at?",
            d.session_locale AS "session_locale?", d.client_ip AS "client_ip?: IpAddr",
            d.user_agent AS "user_agent?", d.account_id AS "account_id?", d.account_email AS "account_email?",
            d.account_locale AS "account_locale?"
        FROM counted n LEFT JOIN (claimed c JOIN addressed d USING (id)) ON true
        "#,
        since,
        now,
        WINDOW,
        now + CODE_LIFE_ON_ARRIVAL,
        now + lease,
        i64::try_from(senders).unwrap_or(i64::MAX),
        owed_by.map_or(Uuid::max(), |at| first_id_of(at + Duration::from_millis(1))),
    )
    .fetch_all(pool)
    .await?
    .into_iter()
    .peekable();
    let mut claim = rows.peek().map_or_else(Claim::default, |row| Claim {
        codes: Vec::new(),
        no_recipient: row.no_recipient.unsigned_abs(),
        expired: row.expired.unsigned_abs(),
        more: row.due >= WINDOW,
    });
    // A row without a claim, or without what the join gives every claim, is the count alone.
    claim.codes.extend(rows.filter_map(|row| {
        Some(ClaimedCode {
            id: row.id?,
            attempts: row.attempts?,
            created_at: row.created_at?,
            expires_at: row.expires_at?,
            recovery_session_id: row.recovery_session_id?,
            key_id: row.key_id?,
            asked_at: row.asked_at?,
            session_locale: row.session_locale,
            client_ip: row.client_ip?,
            user_agent: row.user_agent?,
            account_id: row.account_id?,
            account_email: row.account_email?,
            account_locale: row.account_locale,
        })
    }));
    Ok(claim)
}

/// The relay took the mail: deletes the row and records it, if the claim still holds.
///
/// # Errors
///
/// What PostgreSQL answers; then the row is still owed, and its lease will end.
pub async fn sent(pool: &PgPool, now: OffsetDateTime, code: &ClaimedCode) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    let deleted = sqlx::query!("DELETE FROM outbox WHERE id = $1 AND attempts = $2", code.id, code.attempts);
    if deleted.execute(&mut *transaction).await?.rows_affected() == 1 {
        let source = audit::Source { client_ip: code.client_ip, user_agent: &code.user_agent };
        let event = audit::Event::RecoverySent;
        audit::record(&mut *transaction, now, event, code.account_id, Some(source)).await?;
    }
    transaction.commit().await
}

/// The mail was not taken: it is due again at `next_attempt_at`, if the claim still holds. `why` must not quote the
/// relay.
///
/// # Errors
///
/// What PostgreSQL answers.
pub async fn retry_at(
    pool: &PgPool,
    next_attempt_at: OffsetDateTime,
    code: &ClaimedCode,
    why: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE outbox SET next_attempt_at = $3, lease_until = NULL, last_error = $4 WHERE id = $1 AND attempts = $2",
        code.id,
        code.attempts,
        next_attempt_at,
        why
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// No attempt can help: deletes the row, if the claim still holds.
///
/// # Errors
///
/// What PostgreSQL answers.
pub async fn give_up(pool: &PgPool, code: &ClaimedCode) -> Result<(), sqlx::Error> {
    sqlx::query!("DELETE FROM outbox WHERE id = $1 AND attempts = $2", code.id, code.attempts)
        .execute(pool)
        .await?;
    Ok(())
}

/// When a mail that failed at its `attempts`-th attempt is tried again: exponential backoff from half a second to 30 s,
/// with full jitter (`luck` is uniform in 0 to 1), so that mails which failed together do not come back together.
/// `None` if its code would be of no use by then.
#[must_use]
pub fn backoff(
    now: OffsetDateTime,
    attempts: i32,
    luck: f64,
    expires_at: OffsetDateTime,
) -> Option<OffsetDateTime> {
    let doublings = attempts.clamp(0, 6).unsigned_abs();
    let ceiling = Duration::from_millis(500 << doublings).min(Duration::from_secs(30));
    let next = now + Duration::from_millis(100) + ceiling.mul_f64(luck.clamp(0.0, 1.0));
    (next + CODE_LIFE_ON_ARRIVAL <= expires_at).then_some(next)
}

const _: () = assert!(CODE_LIFE_ON_ARRIVAL.as_secs() < CODE_LIFETIME.as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_bound_and_ends_with_the_code() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let expires_at = now + CODE_LIFETIME;
        let wait = |attempts, luck| backoff(now, attempts, luck, expires_at).map(|next| next - now);
        assert_eq!(wait(1, 1.0), Some(time::Duration::milliseconds(1100)));
        assert_eq!(wait(2, 1.0), Some(time::Duration::milliseconds(2100)));
        assert_eq!(wait(50, 1.0), Some(time::Duration::milliseconds(30_100)));
        assert_eq!(wait(50, 0.0), Some(time::Duration::milliseconds(100)));
        assert_eq!(backoff(now, 1, 1.0, now + Duration::from_secs(61)), None);
    }
}
