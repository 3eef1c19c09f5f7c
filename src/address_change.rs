//! An approved change of an account's address ([`crate::admin::request`]): the account's owner can
//! stop it, and a task of the service carries it out when it is due.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::admin::request;
use crate::admin::request::carry_out::{self, Outcome};
use crate::app::App;
use crate::client::Client;
use crate::clock::first_id_of;
use crate::database::{failures, in_time, transact, within_operator_deadline};
use crate::error::{Error, Problem};
use crate::password::Password;
use crate::session::{self, Authenticated};
use crate::{audit, throttle};

/// How often the task looks for changes that are due.
const INTERVAL: Duration = Duration::from_secs(5);
/// The maximum number of changes in one round.
const CHANGES: i64 = 20;

/// Stops the approved address change of the caller's account. Requires the current password,
/// because a session may be stolen. A wrong password draws on the same rate limit as in
/// [`crate::password_change::change`]. For the right password the unit is refunded, so that an
/// owner can ask any number of times whether a change is waiting.
///
/// # Errors
///
/// `PasswordIncorrect`; `PasswordThrottled` after too many wrong passwords or changes;
/// `AddressChangeMissing` if no change is waiting; `SessionInvalid` if the session ended or the
/// password was changed meanwhile; `HashingBusy`, with nothing spent; `StorageUnavailable`.
pub async fn stop(
    app: &App,
    authenticated: Authenticated,
    current: &Password,
    client: &Client,
) -> Result<(), Error> {
    let place = app.hasher.place()?;
    let stored = session::confirm_password(app, &authenticated, &place, current, "password").await?;
    drop(place);
    let (now, id) = (app.time()?, authenticated.account.id);
    let is_stopped = transact("stop address change", async {
        let mut transaction = app.pool.begin().await?;
        session::lock_if_open(app, &mut transaction, now, &authenticated, Some(&stored))
            .await?
            .ok_or(Problem::SessionInvalid)?;
        let is_stopped = request::stop(&mut transaction, now, id).await?;
        if is_stopped {
            let event = audit::Event::AddressChangeStopped;
            audit::record(&mut *transaction, now, event, id, Some(client.into())).await?;
        }
        throttle::refund(&mut *transaction, &throttle::password_key(id), app.failure_limit).await?;
        transaction.commit().await?;
        Ok(is_stopped)
    })
    .await?;
    if is_stopped { Ok(()) } else { Err(Problem::AddressChangeMissing.into()) }
}

/// The task that carries out changes that are due. Every replica runs it. Replicas need not
/// coordinate: a change is carried out under the lock of its account, by the first replica that
/// gets the lock.
#[derive(Debug)]
pub struct AddressChanges {
    app: Arc<App>,
}

impl AddressChanges {
    /// A task that has not begun.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self { app }
    }

    /// Carries out changes until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(INTERVAL)).await.is_some() {
            // Boxed, because the future is large.
            stop.run_until_cancelled(Box::pin(self.round())).await;
        }
    }

    /// Carries out the changes that are due, and counts those that remain due. The service's own
    /// role may not change an address: without the admin API, this replica only counts.
    pub async fn round(&self) {
        let app = &self.app;
        let Some(now) = app.clock.trusted_now() else { return };
        if let Some(pool) = &app.admin_pool {
            match in_time(carry_out::due(pool, now, CHANGES)).await {
                Ok(due) => {
                    for id in due {
                        self.carry_out(pool, now, id).await;
                    }
                }
                Err(error) => failures::note("find due address changes", &error),
            }
        }
        match in_time(carry_out::overdue(&app.pool, now)).await {
            Ok(overdue) => {
                app.metrics.address_changes_overdue.set(overdue);
            }
            Err(error) => failures::note("count due address changes", &error),
        }
    }

    async fn carry_out(&self, pool: &PgPool, now: OffsetDateTime, id: Uuid) {
        let config = &self.app.config;
        let terms = (config.support.address_change_delay, config.mail.notice_retention);
        let carried_out = within_operator_deadline("carry out address change", async {
            let mut connection = pool.acquire().await?;
            carry_out::carry_out(&mut connection, now, id, terms).await
        });
        // An error is logged; the next round tries again.
        if let Ok(outcome) = carried_out.await
            && outcome != Outcome::NotDue
        {
            let outcome: &str = outcome.into();
            tracing::info!(request = %id, outcome, "an approved address change was due");
            self.app.wakeup.wake(first_id_of(now));
        }
    }
}
