//! The parts that all features share, built from settings and secrets before the service listens.

use std::sync::Arc;

use sqlx::PgPool;
use time::OffsetDateTime;

use crate::clock::Clock;
use crate::config::{Config, ConfigErrors, Secrets};
use crate::courier::{Courier, Wakeup};
use crate::database::health::Monitor;
use crate::database::{self, Endpoint, with_session_settings};
use crate::error::{Error, Problem};
use crate::event_hook::EventHooks;
use crate::jwt::KeyRing;
use crate::mail::gateway::Gateway;
use crate::metrics::Metrics;
use crate::parts::{CompleteParts, Parts};
use crate::password::Hasher;
use crate::secret::Keys;
use crate::throttle::{RateLimit, SourceLimits, Turns};

/// Connections that look up session tokens.
const TOKEN_CONNECTIONS: u32 = 2;
/// Connections of the admin API.
const ADMIN_CONNECTIONS: u32 = 3;

/// The parts that all features share.
#[derive(Debug)]
pub struct App {
    /// The settings.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// How tasks that keep their own connection reach PostgreSQL.
    pub database: Endpoint,
    /// Connections to PostgreSQL for requests.
    pub pool: PgPool,
    /// Connections that look up session tokens, so that a flood of unknown tokens does not delay
    /// logins.
    pub token_pool: PgPool,
    /// Connections of the admin API, as a role that may change accounts; `None` if it is off.
    pub admin_pool: Option<PgPool>,
    /// Checks PostgreSQL over its own connection, which does not wait behind requests.
    pub health: Monitor,
    /// Keys that recovery codes are derived from.
    pub code_keys: Keys,
    /// Keys that authenticate device cookies and recovery tickets.
    pub device_keys: Keys,
    /// Keys that encrypt secrets of second factors. Without them nobody can enrol.
    pub factor_keys: Option<Keys>,
    /// Keys that sign JWTs.
    pub jwt_keys: KeyRing,
    /// The issuer (`iss`) of JWTs.
    pub jwt_issuer: String,
    /// The bounded pool that hashes passwords.
    pub hasher: Hasher,
    /// Sends emails through the relays and knows which of them are up.
    pub gateway: Arc<Gateway>,
    /// Wakes the courier.
    pub wakeup: Wakeup,
    /// Delivers events to webhooks.
    pub event_hooks: Arc<EventHooks>,
    /// The rate limit of recoveries for one address.
    pub address_limit: RateLimit,
    /// The rate limit of failed logins for one address, and of wrong current passwords for one
    /// account.
    pub failure_limit: RateLimit,
    /// The rate limit of browsers that become known for one address.
    pub device_limit: RateLimit,
    /// The rate limits of networks and known browsers on this replica.
    pub source_limits: SourceLimits,
    /// One login at a time for each address.
    pub login_turns: Turns,
    /// For each session token one request at a time, and for each account one request at a time
    /// that ends sessions.
    pub session_turns: Turns,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// Whether rate limits are enforced. `DEV_NO_LIMITS=1` turns them off under `dev`, for tools that
/// send many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limits {
    /// Rate limits are enforced as configured.
    On,
    /// The rate limits of addresses, accounts, networks and known browsers are not enforced.
    Off,
}

impl App {
    /// Builds all parts and opens no connection: connections are made when they are first needed.
    ///
    /// # Errors
    ///
    /// A sentence for each variable with which the service cannot start.
    pub fn new(
        config: Config,
        secrets: Secrets,
        clock: Clock,
        limits: Limits,
    ) -> Result<(Self, Courier), ConfigErrors> {
        let mut problems = ConfigErrors::default();
        let parts = Parts::read(&config, secrets, &mut problems);
        Ok(Self::of_parts(config, problems.or(parts.complete())?, clock, limits))
    }

    /// The same with parts that were read before.
    #[must_use]
    pub fn of_parts(config: Config, parts: CompleteParts, clock: Clock, limits: Limits) -> (Self, Courier) {
        let CompleteParts {
            database,
            admin_database,
            gateway,
            composer,
            code_keys,
            device_keys,
            factor_keys,
            jwt_keys,
            blocklist,
            receivers,
        } = parts;
        let database = Endpoint::new(with_session_settings(&database));
        let admin_pool = admin_database.map(|options| {
            let endpoint = Endpoint::new(database::with_operator_settings(&options));
            database::pool(&endpoint, ADMIN_CONNECTIONS)
        });
        let gateway = Arc::new(gateway);
        let (metrics, wakeup) = (Arc::<Metrics>::default(), Wakeup::default());
        let courier = Courier {
            database: database.clone(),
            pool: database::pool(&database, 1),
            clock: clock.clone(),
            code_keys: code_keys.clone(),
            gateway: Arc::clone(&gateway),
            composer,
            metrics: Arc::clone(&metrics),
            wakeup: wakeup.clone(),
            holder: Arc::default(),
        };
        let origin = config.clients.public_origin.as_ref().map(ToString::to_string);
        let origin = origin.unwrap_or_else(|| "vos-auth".into());
        let jwt_issuer = config.jwt.jwt_issuer.clone().unwrap_or_else(|| origin.clone());
        let pool = database::pool(&database, config.storage.database_connections);
        let event_hooks = EventHooks::new(
            receivers,
            &config.event_hooks,
            origin,
            &database,
            &pool,
            clock.clone(),
            Arc::clone(&metrics),
        );
        let (address_limit, failure_limit, device_limit, source_limits) = match limits {
            Limits::On => (
                RateLimit::for_address(&config.rate_limits.address),
                RateLimit::for_failures(),
                RateLimit::for_new_devices(),
                SourceLimits::new(&config.rate_limits, &clock),
            ),
            Limits::Off => {
                let none = RateLimit::unlimited();
                (none, none, none, SourceLimits::unlimited(&clock))
            }
        };
        if let Some(blocklist) = &blocklist {
            tracing::info!(
                sums = blocklist.sums(),
                octets = blocklist.octets(),
                "the password blocklist is in memory"
            );
        }
        let app = Self {
            pool,
            token_pool: database::pool(&database, TOKEN_CONNECTIONS),
            admin_pool,
            health: Monitor::new(&database, clock.clone(), Arc::clone(&metrics)),
            code_keys,
            device_keys,
            factor_keys,
            jwt_keys,
            jwt_issuer,
            hasher: Hasher::new(&config.passwords, blocklist, Arc::clone(&metrics)),
            config,
            clock,
            database,
            gateway,
            wakeup,
            event_hooks: Arc::new(event_hooks),
            address_limit,
            failure_limit,
            device_limit,
            source_limits,
            login_turns: Turns::default(),
            session_turns: Turns::default(),
            metrics,
        };
        (app, courier)
    }

    /// The current time, for handling a request.
    ///
    /// # Errors
    ///
    /// `StorageUnavailable` while the clocks of this machine and of PostgreSQL are not known to
    /// agree.
    pub fn time(&self) -> Result<OffsetDateTime, Error> {
        self.clock
            .trusted_now()
            .ok_or_else(|| Error::retry_after(Problem::StorageUnavailable, database::OUTAGE_RETRY_AFTER))
    }
}
