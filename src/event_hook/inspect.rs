//! What an operator can see of deliveries and do with dead letters.

use serde::Serialize;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::serialize_rfc3339;
use crate::metrics::{HookLabel, Metrics};

/// An event that a hook did not get within a day, or that was deleted before its delivery.
#[derive(Debug, Serialize)]
pub struct DeadLetter {
    /// The id of the event.
    pub event_id: Uuid,
    /// The name of the hook.
    pub hook: String,
    /// The kind of event; `None` if the event was deleted after `AUDIT_RETENTION`.
    pub kind: Option<String>,
    /// The account; `None` if the event is about many accounts or was deleted.
    pub account_id: Option<Uuid>,
    /// How often it was tried.
    pub attempts: i32,
    /// Since when it is a dead letter.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub died_at: OffsetDateTime,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// The oldest dead letters of one hook or of all hooks, at most `limit`.
pub async fn dead_letters(
    connection: &mut PgConnection,
    hook: Option<&str>,
    limit: i64,
) -> Result<Vec<DeadLetter>, sqlx::Error> {
    sqlx::query_as!(
        DeadLetter,
        r#"SELECT event_id, hook, event.what AS "kind?", event.account_id AS "account_id?", attempts,
               died_at AS "died_at!", last_error
           FROM event_delivery LEFT JOIN audit_event AS event ON event.id = event_delivery.event_id
           WHERE died_at IS NOT NULL AND ($1::text IS NULL OR hook = $1)
           ORDER BY seq LIMIT $2"#,
        hook,
        limit
    )
    .fetch_all(connection)
    .await
}

/// Makes dead letters due now: of one event or all events, and of one hook or all hooks. Returns
/// how many. Each is retried for a day again, before later events of its account.
pub async fn replay(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    event_id: Option<Uuid>,
    hook: Option<&str>,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "UPDATE event_delivery SET died_at = NULL, enqueued_at = $1, next_attempt_at = $1
         WHERE died_at IS NOT NULL AND ($2::uuid IS NULL OR event_id = $2) AND ($3::text IS NULL OR hook = $3)",
        now,
        event_id,
        hook
    );
    Ok(done.execute(connection).await?.rows_affected())
}

/// How many events one hook has not got.
#[derive(Debug)]
pub struct HookBacklog {
    /// The name of the hook.
    pub hook: String,
    /// How many are pending.
    pub pending: i64,
    /// How many are dead letters.
    pub dead: i64,
    /// When the oldest pending one was enqueued.
    pub oldest: Option<OffsetDateTime>,
}

/// Counts the deliveries, which all replicas share, by hook. It leaves out hooks that have none.
pub async fn backlog(connection: &mut PgConnection) -> Result<Vec<HookBacklog>, sqlx::Error> {
    sqlx::query_as!(
        HookBacklog,
        r#"SELECT hook, count(*) FILTER (WHERE died_at IS NULL) AS "pending!",
               count(*) FILTER (WHERE died_at IS NOT NULL) AS "dead!",
               min(enqueued_at) FILTER (WHERE died_at IS NULL) AS oldest
           FROM event_delivery GROUP BY hook"#
    )
    .fetch_all(connection)
    .await
}

/// Sets the metrics of these hooks. A hook that `backlog` leaves out has no deliveries.
pub(super) fn update_metrics<'a>(
    metrics: &Metrics,
    hooks: impl Iterator<Item = &'a str>,
    backlog: &[HookBacklog],
    now: OffsetDateTime,
) {
    for hook in hooks {
        let label = HookLabel { hook: hook.to_owned() };
        let found = backlog.iter().find(|backlog| backlog.hook == hook);
        metrics.hook_pending.get_or_create(&label).set(found.map_or(0, |found| found.pending));
        metrics.hook_dead_letters.get_or_create(&label).set(found.map_or(0, |found| found.dead));
        let oldest = found.and_then(|found| found.oldest).map_or(0, |oldest| (now - oldest).whole_seconds());
        metrics.hook_oldest.get_or_create(&label).set(oldest.max(0));
    }
}
