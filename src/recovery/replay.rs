//! Replays: a client whose answer of `verify` or `reset` was lost sends the same key again, and
//! gets that success again with a new token in place of the lost one (docs/decisions/0035).
//!
//! Only successes are stored, for [`LIFETIME`]: the hash of the key, and the token or session that
//! the success replaced or opened. A replay proves again what the first request proved: the code,
//! or the new password. It runs under the lock of the account's row, so replays run one after
//! another, and each ends the token of the one before.

use std::fmt;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Presented, Recovery, RecoveryId, TOKEN_LABEL, Verified};
use crate::client::Client;
use crate::database::{transact, within_deadline};
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::metrics::CodeOutcome;
use crate::password::{Password, PasswordMatch};
use crate::second_factor::Method;
use crate::secret::{Code, Token, TokenHash};
use crate::session::{self, Caller, SignedIn};
use crate::{account, audit, throttle};

/// How long a success can be repeated.
const LIFETIME: Duration = Duration::from_mins(2);
/// The lengths of a key. The shortest has 128 random bits in base64.
const KEY_CHARS: std::ops::RangeInclusive<usize> = 22..=64;

/// The SHA-256 of an `Idempotency-Key`. A client chooses a random key for each action of its user.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyKey([u8; 32]);

impl IdempotencyKey {
    /// Reads a key: 22 to 64 visible ASCII characters without `"` and `\`. It may be in quotation
    /// marks, as in the IETF draft; they are not part of the key.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        let is_valid = KEY_CHARS.contains(&bare.len()) && bare.bytes().all(plain);
        is_valid.then(|| Self(Sha256::digest(bare).into()))
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdempotencyKey(redacted)")
    }
}

/// What a success stores, so that it can be repeated. Every field is `None` without a key.
pub(super) struct Remembered<'a> {
    pub until: Option<OffsetDateTime>,
    pub key: Option<&'a [u8]>,
}

impl<'a> Remembered<'a> {
    pub(super) fn new(key: Option<&'a IdempotencyKey>, now: OffsetDateTime) -> Self {
        Self { until: key.map(|_| now + LIFETIME), key: key.map(|key| &key.0[..]) }
    }
}

/// Whether a request that was refused for `problem` may be a replay: a success changes the token or
/// the state, and the recovery may have expired since.
const fn may_be_replay(problem: Problem) -> bool {
    matches!(
        problem,
        Problem::RecoverySessionMissing | Problem::RecoverySessionUsed | Problem::RecoverySessionExpired
    )
}

/// A verified recovery whose `verify` can be replayed.
struct VerifiedOnce {
    id: Uuid,
    email: String,
    number: i64,
    key_id: String,
    expires_at: OffsetDateTime,
}

impl Recovery {
    /// Repeats the success of an earlier `verify` after the same request was `refused`. A wrong
    /// code ends the replay. Such a code is at most the fifth wrong guess, because one of the five
    /// attempts was the success.
    pub(super) async fn replay_verify(
        &self,
        refused: Error,
        presented: &Presented,
        code: &Code,
        client: &Client,
    ) -> Result<Verified, Error> {
        let (Some(token), Some(key), true) =
            (&presented.token, presented.key, may_be_replay(refused.problem))
        else {
            return Err(refused);
        };
        let (pool, now, token) = (&self.app.pool, self.app.time()?, token.hash());
        let find = within_deadline("find replay", find_verified(pool, now, &token, &key));
        let Some(recovery) = find.await? else { return Err(refused) };
        let id = RecoveryId::of(recovery.id);
        if presented.id.as_ref().is_some_and(|expected| *expected != id.to_string()) {
            return Err(Problem::RecoveryIdMismatch.into());
        }
        let right = self.app.code_keys.by_id(&recovery.key_id);
        let is_right = right.is_some_and(|key| key.code(recovery.id).matches(code));
        let issued = Token::issue(self.app.code_keys.newest(), TOKEN_LABEL, now);
        let replayed = transact("replay verify", async {
            let mut transaction = pool.begin().await?;
            let locked =
                account::lock_in_recovery(&mut transaction, &recovery.email, recovery.number).await?;
            let Some(account) = locked else { return Ok(false) };
            // Under the lock, so that only the first of parallel guesses counts.
            let changed = if is_right {
                let token_hash = issued.hash();
                let replaced = sqlx::query!(
                    "UPDATE recovery_session SET token_hash = $4
                     WHERE id = $1 AND state = 'verified' AND replay_key = $2 AND replay_token_hash = $3
                         AND replay_until > $5",
                    recovery.id,
                    &key.0[..],
                    token.as_bytes(),
                    token_hash.as_bytes(),
                    now,
                );
                replaced.execute(&mut *transaction).await?.rows_affected()
            } else {
                forget(&mut transaction, recovery.id).await?
            };
            if is_right && changed > 0 {
                let event = audit::Event::RecoveryVerified;
                audit::record(&mut *transaction, now, event, account.id, Some(client.into())).await?;
            }
            transaction.commit().await?;
            Ok(is_right && changed > 0)
        })
        .await?;
        self.count(if is_right { CodeOutcome::Right } else { CodeOutcome::Wrong });
        if !replayed {
            return Err(refused);
        }
        let lifetime = (recovery.expires_at - now).try_into().unwrap_or_default();
        Ok(Verified { token: issued, id, lifetime })
    }

