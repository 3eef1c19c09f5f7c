//! Owns `recovery_session`: the way of a trader who lost the password, in three steps.
//!
//! [`Recovery::start`] sends a code, [`Recovery::verify`] takes it, [`Recovery::reset`] sets the new password;
//! [`Recovery::progress`] says which of them is next. A session
//! goes `code_sent` → `verified` → `consumed`. Each has a number, and an account says up to which one they have ended, as
//! a new password ends all of them (docs/decisions/0007). One that has ended goes on like a live one, and so does one whose
//! address nobody owns: it counts down, resends and expires alike; only its code never verifies, so nobody can tell.

mod id;
mod progress;
mod reset;
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
pub use self::start::{StartCredentials, Started};
pub use self::verify::Verified;
use crate::app::App;
use crate::clock::first_id_of;
use crate::config::{CODE_LIFETIME, RESET_LIFETIME};
use crate::database::within_deadline;
use crate::error::{Error, Problem};
use crate::group_commit::{self, GroupCommit};
use crate::secret::{Token, TokenHash};
use crate::thread;

/// What the tokens of recoveries are issued for.
const TOKEN_LABEL: &str = "recovery-token/1";

/// Within which time all starts that wait are to be committed, when more come than the database can take.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// The recovery flow.
#[derive(Clone, Debug)]
pub struct Recovery {
    app: Arc<App>,
    starts: GroupCommit<start::Start, start::Outcome>,
}

impl Recovery {
    /// The flow, and what says that the commits of starts have ended, as they do with its last clone. They have a thread of
    /// their own and wait for no request that is read or answered meanwhile (docs/decisions/0021).
    ///
    /// # Panics
    ///
    /// If the operating system has no thread or no descriptors to give.
    #[must_use]
    pub fn new(app: Arc<App>) -> (Self, oneshot::Receiver<()>) {
        let (queue, batch) =
            (app.config.storage.start_queue as usize, app.config.storage.start_batch as usize);
        let (starts, arrivals) = group_commit::channel(queue, batch, LONGEST_WAIT);
        let ended = thread::spawn("commits", start::commit_starts(Arc::clone(&app), arrivals));
        (Self { app, starts }, ended)
    }
}

/// Whether a recovery token was issued here, as it says itself. Those of the form before do not say so.
#[must_use]
pub fn was_issued(app: &App, token: &Token) -> bool {
    token.was_issued(&app.code_keys, TOKEN_LABEL, RESET_LIFETIME, app.clock.now())
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
enum State {
    /// Its code is awaited.
    CodeSent,
    /// Its code was entered, and a new password is awaited.
    Verified,
    /// It has set one, or can no more.
    Consumed,
    /// A decoy: it goes on as if its code were awaited.
    Revoked,
}

/// Which step of a session a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The code.
    Verify,
    /// The new password.
    Reset,
    /// The next one, whichever it is.
    Next,
}

/// What a request says about its recovery.
#[derive(Debug)]
pub struct Presented {
    /// The token in the cookie.
    pub token: Option<Token>,
    /// The [`RecoveryId`] that the client means, as it was sent.
    pub id: Option<String>,
}

/// A session that can do its next step.
#[derive(Debug)]
struct ActiveRecovery {
    id: Uuid,
    email: String,
    number: i64,
    state: State,
    attempts_left: i16,
    expires_at: OffsetDateTime,
}

impl ActiveRecovery {
    fn waits_for_code(&self) -> bool {
        matches!(self.state, State::CodeSent | State::Revoked)
    }
}

/// Looks up the session of a token, whether it is the one that the client means, and whether it can do `step`.
///
/// Every problem but `StorageUnavailable` is a 401: the recovery has to be started again.
async fn find_active(
    pool: &PgPool,
    now: OffsetDateTime,
    token: &TokenHash,
    id: Option<&str>,
    step: Step,
) -> Result<ActiveRecovery, Error> {
    let session = sqlx::query_as!(
        ActiveRecovery,
        r#"SELECT id, email, number, state AS "state: State", attempts_left, expires_at
           FROM recovery_session WHERE token_hash = $1"#,
        token.as_bytes()
    );
    let session = within_deadline("find recovery", session.fetch_optional(pool))
        .await?
        .ok_or(Problem::RecoverySessionMissing)?;
    let waits_for_code = session.waits_for_code();
    let checked = match (step, session.state) {
        _ if id.is_some_and(|id| id != RecoveryId::of(session.id).to_string()) => {
            Err(Problem::RecoveryIdMismatch)
        }
        _ if session.expires_at <= now => Err(Problem::RecoverySessionExpired),
        _ if waits_for_code && session.attempts_left == 0 => Err(Problem::RecoverySessionSpent),
        (Step::Reset, _) if waits_for_code => Err(Problem::RecoverySessionUnverified),
        (Step::Verify | Step::Next, _) if waits_for_code => Ok(session),
        (Step::Reset | Step::Next, State::Verified) => Ok(session),
        _ => Err(Problem::RecoverySessionUsed),
    };
    Ok(checked?)
}

/// Ends every pending recovery of an address that is nobody's any more, for whoever has it next: each becomes a decoy, but one
/// whose code was entered has nothing left to hide. Reads the whole table, as no request needs an index on the address.
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

/// Deletes every session of an address, and gives their ids. Reads the whole table.
pub(crate) async fn delete_all(
    transaction: &mut PgConnection,
    email: &str,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!("DELETE FROM recovery_session WHERE email = $1 RETURNING id", email)
        .fetch_all(transaction)
        .await
}

/// Deletes at most `limit` sessions that ended over `retention` ago. The primary key is the order of creation, and no
/// session lives longer than code and reset together.
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
