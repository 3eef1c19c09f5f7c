//! Owns `session`: which users are signed in, on which clients, and for how long.
//!
//! A session ends after `SESSION_IDLE` without use, at the latest `SESSION_LIFETIME` after it
//! began, or when it is revoked: by logout, by its owner from another session, by a changed
//! password, or by an operator. Each request that presents its token extends the idle limit.

mod confirm;
mod login;
mod open;
mod revoke;

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use sqlx::{PgConnection, PgExecutor, PgPool};
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) use self::confirm::{confirm_password, lock_if_open};
pub use self::login::Login;
pub use self::open::{Caller, OpenedSession, SignedIn};
pub(crate) use self::open::{NewPassword, replace, replace_password};
pub use self::revoke::{count_all_unended, count_unended};
pub(crate) use self::revoke::{revoke_all, revoke_page};
use crate::account::{self, Account};
use crate::app::App;
use crate::audit;
use crate::client::Client;
use crate::clock::{first_id_of, new_id, serialize_rfc3339};
use crate::config::{JWT_LIFETIME, STORAGE_DEADLINE};
use crate::database::{OUTAGE_RETRY_AFTER, transact, within_deadline};
use crate::error::{Error, Problem};
use crate::jwt::Claims;
use crate::secret::{Token, TokenHash};
use crate::throttle::{self, Turn};

/// The label under which session tokens are issued.
const TOKEN_LABEL: &str = "session-token/1";

/// The maximum number of sessions that are kept for one account. A client that signs in for every
/// call must not fill the table or make revoking all sessions slow.
const KEPT_PER_ACCOUNT: i64 = 100;
/// The precision of `last_seen_at`, so that not every request has to write.
const SEEN_EVERY: Duration = Duration::from_secs(10);

/// A session that has not ended, as its owner and operators may see it.
#[derive(Clone, Debug, Serialize)]
pub struct Session {
    /// Its id; not a secret.
    pub id: Uuid,
    /// When its owner entered the password that opened the session.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub authenticated_at: OffsetDateTime,
    /// When its token was last presented.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub last_seen_at: OffsetDateTime,
    /// When it ends if its token is not presented again.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When it ends in any case.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub ends_at: OffsetDateTime,
    /// The client address it was opened from.
    pub client_ip: IpAddr,
    /// The User-Agent it was opened with.
    pub user_agent: String,
}

/// A session and its owner.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// The session.
    pub session: Session,
    /// Its owner.
    pub account: Account,
}

impl Authenticated {
    /// A JWT for the REST API. It lives 10 minutes, and never past the session's end.
    #[must_use]
    pub fn jwt(&self, app: &App, now: OffsetDateTime) -> String {
        let claims = Claims {
            iss: app.jwt_issuer.clone(),
            sub: self.account.id,
            aud: app.config.jwt.jwt_audience.clone(),
            iat: now.unix_timestamp(),
            exp: self.session.ends_at.min(now + JWT_LIFETIME).unix_timestamp(),
            jti: new_id(now),
            sid: self.session.id,
        };
        app.jwt_keys.sign(&claims, now)
    }
}

/// Whether this service issued a session token, judged by the token's MAC. Tokens of the previous
/// format have no MAC. The MAC uses `DEVICE_SECRETS`, which are kept for a year, because a session
/// outlives a rotation of `RECOVERY_SECRETS`.
#[must_use]
pub fn was_issued(app: &App, token: &Token) -> bool {
    token.was_issued(&app.device_keys, TOKEN_LABEL, app.config.sessions.session_lifetime, app.clock.now())
}

/// Returns the session of a token and extends its idle limit.
///
/// # Errors
///
/// `SessionInvalid` if there is none, it has ended, or its account is no longer active;
/// `StorageUnavailable`.
pub async fn authenticate(app: &App, presented: Option<Token>) -> Result<Authenticated, Error> {
    let token = presented.ok_or(Problem::SessionInvalid)?.hash();
    let (now, idle) = (app.time()?, app.config.sessions.session_idle);
    within_deadline("find session", async {
        let Some((account_id, session)) = touch(&app.token_pool, now, idle, &token).await? else {
            return Ok(None);
        };
        let account = account::active(&app.token_pool, account_id).await?;
        Ok(account.map(|account| Authenticated { session, account }))
    })
    .await?
    .ok_or_else(|| Problem::SessionInvalid.into())
}

