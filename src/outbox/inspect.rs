//! What an operator can see and do in the outbox.

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor};
use strum::Display;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::serialize_rfc3339;
use crate::config::CODE_LIFE_ON_ARRIVAL;
use crate::mail::message::MailKind;
use crate::metrics::{KindLabel, Metrics};

/// A row of the outbox, without the text and the recipient of its email.
#[derive(Debug, Serialize)]
pub struct OutboxEntry {
    /// The id of the row. The email's Message-ID begins with it.
    pub id: Uuid,
    /// The kind of email.
    pub kind: MailKind,
    /// How often it was tried.
    pub attempts: i32,
    /// When it was enqueued.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it is due.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub next_attempt_at: OffsetDateTime,
    /// Until when a replica has claimed it.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub lease_until: Option<OffsetDateTime>,
    /// When it expires.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub expires_at: OffsetDateTime,
    /// The stage at which the last attempt failed, with the relay's codes or the service's own
    /// reason: `rcpt 550 5.1.1`, `tls (…)`.
    pub last_error: Option<String>,
}

/// The state of an email in the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, Serialize)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "lowercase")]
pub enum EntryState {
    /// A replica has claimed it and is sending it.
    #[strum(to_string = "under way")]
    UnderWay,
    /// The next replica with a free slot claims it.
    Due,
    /// It is tried again later.
    Waits,
    /// It expires too soon to be sent. The next round that looks through the outbox deletes it.
    Expired,
    /// No attempt can help: the relays refused the recipient, or no time was left. It is kept until
    /// it expires, so that an operator can send it again.
    #[strum(to_string = "given up")]
    GivenUp,
}

/// A row of the outbox, with its state at a time.
#[derive(Debug, Serialize)]
pub struct SeenEntry {
    /// The row.
    #[serde(flatten)]
    pub entry: OutboxEntry,
    /// Its state.
    pub state: EntryState,
}

impl OutboxEntry {
    /// The row with its state at `now`.
    #[must_use]
    pub fn seen(self, now: OffsetDateTime) -> SeenEntry {
        SeenEntry { state: self.state(now), entry: self }
    }

    /// Its state at `now`.
    #[must_use]
    pub fn state(&self, now: OffsetDateTime) -> EntryState {
        if self.lease_until.is_some_and(|until| until > now) {
            EntryState::UnderWay
        } else if self.expires_at < now + CODE_LIFE_ON_ARRIVAL {
            EntryState::Expired
        } else if self.next_attempt_at >= self.expires_at {
            EntryState::GivenUp
        } else if self.next_attempt_at > now {
            EntryState::Waits
        } else {
            EntryState::Due
        }
    }
}

/// The oldest emails in the outbox, at most `limit`.
pub async fn list(connection: &mut PgConnection, limit: i64) -> Result<Vec<OutboxEntry>, sqlx::Error> {
    sqlx::query_as!(
        OutboxEntry,
        r#"SELECT id, kind AS "kind: MailKind", attempts, created_at, next_attempt_at, lease_until, expires_at, last_error
           FROM outbox ORDER BY id LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await
}

/// The emails in the outbox to an account: its notices, and the codes of `recovery_sessions`. The
/// newest first, at most `limit`. Reads the whole outbox, which has no index on the account.
pub async fn of_account(
    executor: impl PgExecutor<'_>,
    account_id: Uuid,
    recovery_sessions: &[Uuid],
    limit: i64,
) -> Result<Vec<OutboxEntry>, sqlx::Error> {
    sqlx::query_as!(
        OutboxEntry,
        r#"SELECT id, kind AS "kind: MailKind", attempts, created_at, next_attempt_at, lease_until, expires_at, last_error
           FROM outbox WHERE account_id = $1 OR recovery_session_id = ANY($2) ORDER BY id DESC LIMIT $3"#,
        account_id,
        recovery_sessions,
        limit
    )
    .fetch_all(executor)
    .await
}

/// One email and its recipient's address. There is no address if the email has no recipient.
pub async fn find(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<(OutboxEntry, Option<String>)>, sqlx::Error> {
    let entry = sqlx::query_as!(
        OutboxEntry,
        r#"SELECT id, kind AS "kind: MailKind", attempts, created_at, next_attempt_at, lease_until, expires_at, last_error
           FROM outbox WHERE id = $1"#,
        id
    );
    let Some(entry) = entry.fetch_optional(&mut *connection).await? else { return Ok(None) };
    let to = sqlx::query_scalar!(
        r#"SELECT coalesce(o.address, owner.email, asked.email) AS "email?" FROM outbox o
           LEFT JOIN account owner ON owner.id = o.account_id
           LEFT JOIN recovery_session s ON s.id = o.recovery_session_id AND s.state = 'code_sent' AND s.attempts_left > 0
           LEFT JOIN account asked ON asked.email = s.email AND asked.state = 'active' AND asked.recoveries_ended < s.number
           WHERE o.id = $1"#,
        id
    );
    Ok(Some((entry, to.fetch_optional(connection).await?.flatten())))
}

/// Makes notices due now: the one with this `id`, or all that were given up. Returns their ids.
///
/// It leaves out notices that a replica is sending, and notices that expire within a minute. It
/// also leaves out codes, because the courier retries those itself while they are valid.
pub async fn retry(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Option<Uuid>,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        "UPDATE outbox SET next_attempt_at = $1
         WHERE kind <> 'recovery_code' AND (lease_until IS NULL OR lease_until <= $1) AND expires_at >= $2
             AND CASE WHEN $3::uuid IS NULL THEN next_attempt_at >= expires_at ELSE id = $3 END
         RETURNING id",
        now,
        now + CODE_LIFE_ON_ARRIVAL,
        id,
    )
    .fetch_all(connection)
    .await
}

/// How many emails of one kind are in the outbox.
#[derive(Debug, Serialize)]
pub struct Backlog {
    /// The kind of email.
    pub kind: MailKind,
    /// How many are pending, without those that were given up.
    pub pending: i64,
    /// How many were given up and are kept.
    pub given_up: i64,
    /// When the oldest pending one was enqueued.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub oldest: Option<OffsetDateTime>,
}

/// Sets the metrics of the outbox. A kind that `backlog` leaves out has no emails.
pub fn update_metrics(metrics: &Metrics, backlog: &[Backlog], now: OffsetDateTime) {
    for kind in MailKind::IN_OUTBOX {
        let label = KindLabel { kind: kind.into() };
        let found = backlog.iter().find(|backlog| backlog.kind == kind);
        metrics.outbox_pending.get_or_create(&label).set(found.map_or(0, |found| found.pending));
        metrics.outbox_given_up.get_or_create(&label).set(found.map_or(0, |found| found.given_up));
        let oldest = found.and_then(|found| found.oldest).map_or(0, |oldest| (now - oldest).whole_seconds());
        metrics.outbox_oldest.get_or_create(&label).set(oldest.max(0));
    }
}

/// Counts the emails in the outbox, which all replicas share, by kind. It leaves out kinds that
/// have none.
pub async fn backlog(connection: &mut PgConnection) -> Result<Vec<Backlog>, sqlx::Error> {
    sqlx::query_as!(
        Backlog,
        r#"SELECT kind AS "kind: MailKind", count(*) FILTER (WHERE next_attempt_at < expires_at) AS "pending!",
               count(*) FILTER (WHERE next_attempt_at >= expires_at) AS "given_up!",
               min(created_at) FILTER (WHERE next_attempt_at < expires_at) AS oldest
           FROM outbox GROUP BY kind"#
    )
    .fetch_all(connection)
    .await
}
