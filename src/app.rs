//! The application's parts, built from settings and secrets before anything listens.

use std::sync::Arc;

use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;

use crate::clock::Clock;
use crate::config::{Config, ConfigError, Secrets};
use crate::courier::{Bell, Courier};
use crate::database;
use crate::mail::gateway::Gateway;
use crate::mail::message::Composer;
use crate::metrics::Metrics;
use crate::secret::CodeKeys;
use crate::throttle::{Budget, NetworkLimiter};

/// What the features work with.
#[derive(Debug)]
pub struct App {
    /// The settings.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// How to reach PostgreSQL, for tasks that keep a connection of their own.
    pub database: PgConnectOptions,
    /// Connections for everything else.
    pub pool: PgPool,
    /// What codes are derived from.
    pub code_keys: CodeKeys,
    /// The way to the relays.
    pub gateway: Arc<Gateway>,
    /// Wakes the courier.
    pub bell: Bell,
    /// The budget of an address.
    pub address_budget: Budget,
    /// The budgets of client networks.
    pub network_limiter: NetworkLimiter,
    /// The figures.
    pub metrics: Arc<Metrics>,
}

/// Whether budgets bind. `DEV_NO_LIMITS=1` lifts them under `dev`, for tools that call often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limits {
    /// As the settings say.
    On,
    /// Not at all.
    Off,
}

impl App {
    /// Reads every setting to the end and opens nothing: connections are made when they are first needed.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable which the service cannot start with.
    pub fn new(
        config: Config,
        secrets: &Secrets,
        clock: Clock,
        limits: Limits,
    ) -> Result<(Self, Courier), ConfigError> {
        let database = database::options(&secrets.database_url)?;
        let gateway = Arc::new(Gateway::new(&config, &secrets.smtp_relays)?);
        let composer = Composer::new(&config)?;
        let (metrics, bell) = (Arc::<Metrics>::default(), Bell::default());
        let courier = Courier {
            pool: database::pool(&database, 2),
            clock: clock.clone(),
            code_keys: secrets.code_keys.clone(),
            gateway: Arc::clone(&gateway),
            composer,
            metrics: Arc::clone(&metrics),
            bell: bell.clone(),
        };
        let (address_budget, network_limiter) = match limits {
            Limits::On => (
                Budget::of_address(&config),
                NetworkLimiter::new(config.network_burst, config.network_per_minute, clock.clone()),
            ),
            Limits::Off => (Budget::unlimited(), NetworkLimiter::unlimited()),
        };
        let app = Self {
            pool: database::pool(&database, config.database_connections),
            code_keys: secrets.code_keys.clone(),
            config,
            clock,
            database,
            gateway,
            bell,
            address_budget,
            network_limiter,
            metrics,
        };
        Ok((app, courier))
    }
}
