//! `make failover`: the loss of a database machine. Two PostgreSQL under Patroni, three etcd and HAProxy by the files of
//! `deploy/`, two replicas of the built program, a real Postfix and clients; one machine after the other is lost with all
//! its processes and comes back. What clients saw is printed for each loss, and at the end every 200 is held against every
//! mail that the relay kept. Exits with an error unless nothing was lost.

mod faults;
#[path = "../chaos/load.rs"]
mod load;
mod machines;
mod namespace;
#[path = "../chaos/postfix.rs"]
#[expect(dead_code, reason = "`make chaos` uses more of it")]
mod postfix;
#[path = "../chaos/reconcile.rs"]
mod reconcile;
#[path = "../courier/replica.rs"]
#[expect(dead_code, reason = "the courier's measurement uses more of it")]
mod replica;
mod row;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Parser;
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

use self::faults::{KINDS, Kind, Window};
use self::load::{Load, Ready};
use self::machines::{AppState, Machine};
use self::namespace::Namespace;
use self::postfix::Postfix;
use self::reconcile::Verdict;
use self::replica::Replica;
use self::row::Row;

type Failure = Box<dyn std::error::Error>;

/// Before each loss, and between the loss of a machine and its return once the service works again.
const CALM: Duration = Duration::from_secs(5);
/// How long the relay stands still before a loss. A mail goes out within milliseconds, and what a lost machine took along
/// would have been mailed before; what is accepted meanwhile is owed by the databases alone.
const OWED: Duration = Duration::from_secs(1);
/// How long it may take until starts are accepted again, and until what is owed has gone out.
const PATIENCE: Duration = Duration::from_mins(5);
/// More than are under way at any time: so many after a loss are of after it.
const ENOUGH: usize = 100;
/// The role's password, for this run alone.
const PASSWORD: &str = "failover";

/// Loses one database machine after the other under load, and counts what was lost with them.
#[derive(Parser)]
struct Options {
    /// The primary killed, the primary gone silent, the standby gone silent, and so on
    #[arg(long, default_value = "6")]
    losses: usize,
    /// Starts a second
    #[arg(long, default_value = "60")]
    rate: u32,
    /// What cargo gives to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[expect(clippy::disallowed_methods, reason = "what it compares with is real")]
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = run(&options) => ended,
        _ = terminate.recv() => Err("stopped".into()),
        _ = interrupt.recv() => Err("stopped".into()),
    }
}

async fn run(options: &Options) -> Result<(), Failure> {
    println!("failover: setting up…");
    let (began, site) = (Instant::now(), AppState::new()?);
    let addresses = 200 * usize::try_from(options.rate)? * (1 + options.losses);
    let mut world = World::start(&site, addresses).await?;
    let (load, ready) = (Load::new(), world.ready.clone());
    let windows = tokio::select! {
        windows = world.loses(options.losses, &load) => windows?,
        () = load.run(ready, options.rate, addresses) => return Err("there are no addresses left".into()),
    };
    let healed = Instant::now();
    let mut connection = PgConnection::connect(&world.database_url).await?;
    let drained = tokio::time::timeout(PATIENCE, reconcile::drains(&mut connection, &world.postfix)).await;
    drained.map_err(|_| "mails are still owed")??;
    let drained = healed.elapsed();
    let kept = reconcile::kept(&world.postfix.mails())?;
    let starts = load.starts.lock().map_err(|_| "a task panicked")?.clone();
    Row::head();
    for window in &windows {
        Row::of(*window, &starts, &kept).is_told();
    }
    Verdict::of(&starts, &kept, &windows).is_told(&windows, drained, began.elapsed())
}

struct World {
    machines: [Machine; 2],
    /// Which of them is the primary.
    primary: usize,
    database_url: String,
    postfix: Postfix,
    ready: Ready,
    // Held, and ended with it.
    _replicas: [Replica; 2],
    _balancer: Namespace,
    _witness: Machine,
}

