//! What a signed-in user may still do when the change is written: with a session that may have been
//! stolen, and that may have ended after the request was authenticated.

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::Authenticated;
use crate::account::{self, Account};
use crate::app::App;
use crate::database::within_deadline;
use crate::error::{Error, Problem};
use crate::password::{Password, PasswordMatch, Place};
use crate::throttle;

/// Verifies the current password of a signed-in user, and returns its stored hash, for
/// [`lock_if_open`]. `field` is the member of the request that has the password.
///
/// Draws a unit of the account's rate limit of wrong passwords, `throttle::password_key`, whether
/// the password is right or wrong, and does not refund it.
///
/// # Errors
///
/// `PasswordThrottled`; `PasswordIncorrect`; `StorageUnavailable`.
pub(crate) async fn confirm_password(
    app: &App,
    caller: &Authenticated,
    place: &Place<'_>,
    password: &Password,
    field: &'static str,
) -> Result<String, Error> {
    let (pool, id) = (&app.pool, caller.account.id);
    let key = throttle::password_key(id);
    throttle::draw(pool, app.time()?, &key, app.failure_limit, Problem::PasswordThrottled).await?;
    let stored = within_deadline("find password", account::password_hash(pool, id)).await?;
    match (place.verify(password, stored.clone(), None).await?, stored) {
        (PasswordMatch::Right { .. }, Some(stored)) => Ok(stored),
        _ => Err(Error::in_field(Problem::PasswordIncorrect, field)),
    }
}

/// Locks the account of a signed-in user, if the user's session is still open. A reset may have
/// ended it since the request was authenticated, and must not be undone. With `password_hash`, only
/// if that hash is still stored.
pub(crate) async fn lock_if_open(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    caller: &Authenticated,
    password_hash: Option<&str>,
) -> Result<Option<Account>, sqlx::Error> {
    let locked = account::lock(&mut *transaction, caller.account.id, password_hash).await?;
    let Some(account) = locked else { return Ok(None) };
    let open = sqlx::query_scalar!(
        r#"SELECT id FROM session WHERE id = $1 AND revoked_at IS NULL AND expires_at > $2 AND last_seen_at > $3"#,
        caller.session.id,
        now,
        now - app.config.sessions.session_idle,
    );
    Ok(open.fetch_optional(transaction).await?.map(|_| account))
}
