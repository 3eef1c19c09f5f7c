//! Owns `recovery_session`: the recovery flow of a user who lost the password, in three steps.
//!
//! [`Recovery::start`] enqueues an email with a code, [`Recovery::verify`] checks the code,
//! [`Recovery::reset`] sets the new password. [`Recovery::progress`] says which step is next.
//! `replay` repeats a success whose answer was lost.
//!
//! A session's state changes from `code_sent` to `verified` to `consumed`. Each session has a
//! number, and an account stores up to which number its sessions have ended, because a new password
//! ends all of them (docs/decisions/0007). A session that has ended, or whose address has no
//! account, behaves like any other: it counts down, resends and expires alike. Its code never
//! verifies, so a client cannot tell the difference.

mod id;
pub mod inspect;
mod progress;
mod replay;
mod reset;
mod second_factor;
mod start;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use tokio::sync::oneshot;
use uuid::Uuid;

pub use self::id::RecoveryId;
pub use self::progress::{Awaited, Progress};
pub use self::replay::{IdempotencyKey, sweep as sweep_replays};
pub use self::start::{StartCredentials, Started};
pub use self::verify::Verified;
use crate::app::App;
use crate::clock::first_id_of;
use crate::config::{CODE_LIFETIME, RESET_LIFETIME};
use crate::database::within_deadline;
use crate::error::{Error, Problem};
use crate::group_commit::{self, GroupCommit};
use crate::second_factor::Method;
use crate::secret::{Token, TokenHash};
use crate::thread;

/// The label under which recovery tokens are issued.
const TOKEN_LABEL: &str = "recovery-token/1";

/// The time within which all waiting starts should be committed, even when more arrive than the
/// database can take. Starts beyond that are refused.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// The recovery flow.
#[derive(Clone, Debug)]
pub struct Recovery {
    app: Arc<App>,
    starts: GroupCommit<start::PendingStart, start::StartOutcome>,
}

impl Recovery {
    /// Returns the flow, and a receiver that resolves when the thread that commits starts has
    /// ended, which happens after the last clone is dropped. Commits have a thread of their own, so
    /// that they do not wait for requests that are being read or answered (docs/decisions/0021).
    ///
    /// # Panics
    ///
    /// If the operating system cannot start a thread or has no file descriptors left.
    #[must_use]
    pub fn new(app: Arc<App>) -> (Self, oneshot::Receiver<()>) {
        let (queue, batch) =
            (app.config.storage.start_queue as usize, app.config.storage.start_batch as usize);
        let (starts, arrivals) = group_commit::channel(queue, batch, LONGEST_WAIT);
        let ended = thread::spawn("commits", start::commit_starts(Arc::clone(&app), arrivals));
        (Self { app, starts }, ended)
    }
}

/// Whether this service issued a recovery token, judged by the token's MAC. Tokens of the previous
/// format have no MAC.
#[must_use]
pub fn was_issued(app: &App, token: &Token) -> bool {
    token.was_issued(&app.code_keys, TOKEN_LABEL, RESET_LIFETIME, app.clock.now())
}

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
enum State {
    /// The session waits for its code.
    CodeSent,
    /// The code was entered. The session waits for a new password.
    Verified,
    /// The session has set a password, or can no longer do so.
    Consumed,
    /// The session is a decoy: it behaves as if it waited for its code, but no code is right.
    Revoked,
}

/// The step that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Enter the code.
    Verify,
    /// Set the new password.
    Reset,
    /// Whichever step is next.
    Next,
}

/// What a request presents to identify its recovery and itself.
#[derive(Debug)]
pub struct Presented {
    /// The token in the cookie.
    pub token: Option<Token>,
    /// The [`RecoveryId`] that the client expects, as the client sent it.
    pub id: Option<String>,
    /// The key under which a success is stored, so that the request can be repeated if its answer
    /// is lost.
    pub key: Option<IdempotencyKey>,
}

/// A session that can take its next step.
#[derive(Debug)]
struct ActiveRecovery {
    id: Uuid,
    email: String,
    number: i64,
    state: State,
    attempts_left: i16,
    expires_at: OffsetDateTime,
    /// How the second factor was given.
    second_factor: Option<Method>,
}

impl ActiveRecovery {
    fn awaits_code(&self) -> bool {
        matches!(self.state, State::CodeSent | State::Revoked)
    }
}

/// Finds the session of a token, and checks that it is the one the client expects and that it can
/// take `step`.
///
/// Every problem except `StorageUnavailable` is answered 401.
async fn find_active(
    pool: &PgPool,
    now: OffsetDateTime,
    token: &TokenHash,
    id: Option<&str>,
    step: Step,
) -> Result<ActiveRecovery, Error> {
    let session = sqlx::query_as!(
        ActiveRecovery,
        r#"SELECT id, email, number, state AS "state: State", attempts_left, expires_at,
               second_factor AS "second_factor: Method"
           FROM recovery_session WHERE token_hash = $1"#,
        token.as_bytes()
    );
    let session = within_deadline("find recovery", session.fetch_optional(pool))
        .await?
        .ok_or(Problem::RecoverySessionMissing)?;
    let awaits_code = session.awaits_code();
    let checked = match (step, session.state) {
        _ if id.is_some_and(|id| id != RecoveryId::of(session.id).to_string()) => {
            Err(Problem::RecoveryIdMismatch)
        }
        _ if session.expires_at <= now => Err(Problem::RecoverySessionExpired),
        _ if awaits_code && session.attempts_left == 0 => Err(Problem::RecoverySessionSpent),
        (Step::Reset, _) if awaits_code => Err(Problem::RecoverySessionUnverified),
        (Step::Verify | Step::Next, _) if awaits_code => Ok(session),
        (Step::Reset | Step::Next, State::Verified) => Ok(session),
        _ => Err(Problem::RecoverySessionUsed),
    };
    Ok(checked?)
}

/// Ends every pending recovery of an address that no longer belongs to its account, so that no
/// recovery applies to the next account with that address. A session that waits for its code
/// becomes a decoy. A verified session is consumed: its client already knows that there is an
/// account. Reads the whole table, because no request needs an index on the address.
pub(crate) async fn revoke_pending(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    email: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE recovery_session SET state = CASE state WHEN 'verified' THEN 'consumed' ELSE 'revoked' END
         WHERE email = $1 AND state IN ('code_sent', 'verified') AND expires_at > $2",
        email,
        now,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Deletes every session of an address and returns their ids. Reads the whole table.
pub(crate) async fn delete_all(
    transaction: &mut PgConnection,
    email: &str,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!("DELETE FROM recovery_session WHERE email = $1 RETURNING id", email)
        .fetch_all(transaction)
        .await
}

/// Deletes at most `limit` sessions that ended more than `retention` ago. The primary key is the
/// order of creation, and no session lives longer than the lifetimes of code and reset together.
pub async fn sweep(
    pool: &PgPool,
    now: OffsetDateTime,
    retention: Duration,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let oldest = first_id_of(now - retention - RESET_LIFETIME - CODE_LIFETIME);
    let done = sqlx::query!(
        "DELETE FROM recovery_session
         WHERE id = ANY(ARRAY(SELECT id FROM recovery_session WHERE id < $1 ORDER BY id LIMIT $2))",
        oldest,
        limit
    );
    Ok(done.execute(pool).await?.rows_affected())
}
