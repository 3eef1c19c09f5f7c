//! `login`: every failure has one answer, one cost and a fixed delay, whatever its cause.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;
use uuid::Uuid;

use super::login_step::{self, LoginAnswer, LoginStep};
use super::open::open;
use super::{Caller, OpenedSession};
use crate::account::{self, Account, LoginCandidate};
use crate::app::App;
use crate::audit;
use crate::client::Client;
use crate::database::{OUTAGE_RETRY_AFTER, failures, within_deadline};
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::known_device::KnownDevice;
use crate::metrics::{LoginLabel, LoginOutcome};
use crate::password::{Password, PasswordMatch, Place};
use crate::second_factor;
use crate::throttle::{self, Source, Turn};

/// The `Retry-After` for a client that arrived while another login of the address was under way.
const CONCURRENT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// One login. A client that disconnects does not change what it costs.
#[derive(Clone)]
pub struct Login {
    /// The application's parts.
    pub app: Arc<App>,
    /// The source whose bucket the request has drawn from.
    pub source: Source,
    /// The address.
    pub email: EmailAddress,
    /// The password.
    pub password: Password,
    /// The client.
    pub client: Client,
    /// The browser, if a user has signed in on it before.
    pub device: Option<KnownDevice>,
}

impl Login {
    /// Opens a session if the password is right.
    ///
    /// Everything that decides whether the password is verified, and at what cost, is known before
    /// `account` is read:
    ///
    /// - the bucket of the network, which is charged with the price of the slowest stored hash,
    /// - the turn of the address,
    /// - a place in the hashing queue,
    /// - the bucket of the address, which is charged before the verification, so that parallel
    ///   guesses cannot exceed it.
    ///
    /// A success refunds both buckets.
    ///
    /// # Errors
    ///
    /// `CredentialsInvalid` for every cause alike, `LOGIN_FAILURE_TIME` after the call, or after
    /// the login of this address that it waited for; `LoginThrottled` if the address, or the
    /// browser that has signed in with it before, had too many failures, or if other logins of the
    /// address were running for the whole wait; `NetworkThrottled`; `HashingBusy`, with nothing
    /// spent; `StorageUnavailable`.
    pub async fn run(self) -> Result<LoginAnswer, Error> {
        let hash = self.app.hasher.decoys().ok_or_else(unavailable)?.price();
        let price = hash.saturating_mul(self.password.spellings());
        let charge = Charge::draw(&self.app, self.source, price).map_err(|wait| {
            self.count(LoginOutcome::Network);
            Error::retry_after(Problem::NetworkThrottled, wait)
        })?;
        self.run_in_turn(charge).await
    }

    /// Waits for the turn of the address and keeps it until the login has been answered.
    async fn run_in_turn(self, charge: Charge) -> Result<LoginAnswer, Error> {
        let wait_until = Instant::now() + self.app.config.sessions.login_failure_time;
        let key =
            throttle::login_key(&self.email, self.device.as_ref().and_then(|d| d.owned_by(&self.email)));
        let waiting = WaitingLogin::begin(&self);
        let turn = self.app.login_turns.take(key, wait_until).await;
        waiting.finish();
        let Some(turn) = turn else {
            self.count(LoginOutcome::Concurrent);
            return Err(Error::retry_after(Problem::LoginThrottled, CONCURRENT_RETRY_AFTER));
        };
        let due = Instant::now() + self.app.config.sessions.login_failure_time;
        let verifying = async move {
            let answer = self.verify_and_open(turn, due, key).await;
            if answer.as_ref().is_err_and(|error| error.problem == Problem::CredentialsInvalid) {
                charge.keep();
            }
            answer
        };
        // A separate task: a client that disconnects must not end the turn early.
        tokio::spawn(verifying.in_current_span()).await.unwrap_or_else(|_| Err(unavailable()))
    }

    async fn verify_and_open(
        self,
        turn: Turn,
        due: Instant,
        key: throttle::BucketKey,
    ) -> Result<LoginAnswer, Error> {
        let app = &*self.app;
        let place = app.hasher.place().inspect_err(|_| self.count(LoginOutcome::Busy))?;
        let now = app.time()?;
        throttle::draw(&app.pool, now, &key, app.failure_limit, Problem::LoginThrottled)
            .await
            .inspect_err(|_| self.count(LoginOutcome::Throttled))?;
        let mut candidate =
            within_deadline("find account", account::login_candidate(&app.pool, &self.email)).await?;
        let mut opened = self.attempt(&place, candidate.as_ref(), &key).await?;
        if let AttemptResult::Superseded = opened {
            // The stored hash changed meanwhile: another login rehashed it, or a new password was
            // set. Verify once more.
            candidate =
                within_deadline("find account", account::login_candidate(&app.pool, &self.email)).await?;
            opened = self.attempt(&place, candidate.as_ref(), &key).await?;
        }
        drop(place);
        match opened {
            AttemptResult::Opened(opened) => {
                self.count(LoginOutcome::SignedIn);
                return Ok(LoginAnswer::SignedIn(Box::new(opened.signed_in(app, now))));
            }
            // At the time of a failure, because without the second factor it is none of the owner.
            AttemptResult::SecondFactor(step) => {
                self.count(LoginOutcome::SecondFactor);
                sleep_until(due).await;
                return Ok(LoginAnswer::SecondFactor(step));
            }
            AttemptResult::Superseded | AttemptResult::Failed => {}
        }
        if let Some(candidate) = candidate {
            // Runs in the background: its result and duration must not show whether there is an
            // account.
            let client = self.client.clone();
            tokio::spawn(record_failure(app.pool.clone(), now, candidate.account.id, client));
        }
        self.count(LoginOutcome::Failed);
        if Instant::now() > due {
            app.metrics.late_login_failures.inc();
        }
        sleep_until(due).await;
        drop(turn);
        Err(Problem::CredentialsInvalid.into())
    }