impl World {
    /// Everything that is needed, and an account for each address.
    async fn start(site: &AppState, addresses: usize) -> Result<Self, Failure> {
        let witness = site.witness().await?;
        let machines = [site.database("pg1", 21).await?, site.database("pg2", 22).await?];
        let balancer = site.balancer().await?;
        let primary = tokio::select! {
            became = machines[0].becomes("primary") => became.map(|()| 0),
            became = machines[1].becomes("primary") => became.map(|()| 1),
        }?;
        let mut superuser = PgConnection::connect(&site.superuser_url(&machines[primary])).await?;
        let role = format!("CREATE ROLE vos_auth LOGIN PASSWORD '{PASSWORD}'");
        for statement in [&role, "CREATE DATABASE vos_auth OWNER vos_auth"] {
            sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut superuser).await?;
        }
        machines[1 - primary].becomes("synchronous").await?;
        let database_url = site.service_url(PASSWORD);
        let mut connection = PgConnection::connect(&database_url).await?;
        vos_auth::database::MIGRATOR.run(&mut connection).await?;
        let accounts = "INSERT INTO account (id, email, created_at, updated_at)
            SELECT gen_random_uuid(), 'trader' || n || '@chaos.test', $2, $2 FROM generate_series(0, $1) AS n";
        sqlx::query(accounts).bind(i64::try_from(addresses)?).bind(now()).execute(&mut connection).await?;
        let postfix = Postfix::start()?;
        let (relay, keys) = (format!("smtp://127.0.0.1:{}?tls=none", postfix.port), replica::keys()?);
        let environment = [("DATABASE_URL", &*database_url), ("SMTP_RELAYS", &relay), ("JWT_KEYS", &keys)];
        let replicas = [Replica::start(&environment).await?, Replica::start(&environment).await?];
        let ready = Ready::default();
        for (place, replica) in replicas.iter().enumerate() {
            // Whatever /readyz says: what clients see is what is measured.
            ready.is(place, Some(replica.address));
        }
        Ok(Self {
            machines,
            primary,
            database_url,
            postfix,
            ready,
            _replicas: replicas,
            _balancer: balancer,
            _witness: witness,
        })
    }

    async fn loses(&mut self, losses: usize, load: &Load) -> Result<Vec<Window>, Failure> {
        let mut windows = Vec::new();
        for kind in KINDS.into_iter().cycle().take(losses) {
            tokio::time::sleep(CALM).await;
            windows.push(self.loses_one(kind, load).await?);
        }
        tokio::time::sleep(CALM).await;
        Ok(windows)
    }

    /// Loses a machine, waits until starts are accepted without it, and has it back.
    async fn loses_one(&mut self, kind: Kind, load: &Load) -> Result<Window, Failure> {
        let standby = 1 - self.primary;
        let lost = if kind == Kind::StandbySilent { standby } else { self.primary };
        self.postfix.stands_still()?;
        tokio::time::sleep(OWED).await;
        let (from, accepted) = (now(), load.accepted.load(Ordering::Relaxed));
        if kind == Kind::PrimaryKilled {
            self.machines[lost].is_killed();
        } else {
            self.machines[lost].falls_silent()?;
        }
        self.postfix.goes_on()?;
        println!("failover: {kind:?} at {from}");
        self.primary = 1 - lost;
        self.machines[self.primary].becomes("primary").await?;
        let serves = async {
            while load.accepted.load(Ordering::Relaxed) < accepted + ENOUGH {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, serves).await.map_err(|_| "nothing is accepted any more")?;
        tokio::time::sleep(CALM).await;
        self.machines[lost].comes_back().await?;
        self.machines[lost].becomes("synchronous").await?;
        let window = Window { kind, from, to: now() };
        println!("failover: two machines again after {:.0}", window.to - from);
        Ok(window)
    }
}
