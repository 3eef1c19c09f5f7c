//! Owns `outbox`: mails that are owed. Claims them under a lease, reschedules or finishes them.
//!
//! Accepted is kept (promise 2): a row goes only when a relay took its mail, when its code is of no use any more, when there
//! is nobody to write to, or when every relay says so for good. The loop that sends is `courier.rs`.

mod finish;
pub mod inspect;

use std::net::IpAddr;
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::finish::{Taken, backoff, give_up, retry_at, sent};
use crate::clock::{first_id_of, new_id};
use crate::config::CODE_LIFE_ON_ARRIVAL;
use crate::locale::Locale;

/// Rows that one claim looks through at most.
pub const WINDOW: usize = 2000;

/// A mail that this process may send until its lease ends.
#[derive(Debug)]
pub struct ClaimedMail {
    /// The row, and the source of the Message-ID.
    pub id: Uuid,
    /// The claim's number: the fence against a later claim of the same row.
    pub attempts: i32,
    /// When the mail came to be owed.
    pub created_at: OffsetDateTime,
    /// When it is of no more use.
    pub expires_at: OffsetDateTime,
    /// What it says.
    pub content: Content,
    /// With what the request came that it is about.
    pub user_agent: String,
    /// The language of that request.
    pub request_locale: Option<String>,
    /// Whose account it is.
    pub account_id: Uuid,
    /// The stored address: the only one that is ever written to.
    pub account_email: String,
    /// The language that the account wants.
    pub account_locale: Option<String>,
}

/// What a mail says.
#[derive(Debug)]
pub enum Content {
    /// A recovery code.
    RecoveryCode {
        /// The session that the code belongs to.
        recovery_session_id: Uuid,
        /// The secret that the code is derived from.
        key_id: String,
        /// When the session began.
        asked_at: OffsetDateTime,
        /// Who asked.
        client_ip: IpAddr,
    },
    /// That the password was changed, when the mail came to be owed.
    PasswordChanged,
}

impl Content {
    /// The longest pause between two attempts: a code is waited for, and a notice is owed for days.
    const fn longest_backoff(&self) -> Duration {
        match self {
            Self::RecoveryCode { .. } => Duration::from_secs(30),
            Self::PasswordChanged => Duration::from_hours(1),
        }
    }
}

/// What one claim found.
#[derive(Debug, Default)]
pub struct Claim {
    /// To be sent now.
    pub mails: Vec<ClaimedMail>,
    /// Rows that were finished: nobody to write to.
    pub no_recipient: u64,
    /// Rows that were finished: too late to be of use.
    pub expired: u64,
    /// Whether the window was full, so that there may be more.
    pub more: bool,
}

