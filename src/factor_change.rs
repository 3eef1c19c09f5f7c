//! Second factors, enrolled and removed while signed in, with the password.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::app::App;
use crate::audit::{self, Event};
use crate::client::Client;
use crate::database::{Aborted, transact, within_deadline};
use crate::error::{Error, Problem};
use crate::password::{Password, PasswordMatch};
use crate::second_factor::enrol::{self, Finished, Listed};
use crate::second_factor::totp::Secret;
use crate::second_factor::{self, Presented};
use crate::secret::{BackupCode, Keys};
use crate::session::{self, Authenticated};
use crate::{account, throttle};

/// How long an enrolment may take after the password was given.
const ENROLMENT: time::Duration = time::Duration::minutes(5);

/// The caller's factors, and how many backup codes are unused.
///
/// # Errors
///
/// `StorageUnavailable`.
pub async fn list(app: &App, caller: &Authenticated) -> Result<(Vec<Listed>, i64), Error> {
    within_deadline("list second factors", async {
        let id = caller.account.id;
        Ok((enrol::list(&app.token_pool, id).await?, enrol::unused_backup_codes(&app.token_pool, id).await?))
    })
    .await
}

/// An enrolment that waits for a first code.
#[derive(Debug)]
pub struct Begun {
    /// The factor's id.
    pub id: Uuid,
    /// The secret for the owner's app.
    pub secret: Secret,
    /// The same as a URI, for a QR code.
    pub uri: String,
}

/// Begins to enrol an authenticator app.
///
/// # Errors
///
/// `FactorsUnavailable`; `FactorNameInvalid`; `FactorsTooMany`; those of [`confirmed`].
pub async fn begin(
    app: &App,
    caller: &Authenticated,
    password: &Password,
    name: &str,
) -> Result<Begun, Error> {
    let keys = keys(app)?;
    let name = checked_name(name)?;
    let id = caller.account.id;
    let begun = confirmed(app, caller, password, async |transaction, now| {
        enrol::begin(transaction, keys, now, id, name).await?.ok_or_else(|| Problem::FactorsTooMany.into())
    });
    let (id, secret) = begun.await?;
    let uri = secret.uri(app.config.mail.product_names()[0], &caller.account.email);
    Ok(Begun { id, secret, uri })
}

/// Confirms an enrolment that the caller began within the last five minutes. With the first factor
/// the account gets backup codes, which are shown only now, and its other sessions end: they were
/// opened without it.
///
/// # Errors
///
/// `FactorNotFound`; `SecondFactorInvalid`; `SecondFactorThrottled`; `SessionInvalid` if the session
/// ended meanwhile; `StorageUnavailable`.
pub async fn confirm(
    app: &App,
    caller: &Authenticated,
    factor: Uuid,
    code: &str,
    client: &Client,
) -> Result<Vec<BackupCode>, Error> {
    let (pool, now, id, keys) = (&app.pool, app.time()?, caller.account.id, keys(app)?);
    let (bucket_key, limit) = (throttle::factor_key(id, None), app.failure_limit);
    throttle::draw(pool, now, &bucket_key, limit, Problem::SecondFactorThrottled).await?;
    transact("confirm second factor", async {
        let mut transaction = pool.begin().await?;
        account::lock(&mut transaction, id, None).await?.ok_or(Problem::SessionInvalid)?;
        if !session::is_open(app, &mut transaction, now, caller.session.id).await? {
            return Err(Problem::SessionInvalid.into());
        }
        let begun_after = now - ENROLMENT;
        let codes = match enrol::finish(&mut transaction, keys, now, begun_after, id, factor, code).await? {
            Finished::Confirmed(codes) => codes,
            Finished::Wrong => return Err(Error::in_field(Problem::SecondFactorInvalid, "code").into()),
            Finished::NotFound => return Err(Problem::FactorNotFound.into()),
        };
        if !codes.is_empty() {
            session::revoke_all(&mut transaction, now, id, Some(caller.session.id)).await?;
        }
        session::mark_second_factor(&mut transaction, caller.session.id).await?;
        throttle::refund(&mut *transaction, &bucket_key, limit).await?;
        audit::record(&mut *transaction, now, Event::SecondFactorAdded, id, Some(client.into())).await?;
        transaction.commit().await?;
        Ok(codes)
    })
    .await
}

/// Gives a factor another name.
///
/// # Errors
///
/// `FactorNameInvalid`; `FactorNotFound`; those of [`confirmed`].
pub async fn rename(
    app: &App,
    caller: &Authenticated,
    password: &Password,
    factor: Uuid,
    name: &str,
) -> Result<(), Error> {
    let (id, name) = (caller.account.id, checked_name(name)?);
    confirmed(app, caller, password, async |transaction, _| {
        let is_renamed = enrol::rename(transaction, id, factor, name).await?;
        is_renamed.then_some(()).ok_or_else(|| Problem::FactorNotFound.into())
    })
    .await
}

