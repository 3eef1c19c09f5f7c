//! Webhooks: every audit event of the kinds that a hook selects is delivered to its receiver. Owns
//! the tables `event_hook` and `event_delivery`.
//!
//! - **At least once.** A row of `event_delivery` is written in the transaction of the event, by a
//!   trigger, and deleted after the receiver has answered 2xx.
//! - **In order for each hook and account.** Only the oldest pending delivery of an account is
//!   claimed ([`queue::claim`]), and only if no older one can appear ([`queue::Horizon`]).
//! - **For a day.** Then the event is a dead letter, and the next event of its account says so
//!   (`gap`).
//!
//! With no hook set, no delivery is written, and only the sweeper queries the two tables. Requests
//! never wait for a delivery: new rows are found by a poll.
//!
//! Events are recorded for every registered hook. Each replica registers its hooks periodically,
//! and the sweeper removes a hook that no replica has registered for an hour.

mod cloud_event;
mod hook;
pub mod inspect;
pub mod queue;
mod sender;

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use strum::VariantArray as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::hook::Hook;
use self::sender::Sender;
use crate::clock::Clock;
use crate::config::{ConfigError, EventHookSettings};
use crate::database::{self, Endpoint, failures, in_time};
use crate::http_client::{HttpClient, Reach};
use crate::metrics::{HookOutcome, HookOutcomeLabel, Metrics};

/// Connections to PostgreSQL for all hooks together.
const CONNECTIONS: u32 = 2;
/// How long one attempt to connect to a receiver may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// The pause before hooks are registered again after a failure.
const REGISTER_PAUSE: Duration = Duration::from_secs(1);
/// How often hooks are registered again, and rows are counted for the metrics: every 15 poll
/// intervals, but not less often than this.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(15);

/// The hooks of `EVENT_HOOKS`.
#[derive(Debug)]
pub struct EventHooks {
    hooks: Vec<Arc<Hook>>,
    shared: Arc<Shared>,
}

/// What the loops of all hooks share.
#[derive(Debug)]
struct Shared {
    pool: PgPool,
    clock: Clock,
    metrics: Arc<Metrics>,
    /// `None` if there is no hook.
    http: Option<HttpClient>,
    /// The origin of the service, which the events name as their source.
    source: String,
    poll_interval: Duration,
}

/// The hooks of `EVENT_HOOKS`, and the client that reaches them, if there are any.
pub struct Receivers {
    hooks: Vec<Arc<Hook>>,
    http: Option<HttpClient>,
}

impl Receivers {
    /// Reads the hooks from the value of `EVENT_HOOKS`, which may be empty.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable that cannot be used.
    pub fn read(text: &str, settings: &EventHookSettings) -> Result<Self, ConfigError> {
        let reach = Reach::with(&settings.event_hook_networks);
        let hooks: Vec<_> = hook::read(text, &reach)?.into_iter().map(Arc::new).collect();
        if hooks.is_empty() {
            return Ok(Self { hooks, http: None });
        }
        let authorities = settings.event_hook_ca_file.as_deref();
        let http = HttpClient::within(reach, authorities, CONNECT_DEADLINE).map_err(|error| {
            let variable = if authorities.is_some() { "EVENT_HOOK_CA_FILE" } else { "EVENT_HOOKS" };
            ConfigError::new(variable, format!("cannot be used, so no receiver can be checked: {error}"))
        })?;
        Ok(Self { hooks, http: Some(http) })
    }
}

impl EventHooks {
    /// `source` is the origin of the service. If there are hooks, they get a pool of their own;
    /// otherwise `pool` is kept and not used.
    #[must_use]
    pub fn new(
        receivers: Receivers,
        settings: &EventHookSettings,
        source: String,
        database: &Endpoint,
        pool: &PgPool,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let Receivers { hooks, http } = receivers;
        let pool = if hooks.is_empty() { pool.clone() } else { database::pool(database, CONNECTIONS) };
        let poll_interval = settings.event_hook_poll_interval;
        Self { hooks, shared: Arc::new(Shared { pool, clock, metrics, http, source, poll_interval }) }
    }

    /// Registers the hooks in the database, so that events are recorded for them from now on, and
    /// delivers events until `stop`. Requests that are running then may finish.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (hooks, shared) = (&self.hooks, &self.shared);
        while let Err(error) = self.register().await {
            failures::note("register event hooks", &error);
            if stop.run_until_cancelled(tokio::time::sleep(REGISTER_PAUSE)).await.is_none() {
                return;
            }
        }
        let mut senders = JoinSet::new();
        for hook in hooks {
            for &outcome in HookOutcome::VARIANTS {
                let label = HookOutcomeLabel { hook: hook.name.clone(), outcome };
                drop(shared.metrics.hook_deliveries.get_or_create(&label));
            }
            senders.spawn(Sender::new(Arc::clone(shared), Arc::clone(hook)).run(stop.clone()));
        }
        if !hooks.is_empty() {
            senders.spawn(Arc::clone(&self).keep_up(stop.clone()));
        }
        tokio::select! {
            () = stop.cancelled() => while senders.join_next().await.is_some() {},
            // A task ends before `stop` only by a panic. The service stops when this function
            // returns.
            Some(_) = senders.join_next() => {}
        }
    }

    async fn register(&self) -> Result<(), sqlx::Error> {
        let hooks: Vec<_> = self.hooks.iter().map(AsRef::as_ref).collect();
        in_time(queue::register(&self.shared.pool, self.shared.clock.now(), &hooks)).await
    }

    /// Registers the hooks again, and counts deliveries for the metrics. All replicas report the
    /// same numbers.
    async fn keep_up(self: Arc<Self>, stop: CancellationToken) {
        let shared = &self.shared;
        loop {
            if let Err(error) = self.register().await {
                failures::note("register event hooks", &error);
            }
            let counted = in_time(async {
                let mut connection = shared.pool.acquire().await?;
                inspect::backlog(&mut connection).await
            });
            match counted.await {
                Ok(backlog) => {
                    let names = self.hooks.iter().map(|hook| hook.name.as_str());
                    inspect::update_metrics(&shared.metrics, names, &backlog, shared.clock.now());
                }
                Err(error) => failures::note("count events", &error),
            }
            let pause = tokio::time::sleep(UPKEEP_INTERVAL.min(shared.poll_interval * 15));
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }
}
