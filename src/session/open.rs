//! Opens a session: after a login, a reset or a changed password.

use std::net::IpAddr;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Authenticated, KEPT_PER_ACCOUNT, Session, TOKEN_LABEL, revoke_all, revoke_one};
use crate::account::{self, Account};
use crate::app::App;
use crate::client::Client;
use crate::clock::new_id;
use crate::email_address::EmailAddress;
use crate::known_device::{self, DeviceId, KnownDevice};
use crate::second_factor::Method;
use crate::secret::Token;
use crate::throttle::{self, Draw};
use crate::{audit, outbox};

/// The client and browser of a request that signs in.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// The client.
    pub client: &'a Client,
    /// The browser, if a user has signed in on it before.
    pub device: Option<&'a KnownDevice>,
    /// How the second factor was given, if the account asks for one.
    pub second_factor: Option<Method>,
}

/// A session that was just opened.
#[derive(Debug)]
pub struct OpenedSession {
    token: Token,
    authenticated: Authenticated,
    device_cookie: Option<String>,
}

/// What a client receives after signing in.
#[derive(Debug)]
pub struct SignedIn {
    /// The session's token. It is shown only this once.
    pub token: Token,
    /// The session and its owner.
    pub authenticated: Authenticated,
    /// A JWT for the REST API.
    pub jwt: String,
    /// The value of the cookie that makes this browser known from now on. `None` if too many
    /// browsers became known with this address recently; then it shares the rate limits of unknown
    /// browsers.
    pub device_cookie: Option<String>,
}

impl OpenedSession {
    /// The session's id.
    #[must_use]
    pub fn session_id(&self) -> Uuid {
        self.authenticated.session.id
    }

    /// Adds a signed JWT.
    #[must_use]
    pub fn signed_in(self, app: &App, now: OffsetDateTime) -> SignedIn {
        let jwt = self.authenticated.jwt(app, now);
        SignedIn {
            jwt,
            token: self.token,
            authenticated: self.authenticated,
            device_cookie: self.device_cookie,
        }
    }
}

/// Opens a session of a locked account, makes the browser known, and deletes sessions beyond the
/// limit per account, ended and oldest ones first.
pub(crate) async fn open(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account: Account,
    caller: Caller<'_>,
) -> Result<OpenedSession, sqlx::Error> {
    let client = caller.client;
    let token = Token::issue(app.device_keys.newest(), TOKEN_LABEL, now);
    let token_hash = token.hash();
    let ends_at = now + app.config.sessions.session_lifetime;
    let session = Session {
        id: new_id(now),
        authenticated_at: now,
        last_seen_at: now,
        expires_at: ends_at.min(now + app.config.sessions.session_idle),
        ends_at,
        client_ip: client.ip,
        user_agent: client.user_agent.clone(),
        second_factor: caller.second_factor,
    };
    sqlx::query!(
        "INSERT INTO session (id, token_hash, account_id, authenticated_at, last_seen_at, expires_at, client_ip, user_agent, second_factor)
         VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8)",
        session.id,
        token_hash.as_bytes(),
        account.id,
        now,
        ends_at,
        client.ip as IpAddr,
        client.user_agent,
        caller.second_factor as Option<Method>,
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        // Ended sessions are deleted first.
        "DELETE FROM session WHERE id = ANY(ARRAY(
             SELECT id FROM (
                 SELECT id, revoked_at IS NULL AND expires_at > $3 AND last_seen_at > $4 AS lives
                 FROM session WHERE account_id = $1 ORDER BY account_id, id DESC OFFSET 0
             ) AS newest ORDER BY lives DESC, id DESC OFFSET $2
         ))",
        account.id,
        KEPT_PER_ACCOUNT,
        now,
        now - app.config.sessions.session_idle,
    )
    .execute(&mut *transaction)
    .await?;
    let device_cookie = make_known(app, transaction, now, &account, caller.device).await?;
    Ok(OpenedSession { token, authenticated: Authenticated { session, account }, device_cookie })
}

/// Ends the session `replaced` of a locked account and opens another one, because the client did
/// not receive its token. Returns `None` if that session is no longer open.
pub(crate) async fn replace(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account: Account,
    replaced: Uuid,
    caller: Caller<'_>,
) -> Result<Option<OpenedSession>, sqlx::Error> {
    if !revoke_one(app, transaction, now, account.id, replaced).await? {
        return Ok(None);
    }
    let client = Some(caller.client.into());
    audit::record(&mut *transaction, now, audit::Event::SignedIn, account.id, client).await?;
    Ok(Some(open(app, transaction, now, account, caller).await?))
}

/// The cookie's value for a browser that has just signed in. A known browser keeps its id. A new id
/// draws from a bucket of the address: otherwise a client that learned a password once could create
/// ids, each with its own rate limits, without bound.
async fn make_known(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account: &Account,
    device: Option<&KnownDevice>,
) -> Result<Option<String>, sqlx::Error> {
    let Ok(address) = EmailAddress::parse(&account.email) else { return Ok(None) };
    let kept = device.filter(|device| !device.needs_renewal(now) && device.owned_by(&address).is_some());
    let id = if let Some(device) = kept {
        device.id()
    } else {
        let key = throttle::device_key(&address);
        if throttle::try_draw(transaction, now, &key, app.device_limit).await? != Draw::Drawn {
            return Ok(None);
        }
        DeviceId::new(now)
    };
    Ok(Some(known_device::issue(&known_device::COOKIE, &app.device_keys, id, &address)))
}

/// A password that replaces another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewPassword<'a> {
    /// Its hash.
    pub password_hash: &'a str,
    /// Why it was set: `PasswordReset` or `PasswordChanged`.
    pub cause: audit::Event,
}

/// Applies everything that follows from a new password of a locked account: ends its recoveries and
/// sessions, opens a new session, enqueues the notice to the owner, and records the event.
pub(crate) async fn replace_password(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account: Account,
    new: NewPassword<'_>,
    caller: Caller<'_>,
) -> Result<OpenedSession, sqlx::Error> {
    let client = caller.client;
    account::set_password(transaction, now, account.id, new.password_hash).await?;
    revoke_all(transaction, now, account.id, None).await?;
    let kept = app.config.mail.notice_retention;
    outbox::enqueue_notice(transaction, now, account.id, client.locale, &client.user_agent, kept).await?;
    audit::record(&mut *transaction, now, new.cause, account.id, Some(client.into())).await?;
    open(app, transaction, now, account, caller).await
}
