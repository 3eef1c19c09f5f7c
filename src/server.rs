//! Listens, runs the API beside the courier and the sweeper, and stops without losing anything.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::census::Census;
use crate::config::{ConfigError, STORAGE_DEADLINE};
use crate::courier::Courier;
use crate::database::failures;
use crate::database::health::Health;
use crate::http::listener::{Listener, affordable_connections};
use crate::http::{self, AppState};
use crate::metrics::ListenerLabel;
use crate::outbox::inspect;
use crate::recovery::Recovery;
use crate::sweeper::Sweeper;
use crate::thread;

/// Connections to the figures at once: a few scrapers.
const METRICS_CONNECTIONS: u32 = 64;
/// How often the folder of JWT keys is read again.
const KEYS_REREAD: Duration = Duration::from_mins(1);
/// How often the outbox is counted.
const OUTBOX_LOOK: Duration = Duration::from_secs(5);
/// How often PostgreSQL is checked while all is well.
const HEALTH_CHECK: Duration = Duration::from_secs(10);
/// How often the clock is looked at, whether it was moved since; and PostgreSQL is checked while the service cannot work.
const CLOCK_LOOK: Duration = Duration::from_secs(1);

/// A service that is bound to its addresses and not yet running.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    courier: Courier,
    listener: Listener,
    metrics_listener: Listener,
}

impl Server {
    /// Binds the addresses of the settings; port 0 is a free one.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable whose address cannot be had.
    pub fn bind(app: App, courier: Courier) -> Result<Self, ConfigError> {
        let connections = affordable_connections(app.config.connections.max_connections);
        let api = ListenerLabel { listener: "api" };
        let listener = Listener::bind("HTTP_ADDR", app.config.listening.http_addr, api, connections)?;
        let metrics = ListenerLabel { listener: "metrics" };
        let metrics_listener =
            Listener::bind("METRICS_ADDR", app.config.listening.metrics_addr, metrics, METRICS_CONNECTIONS)?;
        Ok(Self { app: Arc::new(app), courier, listener, metrics_listener })
    }

