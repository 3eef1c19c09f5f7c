//! Owns `login_step`: a login whose password was right, and whose account asks for a second factor.

use std::time::Duration;

use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;
use uuid::Uuid;

use super::open::open;
use super::{Caller, OpenedSession, SignedIn};
use crate::account::{self, Account};
use crate::app::App;
use crate::audit;
use crate::database::{transact, within_deadline};
use crate::email_address::EmailAddress;
use crate::error::{Detail, Error, Problem};
use crate::second_factor::{self, Method, Presented};
use crate::secret::{Token, TokenHash};
use crate::throttle;

/// How long an owner has to give the second factor.
pub const STEP_LIFETIME: Duration = Duration::from_mins(5);
/// How many second factors one login may try.
const ATTEMPTS: i16 = 5;
const TOKEN_LABEL: &str = "login-step/1";

/// A login that waits for its second factor.
#[derive(Debug)]
pub struct LoginStep {
    /// The token for the cookie.
    pub token: Token,
    /// The methods that the account can use.
    pub methods: Vec<Method>,
}

/// What a right password leads to.
#[derive(Debug)]
pub enum LoginAnswer {
    /// The account has no second factor.
    SignedIn(Box<SignedIn>),
    /// The account asks for its second factor.
    SecondFactor(LoginStep),
}

/// Stores that the password of a locked account was right.
pub(super) async fn begin(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    methods: Vec<Method>,
) -> Result<LoginStep, sqlx::Error> {
    let token = Token::issue(app.device_keys.newest(), TOKEN_LABEL, now);
    let token_hash = token.hash();
    let changed_at = account::password_changed_at(&mut *transaction, account_id).await?;
    sqlx::query!(
        "INSERT INTO login_step (token_hash, account_id, password_changed_at, attempts_left, expires_at)
         VALUES ($1, $2, $3, $4, $5)",
        token_hash.as_bytes(),
        account_id,
        changed_at,
        ATTEMPTS,
        now + STEP_LIFETIME
    )
    .execute(transaction)
    .await?;
    Ok(LoginStep { token, methods })
}

/// Opens the session of a login that waits for its second factor, if the one that is presented is
/// right. Each attempt draws on a rate limit of the account, which a browser that its owner has
/// signed in on does not share with others. The right one refunds it, and the failure that the
/// password has counted as until now.
///
/// # Errors
///
/// `LoginStepMissing` without a login that waits; `SecondFactorInvalid` with the attempts left;
/// `SecondFactorThrottled`; `StorageUnavailable`.
pub async fn complete(
    app: &App,
    token: Option<Token>,
    presented: &Presented,
    caller: Caller<'_>,
) -> Result<SignedIn, Error> {
    let token = token.ok_or(Problem::LoginStepMissing)?.hash();
    let (pool, now) = (&app.pool, app.time()?);
    let account = within_deadline("find login", find(pool, now, &token)).await?;
    let account = account.ok_or(Problem::LoginStepMissing)?;
    let address = EmailAddress::parse(&account.email).map_err(|_| Problem::LoginStepMissing)?;
    let device = caller.device.and_then(|device| device.owned_by(&address));
    let (bucket_key, limit) = (throttle::factor_key(account.id, device), app.failure_limit);
    throttle::draw(pool, now, &bucket_key, limit, Problem::SecondFactorThrottled).await?;
    let attempt = within_deadline("spend attempt", spend_attempt(pool, now, &token)).await?;
    let left = attempt.ok_or(Problem::LoginStepMissing)?;
    let opened = transact("sign in by a second factor", async {
        let mut transaction = pool.begin().await?;
        let locked = account::lock(&mut transaction, account.id, None).await?;
        let account = locked.ok_or(Problem::LoginStepMissing)?;
        let keys = app.factor_keys.as_ref();
        if !second_factor::spend(&mut transaction, keys, now, account.id, presented).await? {
            let wrong =
                Error::in_field(Problem::SecondFactorInvalid, "code").with(Detail::AttemptsLeft(left));
            return Err(wrong.into());
        }
        if !end(&mut transaction, now, account.id, &token).await? {
            return Err(Problem::LoginStepMissing.into());
        }
        throttle::refund(&mut *transaction, &bucket_key, limit).await?;
        throttle::refund(&mut *transaction, &throttle::login_key(&address, device), limit).await?;
        let opened = sign_in(app, &mut transaction, now, account, presented.method, caller).await?;
        transaction.commit().await?;
        Ok(opened)
    })
    .await?;
    Ok(opened.signed_in(app, now))
}

async fn sign_in(
    app: &App,
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account: Account,
    method: Method,
    caller: Caller<'_>,
) -> Result<OpenedSession, sqlx::Error> {
    account::mark_signed_in(transaction, now, account.id, None).await?;
    let client = Some(caller.client.into());
    if method == Method::BackupCode {
        audit::record(&mut *transaction, now, audit::Event::BackupCodeUsed, account.id, client).await?;
    }
    audit::record(&mut *transaction, now, audit::Event::SignedIn, account.id, client).await?;
    open(app, transaction, now, account, Caller { second_factor: Some(method), ..caller }).await
}

/// The account of a login that waits, if it is active.
async fn find(pool: &PgPool, now: OffsetDateTime, token: &TokenHash) -> Result<Option<Account>, sqlx::Error> {
    let id = sqlx::query_scalar!(
        "SELECT account_id FROM login_step WHERE token_hash = $1 AND attempts_left > 0 AND expires_at > $2",
        token.as_bytes(),
        now
    );
    match id.fetch_optional(pool).await? {
        Some(id) => account::active(pool, id).await,
        None => Ok(None),
    }
}

/// Spends an attempt before the code is compared, so that parallel ones get no more. Returns how
/// many are left; `None` if there was none.
async fn spend_attempt(
    pool: &PgPool,
    now: OffsetDateTime,
    token: &TokenHash,
) -> Result<Option<i16>, sqlx::Error> {
    let left = sqlx::query_scalar!(
        "UPDATE login_step SET attempts_left = attempts_left - 1
         WHERE token_hash = $1 AND attempts_left > 0 AND expires_at > $2 RETURNING attempts_left",
        token.as_bytes(),
        now
    );
    left.fetch_optional(pool).await
}

/// Ends the login of a locked account. Returns false if it has ended, or the password has changed.
async fn end(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    token: &TokenHash,
) -> Result<bool, sqlx::Error> {
    let changed_at = account::password_changed_at(&mut *transaction, account_id).await?;
    let ended = sqlx::query!(
        "DELETE FROM login_step
         WHERE token_hash = $1 AND expires_at > $2 AND password_changed_at IS NOT DISTINCT FROM $3",
        token.as_bytes(),
        now,
        changed_at
    );
    Ok(ended.execute(transaction).await?.rows_affected() > 0)
}

/// Notes that the owner of this session has given a second factor.
pub(crate) async fn mark_second_factor(transaction: &mut PgConnection, id: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query!("UPDATE session SET second_factor = 'totp' WHERE id = $1", id).execute(transaction).await?;
    Ok(())
}

/// Deletes at most `limit` logins that have expired.
pub async fn sweep(pool: &PgPool, now: OffsetDateTime, limit: i64) -> Result<u64, sqlx::Error> {
    let done = sqlx::query!(
        "DELETE FROM login_step WHERE token_hash = ANY(ARRAY(
             SELECT token_hash FROM login_step WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2
         ))",
        now,
        limit
    );
    Ok(done.execute(pool).await?.rows_affected())
}
