//! Opening a session: after a login, after a reset, after a changed password.

use std::net::IpAddr;

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::{Authenticated, KEPT_PER_ACCOUNT, Session, TOKEN_LABEL, revoke_all};
use crate::account::{self, Account};
use crate::app::App;
use crate::client::Client;
use crate::clock::new_id;
use crate::email_address::EmailAddress;
use crate::known_device::{self, DeviceId, KnownDevice};
use crate::secret::Token;
use crate::throttle::{self, Draw};
use crate::{audit, outbox};

/// Where somebody signs in.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Who asks.
    pub client: &'a Client,
    /// The browser, if somebody has signed in on it before.
    pub device: Option<&'a KnownDevice>,
}

/// A session that was just opened.
#[derive(Debug)]
pub struct Opened {
    token: Token,
    by: Authenticated,
    device_cookie: Option<String>,
}

/// What somebody gets who has just signed in.
#[derive(Debug)]
pub struct SignedIn {
    /// The session's token: the one time that it is shown.
    pub token: Token,
    /// The session and its owner.
    pub by: Authenticated,
    /// A JWT for the REST API.
    pub jwt: String,
    /// The value of the cookie by which this browser is known from now on. None if too many became known with this address
    /// of late: then it draws on the budgets of strangers.
    pub device_cookie: Option<String>,
}

impl Opened {
    /// Signs a JWT.
    #[must_use]
    pub fn signed_in(self, app: &App, now: OffsetDateTime) -> SignedIn {
        let jwt = self.by.jwt(app, now);
        SignedIn { jwt, token: self.token, by: self.by, device_cookie: self.device_cookie }
    }
}

/// Opens a session of a locked account, makes the browser known, and forgets the oldest of too many sessions.
pub(crate) async fn open(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account: Account,
    caller: Caller<'_>,
) -> Result<Opened, sqlx::Error> {
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
    };
    sqlx::query!(
        "INSERT INTO session (id, token_hash, account_id, authenticated_at, last_seen_at, expires_at, client_ip, user_agent)
         VALUES ($1, $2, $3, $4, $4, $5, $6, $7)",
        session.id,
        token_hash.as_bytes(),
        account.id,
        now,
        ends_at,
        client.ip as IpAddr,
        client.user_agent,
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        // Those that have ended go first.
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
    Ok(Opened { token, by: Authenticated { session, account }, device_cookie })
}

/// The cookie's value for a browser that has just signed in. One that is known keeps its name; a new name draws on the
/// address's budget of them, or whoever knows a password once could make names, and budgets, without end.
async fn make_known(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account: &Account,
    device: Option<&KnownDevice>,
) -> Result<Option<String>, sqlx::Error> {
    let Ok(address) = EmailAddress::parse(&account.email) else { return Ok(None) };
    let kept = device.filter(|device| !device.is_ageing(now) && device.of(&address).is_some());
    let id = if let Some(device) = kept {
        device.id()
    } else {
        let key = throttle::device_key(&address);
        if throttle::spend(transaction, now, &key, app.device_limit).await? != Draw::Drawn {
            return Ok(None);
        }
        DeviceId::new(now)
    };
    Ok(Some(known_device::issue(&known_device::COOKIE, &app.device_keys, id, &address)))
}

/// A password that takes the place of another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewPassword<'a> {
    /// Its hash.
    pub password_hash: &'a str,
    /// How it came about: `PasswordReset` or `PasswordChanged`.
    pub cause: audit::Event,
}

/// Everything that follows from a new password of a locked account: its recoveries and sessions end, a new one is opened,
/// the owner's mail owed, the event recorded.
pub(crate) async fn replace_password(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account: Account,
    new: NewPassword<'_>,
    caller: Caller<'_>,
) -> Result<Opened, sqlx::Error> {
    let client = caller.client;
    account::set_password(transaction, now, account.id, new.password_hash).await?;
    revoke_all(transaction, now, account.id, None).await?;
    let kept = app.config.mail.notice_retention;
    outbox::enqueue_notice(transaction, now, account.id, client.locale, &client.user_agent, kept).await?;
    audit::record(&mut *transaction, now, new.cause, account.id, Some(client.into())).await?;
    open(app, transaction, now, account, caller).await
}