/// The columns of a row that clients may see.
struct Row {
    id: Uuid,
    account_id: Uuid,
    authenticated_at: OffsetDateTime,
    last_seen_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    client_ip: IpAddr,
    user_agent: String,
}

impl Row {
    fn session(self, idle: Duration) -> Session {
        Session {
            id: self.id,
            authenticated_at: self.authenticated_at,
            last_seen_at: self.last_seen_at,
            expires_at: self.expires_at.min(self.last_seen_at + idle),
            ends_at: self.expires_at,
            client_ip: self.client_ip,
            user_agent: self.user_agent,
        }
    }
}

async fn touch(
    pool: &PgPool,
    now: OffsetDateTime,
    idle: Duration,
    token: &TokenHash,
) -> Result<Option<(Uuid, Session)>, sqlx::Error> {
    let row = sqlx::query_as!(
        Row,
        r#"SELECT id, account_id, authenticated_at, last_seen_at, expires_at, client_ip AS "client_ip: IpAddr",
               user_agent
           FROM session
           WHERE token_hash = $1 AND revoked_at IS NULL AND expires_at > $2 AND last_seen_at > $3"#,
        token.as_bytes(),
        now,
        now - idle,
    );
    let Some(mut row) = row.fetch_optional(pool).await? else { return Ok(None) };
    if row.last_seen_at < now - SEEN_EVERY {
        let seen = sqlx::query!(
            "UPDATE session SET last_seen_at = greatest(last_seen_at, $2) WHERE id = $1 AND revoked_at IS NULL",
            row.id,
            now
        );
        if seen.execute(pool).await?.rows_affected() == 0 {
            return Ok(None);
        }
        row.last_seen_at = now;
    }
    Ok(Some((row.account_id, row.session(idle))))
}

/// Ends the session of a token, whatever the state of its account.
///
/// # Errors
///
/// `SessionInvalid` if there is none or it has ended; `StorageUnavailable`.
pub async fn logout(app: &App, presented: Option<Token>, client: &Client) -> Result<(), Error> {
    let token = presented.ok_or(Problem::SessionInvalid)?.hash();
    let now = app.clock.now();
    within_deadline("end session", async {
        let mut transaction = app.token_pool.begin().await?;
        let ended = sqlx::query_scalar!(
            "UPDATE session SET revoked_at = $2
             WHERE token_hash = $1 AND revoked_at IS NULL AND expires_at > $2 AND last_seen_at > $3
             RETURNING account_id",
            token.as_bytes(),
            now,
            now - app.config.sessions.session_idle,
        );
        let account_id = ended.fetch_optional(&mut *transaction).await?;
        if let Some(id) = account_id {
            audit::record(&mut *transaction, now, audit::Event::SignedOut, id, Some(client.into())).await?;
        }
        transaction.commit().await?;
        Ok(account_id.map(|_| ()))
    })
    .await?
    .ok_or_else(|| Problem::SessionInvalid.into())
}

/// The caller's open sessions, the newest first; at most 100 are kept.
///
/// # Errors
///
/// `StorageUnavailable`.
pub async fn list(app: &App, caller: &Authenticated) -> Result<Vec<Session>, Error> {
    within_deadline(
        "list sessions",
        list_open(&app.token_pool, app.clock.now(), app.config.sessions.session_idle, caller.account.id),
    )
    .await
}

