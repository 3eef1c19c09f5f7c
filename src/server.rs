//! Listens, runs the API and all background tasks, and stops without losing an answer or an email.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::address_change::AddressChanges;
use crate::app::App;
use crate::census::Census;
use crate::config::{ConfigErrors, STORAGE_DEADLINE};
use crate::courier::Courier;
use crate::database::health::Health;
use crate::database::{failures, in_time};
use crate::http::listener::{Listener, affordable_connections};
use crate::http::tls::Tls;
use crate::http::{self, AppState};
use crate::metrics::ListenerLabel;
use crate::outbox::inspect;
use crate::recovery::Recovery;
use crate::sweeper::Sweeper;
use crate::thread;

/// Connections to the metrics listener at once: enough for a few scrapers.
const METRICS_CONNECTIONS: u32 = 64;
/// Connections to the admin listener at once.
const MAX_OPERATOR_CONNECTIONS: u32 = 256;
/// How often the JWT keys and the certificate of the admin API are read again.
const KEYS_REREAD_INTERVAL: Duration = Duration::from_mins(1);
/// How often the outbox is counted for the metrics.
const OUTBOX_COUNT_INTERVAL: Duration = Duration::from_secs(5);
/// How often PostgreSQL is checked while it is healthy.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often the clock is checked for a jump; also how often PostgreSQL is checked while it is
/// unhealthy.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A service that is bound to its addresses but does not run yet.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    courier: Courier,
    listener: Listener,
    metrics_listener: Listener,
    admin_listener: Option<Listener>,
    admin_tls: Option<Arc<Tls>>,
}

impl Server {
    /// Binds the configured addresses. Port 0 means any free port.
    ///
    /// # Errors
    ///
    /// A sentence for each variable whose address cannot be bound or whose file cannot be used.
    pub fn bind(app: App, courier: Courier) -> Result<Self, ConfigErrors> {
        let mut problems = ConfigErrors::default();
        let connections = affordable_connections(app.config.connections.max_connections);
        let api = ListenerLabel { listener: "api" };
        let listener = Listener::bind("HTTP_ADDR", app.config.listening.http_addr, api, connections);
        let listener = problems.take(listener);
        let metrics = ListenerLabel { listener: "metrics" };
        let metrics_listener =
            Listener::bind("METRICS_ADDR", app.config.listening.metrics_addr, metrics, METRICS_CONNECTIONS);
        let metrics_listener = problems.take(metrics_listener);
        let (mut admin_listener, mut admin_tls) = (None, None);
        if let Some(address) = problems.take(app.config.admin.address()).flatten() {
            let label = ListenerLabel { listener: "admin" };
            admin_tls = problems.take(Tls::read(&app.config.admin)).flatten().map(Arc::new);
            let bound = problems.take(Listener::bind("ADMIN_ADDR", address, label, MAX_OPERATOR_CONNECTIONS));
            admin_listener = bound.map(|bound| bound.with_tls(admin_tls.clone()));
        }
        let (listener, metrics_listener) = problems.or(listener.zip(metrics_listener))?;
        Ok(Self { app: Arc::new(app), courier, listener, metrics_listener, admin_listener, admin_tls })
    }

