//! `make failover`: the loss of a database machine.
//!
//! Two PostgreSQL under Patroni, three etcd and HAProxy run by the files of `deploy/`, with two replicas of the built program, a
//! real Postfix and clients. One machine after the other is lost with all its processes, and comes back. It prints what clients saw
//! of each loss. At the end, every 200 is held against every mail that the relay kept. It ends with an error unless nothing was lost.

mod faults;
mod machines;
mod namespace;
mod row;

use std::time::{Duration, Instant};

use clap::Args;
use sqlx::{Connection as _, PgConnection};
use vos_auth_lab::ledger::{self, Verdict, Window};
use vos_auth_lab::postfix::{self, Postfix};
use vos_auth_lab::replica::Replica;
use vos_auth_lab::starts::{Ready, Starts, have_accounts};
use vos_auth_lab::{Failure, now};

use self::faults::{KINDS, Kind};
use self::machines::{Machine, Site};
use self::namespace::Namespace;
use self::row::Row;

/// Before each loss, and between the loss of a machine and its return once the service works again.
const CALM: Duration = Duration::from_secs(5);
/// How long the relay is frozen before a loss. A mail is sent within milliseconds, so it would have left before the loss; what is
/// accepted meanwhile is pending in the databases alone.
const PENDING: Duration = Duration::from_secs(1);
/// How long it may take until starts are accepted again, and until every pending mail is sent.
const PATIENCE: Duration = Duration::from_mins(5);
/// More than are under way at any time: so many after a loss are of after it.
const ENOUGH: usize = 100;
/// The role's password, for this run alone.
const PASSWORD: &str = "failover";

/// Trial: loses one database machine after the other under load, and counts what was lost
#[derive(Args)]
pub struct Options {
    /// The primary killed, the primary gone silent, the standby gone silent, and so on
    #[arg(long, default_value = "6")]
    losses: usize,
    /// Starts a second
    #[arg(long, default_value = "60")]
    rate: u32,
}

pub async fn run(options: Options) -> Result<(), Failure> {
    println!("failover: setting up…");
    let (began, site) = (Instant::now(), Site::new()?);
    let addresses = 200 * usize::try_from(options.rate)? * (1 + options.losses);
    let mut world = World::start(&site, addresses).await?;
    let (load, ready) = (Starts::default(), world.ready.clone());
    let windows = tokio::select! {
        windows = world.loses(options.losses, &load) => windows?,
        () = load.run(ready, options.rate, addresses) => return Err("there are no addresses left".into()),
    };
    let healed = Instant::now();
    let mut connection = PgConnection::connect(&world.database_url).await?;
    let drained = tokio::time::timeout(PATIENCE, ledger::drains(&mut connection, &world.postfix)).await;
    drained.map_err(|_| "mails are still pending")??;
    let drained = healed.elapsed();
    let kept = ledger::kept(&world.postfix.maildir())?;
    let starts = load.seen();
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
    async fn start(site: &Site, addresses: usize) -> Result<Self, Failure> {
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
        have_accounts(&mut connection, addresses).await?;
        let postfix = Postfix::start(postfix::Setup { is_open: true, ..postfix::Setup::default() });
        let relay = format!("smtp://127.0.0.1:{}?tls=none", postfix.port);
        let replica = async || Replica::start(&database_url, &relay, &[]).await;
        let replicas = [replica().await?, replica().await?];
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

    async fn loses(&mut self, losses: usize, load: &Starts) -> Result<Vec<Window<Kind>>, Failure> {
        let mut windows = Vec::new();
        for kind in KINDS.into_iter().cycle().take(losses) {
            tokio::time::sleep(CALM).await;
            windows.push(self.loses_one(kind, load).await?);
        }
        tokio::time::sleep(CALM).await;
        Ok(windows)
    }

    /// Loses a machine, waits until starts are accepted without it, and has it back.
    async fn loses_one(&mut self, kind: Kind, load: &Starts) -> Result<Window<Kind>, Failure> {
        let standby = 1 - self.primary;
        let lost = if kind == Kind::StandbySilent { standby } else { self.primary };
        self.postfix.freezes();
        tokio::time::sleep(PENDING).await;
        let (from, accepted) = (now(), load.accepted());
        if kind == Kind::PrimaryKilled {
            self.machines[lost].is_killed();
        } else {
            self.machines[lost].falls_silent()?;
        }
        self.postfix.thaws();
        println!("failover: {kind:?} at {from}");
        self.primary = 1 - lost;
        self.machines[self.primary].becomes("primary").await?;
        let serves = async {
            while load.accepted() < accepted + ENOUGH {
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