/// Removes a factor, which needs a second factor besides the password.
///
/// # Errors
///
/// `SecondFactorInvalid`; `SecondFactorThrottled`; `FactorNotFound`; those of [`confirmed`].
pub async fn remove(
    app: &App,
    caller: &Authenticated,
    password: &Password,
    factor: Uuid,
    presented: &Presented,
    client: &Client,
) -> Result<(), Error> {
    let id = caller.account.id;
    with_factor(app, caller, password, presented, async |transaction, now| {
        if !enrol::remove(transaction, id, factor).await? {
            return Err(Problem::FactorNotFound.into());
        }
        audit::record(&mut *transaction, now, Event::SecondFactorRemoved, id, Some(client.into())).await?;
        Ok(())
    })
    .await
}

/// Replaces all backup codes, which needs a second factor besides the password.
///
/// # Errors
///
/// As [`remove`].
pub async fn replace_codes(
    app: &App,
    caller: &Authenticated,
    password: &Password,
    presented: &Presented,
    client: &Client,
) -> Result<Vec<BackupCode>, Error> {
    let id = caller.account.id;
    with_factor(app, caller, password, presented, async |transaction, now| {
        let codes = enrol::replace_backup_codes(transaction, id).await?;
        audit::record(&mut *transaction, now, Event::BackupCodesReplaced, id, Some(client.into())).await?;
        Ok(codes)
    })
    .await
}

/// Does something to the locked account of a caller who gives the password and a second factor.
async fn with_factor<T>(
    app: &App,
    caller: &Authenticated,
    password: &Password,
    presented: &Presented,
    work: impl AsyncFnOnce(&mut PgConnection, OffsetDateTime) -> Result<T, Aborted>,
) -> Result<T, Error> {
    let (id, now) = (caller.account.id, app.time()?);
    let (bucket_key, limit) = (throttle::factor_key(id, None), app.failure_limit);
    throttle::draw(&app.pool, now, &bucket_key, limit, Problem::SecondFactorThrottled).await?;
    confirmed(app, caller, password, async |transaction, now| {
        let keys = app.factor_keys.as_ref();
        if !second_factor::spend(&mut *transaction, keys, now, id, presented).await? {
            return Err(Error::in_field(Problem::SecondFactorInvalid, "code").into());
        }
        throttle::refund(&mut *transaction, &bucket_key, limit).await?;
        work(transaction, now).await
    })
    .await
}

/// Does something to the locked account of a caller who gives the password. A wrong password draws
/// on the same rate limit as in [`crate::password_change::change`]; a right one is refunded.
///
/// # Errors
///
/// `PasswordIncorrect`; `PasswordThrottled`; `SessionInvalid` if the session ended or the password
/// was changed meanwhile; `HashingBusy`; `StorageUnavailable`; those of `work`.
async fn confirmed<T>(
    app: &App,
    caller: &Authenticated,
    password: &Password,
    work: impl AsyncFnOnce(&mut PgConnection, OffsetDateTime) -> Result<T, Aborted>,
) -> Result<T, Error> {
    let place = app.hasher.place()?;
    let (pool, now, id) = (&app.pool, app.time()?, caller.account.id);
    let (bucket_key, limit) = (throttle::password_key(id), app.failure_limit);
    throttle::draw(pool, now, &bucket_key, limit, Problem::PasswordThrottled).await?;
    let stored = within_deadline("find password", account::password_hash(pool, id)).await?;
    let result = place.verify(password, stored.clone(), None).await?;
    let (PasswordMatch::Right { .. }, Some(stored)) = (result, stored) else {
        return Err(Error::in_field(Problem::PasswordIncorrect, "password"));
    };
    drop(place);
    let now = app.time()?;
    transact("change second factors", async {
        let mut transaction = pool.begin().await?;
        account::lock(&mut transaction, id, Some(&stored)).await?.ok_or(Problem::SessionInvalid)?;
        if !session::is_open(app, &mut transaction, now, caller.session.id).await? {
            return Err(Problem::SessionInvalid.into());
        }
        throttle::refund(&mut *transaction, &bucket_key, limit).await?;
        let done = work(&mut transaction, now).await?;
        transaction.commit().await?;
        Ok(done)
    })
    .await
}

fn keys(app: &App) -> Result<&Keys, Error> {
    app.factor_keys.as_ref().ok_or_else(|| Problem::FactorsUnavailable.into())
}

fn checked_name(name: &str) -> Result<&str, Error> {
    let name = name.trim();
    let is_valid = (1..=60).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    if is_valid { Ok(name) } else { Err(Error::in_field(Problem::FactorNameInvalid, "name")) }
}
