//! `make bench`: how many starts the service answers a second, compared with PostgreSQL alone,
//! which runs the same statement in the same run. `--part` picks parts; docs/performance.md has the
//! measurements and what they mean.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "the numbers of a measurement are far from the bounds of an f64"
)]

mod boot;
pub mod load;
mod machine;
mod million;
mod others;
mod starts;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use sqlx::PgPool;

use self::load::{Load, Numbers, post};
use crate::relay::Relay;
use crate::replica::Replica;
use crate::{Failure, database, place};

/// About as many WAL segments as PostgreSQL keeps by default (`max_wal_size` of 1 GiB).
const SEGMENTS: usize = 48;

/// Benchmark: `start` and what follows it, beside PostgreSQL alone with the same statement
#[derive(Args)]
pub struct Options {
    /// How long each measurement lasts, in seconds
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Measure only this part; may be given several times
    #[arg(long)]
    part: Vec<Part>,
    /// Settings of the service as NAME=VALUE, to compare them
    #[arg(long)]
    with: Vec<String>,
    /// The file to which the measurements are written as JSON
    #[arg(long, default_value_t = place::temporary("bench.json"))]
    json: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// `start`, closed-loop, beside pgbench
    Closed,
    /// `start`, open-loop, at half and at 90% of its capacity
    Open,
    /// `start`, open-loop, at twice its capacity, with a slow disk
    Overload,
    /// verify, session and login
    Others,
    /// From exec to the first 200
    Boot,
    /// A million starts, and the memory of the service
    Memory,
    /// A million accounts and sessions, and the sweeper
    Million,
}

pub async fn run(options: Options) -> Result<(), Failure> {
    let url = database::of_program("bench", "")?;
    let bench = Bench::prepare(url, &options).await?;
    let mut measurements = serde_json::Map::new();
    for part in Part::value_variants() {
        if !options.part.is_empty() && !options.part.contains(part) {
            continue;
        }
        let measured = match part {
            Part::Closed => starts::closed(&bench).await?,
            Part::Open => starts::open(&bench).await?,
            Part::Overload => starts::overload(&bench).await?,
            Part::Others => others::measure(&bench).await?,
            Part::Boot => boot::measure(&bench).await?,
            Part::Memory => starts::memory(&bench).await?,
            Part::Million => million::measure(&bench).await?,
        };
        measurements.insert(format!("{part:?}").to_lowercase(), measured);
        println!();
    }
    std::fs::write(&options.json, serde_json::to_vec_pretty(&Value::Object(measurements))?)?;
    println!("the same as JSON: {}", options.json);
    Ok(())
}

/// What every part of the benchmark uses: the database, the relay and the options.
struct Bench {
    url: String,
    pool: PgPool,
    postmaster: u32,
    relay: Relay,
    settings: Vec<(String, String)>,
    numbers: Numbers,
    lasting: Duration,
}

impl Bench {
    async fn prepare(url: String, options: &Options) -> Result<Self, Failure> {
        let pool = schema(&url).await?;
        has_been_in_use(&pool).await?;
        let settings = options.with.iter().filter_map(|setting| setting.split_once('='));
        Ok(Self {
            postmaster: machine::postmaster(&pool).await?,
            relay: Relay::counting().await,
            settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            numbers: Numbers::default(),
            lasting: Duration::from_secs(options.seconds),
            url,
            pool,
        })
    }

    /// Starts the service on the database of `url`, configured as in production, with a log line
    /// for each request. Only the rate limit of a network is raised, because all of the load comes
    /// from one address.
    async fn serve(&self, url: &str, more: &[(&str, &str)]) -> Result<Replica, Failure> {
        let usual =
            [("NETWORK_BURST", "100000000"), ("NETWORK_PER_MINUTE", "4000000000"), ("LOG_LEVEL", "info")];
        let chosen: Vec<_> =
            self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let replica =
            Replica::start_unheard(url, &self.relay.url(), &[&usual, &chosen[..], more].concat()).await?;
        while replica.metric("vos_auth_relay_up{relay=\"0\"}").await? == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Warms up connections, pages and plans, and waits for mails that pgbench left pending.
        self.starts(&replica).closed(8, Duration::from_secs(1)).await?;
        settles(&PgPool::connect(url).await?).await?;
        Ok(replica)
    }

    /// A load of starts, each for a new address. One in a hundred addresses has an account.
    fn starts(&self, replica: &Replica) -> Load {
        let requests = Arc::new(|number: u64| {
            let (who, host) = if number.is_multiple_of(100) { ("known", "com") } else { ("unknown", "org") };
            post("/api/auth/recovery/start", "", &format!(r#"{{"email":"{who}-{number}@example.{host}"}}"#))
        });
        Load { address: replica.address, requests, numbers: self.numbers.clone() }
    }
}

/// Waits until no mail is pending and all data is on the disk, so that neither the courier nor the
/// disk disturbs the next measurement.
async fn settles(pool: &PgPool) -> Result<(), Failure> {
    while sqlx::query_scalar("SELECT EXISTS (SELECT FROM outbox)").fetch_one(pool).await? {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    is_on_the_disk()
}

/// Writes all data to the disk. Otherwise the kernel writes all that is 30 s old at once, and
/// commits wait for it (docs/performance.md).
fn is_on_the_disk() -> Result<(), Failure> {
    Command::new("sync").status()?;
    Ok(())
}

/// Makes PostgreSQL create its WAL segments now. A server that has run for a while reuses them. A
/// new one would create them during the measurement, and commits would wait for that.
async fn has_been_in_use(pool: &PgPool) -> Result<(), Failure> {
    for _ in 0..SEGMENTS {
        sqlx::raw_sql("SELECT pg_logical_emit_message(false, '', ''); SELECT pg_switch_wal()")
            .execute(pool)
            .await?;
    }
    sqlx::raw_sql("CHECKPOINT").execute(pool).await?;
    Ok(())
}

/// Empties the database, and creates the schema and the accounts. One in a hundred starts is for
/// one of these accounts.
async fn schema(url: &str) -> Result<PgPool, Failure> {
    let pool = database::anew(url).await?;
    let accounts = "INSERT INTO account (id, email, created_at, updated_at)
        SELECT gen_random_uuid(), 'known-' || n || '00@example.com', now(), now() FROM generate_series(0, 49999) AS n";
    sqlx::raw_sql(accounts).execute(&pool).await?;
    sqlx::raw_sql("VACUUM ANALYZE account").execute(&pool).await?;
    Ok(pool)
}

/// Prints a row of a table, and returns it as JSON.
fn row(columns: &[(&str, f64)]) -> Value {
    let line: Vec<_> = columns.iter().map(|(name, number)| cell(name, *number)).collect();
    println!("{}", line.concat());
    json!(
        columns
            .iter()
            .map(|(name, number)| ((*name).to_owned(), json!(number)))
            .collect::<serde_json::Map<_, _>>()
    )
}

fn cell(name: &str, number: f64) -> String {
    let width = name.len().max(6) + 2;
    match number {
        number if number.fract() == 0.0 || number >= 1000.0 => format!("{number:width$.0}"),
        _ => format!("{number:width$.2}"),
    }
}

fn header(columns: &[&str]) {
    let names: Vec<_> =
        columns.iter().map(|name| format!("{name:>width$}", width = name.len().max(6) + 2)).collect();
    println!("{}", names.concat());
}