    /// Repeats the success of an earlier `reset` after the same request was `refused`. The password
    /// has to be the one that was set. A wrong one counts as a failed login of the address.
    pub(super) async fn replay_reset(
        &self,
        refused: Error,
        presented: &Presented,
        password: &Password,
        caller: Caller<'_>,
    ) -> Result<SignedIn, Error> {
        let (Some(token), Some(key), true) =
            (&presented.token, presented.key, may_be_replay(refused.problem))
        else {
            return Err(refused);
        };
        let (app, pool, now, token) = (&self.app, &self.app.pool, self.app.time()?, token.hash());
        let find = within_deadline("find replay", find_consumed(pool, now, &token, &key));
        let Some((id, email)) = find.await? else { return Err(refused) };
        let place = app.hasher.place()?;
        let bucket_key =
            throttle::login_key(&email, caller.device.and_then(|device| device.owned_by(&email)));
        let limit = app.failure_limit;
        let drawn = throttle::draw(pool, now, &bucket_key, limit, Problem::LoginThrottled).await;
        if drawn.as_ref().is_err_and(|error| error.problem == Problem::LoginThrottled) {
            return Err(refused);
        }
        drawn?;
        let find = within_deadline("find account", account::login_candidate(pool, &email));
        let Some(candidate) = find.await?.filter(|candidate| candidate.active) else { return Err(refused) };
        let (account, stored) = (candidate.account, candidate.password_hash);
        let result = place.verify(password, stored.clone(), None).await?;
        drop(place);
        let (PasswordMatch::Right { .. }, Some(stored)) = (result, stored) else {
            let (event, client) = (audit::Event::SignInFailed, caller.client.into());
            let record = audit::record(pool, now, event, account.id, Some(client));
            within_deadline("record a failed login", record).await?;
            return Err(refused);
        };
        let now = app.time()?;
        let opened = transact("replay reset", async {
            let mut transaction = pool.begin().await?;
            let locked = account::lock(&mut transaction, account.id, Some(&stored)).await?;
            let Some(account) = locked else { return Ok(None) };
            throttle::refund(&mut *transaction, &bucket_key, limit).await?;
            let caller = Caller { second_factor: method_of(&mut transaction, id).await?, ..caller };
            let opened = match lost_session(&mut transaction, now, id, &key).await? {
                Some(lost) => session::replace(app, &mut transaction, now, account, lost, caller).await?,
                None => None,
            };
            if let Some(opened) = &opened {
                // The sweeper may have cleared the row meanwhile.
                sqlx::query!(
                    "UPDATE recovery_session SET replay_session_id = $2 WHERE id = $1 AND replay_until IS NOT NULL",
                    id,
                    opened.session_id()
                )
                .execute(&mut *transaction)
                .await?;
            }
            // The password was right, so the refund is kept even if no session was opened.
            transaction.commit().await?;
            Ok(opened)
        })
        .await?;
        opened.map(|opened| opened.signed_in(app, now)).ok_or(refused)
    }
}

async fn find_verified(
    pool: &PgPool,
    now: OffsetDateTime,
    replaced: &TokenHash,
    key: &IdempotencyKey,
) -> Result<Option<VerifiedOnce>, sqlx::Error> {
    sqlx::query_as!(
        VerifiedOnce,
        "SELECT id, email, number, key_id, expires_at FROM recovery_session
         WHERE replay_until > $1 AND replay_token_hash = $2 AND replay_key = $3 AND state = 'verified'
             AND expires_at > $1",
        now,
        replaced.as_bytes(),
        &key.0[..],
    )
    .fetch_optional(pool)
    .await
}