    /// Where the API is.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.address()
    }

    /// Where the figures are.
    pub fn metrics_address(&self) -> io::Result<SocketAddr> {
        self.metrics_listener.address()
    }

    /// The application's parts.
    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Serves until `stop`; then `/readyz` is red for the drain delay, requests and mails under way finish within the
    /// stop timeout, and the rest is dropped.
    ///
    /// # Errors
    ///
    /// [`TaskEnded`] if a part of the service ended by itself, which none ever should. It then stops at once, so that
    /// whoever supervises the process starts a whole one.
    pub async fn run(self, stop: CancellationToken) -> Result<(), TaskEnded> {
        self.run_with(Router::new(), stop).await
    }

    /// The same, with routes beside the API's.
    ///
    /// # Errors
    ///
    /// As [`Server::run`].
    pub async fn run_with(self, more: Router, stop: CancellationToken) -> Result<(), TaskEnded> {
        let Self { app, courier, listener, metrics_listener } = self;
        let config = &app.config;
        let mut census = Census::new(Arc::clone(&app));
        let over = CancellationToken::new();
        // All of it first: until it is known, requests are answered 502.
        let (mut probes, health) =
            tokio::join!(app.gateway.watch(&config.relays, &app.metrics, &over), async {
                // It finds the address that the pools connect to.
                let health = app.health.check().await;
                census.begin().await;
                health
            });
        let (recovery, mut commits) = Recovery::new(Arc::clone(&app));
        let state = AppState {
            recovery,
            app: Arc::clone(&app),
            draining: Arc::new(AtomicBool::new(false)),
            untrusted_proxies: Arc::default(),
        };
        let draining = Arc::clone(&state.draining);
        let api = http::with_layers(http::router(state.clone()).merge(more), &state);
        drop(state);
        let (closing, ending) = (CancellationToken::new(), CancellationToken::new());
        // The courier's thread would outlive a service that is dropped.
        let _guard = over.clone().drop_guard();
        let mut api = tokio::spawn(accept(listener, api, Arc::clone(&app), closing.clone()));
        let metrics = http::metrics::routes(Arc::clone(&app));
        let mut metrics = tokio::spawn(accept(metrics_listener, metrics, Arc::clone(&app), over.clone()));
        let mut sweeper = tokio::spawn(Sweeper::new(Arc::clone(&app)).run(over.clone()));
        let mut census = tokio::spawn(census.run(over.clone()));
        let mut keys = tokio::spawn(watch_keys(Arc::clone(&app), over.clone()));
        let mut outbox = tokio::spawn(watch_outbox(Arc::clone(&app), over.clone()));
        let mut health = tokio::spawn(watch_database(Arc::clone(&app), health, over.clone()));
        let mut courier = thread::spawn("courier", {
            let (app, ending, over) = (Arc::clone(&app), ending.clone(), over.clone());
            async move {
                // On the heap: its rounds are large.
                over.run_until_cancelled(Box::pin(courier.run(&app.config.relays, ending))).await;
                app.gateway.close().await;
            }
        });

        let ended = tokio::select! {
            () = stop.cancelled() => None,
            _ = &mut api => Some("api"),
            _ = &mut metrics => Some("metrics"),
            _ = &mut sweeper => Some("sweeper"),
            _ = &mut health => Some("health check"),
            _ = &mut census => Some("census"),
            _ = &mut outbox => Some("outbox"),
            _ = &mut keys => Some("keys"),
            _ = &mut courier => Some("courier"),
            _ = &mut commits => Some("group commit"),
            _ = probes.join_next() => Some("probe"),
        };
        if let Some(task) = ended {
            tracing::error!(task, "a part of the service has ended by itself");
            return Err(TaskEnded(task));
        }
        tracing::info!(drain_delay_ms = config.stopping.drain_delay.as_millis(), "stopping");
        draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(config.stopping.drain_delay).await;
        closing.cancel();
        let finished = tokio::time::timeout(config.stopping.stop_timeout, async {
            let _ = api.await;
            ending.cancel();
            let _ = (&mut courier).await;
        });
        if finished.await.is_ok() {
            tracing::info!("stopped");
        } else {
            tracing::warn!("stopped at the timeout; what was under way is dropped, unsent mails are kept");
        }
        over.cancel();
        // A connection whose other end is gone does not say goodbye: it is not waited for.
        let probes = async { while probes.join_next().await.is_some() {} };
        let closing = async { tokio::join!(app.pool.close(), app.token_pool.close(), probes) };
        let _ = tokio::time::timeout(STORAGE_DEADLINE, closing).await;
        Ok(())
    }
}

/// A part of the service that ended by itself: a bug, whose panic stands in the log before.
#[derive(Debug, thiserror::Error)]
#[error("the {0} has ended by itself; see the log before this line")]
pub struct TaskEnded(&'static str);

async fn accept(listener: Listener, routes: Router, app: Arc<App>, stop: CancellationToken) {
    listener.accept(routes, &app.config.connections, &app.metrics, stop).await;
}

/// Checks PostgreSQL, and compares the clock with its clock: every rule of time rests on it. More often while the service
/// cannot work, so that it goes on soon.
async fn watch_database(app: Arc<App>, mut health: Health, stop: CancellationToken) {
    let mut checked = Instant::now();
    while stop.run_until_cancelled(tokio::time::sleep(CLOCK_LOOK)).await.is_some() {
        failures::log_counted();
        if app.clock.is_trusted() && health == Health::Ok && checked.elapsed() < HEALTH_CHECK {
            continue;
        }
        checked = Instant::now();
        health = app.health.check().await;
    }
}

/// Sees how much is owed, for the figures. All replicas see the same.
async fn watch_outbox(app: Arc<App>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(OUTBOX_LOOK)).await.is_some() {
        if let Ok(backlog) = app.health.query(inspect::backlog).await {
            inspect::update_metrics(&app.metrics, &backlog, app.clock.now());
        }
    }
}

/// Reads the JWT keys again every minute, so that a rotation needs no restart.
async fn watch_keys(app: Arc<App>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(KEYS_REREAD)).await.is_some() {
        let read = app.jwt_keys.reread();
        app.metrics.jwt_keys_unreadable.set(i64::from(read.is_err()));
        if let Err(why) = read {
            tracing::error!(%why, "JWT_KEYS cannot be read again; what was read before stays in use");
        }
    }
}
