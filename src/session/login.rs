//! `login`: one failure for every cause, at equal cost and at a fixed time after its arrival.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument as _;
use uuid::Uuid;

use super::open::open;
use super::{Caller, Opened, SignedIn};
use crate::account::{self, Account, Candidate};
use crate::app::App;
use crate::audit;
use crate::client::Client;
use crate::database::{OUTAGE_RETRY_AFTER, failures, within_deadline};
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::known_device::KnownDevice;
use crate::metrics::{LoginLabel, LoginOutcome};
use crate::password::{Password, Place, Verdict};
use crate::throttle::{self, Source, Turn};

/// What a client is told to wait that came while another login of the address was under way.
const CONCURRENT_RETRY_AFTER: Duration = Duration::from_secs(1);

/// One login, on its own: a client that goes away changes nothing of what it costs.
#[derive(Clone)]
pub struct Login {
    /// The application's parts.
    pub app: Arc<App>,
    /// Whose bucket the request has drawn on.
    pub source: Source,
    /// The address.
    pub email: EmailAddress,
    /// The password.
    pub password: Password,
    /// Who asks.
    pub client: Client,
    /// The browser, if somebody has signed in on it before.
    pub device: Option<KnownDevice>,
}

impl Login {
    /// Opens a session for whoever knows the password.
    ///
    /// What decides whether the password is looked at, and what that costs, is known before `account` is read: the bucket of
    /// the network, which a failed login is charged with the price of the slowest stored hash; the turn of the address; a
    /// place in the hashing queue; and the bucket of the address, from which an attempt is taken before anything is
    /// verified, so that no number of parallel guesses gets past it. Success gives back what it took of both.
    ///
    /// # Errors
    ///
    /// `CredentialsInvalid` for every cause alike, `LOGIN_FAILURE_TIME` after the call, or after the login of this address
    /// that it waited for; `LoginThrottled` if the address, or the browser that has signed in with it before, had too many
    /// failures, or if another login of it was under way all the time; `NetworkThrottled`; `HashingBusy`, with nothing
    /// spent; `StorageUnavailable`.
    pub async fn run(self) -> Result<SignedIn, Error> {
        let hash = self.app.hasher.decoys().ok_or_else(unavailable)?.price();
        let price = hash.saturating_mul(self.password.spellings());
        let charge = Charge::draw(&self.app, self.source, price).map_err(|wait| {
            self.count(LoginOutcome::Network);
            Error::retry_after(Problem::NetworkThrottled, wait)
        })?;
        self.admitted(charge).await
    }

    /// Waits for the turn of the address, and holds it to the end.
    async fn admitted(self, charge: Charge) -> Result<SignedIn, Error> {
        let patience = Instant::now() + self.app.config.sessions.login_failure_time;
        let key = throttle::login_key(&self.email, self.device.as_ref().and_then(|d| d.of(&self.email)));
        let waiting = Waiting::begin(&self);
        let turn = self.app.login_turns.take(key, patience).await;
        waiting.ends();
        let Some(turn) = turn else {
            self.count(LoginOutcome::Concurrent);
            return Err(Error::retry_after(Problem::LoginThrottled, CONCURRENT_RETRY_AFTER));
        };
        let due = Instant::now() + self.app.config.sessions.login_failure_time;
        let verifying = async move {
            let answer = self.verified(turn, due, key).await;
            if answer.as_ref().is_err_and(|error| error.problem == Problem::CredentialsInvalid) {
                charge.stays();
            }
            answer
        };
        // A task of its own: a client that goes away must not end the turn before its time.
        tokio::spawn(verifying.in_current_span()).await.unwrap_or_else(|_| Err(unavailable()))
    }

    async fn verified(self, turn: Turn, due: Instant, key: throttle::Key) -> Result<SignedIn, Error> {
        let app = &*self.app;
        let place = app.hasher.place().inspect_err(|_| self.count(LoginOutcome::Busy))?;
        let now = app.time()?;
        throttle::draw(&app.pool, now, &key, app.failure_limit, Problem::LoginThrottled)
            .await
            .inspect_err(|_| self.count(LoginOutcome::Throttled))?;
        let mut candidate =
            within_deadline("find account", account::candidate(&app.pool, &self.email)).await?;
        let mut opened = self.attempt(&place, candidate.as_ref(), &key).await?;
        if let Attempted::Superseded = opened {
            // Another login has made the hash anew, or another password was set: once more, with what is stored now.
            candidate = within_deadline("find account", account::candidate(&app.pool, &self.email)).await?;
            opened = self.attempt(&place, candidate.as_ref(), &key).await?;
        }
        drop(place);
        if let Attempted::Opened(opened) = opened {
            self.count(LoginOutcome::SignedIn);
            return Ok(opened.signed_in(app, now));
        }
        if let Some(candidate) = candidate {
            // Not waited for: what becomes of it, and how long it takes, must not show whether there is an account.
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
        candidate: Option<&Candidate>,
        bucket_key: &throttle::Key,
    ) -> Result<Attempted, Error> {
        let app = &*self.app;
        let decoys = app.hasher.decoys().ok_or_else(unavailable)?;
        // The key that stays the longest: with another one, decoys would change and hashes would not.
        let mac = app.device_keys.oldest().mac("decoy/1", &[self.email.as_str().as_bytes()]);
        let stored = candidate.and_then(|candidate| candidate.password_hash.clone());
        let verdict = place.verify(&self.password, stored, Some(decoys.of_address(&mac))).await?;
        let (
            Some(Candidate { account, active: true, password_hash: Some(verified) }),
            Verdict::Right { rehashed },
        ) = (candidate, verdict)
        else {
            return Ok(Attempted::Failed);
        };
        let passed = Passed { account, verified, rehashed, bucket_key };
        let caller = Caller { client: &self.client, device: self.device.as_ref() };
        let opened = within_deadline("open session", passed.open(app, app.time()?, caller)).await?;
        Ok(opened.map_or(Attempted::Superseded, |opened| Attempted::Opened(Box::new(opened))))
    }

    fn count(&self, outcome: LoginOutcome) {
        self.app.metrics.logins.get_or_create(&LoginLabel { outcome }).inc();
    }
}

fn unavailable() -> Error {
    Error::retry_after(Problem::StorageUnavailable, OUTAGE_RETRY_AFTER)
}

/// What a login has drawn on its network's bucket beside the one unit of any request. Given back when it is dropped, as after a
/// client that went away while it waited.
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

    /// The login has failed.
    fn stays(mut self) {
        self.units = 0;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.app.source_limits.logins.give_back(self.source, self.units);
    }
}

/// A login that waits for the turn of its address. Dropped before it ends, its client went away.
struct Waiting<'a> {
    login: &'a Login,
    is_over: bool,
}

impl<'a> Waiting<'a> {
    fn begin(login: &'a Login) -> Self {
        login.app.metrics.logins_waiting.inc();
        Self { login, is_over: false }
    }

    fn ends(mut self) {
        self.is_over = true;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.login.app.metrics.logins_waiting.dec();
        if !self.is_over {
            self.login.count(LoginOutcome::Aborted);
        }
    }
}

/// What became of one verification.
enum Attempted {
    Opened(Box<Opened>),
    /// The password was right, and is no longer the one that is stored.
    Superseded,
    Failed,
}

/// A login whose password was right.
struct Passed<'a> {
    account: &'a Account,
    /// What it was verified against.
    verified: &'a str,
    rehashed: Option<String>,
    bucket_key: &'a throttle::Key,
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
        throttle::refund(&mut *transaction, self.bucket_key, app.failure_limit).await?;
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
