//! `verify`: takes the mailed code.
//!
//! The attempt is spent before the code is compared, in a statement of its own, so that no number of parallel guesses
//! gets more than five compared. `account` is read and written only after a right code.

use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Presented, Recovery, RecoveryId, State, Step, TOKEN_LABEL, find_active};
use crate::client::Client;
use crate::config::RESET_LIFETIME;
use crate::database::{transact, within_deadline};
use crate::error::{Detail, Error, Problem};
use crate::metrics::{CodeLabel, CodeOutcome};
use crate::secret::{Code, Token, TokenHash};
use crate::{account, audit};

/// A verified session: what the cookie has to hold.
#[derive(Debug)]
pub struct Verified {
    /// The session's new token; the one that was presented is dead.
    pub token: Token,
    /// The session's id, the same as before.
    pub id: RecoveryId,
    /// How long the session lives from now.
    pub lifetime: Duration,
}

/// What a guess is compared with.
#[derive(Debug)]
struct Attempt {
    session_id: Uuid,
    email: String,
    number: i64,
    key_id: String,
    /// Revoked, as its address was taken from its account: no code is right.
    decoy: bool,
    left: i16,
}

impl Recovery {
    /// Takes the code of the session that `presented` belongs to, and gives the session 15 minutes for a password. What
    /// was not read as a code (`Err`) is answered only if there is a session, and spends no attempt.
    ///
    /// # Errors
    ///
    /// `RecoverySession…` without a session that waits for its code; `RecoveryIdMismatch` if it is not the one that the
    /// client means, with no attempt spent; the error in `code`; `CodeInvalid` with the attempts that are left;
    /// `StorageUnavailable`.
    pub async fn verify(
        &self,
        presented: Presented,
        code: Result<Code, Error>,
        client: &Client,
    ) -> Result<Verified, Error> {
        let token = presented.token.ok_or(Problem::RecoverySessionMissing)?.hash();
        let (pool, now) = (&self.app.pool, self.app.time()?);
        let find = || find_active(pool, now, &token, presented.id.as_deref(), Step::Verify);
        // A token is of one session for ever, so what is found out before the attempt still holds when it is spent.
        if presented.id.is_some() || code.is_err() {
            find().await?;
        }
        let code = code.inspect_err(|_| self.count(CodeOutcome::Malformed))?;
        let Some(attempt) = within_deadline("spend attempt", spend_attempt(pool, now, &token)).await? else {
            find().await?;
            // It cannot have become active again in between, as attempts do not come back.
            return Err(Problem::RecoverySessionSpent.into());
        };
        let wrong = || {
            self.count(CodeOutcome::Wrong);
            Error::in_field(Problem::CodeInvalid, "code").with(Detail::AttemptsLeft(attempt.left))
        };
        let right = self.app.code_keys.by_id(&attempt.key_id);
        if !right.is_some_and(|key| key.code(attempt.session_id).is(&code)) || attempt.decoy {
            return Err(wrong());
        }
        let token = Token::issue(self.app.code_keys.newest(), TOKEN_LABEL, now);
        let token_hash = token.hash();
        let ends = now + RESET_LIFETIME;
        transact("mark verified", async {
            let account =
                account::in_recovery(pool, &attempt.email, attempt.number).await?.ok_or_else(wrong)?;
            let mut transaction = pool.begin().await?;
            // First, as everywhere: the account's row is locked before those of its recoveries.
            account::mark_reached(&mut transaction, account.id).await?;
            let marked = sqlx::query!(
                "UPDATE recovery_session SET state = 'verified', verified_at = $2, expires_at = $3, token_hash = $4
                 WHERE id = $1 AND state = 'code_sent' AND expires_at > $2",
                attempt.session_id,
                now,
                ends,
                token_hash.as_bytes(),
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
        Ok(Verified { token, id: RecoveryId::of(attempt.session_id), lifetime: RESET_LIFETIME })
    }

    fn count(&self, outcome: CodeOutcome) {
        self.app.metrics.codes.get_or_create(&CodeLabel { outcome }).inc();
    }
}

/// Spends an attempt of a session that waits for its code; `None` if there is no such session or no attempt.
async fn spend_attempt(
    pool: &PgPool,
    now: OffsetDateTime,
    token: &TokenHash,
) -> Result<Option<Attempt>, sqlx::Error> {
    let row = sqlx::query!(
        r#"UPDATE recovery_session SET attempts_left = attempts_left - 1
           WHERE token_hash = $1 AND state IN ('code_sent', 'revoked') AND attempts_left > 0 AND expires_at > $2
           RETURNING id, email, number, key_id, state AS "state: State", attempts_left"#,
        token.as_bytes(),
        now
    );
    Ok(row.fetch_optional(pool).await?.map(|row| Attempt {
        session_id: row.id,
        email: row.email,
        number: row.number,
        key_id: row.key_id,
        decoy: row.state == State::Revoked,
        left: row.attempts_left,
    }))
}
