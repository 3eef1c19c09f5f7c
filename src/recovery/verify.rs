//! `verify`: checks the emailed code.
//!
//! A separate statement spends the attempt before the code is compared, so that parallel guesses at
//! one recovery get at most five comparisons. `account` is read and written only after a right
//! code.

use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::replay::Remembered;
use super::{Presented, Recovery, RecoveryId, State, Step, TOKEN_LABEL, find_active};
use crate::client::Client;
use crate::config::RESET_LIFETIME;
use crate::database::{transact, within_deadline};
use crate::error::{Detail, Error, Problem};
use crate::metrics::{CodeLabel, CodeOutcome};
use crate::secret::{Code, Token, TokenHash};
use crate::{account, audit};

/// A verified session: the values for the cookie.
#[derive(Debug)]
pub struct Verified {
    /// The session's new token; the presented one is no longer valid.
    pub token: Token,
    /// The session's id, unchanged.
    pub id: RecoveryId,
    /// How long the session lives from now.
    pub lifetime: Duration,
}

/// A spent attempt: what the guess is compared with.
#[derive(Debug)]
struct SpentAttempt {
    session_id: Uuid,
    email: String,
    number: i64,
    key_id: String,
    /// Whether the session was revoked, because its address no longer belongs to the account. No
    /// code is right then.
    is_revoked: bool,
    attempts_left: i16,
}

impl Recovery {
    /// Checks the code of the session that `presented` belongs to, and gives the session 15 minutes
    /// for a new password. An `Err` in `code` is returned only if the session waits for its code,
    /// and spends no attempt. If `presented` has the key of an earlier success, that success is
    /// repeated instead of a 401.
    ///
    /// # Errors
    ///
    /// `RecoverySession…` without a session that waits for its code; `RecoveryIdMismatch` if it is
    /// not the one the client expects, with no attempt spent; the error in `code`; `CodeInvalid`
    /// with the number of attempts left; `StorageUnavailable`.
    pub async fn verify(
        &self,
        presented: Presented,
        code: Result<Code, Error>,
        client: &Client,
    ) -> Result<Verified, Error> {
        match (self.verify_once(&presented, &code, client).await, code) {
            (Err(refused), Ok(code)) => self.replay_verify(refused, &presented, &code, client).await,
            (result, _) => result,
        }
    }

    async fn verify_once(
        &self,
        presented: &Presented,
        code: &Result<Code, Error>,
        client: &Client,
    ) -> Result<Verified, Error> {
        let token = presented.token.as_ref().ok_or(Problem::RecoverySessionMissing)?.hash();
        let (pool, now) = (&self.app.pool, self.app.time()?);
        let find = || find_active(pool, now, &token, presented.id.as_deref(), Step::Verify);
        // A token always belongs to the same session, so a check of the id before the attempt also
        // holds after it.
        if presented.id.is_some() || code.is_err() {
            find().await?;
        }
        let code = code.as_ref().map_err(|error| {
            self.count(CodeOutcome::Malformed);
            error.clone()
        })?;
        let Some(attempt) = within_deadline("spend attempt", spend_attempt(pool, now, &token)).await? else {
            find().await?;
            // `find` cannot succeed here, because attempts are never given back.
            return Err(Problem::RecoverySessionSpent.into());
        };
        let wrong = || {
            self.count(CodeOutcome::Wrong);
            Error::in_field(Problem::CodeInvalid, "code").with(Detail::AttemptsLeft(attempt.attempts_left))
        };
        let right = self.app.code_keys.by_id(&attempt.key_id);
        if !right.is_some_and(|key| key.code(attempt.session_id).matches(code)) || attempt.is_revoked {
            return Err(wrong());
        }
        let issued = Token::issue(self.app.code_keys.newest(), TOKEN_LABEL, now);
        let token_hash = issued.hash();
        let Remembered { until, key } = Remembered::new(presented.key.as_ref(), now);
        let ends = now + RESET_LIFETIME;
        transact("mark verified", async {
            let account =
                account::in_recovery(pool, &attempt.email, attempt.number).await?.ok_or_else(wrong)?;
            let mut transaction = pool.begin().await?;
            // As everywhere, the account's row is locked before those of its recoveries.
            account::clear_bouncing(&mut transaction, account.id).await?;
            let marked = sqlx::query!(
                "UPDATE recovery_session SET state = 'verified', verified_at = $2, expires_at = $3, token_hash = $4,
                     replay_until = $5, replay_key = $6, replay_token_hash = $7
                 WHERE id = $1 AND state = 'code_sent' AND expires_at > $2",
                attempt.session_id,
                now,
                ends,
                token_hash.as_bytes(),
                until,
                key,
                key.map(|_| token.as_bytes()),
            );
            if marked.execute(&mut *transaction).await?.rows_affected() == 0 {
                return Err(Problem::RecoverySessionUsed.into());
            }
            audit::record(&mut *transaction, now, audit::Event::RecoveryVerified, account.id, Some(client.into()))
                .await?;
            transaction.commit().await?;
            Ok(())
        })
        .await?;
        self.count(CodeOutcome::Right);
        Ok(Verified { token: issued, id: RecoveryId::of(attempt.session_id), lifetime: RESET_LIFETIME })
    }

    pub(super) fn count(&self, outcome: CodeOutcome) {
        self.app.metrics.codes.get_or_create(&CodeLabel { outcome }).inc();
    }
}

/// Spends an attempt of a session that waits for its code. Returns `None` if there is no such
/// session or no attempt is left.
async fn spend_attempt(
    pool: &PgPool,
    now: OffsetDateTime,
    token: &TokenHash,
) -> Result<Option<SpentAttempt>, sqlx::Error> {
    let row = sqlx::query!(
        r#"UPDATE recovery_session SET attempts_left = attempts_left - 1
           WHERE token_hash = $1 AND state IN ('code_sent', 'revoked') AND attempts_left > 0 AND expires_at > $2
           RETURNING id, email, number, key_id, state AS "state: State", attempts_left"#,
        token.as_bytes(),
        now
    );
    Ok(row.fetch_optional(pool).await?.map(|row| SpentAttempt {
        session_id: row.id,
        email: row.email,
        number: row.number,
        key_id: row.key_id,
        is_revoked: row.state == State::Revoked,
        attempts_left: row.attempts_left,
    }))
}
