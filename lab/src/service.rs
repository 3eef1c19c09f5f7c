//! The service in this process. Every part is that of production, except the clock and the relay,
//! which the test controls.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;

use clap::Parser;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use vos_auth::account::{self, NewAccount};
use vos_auth::app::{App, Limits};
use vos_auth::clock::{Clock, ManualClock};
use vos_auth::config::{Config, OauthSecrets, Secrets};
use vos_auth::email_address::EmailAddress;
use vos_auth::locale::Locale;
use vos_auth::password::{Cost, Password};
use vos_auth::secret::Key;
use vos_auth::server::{Server, TaskEnded};

use crate::client::Client;
use crate::relay::Relay;
use crate::{PATIENCE, database, now};

#[derive(Parser)]
#[command(args_override_self = true)]
struct Settings {
    #[command(flatten)]
    config: Config,
}

/// A running service whose clock and relay the test controls.
pub struct Service {
    pub address: SocketAddr,
    pub metrics_address: SocketAddr,
    /// The address of the admin API, if the settings have `--admin-addr`.
    pub admin_address: Option<SocketAddr>,
    pub clock: ManualClock,
    pub relay: Relay,
    pub pool: PgPool,
    pub app: Arc<App>,
    pub keys: Key,
    stop: CancellationToken,
    running: JoinHandle<Result<(), TaskEnded>>,
}

/// How a service differs from the default.
#[derive(Default)]
pub struct Setup {
    pub settings: Vec<String>,
    pub database_url: Option<String>,
    pub relay: Option<Relay>,
    /// Relays after the first, by their URLs.
    pub further_relays: Vec<String>,
    pub keys: Option<Key>,
    pub clock: Option<ManualClock>,
    /// The value of `EVENT_HOOKS`.
    pub event_hooks: String,
}

impl Service {
    pub async fn start(pool: &PgPool) -> Self {
        Self::start_with(pool, Setup::default()).await
    }

    pub async fn start_with_settings(pool: &PgPool, settings: &[&str]) -> Self {
        let settings = settings.iter().map(ToString::to_string).collect();
        Self::start_with(pool, Setup { settings, ..Setup::default() }).await
    }

    pub async fn start_with(pool: &PgPool, setup: Setup) -> Self {
        let relay = match setup.relay {
            Some(relay) => relay,
            None => Relay::start().await,
        };
        let keys = setup.keys.unwrap_or_else(|| Key::random("test"));
        let has_admin_api = setup.settings.iter().any(|setting| setting.starts_with("--admin-addr"));
        let secrets = Secrets {
            database_url: Some(setup.database_url.unwrap_or_else(|| database::service_url(pool))),
            admin_database_url: has_admin_api.then(|| database::operator_url(pool)),
            code_keys: Some(keys.clone().into()),
            device_keys: Some(keys.clone().into()),
            factor_keys: Some(keys.clone().into()),
            smtp_relays: Some(std::iter::once(relay.url()).chain(setup.further_relays).collect()),
            smtp_oauth: OauthSecrets::default(),
            event_hooks: setup.event_hooks,
        };
        let usual = [
            "it",
            "--http-addr=127.0.0.1:0",
            "--metrics-addr=127.0.0.1:0",
            "--public-origin=https://platform.verolabs.co",
            "--sign-in-url=/login",
            "--smtp-probe-interval=20ms",
            "--outbox-poll-interval=20ms",
            "--drain-delay=0s",
            "--login-failure-time=10ms",
            "--argon2-memory-kib=7168",
            "--argon2-passes=1",
        ];
        let settings = usual.into_iter().map(str::to_owned).chain(setup.settings);
        let config = Settings::parse_from(settings).config;
        let clock = setup.clock.unwrap_or_else(|| ManualClock::at(now()));
        let (app, courier) = App::new(config, secrets, Clock::Manual(clock.clone()), Limits::On).unwrap();
        let server = Server::bind(app, courier).unwrap();
        let (address, metrics_address) = (server.address().unwrap(), server.metrics_address().unwrap());
        let admin_address = server.admin_address().unwrap();
        let (app, stop) = (Arc::clone(server.app()), CancellationToken::new());
        let running = tokio::spawn(server.run(stop.clone()));
        let pool = pool.clone();
        let service =
            Self { address, metrics_address, admin_address, clock, relay, pool, app, keys, stop, running };
        service.until_mail_is("ok").await;
        service
    }

    /// Another replica, with the same database, relay, secrets and time.
    pub async fn replica(&self, settings: &[&str]) -> Self {
        let setup = Setup {
            settings: settings.iter().map(ToString::to_string).collect(),
            clock: Some(self.clock.clone()),
            keys: Some(self.keys.clone()),
            relay: Some(self.relay.clone()),
            ..Setup::default()
        };
        Self::start_with(&self.pool, setup).await
    }