/// The recovery that has set a password with this token and key, and its address.
async fn find_consumed(
    pool: &PgPool,
    now: OffsetDateTime,
    token: &TokenHash,
    key: &IdempotencyKey,
) -> Result<Option<(Uuid, EmailAddress)>, sqlx::Error> {
    let row = sqlx::query!(
        "SELECT id, email FROM recovery_session
         WHERE token_hash = $1 AND state = 'consumed' AND replay_key = $2 AND replay_until > $3",
        token.as_bytes(),
        &key.0[..],
        now,
    );
    let row = row.fetch_optional(pool).await?;
    Ok(row.and_then(|row| Some((row.id, EmailAddress::parse(&row.email).ok()?))))
}

/// The session that the last answer to a `reset` was about. Read under the account's lock.
async fn lost_session(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    key: &IdempotencyKey,
) -> Result<Option<Uuid>, sqlx::Error> {
    let session = sqlx::query_scalar!(
        "SELECT replay_session_id FROM recovery_session WHERE id = $1 AND replay_key = $2 AND replay_until > $3",
        id,
        &key.0[..],
        now,
    );
    Ok(session.fetch_optional(transaction).await?.flatten())
}

/// How the second factor of a recovery was given.
async fn method_of(transaction: &mut PgConnection, id: Uuid) -> Result<Option<Method>, sqlx::Error> {
    let method = sqlx::query_scalar!(
        r#"SELECT second_factor AS "second_factor: Method" FROM recovery_session WHERE id = $1"#,
        id
    );
    Ok(method.fetch_optional(transaction).await?.flatten())
}

/// Stores the success of a `reset` that opened a session.
pub(super) async fn remember_session(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    key: &IdempotencyKey,
    session_id: Uuid,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE recovery_session
         SET replay_until = $2, replay_key = $3, replay_token_hash = NULL, replay_session_id = $4
         WHERE id = $1",
        id,
        now + LIFETIME,
        &key.0[..],
        session_id,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

async fn forget(transaction: &mut PgConnection, id: Uuid) -> Result<u64, sqlx::Error> {
    let forgotten = sqlx::query!(
        "UPDATE recovery_session
         SET replay_until = NULL, replay_key = NULL, replay_token_hash = NULL, replay_session_id = NULL
         WHERE id = $1 AND replay_until IS NOT NULL",
        id,
    );
    Ok(forgotten.execute(transaction).await?.rows_affected())
}

/// Clears at most `limit` successes that can no longer be repeated.
pub async fn sweep(pool: &PgPool, now: OffsetDateTime, limit: i64) -> Result<u64, sqlx::Error> {
    // Locked rows are skipped: a reset may be storing a newer success in such a row.
    let forgotten = sqlx::query!(
        "UPDATE recovery_session
         SET replay_until = NULL, replay_key = NULL, replay_token_hash = NULL, replay_session_id = NULL
         WHERE id = ANY(ARRAY(
             SELECT id FROM recovery_session WHERE replay_until <= $1 ORDER BY replay_until LIMIT $2
             FOR NO KEY UPDATE SKIP LOCKED
         ))",
        now,
        limit,
    );
    Ok(forgotten.execute(pool).await?.rows_affected())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_22_to_64_visible_characters() {
        let key = "0123456789abcdefghijkl";
        let parsed = IdempotencyKey::parse(key).unwrap();
        assert_eq!(IdempotencyKey::parse(&format!("\"{key}\"")), Some(parsed));
        assert_ne!(IdempotencyKey::parse(&format!("{key}m")), Some(parsed));
        assert!(IdempotencyKey::parse(&"~".repeat(64)).is_some());
        let quoted = |inner: &str| format!("\"{inner}\"");
        for bad in [
            String::new(),
            key[1..].to_owned(),
            quoted(&key[1..]),
            "~".repeat(65),
            quoted(&"~".repeat(65)),
            format!("{key} "),
            format!("{key} x"),
            format!("{key}é"),
            format!("{key}\t"),
            format!("\"{key}"),
            format!("{key}\""),
            format!("{key}\\x"),
            format!("\"{key}\";a=1"),
        ] {
            assert_eq!(IdempotencyKey::parse(&bad), None, "{bad}");
        }
    }
}