/// Claims up to `senders` mails, youngest first (docs/decisions/5), and finishes every row in the window (at most
/// [`WINDOW`] of them) that needs no mail. Rows before the id `from` are left: under load the index is full of rows that are
/// long deleted, and looking past them all each time would cost more than the work. With `owed_by`, only rows that were
/// owed by then.
///
/// Rows are locked with SKIP LOCKED and `account` is only read: a row locked by a reset must not hide its mail, and two
/// replicas must never wait for each other. Only what is finished or claimed is locked: another replica may have a slot
/// free for the rest. A row is found again by its place (`ctid`); one that has moved meanwhile is left to the next claim.
/// Look-ups are LATERAL, so that none scans the table: a plan that was made while it was empty must not when it is full.
/// Nor is what was finished joined to anything: two lists of a window's length would then be compared each with each.
///
/// # Errors
///
/// What PostgreSQL answers.
#[expect(clippy::too_many_lines, reason = "it is one statement")]
pub async fn claim(
    pool: &PgPool,
    now: OffsetDateTime,
    from: Uuid,
    owed_by: Option<OffsetDateTime>,
    senders: usize,
    window: usize,
    lease: Duration,
) -> Result<Claim, sqlx::Error> {
    let mut rows = sqlx::query!(
        r#"
        WITH due AS MATERIALIZED (
            SELECT id, ctid AS place, recovery_session_id, account_id AS owner_id, created_at, expires_at, locale, user_agent
            FROM outbox
            WHERE id >= $1 AND id < $7
                AND next_attempt_at <= $2 AND (lease_until IS NULL OR lease_until <= $2)
            ORDER BY id DESC
            LIMIT $3
        ),
        addressed AS MATERIALIZED (
            SELECT due.id, place, due.recovery_session_id, due.created_at, due.expires_at, due.expires_at < $4 AS expired,
                s.key_id, s.created_at AS asked_at, s.client_ip, coalesce(s.user_agent, due.user_agent) AS user_agent,
                coalesce(s.locale, due.locale) AS request_locale, coalesce(a.id, o.id) AS account_id,
                coalesce(a.email, o.email) AS account_email, coalesce(a.locale, o.locale) AS account_locale
            FROM due
            LEFT JOIN LATERAL (
                SELECT * FROM recovery_session
                WHERE id = due.recovery_session_id AND state = 'code_sent' AND attempts_left > 0 LIMIT 1
            ) AS s ON true
            LEFT JOIN LATERAL (
                SELECT id, email, locale FROM account
                WHERE email = s.email AND state = 'active' AND recoveries_ended < s.number LIMIT 1
            ) AS a ON true
            LEFT JOIN LATERAL (SELECT id, email, locale FROM account WHERE id = due.owner_id LIMIT 1) AS o ON true
        ),
        finished AS (
            DELETE FROM outbox WHERE ctid = ANY(ARRAY(
                SELECT o.ctid FROM (
                    SELECT place FROM addressed WHERE expired OR account_id IS NULL
                ) AS d CROSS JOIN LATERAL (
                    SELECT ctid FROM outbox WHERE ctid = d.place AND (lease_until IS NULL OR lease_until <= $2)
                    FOR UPDATE SKIP LOCKED
                ) AS o
            ))
            RETURNING expires_at < $4 AS expired
        ),
        claimed AS (
            UPDATE outbox SET attempts = attempts + 1, lease_until = $5
            WHERE ctid = ANY(ARRAY(
                SELECT o.ctid FROM (
                    SELECT place FROM addressed WHERE NOT expired AND account_id IS NOT NULL ORDER BY id DESC
                ) AS d CROSS JOIN LATERAL (
                    SELECT ctid FROM outbox WHERE ctid = d.place AND (lease_until IS NULL OR lease_until <= $2)
                    FOR UPDATE SKIP LOCKED
                ) AS o
                LIMIT $6
            ))
            RETURNING id, attempts
        ),
        counted AS (
            SELECT (SELECT count(*) FROM due) AS due,
                count(*) FILTER (WHERE expired) AS expired,
                count(*) FILTER (WHERE NOT expired) AS no_recipient
            FROM finished
        )
        SELECT n.due AS "due!", n.expired AS "expired!", n.no_recipient AS "no_recipient!",
            d.id AS "id?", c.attempts AS "attempts?", d.created_at AS "created_at?", d.expires_at AS "expires_at?",
            d.recovery_session_id AS "recovery_session_id?", d.key_id AS "key_id?", d.asked_at AS "asked_at?",
            d.client_ip AS "client_ip?: IpAddr",
            d.user_agent AS "user_agent?", d.account_id AS "account_id?", d.account_email AS "account_email?",
            d.account_locale AS "account_locale?", d.request_locale AS "request_locale?"
        FROM counted n LEFT JOIN (claimed c JOIN addressed d USING (id)) ON true
        "#,
        from,
        now,
        i64::try_from(window).unwrap_or(i64::MAX),
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
        mails: Vec::new(),
        no_recipient: row.no_recipient.unsigned_abs(),
        expired: row.expired.unsigned_abs(),
        more: row.due.unsigned_abs() >= window as u64,
    });
    // A row without a claim, or without what the join gives every claim, is the count alone.
    claim.mails.extend(rows.filter_map(|row| {
        let content = match row.recovery_session_id {
            Some(recovery_session_id) => Content::RecoveryCode {
                recovery_session_id,
                key_id: row.key_id?,
                asked_at: row.asked_at?,
                client_ip: row.client_ip?,
            },
            None => Content::PasswordChanged,
        };
        Some(ClaimedMail {
            id: row.id?,
            attempts: row.attempts?,
            created_at: row.created_at?,
            expires_at: row.expires_at?,
            content,
            user_agent: row.user_agent.unwrap_or_default(),
            request_locale: row.request_locale,
            account_id: row.account_id?,
            account_email: row.account_email?,
            account_locale: row.account_locale,
        })
    }));
    Ok(claim)
}

/// Owes the owner of an account a mail about the password that the same transaction sets. It names the device, and is
/// owed for `retention`.
///
/// # Errors
///
/// What PostgreSQL answers.
pub async fn owe_notice(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    locale: Option<Locale>,
    user_agent: &str,
    retention: Duration,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO outbox (id, kind, account_id, next_attempt_at, expires_at, created_at, locale, user_agent)
         VALUES ($1, 'password_changed', $2, $3, $4, $3, $5, $6)",
        new_id(now),
        account_id,
        now,
        now + retention,
        locale.map(Locale::as_str),
        user_agent,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Deletes the mails that are owed to an account, or to recovery sessions of its address.
///
/// # Errors
///
/// What PostgreSQL answers.
pub async fn forget(
    transaction: &mut PgConnection,
    account_id: Uuid,
    recovery_sessions: &[Uuid],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "DELETE FROM outbox WHERE account_id = $1 OR recovery_session_id = ANY($2)",
        account_id,
        recovery_sessions
    )
    .execute(transaction)
    .await?;
    Ok(())
}
