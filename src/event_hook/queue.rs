//! The rows of `event_delivery`: registers hooks, claims deliveries under a lease, and finishes
//! them. A trigger inserts the rows (`migrations/0023_event_hooks.sql`).

use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::hook::Hook;

/// The maximum number of accounts that one claim looks at.
pub const WINDOW: i64 = 500;
/// How long an event is retried. The first failure after that makes it a dead letter.
pub(super) const RETRIED_FOR: Duration = Duration::from_hours(24);

/// Each row of `event_delivery` has a number, `seq`. The horizon is a number up to which no further
/// row can appear, so the rows up to it can be delivered in the order of their numbers.
///
/// Numbers are taken in order, but transactions commit in any order. So a row is settled when every
/// transaction that may have taken a number up to its own has ended:
///
/// 1. Each of these transactions had its transaction id before it took its number.
/// 2. So a transaction id that is given out after the newest number was seen is higher than the ids
///    of these transactions.
/// 3. When no open transaction has a lower id than that one, all of these transactions have ended.
#[derive(Debug, Default)]
pub struct Horizon {
    settled: i64,
    mark: Option<Mark>,
}

#[derive(Debug)]
struct Mark {
    newest: i64,
    transaction: i64,
}

impl Horizon {
    /// The highest number that is settled.
    #[must_use]
    pub fn settled(&self) -> i64 {
        self.settled
    }

    /// Moves the horizon as far as open transactions allow. Returns whether there are rows at all.
    /// It waits for no lock, and takes a transaction id only if there are new rows.
    ///
    /// After an error, begin with a new horizon: the server may be another one.
    pub async fn advance(&mut self, pool: &PgPool) -> Result<bool, sqlx::Error> {
        let newest = sqlx::query_scalar!("SELECT max(seq) FROM event_delivery").fetch_one(pool).await?;
        let Some(newest) = newest else { return Ok(false) };
        if self.mark.is_none() && newest > self.settled {
            let transaction =
                sqlx::query_scalar!(r#"SELECT pg_current_xact_id()::text::bigint AS "transaction!""#);
            self.mark = Some(Mark { newest, transaction: transaction.fetch_one(pool).await? });
        }
        if let Some(mark) = &self.mark {
            let ids = sqlx::query!(
                r#"SELECT pg_snapshot_xmin(now)::text::bigint AS "oldest!", pg_snapshot_xmax(now)::text::bigint AS "next!"
                   FROM pg_current_snapshot() AS now"#
            );
            let ids = ids.fetch_one(pool).await?;
            if ids.oldest >= mark.transaction {
                self.settled = mark.newest;
                self.mark = None;
            } else if ids.next <= mark.transaction {
                // After a failover to a server that lost commits, the id was never given out.
                self.mark = None;
            }
        }
        Ok(true)
    }
}

/// A delivery that this process may make until its lease ends.
#[derive(Debug)]
pub struct Delivery {
    /// Its number, by which deliveries of an account are ordered.
    pub seq: i64,
    /// The id of the event.
    pub event_id: Uuid,
    /// The number of this claim. An update with the number of an earlier claim changes nothing.
    pub attempts: i32,
    /// When the event happened, or when an operator replayed it.
    pub enqueued_at: OffsetDateTime,
    /// How many dead letters of the account came before it and were not announced yet.
    pub gap: i64,
    /// The event; `None` if it was deleted after `AUDIT_RETENTION`.
    pub event: Option<Recorded>,
}

/// What the audit log says about an event.
#[derive(Debug)]
pub struct Recorded {
    /// Its kind.
    pub kind: String,
    /// The account; `None` if it is about many accounts.
    pub account_id: Option<Uuid>,
    /// When it happened.
    pub at: OffsetDateTime,
}

/// What a claim found.
#[derive(Debug)]
pub struct Claim {
    /// What was claimed: of each account at most its oldest pending delivery.
    pub deliveries: Vec<Delivery>,
    /// The account after which the next claim begins.
    pub after: Uuid,
    /// Whether there may be accounts after `after` that this claim did not look at.
    pub more: bool,
}

/// Claims at most `limit` deliveries of a hook that are due and settled. Looks at [`WINDOW`]
/// accounts after `after`; a walk through all accounts takes several claims if there are more.
///
/// A delivery whose account has an older pending one is never claimed, whatever the state of the
/// older one, so the order within an account is kept.
pub async fn claim(
    pool: &PgPool,
    hook: &str,
    after: Uuid,
    settled: i64,
    now: OffsetDateTime,
    lease: Duration,
    limit: i64,
) -> Result<Claim, sqlx::Error> {
    let rows =
        sqlx::query_file!("src/event_hook/claim.sql", hook, after, WINDOW, settled, now, now + lease, limit);
    let rows = rows.fetch_all(pool).await?;
    let walked = rows.first().map_or(0, |row| row.walked);
    let last_walked = rows.first().and_then(|row| row.last);
    let mut last_claimed = None;
    let deliveries: Vec<_> = rows
        .into_iter()
        .filter_map(|row| {
            last_claimed = last_claimed.max(row.subject);
            let event = match (row.what, row.created_at) {
                (Some(kind), Some(at)) => Some(Recorded { kind, account_id: row.account_id, at }),
                _ => None,
            };
            let (seq, event_id, attempts) = (row.seq?, row.event_id?, row.attempts?);
            let (enqueued_at, gap) = (row.enqueued_at?, row.gap.unwrap_or_default());
            Some(Delivery { seq, event_id, attempts, enqueued_at, gap, event })
        })
        .collect();
    let is_full = i64::try_from(deliveries.len()).is_ok_and(|claimed| claimed >= limit);
    let more = is_full || walked >= WINDOW;
    let after = if is_full { last_claimed } else { last_walked };
    Ok(Claim { deliveries, after: after.filter(|_| more).unwrap_or_default(), more })
}

/// Deletes a delivery that its receiver has accepted, and marks the dead letters before it as
/// announced: the delivery contained their number (`gap`). Does nothing if the row was claimed
/// again meanwhile.
pub async fn delivered(pool: &PgPool, delivery: &Delivery) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "WITH done AS (DELETE FROM event_delivery WHERE seq = $1 AND attempts = $2 RETURNING hook, subject, seq)
         UPDATE event_delivery AS dead SET gap_told = true FROM done
         WHERE dead.hook = done.hook AND dead.subject = done.subject AND dead.died_at IS NOT NULL
             AND dead.seq < done.seq AND NOT dead.gap_told",
        delivery.seq,
        delivery.attempts
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Makes a delivery due again at `next_attempt_at`. Does nothing if the row was claimed again
/// meanwhile. `why` must not quote the receiver.
pub async fn retry_at(
    pool: &PgPool,
    next_attempt_at: OffsetDateTime,
    delivery: &Delivery,
    why: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE event_delivery SET next_attempt_at = $3, lease_until = NULL, last_error = $4
         WHERE seq = $1 AND attempts = $2",
        delivery.seq,
        delivery.attempts,
        next_attempt_at,
        why
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Makes a delivery a dead letter, so that the next one of its account is sent. Does nothing if the
/// row was claimed again meanwhile.
pub async fn give_up(
    pool: &PgPool,
    now: OffsetDateTime,
    delivery: &Delivery,
    why: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE event_delivery SET died_at = $3, lease_until = NULL, last_error = $4, gap_told = false
         WHERE seq = $1 AND attempts = $2",
        delivery.seq,
        delivery.attempts,
        now,
        why
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Deletes at most `limit` of the oldest deliveries whose events were deleted after `retention`, so
/// that nothing is left to send: dead letters, and deliveries of removed hooks.
pub async fn sweep(
    pool: &PgPool,
    now: OffsetDateTime,
    retention: Duration,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "DELETE FROM event_delivery WHERE seq = ANY(ARRAY(
             SELECT seq FROM (SELECT seq, enqueued_at FROM event_delivery ORDER BY seq LIMIT $2) AS oldest
             WHERE enqueued_at < $1))",
        now - retention - RETRIED_FOR,
        limit
    );
    Ok(done.execute(pool).await?.rows_affected())
}

