//! `login`: one failure for every cause, at equal cost and at a fixed time after its arrival.

use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::open::open;
use super::{Caller, Opened, SignedIn};
use crate::account::{self, Account, Candidate};
use crate::app::App;
use crate::audit;
use crate::client::Client;
use crate::database::{failures, within_deadline};
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::metrics::{LoginLabel, LoginOutcome};
use crate::password::{Password, Place, Verdict};
use crate::throttle;

/// Opens a session for whoever knows the password.
///
/// An attempt is counted as a failure before anything is verified, so that no number of parallel guesses gets past the
/// budget, and given back when it succeeds. An address that nobody owns costs one verification, too.
///
/// # Errors
///
/// `CredentialsInvalid` for every cause alike, `LOGIN_FAILURE_TIME` after the call; `LoginThrottled` if the address, or
/// the browser that has signed in with it before, had too many failures; `HashingBusy`, with nothing spent;
/// `StorageUnavailable`.
pub async fn login(
    app: &App,
    email: &EmailAddress,
    password: &Password,
    caller: Caller<'_>,
) -> Result<SignedIn, Error> {
    let due = Instant::now() + app.config.login_failure_time;
    let count = |outcome| {
        app.metrics.logins.get_or_create(&LoginLabel { outcome }).inc();
    };
    let place = app.hasher.place().inspect_err(|_| count(LoginOutcome::Busy))?;
    let now = app.time()?;
    let budget_key = throttle::login_key(email, caller.device.and_then(|device| device.of(email)));
    throttle::draw(&app.pool, now, &budget_key, app.failure_budget, Problem::LoginThrottled)
        .await
        .inspect_err(|_| count(LoginOutcome::Throttled))?;
    let mut candidate = within_deadline("find account", account::candidate(&app.pool, email)).await?;
    let mut opened = attempt(app, &place, candidate.as_ref(), password, &budget_key, caller).await?;
    if let Attempted::Superseded = opened {
        // Another login has made the hash anew, or another password was set: once more, with what is stored now.
        candidate = within_deadline("find account", account::candidate(&app.pool, email)).await?;
        opened = attempt(app, &place, candidate.as_ref(), password, &budget_key, caller).await?;
    }
    drop(place);
    if let Attempted::Opened(opened) = opened {
        count(LoginOutcome::SignedIn);
        return Ok(opened.signed_in(app, now));
    }
    if let Some(candidate) = candidate {
        // Not waited for: what becomes of it, and how long it takes, must not show whether there is an account.
        tokio::spawn(record_failure(app.pool.clone(), now, candidate.account.id, caller.client.clone()));
    }
    count(LoginOutcome::Failed);
    if Instant::now() > due {
        app.metrics.late_login_failures.inc();
    }
    sleep_until(due).await;
    Err(Problem::CredentialsInvalid.into())
}

/// What became of one verification.
enum Attempted {
    Opened(Box<Opened>),
    /// The password was right, and is no longer the one that is stored.
    Superseded,
    Failed,
}

async fn attempt(
    app: &App,
    place: &Place<'_>,
    candidate: Option<&Candidate>,
    password: &Password,
    budget_key: &throttle::Key,
    caller: Caller<'_>,
) -> Result<Attempted, Error> {
    let stored = candidate.and_then(|candidate| candidate.password_hash.clone());
    let verdict = place.verify(password, stored).await?;
    let (
        Some(Candidate { account, active: true, password_hash: Some(verified) }),
        Verdict::Right { rehashed },
    ) = (candidate, verdict)
    else {
        return Ok(Attempted::Failed);
    };
    let passed = Passed { account, verified, rehashed, budget_key };
    let opened = within_deadline("open session", passed.open(app, app.time()?, caller)).await?;
    Ok(opened.map_or(Attempted::Superseded, |opened| Attempted::Opened(Box::new(opened))))
}

/// A login whose password was right.
struct Passed<'a> {
    account: &'a Account,
    /// What it was verified against.
    verified: &'a str,
    rehashed: Option<String>,
    budget_key: &'a throttle::Key,
}

impl Passed<'_> {
    /// One transaction under the lock of the account's row. `None` if the password is no longer the one that was
    /// verified, or the account no longer active: a reset came first.
    async fn open(
        self,
        app: &App,
        now: OffsetDateTime,
        caller: Caller<'_>,
    ) -> Result<Option<Opened>, sqlx::Error> {
        let mut transaction = app.pool.begin().await?;
        let locked = account::lock(&mut transaction, self.account.id, Some(self.verified)).await?;
        let Some(account) = locked else { return Ok(None) };
        account::mark_used(&mut transaction, now, account.id, self.rehashed.as_deref()).await?;
        throttle::refund(&mut *transaction, self.budget_key, app.failure_budget).await?;
        audit::record(&mut *transaction, now, audit::Event::SignedIn, account.id, Some(caller.client.into()))
            .await?;
        let opened = open(app, &mut transaction, now, account, caller).await?;
        transaction.commit().await?;
        Ok(Some(opened))
    }
}

async fn record_failure(pool: PgPool, now: OffsetDateTime, account_id: Uuid, client: Client) {
    let event = audit::Event::SignInFailed;
    if let Err(error) = audit::record(&pool, now, event, account_id, Some((&client).into())).await {
        failures::note("record a failed login", &error);
    }
}
