//! What an operator sees of the outbox, and what they can do about it.

use sqlx::PgConnection;
use strum::Display;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::config::CODE_LIFE_ON_ARRIVAL;
use crate::mail::message::MailKind;
use crate::metrics::{KindLabel, Metrics};

/// A mail that is owed, without a word of what it says or to whom.
#[derive(Debug)]
pub struct Entry {
    /// The row; its mail's Message-ID begins with it.
    pub id: Uuid,
    /// What the mail says.
    pub kind: MailKind,
    /// How often it was tried.
    pub attempts: i32,
    /// When it came to be owed.
    pub created_at: OffsetDateTime,
    /// When it is due.
    pub next_attempt_at: OffsetDateTime,
    /// Until when a replica has it in hand.
    pub lease_until: Option<OffsetDateTime>,
    /// When it is of no more use.
    pub expires_at: OffsetDateTime,
    /// Where the last attempt ended.
    pub last_error: Option<String>,
}

/// How a mail stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display)]
#[strum(serialize_all = "lowercase")]
pub enum State {
    /// A replica has it in hand.
    #[strum(to_string = "under way")]
    UnderWay,
    /// The next replica with a free slot takes it.
    Due,
    /// It is tried again later.
    Waits,
    /// Its code is too old to be of use; the next look through the outbox strikes it off.
    Expired,
    /// The relay refused the recipient for good. Kept until it expires, for an operator to send again.
    #[strum(to_string = "given up")]
    GivenUp,
}

impl Entry {
    /// How it stands.
    #[must_use]
    pub fn state(&self, now: OffsetDateTime) -> State {
        if self.lease_until.is_some_and(|until| until > now) {
            State::UnderWay
        } else if self.expires_at < now + CODE_LIFE_ON_ARRIVAL {
            State::Expired
        } else if self.next_attempt_at >= self.expires_at {
            State::GivenUp
        } else if self.next_attempt_at > now {
            State::Waits
        } else {
            State::Due
        }
    }
}

/// The mails that have been owed for the longest.
pub async fn list(connection: &mut PgConnection, limit: i64) -> Result<Vec<Entry>, sqlx::Error> {
    sqlx::query_as!(
        Entry,
        r#"SELECT id, kind AS "kind: MailKind", attempts, created_at, next_attempt_at, lease_until, expires_at, last_error
           FROM outbox ORDER BY id LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await
}

/// One mail, and the address that it goes to; none if nobody has an account that it could go to.
pub async fn find(
    connection: &mut PgConnection,
    id: Uuid,
) -> Result<Option<(Entry, Option<String>)>, sqlx::Error> {
    let entry = sqlx::query_as!(
        Entry,
        r#"SELECT id, kind AS "kind: MailKind", attempts, created_at, next_attempt_at, lease_until, expires_at, last_error
           FROM outbox WHERE id = $1"#,
        id
    );
    let Some(entry) = entry.fetch_optional(&mut *connection).await? else { return Ok(None) };
    let to = sqlx::query_scalar!(
        r#"SELECT coalesce(owner.email, asked.email) AS "email?" FROM outbox o
           LEFT JOIN account owner ON owner.id = o.account_id
           LEFT JOIN recovery_session s ON s.id = o.recovery_session_id AND s.state = 'code_sent' AND s.attempts_left > 0
           LEFT JOIN account asked ON asked.email = s.email AND asked.state = 'active' AND asked.recoveries_ended < s.number
           WHERE o.id = $1"#,
        id
    );
    Ok(Some((entry, to.fetch_optional(connection).await?.flatten())))
}

/// Has notices sent again at the next look through the outbox: the one that is named, or all that were given up. Those
/// that a replica has in hand stay as they are, and so do codes: their mails are retried as long as it is of use.
pub async fn retry(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Option<Uuid>,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        "UPDATE outbox SET next_attempt_at = $1
         WHERE kind = 'password_changed' AND (lease_until IS NULL OR lease_until <= $1) AND expires_at >= $2
             AND CASE WHEN $3::uuid IS NULL THEN next_attempt_at >= expires_at ELSE id = $3 END
         RETURNING id",
        now,
        now + CODE_LIFE_ON_ARRIVAL,
        id,
    )
    .fetch_all(connection)
    .await
}

/// How much is owed.
#[derive(Debug)]
pub struct Backlog {
    /// What the mails say.
    pub kind: MailKind,
    /// How many are owed, those that were given up left out.
    pub owed: i64,
    /// How many were given up and are kept.
    pub given_up: i64,
    /// Since when the oldest that is owed is.
    pub oldest: Option<OffsetDateTime>,
}

/// Shows it as figures; of a kind that `backlog` leaves out, nothing is owed.
pub fn show(metrics: &Metrics, backlog: &[Backlog], now: OffsetDateTime) {
    for kind in MailKind::IN_OUTBOX {
        let label = KindLabel { kind: kind.into() };
        let of_kind = backlog.iter().find(|of| of.kind == kind);
        metrics.outbox_pending.get_or_create(&label).set(of_kind.map_or(0, |of| of.owed));
        metrics.outbox_given_up.get_or_create(&label).set(of_kind.map_or(0, |of| of.given_up));
        let oldest = of_kind.and_then(|of| of.oldest).map_or(0, |oldest| (now - oldest).whole_seconds());
        metrics.outbox_oldest.get_or_create(&label).set(oldest.max(0));
    }
}

/// What all replicas together owe, by kind; a kind of which nothing is owed is left out.
pub async fn backlog(connection: &mut PgConnection) -> Result<Vec<Backlog>, sqlx::Error> {
    sqlx::query_as!(
        Backlog,
        r#"SELECT kind AS "kind: MailKind", count(*) FILTER (WHERE next_attempt_at < expires_at) AS "owed!",
               count(*) FILTER (WHERE next_attempt_at >= expires_at) AS "given_up!",
               min(created_at) FILTER (WHERE next_attempt_at < expires_at) AS oldest
           FROM outbox GROUP BY kind"#
    )
    .fetch_all(connection)
    .await
}
