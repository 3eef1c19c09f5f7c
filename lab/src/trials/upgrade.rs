//! `make upgrade`: upgrades from the previous release to this one and rolls back, under load.
//!
//! Two replicas of the built program run behind a real nginx, with a large database, while people
//! recover their passwords. The trial ends with an error if a request failed or a valid code was
//! refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use sqlx::{AssertSqlSafe, PgPool};
use vos_auth_lab::host::Host;
use vos_auth_lab::load::{Load, Mailbox};
use vos_auth_lab::program::{Program, built};
use vos_auth_lab::relay::Relay;
use vos_auth_lab::{Failure, database};

/// How often to ask PostgreSQL which sessions wait for a lock.
const LOOK: Duration = Duration::from_millis(10);
/// The number of people who get a code before a step and enter it after the step, and of those who
/// begin after it.
const HELD: usize = 6;
const AFTER: usize = 12;

/// Trial: upgrades from the previous release to this one and rolls back, under load
#[derive(Args)]
pub struct Options {
    /// The binary of the previous release
    #[arg(long)]
    from: PathBuf,
    /// The number of accounts, recoveries and audit events to insert before
    #[arg(long, default_value = "200000")]
    rows: i64,
}

pub async fn run(options: Options) -> Result<(), Failure> {
    let suite = PgPool::connect(&database::of_program("upgrade", "")?).await?;
    for statement in ["DROP DATABASE IF EXISTS upgrade WITH (FORCE)", "CREATE DATABASE upgrade"] {
        sqlx::query(statement).execute(&suite).await?;
    }
    let pool = PgPool::connect_with((*suite.connect_options()).clone().database("upgrade")).await?;
    let url = database::url(&pool);
    migrates(&options.from, &url).await?;
    fill(&pool, options.rows).await?;
    let relay = Relay::start().await;
    let host = Host::start_of(Some(&options.from), &url, &relay.url(), &[]).await;
    let life = Duration::from_mins(5);
    let load = Load::new(Arc::clone(&host.nginx), pool.clone(), Mailbox::Relay(relay), life);
    let mut upgrade = Upgrade { host, load: Arc::clone(&load), waited: Arc::default() };
    let waited = Arc::clone(&upgrade.waited);
    println!(
        "{:44}{:>9}{:>10}{:>8}{:>9}{:>14}",
        "step", "seconds", "requests", "failed", "refused", "longest wait"
    );
    tokio::select! {
        done = load.during(upgrade.runs(&options.from, &url)) => done?,
        failed = watch_locks(&pool, &waited) => return failed.map(|_: std::convert::Infallible| ()),
    }
    let counts = load.counts();
    println!(
        "{} people got in; codes refused: {}; failed: {:#?}",
        counts.people, counts.codes_refused, counts.failures
    );
    if counts.failures.is_empty() { Ok(()) } else { Err("requests failed".into()) }
}

struct Upgrade {
    host: Host,
    load: Arc<Load>,
    /// The longest wait for a lock during the current step, in microseconds.
    waited: Arc<AtomicU64>,
}

impl Upgrade {
    async fn runs(&mut self, before: &Path, url: &str) -> Result<(), Failure> {
        self.step("the release before", async |_| Ok(())).await?;
        self.step("this release migrates", async |_| migrates(built(), url).await).await?;
        self.step("the first replica is of this release", async |host| replaces(host, None, 0).await).await?;
        self.step("the second, too", async |host| replaces(host, None, 1).await).await?;
        self.step("back: the first replica", async |host| replaces(host, Some(before), 0).await).await?;
        self.step("back: the second", async |host| replaces(host, Some(before), 1).await).await?;
        Ok(())
    }

    /// Runs one step. Users who got a code before the step enter it after the step.
    async fn step(
        &mut self,
        name: &str,
        work: impl AsyncFnOnce(&mut Host) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (before, began) = (self.load.counts(), Instant::now());
        self.waited.store(0, Ordering::Relaxed);
        let held = self.load.have_codes(HELD).await;
        work(&mut self.host).await?;
        for person in &held {
            self.load.gets_in(person).await;
        }
        for _ in 0..AFTER {
            self.load.person().await;
        }
        let counts = self.load.counts();
        println!(
            "{name:44}{:9.1}{:10}{:8}{:9}{:>11.1} ms",
            began.elapsed().as_secs_f64(),
            counts.requests - before.requests,
            counts.failures.len() - before.failures.len(),
            counts.codes_refused - before.codes_refused,
            Duration::from_micros(self.waited.load(Ordering::Relaxed)).as_secs_f64() * 1e3,
        );
        Ok(())
    }
}

async fn replaces(host: &mut Host, program: Option<&Path>, place: usize) -> Result<(), Failure> {
    host.program = program.map(Path::to_owned);
    host.replaces(place).await;
    Ok(())
}

async fn migrates(program: &Path, url: &str) -> Result<(), Failure> {
    let (program, url) = (program.to_owned(), url.to_owned());
    let migrating = move || Program::start_of(&program, &["migrate"], &[("DATABASE_URL", &url)]).ends();
    let (said, well) = tokio::task::spawn_blocking(migrating).await?;
    if well { Ok(()) } else { Err(said.join("\n").into()) }
}

/// Inserts rows such as a service has after some time in use.
async fn fill(pool: &PgPool, rows: i64) -> Result<(), Failure> {
    for what in [
        "account (id, email, created_at, updated_at)
            SELECT gen_random_uuid(), 'trader' || n || '@example.com', now(), now()",
        "recovery_session (id, token_hash, email, key_id, created_at, expires_at, client_ip, user_agent)
            SELECT gen_random_uuid(), sha256(n::text::bytea), 'trader' || n || '@example.com', 'test',
                now(), now() + interval '10 minutes', '192.0.2.1', ''",
        "session (id, token_hash, account_id, authenticated_at, last_seen_at, expires_at, client_ip, user_agent)
            SELECT gen_random_uuid(), sha256(n::text::bytea), (SELECT id FROM account WHERE email = 'trader' || n || '@example.com'),
                now(), now(), now() + interval '12 hours', '192.0.2.1', ''",
        "audit_event (id, what, created_at) SELECT gen_random_uuid(), 'signed_in', now()",
    ] {
        let insert = format!("INSERT INTO {what} FROM generate_series(1, $1::bigint) AS n");
        sqlx::query(AssertSqlSafe(insert)).bind(rows).execute(pool).await?;
    }
    sqlx::query("ANALYZE").execute(pool).await?;
    Ok(())
}

/// Records the longest wait for a lock, until the future is dropped.
async fn watch_locks<T>(pool: &PgPool, waited: &AtomicU64) -> Result<T, Failure> {
    let mut connection = pool.acquire().await?;
    let longest = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - waitstart)), 0)::float8
        FROM pg_locks WHERE NOT granted";
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tick.tick().await;
        let seconds: f64 = sqlx::query_scalar(longest).fetch_one(&mut *connection).await?;
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        waited.fetch_max(wait.as_micros().try_into()?, Ordering::Relaxed);
    }
}