    async fn attempt(
        &self,
        place: &Place<'_>,
        candidate: Option<&LoginCandidate>,
        bucket_key: &throttle::BucketKey,
    ) -> Result<AttemptResult, Error> {
        let app = &*self.app;
        let decoys = app.hasher.decoys().ok_or_else(unavailable)?;
        // The oldest key changes least often: a new key would change decoys while hashes stay the
        // same.
        let mac = app.device_keys.oldest().mac("decoy/1", &[self.email.as_str().as_bytes()]);
        let stored = candidate.and_then(|candidate| candidate.password_hash.clone());
        let result = place.verify(&self.password, stored, Some(decoys.for_address(&mac))).await?;
        let (
            Some(LoginCandidate { account, active: true, password_hash: Some(verified) }),
            PasswordMatch::Right { rehashed },
        ) = (candidate, result)
        else {
            return Ok(AttemptResult::Failed);
        };
        let verified_login = VerifiedLogin { account, verified, rehashed, bucket_key };
        let caller = Caller { client: &self.client, device: self.device.as_ref(), second_factor: None };
        within_deadline("open session", verified_login.open(app, app.time()?, caller)).await
    }

    fn count(&self, outcome: LoginOutcome) {
        self.app.metrics.logins.get_or_create(&LoginLabel { outcome }).inc();
    }
}

fn unavailable() -> Error {
    Error::retry_after(Problem::StorageUnavailable, OUTAGE_RETRY_AFTER)
}

/// The units that a login has drawn from its network's bucket, beyond the one unit of any request.
/// Dropping it refunds them, for example when a client disconnects while it waits.
struct Charge {
    app: Arc<App>,
    source: Source,
    units: u32,
}

impl Charge {
    fn draw(app: &Arc<App>, source: Source, price: u32) -> Result<Self, Duration> {
        let units = app.source_limits.logins.charge(source, price)?;
        Ok(Self { app: Arc::clone(app), source, units })
    }

    /// Keeps the charge, because the login has failed.
    fn keep(mut self) {
        self.units = 0;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.app.source_limits.logins.refund(self.source, self.units);
    }
}

/// A login that waits for the turn of its address. If it is dropped before `finish`, the client has
/// disconnected.
struct WaitingLogin<'a> {
    login: &'a Login,
    has_finished: bool,
}

impl<'a> WaitingLogin<'a> {
    fn begin(login: &'a Login) -> Self {
        login.app.metrics.logins_waiting.inc();
        Self { login, has_finished: false }
    }

    fn finish(mut self) {
        self.has_finished = true;
    }
}

impl Drop for WaitingLogin<'_> {
    fn drop(&mut self) {
        self.login.app.metrics.logins_waiting.dec();
        if !self.has_finished {
            self.login.count(LoginOutcome::Aborted);
        }
    }
}

/// The result of one verification.
enum AttemptResult {
    Opened(Box<OpenedSession>),
    /// The password was right, and the account asks for a second factor.
    SecondFactor(LoginStep),
    /// The password was right, but the stored hash has changed since.
    Superseded,
    Failed,
}

/// A login whose password was right.
struct VerifiedLogin<'a> {
    account: &'a Account,
    /// The stored hash it was verified against.
    verified: &'a str,
    rehashed: Option<String>,
    bucket_key: &'a throttle::BucketKey,
}

impl VerifiedLogin<'_> {
    /// Opens the session in one transaction under the lock of the account's row, or begins the step
    /// of its second factor. It is superseded if the verified hash is no longer stored, or the
    /// account is no longer active: a reset came first.
    async fn open(
        self,
        app: &App,
        now: OffsetDateTime,
        caller: Caller<'_>,
    ) -> Result<AttemptResult, sqlx::Error> {
        let mut transaction = app.pool.begin().await?;
        let locked = account::lock(&mut transaction, self.account.id, Some(self.verified)).await?;
        let Some(account) = locked else { return Ok(AttemptResult::Superseded) };
        let methods = second_factor::methods(&mut *transaction, account.id).await?;
        if !methods.is_empty() {
            if let Some(rehashed) = &self.rehashed {
                account::mark_signed_in(&mut transaction, now, account.id, Some(rehashed)).await?;
            }
            let step = login_step::begin(app, &mut transaction, now, account.id, methods).await?;
            transaction.commit().await?;
            return Ok(AttemptResult::SecondFactor(step));
        }
        account::mark_signed_in(&mut transaction, now, account.id, self.rehashed.as_deref()).await?;
        throttle::refund(&mut *transaction, self.bucket_key, app.failure_limit).await?;
        audit::record(&mut *transaction, now, audit::Event::SignedIn, account.id, Some(caller.client.into()))
            .await?;
        let opened = open(app, &mut transaction, now, account, caller).await?;
        transaction.commit().await?;
        Ok(AttemptResult::Opened(Box::new(opened)))
    }
}

async fn record_failure(pool: PgPool, now: OffsetDateTime, account_id: Uuid, client: Client) {
    let event = audit::Event::SignInFailed;
    if let Err(error) = audit::record(&pool, now, event, account_id, Some((&client).into())).await {
        failures::note("record a failed login", &error);
    }
}