    /// A new client, without a cookie.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    pub async fn has_account(&self, email: &str) {
        self.has_account_in(email, None).await;
    }

    /// Creates an account for a service that runs in another process.
    pub async fn has_account_at(pool: &PgPool, email: &str) {
        Self::make_account(pool, email, None).await;
    }

    pub async fn has_account_in(&self, email: &str, locale: Option<Locale>) {
        Self::make_account(&self.pool, email, locale).await;
    }

    async fn make_account(pool: &PgPool, email: &str, locale: Option<Locale>) {
        let mut connection = pool.acquire().await.unwrap();
        let email = EmailAddress::parse(email).unwrap();
        let new = NewAccount { email, locale, traits: serde_json::Map::new(), password_hash: None };
        account::create(&mut connection, now(), new, None).await.unwrap();
    }

    /// Creates an account with a password, at the lowest hashing cost.
    pub async fn has_trader(&self, email: &str, password: &str) {
        Self::has_trader_at(&self.pool, email, password).await;
    }

    /// The same for a service that runs in another process.
    pub async fn has_trader_at(pool: &PgPool, email: &str, password: &str) {
        Self::make_account(pool, email, None).await;
        let hash = Password::new(password).hash(Cost { memory_kib: 7168, passes: 1, lanes: 1 });
        put_hash(pool, email, &hash).await;
    }

    /// Replaces the password hash of an account, as an import does.
    pub async fn has_hash(&self, email: &str, hash: &str) {
        put_hash(&self.pool, email, hash).await;
    }

    /// A client whose recovery of `email` is verified, so that the next step is the new password.
    pub async fn verified(&self, email: &str) -> Client {
        let mut client = self.client();
        self.verifies_from(&mut client, email).await;
        client
    }

    /// Takes a client through start and verify, with the code from the mail.
    pub async fn verifies_from(&self, client: &mut Client, email: &str) {
        let code = self.mails_code_to(client, email).await;
        assert!(client.verifies(&code).await.is_verified());
    }

    /// Takes a client through start, and returns the code from the mail.
    pub async fn mails_code_to(&self, client: &mut Client, email: &str) -> String {
        self.until_outbox_has(0).await;
        let before = self.relay.mails().len();
        assert!(client.starts_recovery(email).await.is_code_sent());
        let mail = self.relay.mail(before + 1).await;
        self.until_outbox_has(0).await;
        assert_eq!(mail.recipients, [email]);
        mail.code()
    }

    /// Waits until a condition holds that another task causes. Yields to other tasks between two
    /// checks.
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !holds().await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    }

    /// Waits until the probe has noticed a change of the relay, so that `/readyz` has this state.
    pub async fn until_mail_is(&self, state: &str) {
        self.until("the probe's finding", async || {
            let answer = self.client().get("/readyz").await;
            answer.body["parts"]["mail"] == state
        })
        .await;
    }

    pub async fn until_outbox_has(&self, rows: i64) {
        self.until("rows of the outbox", async || self.count("outbox").await == rows).await;
    }

    pub async fn count(&self, table: &str) -> i64 {
        let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    pub async fn metric(&self, line_start: &str) -> f64 {
        metric(self.metrics_address, line_start).await
    }

    /// Tells the service to stop, as SIGTERM does.
    pub fn is_told_to_stop(&self) {
        self.stop.cancel();
    }

    /// Stops the service as SIGTERM does, and waits until it has stopped.
    pub async fn stops(self) {
        self.is_told_to_stop();
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .expect("it stops")
            .unwrap()
            .expect("every part lasted");
    }
}

async fn put_hash(pool: &PgPool, email: &str, hash: &str) {
    let stored = sqlx::query("UPDATE account SET password_hash = $2 WHERE email = $1").bind(email).bind(hash);
    assert_eq!(stored.execute(pool).await.unwrap().rows_affected(), 1);
}

/// The value in the first line of the metrics that begins with `line_start`; 0 if there is none.
pub async fn metric(address: SocketAddr, line_start: &str) -> f64 {
    let page = reqwest::get(format!("http://{address}/metrics")).await.unwrap().text().await.unwrap();
    metric_in(&page, line_start).unwrap_or(0.0)
}

/// The value in the first line of `page` that begins with `line_start`.
pub fn metric_in<T: FromStr>(page: &str, line_start: &str) -> Option<T> {
    let line = page.lines().find(|line| line.starts_with(line_start));
    line?.rsplit(' ').next()?.parse().ok()
}