/// The open sessions of an account, the newest first.
pub async fn list_open(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    idle: Duration,
    account_id: Uuid,
) -> Result<Vec<Session>, sqlx::Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"SELECT id, account_id, authenticated_at, last_seen_at, expires_at, client_ip AS "client_ip: IpAddr",
               user_agent
           FROM session
           WHERE account_id = $1 AND revoked_at IS NULL AND expires_at > $2 AND last_seen_at > $3
           ORDER BY account_id, id DESC LIMIT $4"#,
        account_id,
        now,
        now - idle,
        KEPT_PER_ACCOUNT,
    );
    Ok(rows.fetch_all(executor).await?.into_iter().map(|row| row.session(idle)).collect())
}

/// Ends one session of the caller's account. It may be the caller's own session.
///
/// # Errors
///
/// `SessionInvalid` if the caller's session has ended meanwhile; `NotFound` if the account has no
/// such open session; `StorageUnavailable`.
pub async fn end(app: &App, caller: &Authenticated, id: Uuid, client: &Client) -> Result<(), Error> {
    let now = app.clock.now();
    let _turn = turn_to_end(app, caller).await?;
    transact("end a session", async {
        let mut transaction = app.token_pool.begin().await?;
        if lock_if_open(app, &mut transaction, now, caller, None).await?.is_none() {
            return Err(Problem::SessionInvalid.into());
        }
        if !revoke_one(app, &mut transaction, now, caller.account.id, id).await? {
            return Err(Problem::NotFound.into());
        }
        let own = id == caller.session.id;
        let event = if own { audit::Event::SignedOut } else { audit::Event::SessionsEnded };
        audit::record(&mut *transaction, now, event, caller.account.id, Some(client.into())).await?;
        transaction.commit().await?;
        Ok(())
    })
    .await
}

/// Ends every session of the account except the caller's.
///
/// # Errors
///
/// `SessionInvalid` if the caller's session has ended meanwhile; `StorageUnavailable`.
pub async fn end_others(app: &App, caller: &Authenticated, client: &Client) -> Result<(), Error> {
    let now = app.clock.now();
    let _turn = turn_to_end(app, caller).await?;
    within_deadline("end other sessions", async {
        let mut transaction = app.token_pool.begin().await?;
        if lock_if_open(app, &mut transaction, now, caller, None).await?.is_none() {
            return Ok(None);
        }
        if revoke_all(&mut transaction, now, caller.account.id, Some(caller.session.id)).await? > 0 {
            let event = audit::Event::SessionsEnded;
            audit::record(&mut *transaction, now, event, caller.account.id, Some(client.into())).await?;
        }
        transaction.commit().await?;
        Ok(Some(()))
    })
    .await?
    .ok_or_else(|| Problem::SessionInvalid.into())
}

/// Queues requests that end sessions of one account. They wait in memory, because a request that
/// waits for the row lock occupies a connection that other requests need.
async fn turn_to_end(app: &App, caller: &Authenticated) -> Result<Turn, Error> {
    let turn =
        app.session_turns.take(throttle::sessions_key(caller.account.id), Instant::now() + STORAGE_DEADLINE);
    turn.await.ok_or_else(|| Error::retry_after(Problem::StorageUnavailable, OUTAGE_RETRY_AFTER))
}

/// Ends an open session of a locked account. Returns whether there was one.
async fn revoke_one(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    id: Uuid,
) -> Result<bool, sqlx::Error> {
    let ended = sqlx::query!(
        "UPDATE session SET revoked_at = $3
         WHERE id = $1 AND account_id = $2 AND revoked_at IS NULL AND expires_at > $3 AND last_seen_at > $4",
        id,
        account_id,
        now,
        now - app.config.sessions.session_idle,
    );
    Ok(ended.execute(transaction).await?.rows_affected() > 0)
}

/// Deletes at most `limit` sessions that began more than `age` ago: the longest lifetime plus the
/// retention after it. The primary key is the order of creation.
pub async fn sweep(
    pool: &PgPool,
    now: OffsetDateTime,
    age: Duration,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "DELETE FROM session WHERE id = ANY(ARRAY(SELECT id FROM session WHERE id < $1 ORDER BY id LIMIT $2))",
        first_id_of(now - age),
        limit
    );
    Ok(done.execute(pool).await?.rows_affected())
}
