//! The application's parts, built from settings and secrets before anything listens.

use std::sync::Arc;

use sqlx::PgPool;
use time::OffsetDateTime;

use crate::clock::Clock;
use crate::config::{Config, ConfigError, Secrets};
use crate::courier::{Courier, Wakeup};
use crate::database::health::Monitor;
use crate::database::{self, Endpoint, with_session_settings};
use crate::error::{Error, Problem};
use crate::jwt::KeyRing;
use crate::mail::gateway::Gateway;
use crate::mail::message::Composer;
use crate::metrics::Metrics;
use crate::password::{Cost, Hasher};
use crate::secret::Keys;
use crate::throttle::{RateLimit, SourceLimits, Turns};

/// Connections for the look-ups of session tokens.
const TOKEN_CONNECTIONS: u32 = 2;

/// What the features work with.
#[derive(Debug)]
pub struct App {
    /// The settings.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// How to reach PostgreSQL, for tasks that keep a connection of their own.
    pub database: Endpoint,
    /// Connections for everything else.
    pub pool: PgPool,
    /// Connections for the look-ups of session tokens, so that no flood of made-up ones holds a login up.
    pub token_pool: PgPool,
    /// Whether PostgreSQL can be worked with, over a connection that does not wait behind requests.
    pub health: Monitor,
    /// What codes are derived from.
    pub code_keys: Keys,
    /// What device cookies are made with.
    pub device_keys: Keys,
    /// What JWTs are signed with.
    pub jwt_keys: KeyRing,
    /// Who JWTs are from.
    pub jwt_issuer: String,
    /// Where passwords are hashed.
    pub hasher: Hasher,
    /// The way to the relays.
    pub gateway: Arc<Gateway>,
    /// Wakes the courier.
    pub wakeup: Wakeup,
    /// The budget of an address.
    pub address_budget: RateLimit,
    /// The budget of failed logins.
    pub failure_budget: RateLimit,
    /// The budget of browsers that become known.
    pub device_budget: RateLimit,
    /// What networks and known browsers may ask of this replica.
    pub source_limits: SourceLimits,
    /// One login at a time for each address.
    pub login_turns: Turns,
    /// One request at a time for each session token, and one that ends sessions for each account.
    pub session_turns: Turns,
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
        if !Cost::of(&config.passwords).is_verifiable() {
            let why = "times ARGON2_MEMORY_KIB is over 4194304: no login could verify such a hash; lower one of them";
            return Err(ConfigError::new("ARGON2_PASSES", why));
        }
        let database = Endpoint::new(with_session_settings(&database::options(&secrets.database_url)?));
        let gateway = Arc::new(Gateway::new(&config.relays, &secrets.smtp_relays, &secrets.smtp_oauth)?);
        let composer = Composer::new(&config.mail, secrets.device_keys.newest())?;
        let (metrics, wakeup) = (Arc::<Metrics>::default(), Wakeup::default());
        let courier = Courier {
            database: database.clone(),
            pool: database::pool(&database, 1),
            clock: clock.clone(),
            code_keys: secrets.code_keys.clone(),
            gateway: Arc::clone(&gateway),
            composer,
            metrics: Arc::clone(&metrics),
            wakeup: wakeup.clone(),
            holder: Arc::default(),
        };
        let jwt_keys = match &config.jwt.jwt_keys {
            Some(folder) => KeyRing::read(folder)
                .map_err(|why| ConfigError::new("JWT_KEYS", format!("({}) {why}", folder.display())))?,
            None => KeyRing::ephemeral(),
        };
        let origin = config.clients.public_origin.as_ref().map(ToString::to_string);
        let jwt_issuer = config.jwt.jwt_issuer.clone().or(origin).unwrap_or_else(|| "vos-auth".into());
        let (address_budget, failure_budget, device_budget, source_limits) = match limits {
            Limits::On => (
                RateLimit::of_address(&config.rate_limits),
                RateLimit::of_failures(),
                RateLimit::of_devices(),
                SourceLimits::new(&config.rate_limits, &clock),
            ),
            Limits::Off => {
                let none = RateLimit::unlimited();
                (none, none, none, SourceLimits::unlimited(&clock))
            }
        };
        let app = Self {
            pool: database::pool(&database, config.storage.database_connections),
            token_pool: database::pool(&database, TOKEN_CONNECTIONS),
            health: Monitor::new(&database, clock.clone(), Arc::clone(&metrics)),
            code_keys: secrets.code_keys.clone(),
            device_keys: secrets.device_keys.clone(),
            jwt_keys,
            jwt_issuer,
            hasher: Hasher::new(&config.passwords, Arc::clone(&metrics)),
            config,
            clock,
            database,
            gateway,
            wakeup,
            address_budget,
            failure_budget,
            device_budget,
            source_limits,
            login_turns: Turns::default(),
            session_turns: Turns::default(),
            metrics,
        };
        Ok((app, courier))
    }

    /// The present, for what a request asks.
    ///
    /// # Errors
    ///
    /// `StorageUnavailable` while the clocks of this machine and of PostgreSQL are not known to agree.
    pub fn time(&self) -> Result<OffsetDateTime, Error> {
        self.clock
            .trusted_now()
            .ok_or_else(|| Error::retry_after(Problem::StorageUnavailable, database::OUTAGE_RETRY_AFTER))
    }
}