    /// The address of the API.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.address()
    }

    /// The address of the metrics.
    pub fn metrics_address(&self) -> io::Result<SocketAddr> {
        self.metrics_listener.address()
    }

    /// The address of the admin API, if there is one.
    pub fn admin_address(&self) -> io::Result<Option<SocketAddr>> {
        self.admin_listener.as_ref().map(Listener::address).transpose()
    }

    /// The parts that all features share.
    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Serves until `stop`. Then `/readyz` answers 503 for the drain delay, and requests, emails
    /// and deliveries of events in progress may finish within the stop timeout. What is unfinished
    /// by then is dropped; an unsent email or event stays in the database.
    ///
    /// # Errors
    ///
    /// [`TaskEnded`] if a task of the service ended by itself, which is a bug. The service then
    /// stops at once, so that the supervisor of the process restarts it.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskEnded> {
        self.run_with(Router::new(), stop).await
    }

    /// As [`Server::run`], with further routes beside the API's.
    ///
    /// # Errors
    ///
    /// As [`Server::run`].
    pub async fn run_with(self, more: Router, stop: CancellationToken) -> Result<(), TaskEnded> {
        let Self { app, courier, listener, metrics_listener, admin_listener, admin_tls } = self;
        let config = &app.config;
        let mut census = Census::new(Arc::clone(&app));
        let shutdown = CancellationToken::new();
        // The relays and PostgreSQL are checked before the service accepts requests, because
        // requests are answered 502 until a check has succeeded.
        let (mut probes, health) = tokio::join!(
            app.gateway.watch(&config.relays, &app.metrics, &shutdown),
            connect(&app, &mut census)
        );
        let (recovery, mut commits) = Recovery::new(Arc::clone(&app));
        let state = AppState {
            recovery,
            app: Arc::clone(&app),
            draining: Arc::new(AtomicBool::new(false)),
            untrusted_proxies: Arc::default(),
        };
        let draining = Arc::clone(&state.draining);
        let api = http::with_layers(http::router(state.clone()).merge(more), &state);
        let admin_api = app.admin_pool.clone().map(|pool| http::admin::router(&state, pool));
        drop(state);
        let (stop_accepting, stop_courier) = (CancellationToken::new(), CancellationToken::new());
        let stop_hooks = shutdown.child_token();
        // Without the guard, the courier's thread would outlive a dropped service.
        let _guard = shutdown.clone().drop_guard();
        let mut api = tokio::spawn(accept(listener, api, Arc::clone(&app), stop_accepting.clone()));
        let metrics = http::metrics::routes(Arc::clone(&app));
        let mut metrics = tokio::spawn(accept(metrics_listener, metrics, Arc::clone(&app), shutdown.clone()));
        let admin = admin_listener.zip(admin_api);
        let mut admin = tokio::spawn(accept_operators(admin, Arc::clone(&app), stop_accepting.clone()));
        let mut sweeper = tokio::spawn(Sweeper::new(Arc::clone(&app)).run(shutdown.clone()));
        let mut census = tokio::spawn(census.run(shutdown.clone()));
        let mut changes = tokio::spawn(AddressChanges::new(Arc::clone(&app)).run(shutdown.clone()));
        let mut keys = tokio::spawn(watch_keys(Arc::clone(&app), admin_tls, shutdown.clone()));
        let mut outbox = tokio::spawn(watch_outbox(Arc::clone(&app), shutdown.clone()));
        let mut hooks = tokio::spawn(Arc::clone(&app.event_hooks).run(stop_hooks.clone()));
        let mut health = tokio::spawn(watch_database(Arc::clone(&app), health, shutdown.clone()));
        let mut courier = thread::spawn("courier", {
            let (app, stop_courier, shutdown) = (Arc::clone(&app), stop_courier.clone(), shutdown.clone());
            async move {
                // Boxed, because the future is large.
                shutdown.run_until_cancelled(Box::pin(courier.run(&app.config.relays, stop_courier))).await;
                app.gateway.close().await;
            }
        });

        let ended = tokio::select! {
            () = stop.cancelled() => None,
            _ = &mut api => Some("api"),
            _ = &mut admin => Some("admin API"),
            _ = &mut metrics => Some("metrics"),
            _ = &mut sweeper => Some("sweeper"),
            _ = &mut health => Some("health check"),
            _ = &mut census => Some("census"),
            _ = &mut changes => Some("address changes"),
            _ = &mut outbox => Some("outbox"),
            _ = &mut keys => Some("keys"),
            _ = &mut hooks => Some("event hooks"),
            _ = &mut courier => Some("courier"),
            _ = &mut commits => Some("group commit"),
            _ = probes.join_next() => Some("probe"),
        };
        if let Some(task) = ended {
            tracing::error!(task, "a task of the service has ended by itself");
            return Err(TaskEnded(task));
        }
        tracing::info!(drain_delay_ms = config.stopping.drain_delay.as_millis(), "stopping");
        draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(config.stopping.drain_delay).await;
        stop_accepting.cancel();
        let finished = tokio::time::timeout(config.stopping.stop_timeout, async {
            let _ = tokio::join!(api, admin);
            stop_courier.cancel();
            stop_hooks.cancel();
            let _ = tokio::join!(&mut courier, &mut hooks);
        });
        if finished.await.is_ok() {
            tracing::info!("stopped");
        } else {
            tracing::warn!(
                "stopped at the timeout: unfinished requests are dropped, unsent emails and events are kept"
            );
        }
        shutdown.cancel();
        // Closing a connection to a lost machine would block: the wait is bounded.
        let probes = async { while probes.join_next().await.is_some() {} };
        let admin_pool = async {
            if let Some(pool) = &app.admin_pool {
                pool.close().await;
            }
        };
        let closing = async { tokio::join!(app.pool.close(), app.token_pool.close(), admin_pool, probes) };
        let _ = tokio::time::timeout(STORAGE_DEADLINE, closing).await;
        Ok(())
    }
}