/// Registers the hooks of this replica at `now`, so that events are recorded for them. A replica
/// whose clock is behind does not move `registered_at` back.
pub(super) async fn register(pool: &PgPool, now: OffsetDateTime, hooks: &[&Hook]) -> Result<(), sqlx::Error> {
    for hook in hooks {
        let kinds: Option<Vec<String>> =
            hook.kinds.as_ref().map(|kinds| kinds.iter().map(|kind| (*kind).to_owned()).collect());
        sqlx::query!(
            "INSERT INTO event_hook (name, kinds, registered_at) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE
                 SET kinds = excluded.kinds, registered_at = greatest(event_hook.registered_at, excluded.registered_at)",
            hook.name,
            kinds.as_deref(),
            now
        )
        .execute(pool)
        .await?;
    }
    Ok(())
}

/// Removes the hooks that no replica has registered since `kept_since`. A removed hook keeps its
/// deliveries: they are sent if it is set again.
pub async fn remove_unset(pool: &PgPool, kept_since: OffsetDateTime) -> Result<(), sqlx::Error> {
    let unset =
        sqlx::query_scalar!("DELETE FROM event_hook WHERE registered_at < $1 RETURNING name", kept_since);
    for hook in unset.fetch_all(pool).await? {
        tracing::warn!(
            hook,
            "a hook that no replica has in EVENT_HOOKS was removed: events are recorded for it no longer"
        );
    }
    Ok(())
}