/// A task of the service ended by itself. This is a bug; its panic is in the log before.
#[derive(Debug, thiserror::Error)]
#[error("the {0} has ended by itself; see the log before this line")]
pub struct TaskEnded(&'static str);

/// Checks PostgreSQL, and opens the connections that the first requests would wait for.
async fn connect(app: &App, census: &mut Census) -> Health {
    // The check finds the address that the pools connect to.
    let health = app.health.check().await;
    if health == Health::Ok {
        let _ = tokio::join!(census.warm_up(), Box::pin(in_time(app.token_pool.acquire())));
    } else {
        census.warm_up().await;
    }
    health
}

async fn accept_operators(admin: Option<(Listener, Router)>, app: Arc<App>, stop: CancellationToken) {
    match admin {
        Some((listener, routes)) => accept(listener, routes, app, stop).await,
        None => stop.cancelled().await,
    }
}

async fn accept(listener: Listener, routes: Router, app: Arc<App>, stop: CancellationToken) {
    listener.accept(routes, &app.config.connections, &app.metrics, stop).await;
}

/// Checks PostgreSQL and compares this machine's clock with its clock, because replicas share
/// timestamps. Checks run more often while PostgreSQL is unhealthy, so that the service recovers
/// soon.
async fn watch_database(app: Arc<App>, mut health: Health, stop: CancellationToken) {
    let mut checked = Instant::now();
    while stop.run_until_cancelled(tokio::time::sleep(CLOCK_CHECK_INTERVAL)).await.is_some() {
        failures::log_counted();
        if app.clock.is_trusted() && health == Health::Ok && checked.elapsed() < HEALTH_CHECK_INTERVAL {
            continue;
        }
        checked = Instant::now();
        health = app.health.check().await;
    }
}

/// Counts pending emails for the metrics. All replicas report the same numbers.
async fn watch_outbox(app: Arc<App>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(OUTBOX_COUNT_INTERVAL)).await.is_some() {
        match app.health.query(inspect::backlog).await {
            Ok(backlog) => inspect::update_metrics(&app.metrics, &backlog, app.clock.now()),
            Err(error) => failures::note("count pending emails", &error),
        }
    }
}

/// Reads the JWT keys and the certificate of the admin API again at an interval, so that a rotation
/// needs no restart.
async fn watch_keys(app: Arc<App>, admin_tls: Option<Arc<Tls>>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(KEYS_REREAD_INTERVAL)).await.is_some() {
        let read = app.jwt_keys.reread();
        app.metrics.jwt_keys_unreadable.set(i64::from(read.is_err()));
        if let Err(why) = read {
            tracing::error!(%why, "JWT_KEYS cannot be read again; the keys that were read before stay in use");
        }
        if let Some(tls) = &admin_tls {
            tls.reread(&app.metrics);
        }
    }
}
