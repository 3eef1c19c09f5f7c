//! `make failover`: the loss of a database machine.
//!
//! Two PostgreSQL servers under Patroni, three etcd and HAProxy run with the files of `deploy/`,
//! together with two replicas of the built program, a real Postfix and clients. The trial takes
//! down one machine after the other with all its processes, brings it back, and prints what clients
//! saw. At the end it compares every 200 with every mail that the relay stored. It ends with an
//! error if a mail was lost, came too late, or was sent again without a loss that explains it.

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

/// The pause before each loss, and between the moment when the service works again and the return
/// of the machine.
const CALM: Duration = Duration::from_secs(5);
/// How long the relay is frozen before a loss. Otherwise almost every mail would be sent before the
/// loss, because sending takes milliseconds. The mails of the starts that are accepted in this time
/// exist only in the databases.
const PENDING: Duration = Duration::from_secs(1);
/// The longest time until starts are accepted again, and until every pending mail is sent.
const PATIENCE: Duration = Duration::from_mins(5);
/// More starts than can be in progress at once. When this many starts were accepted after the loss,
/// some of them began after it.
const ENOUGH: usize = 100;
/// The password of the service's role, for this run alone.
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
    /// The index of the machine that is the primary.
    primary: usize,
    database_url: String,
    postfix: Postfix,
    ready: Ready,
    // Stopped when this value is dropped.
    _replicas: [Replica; 2],
    _balancer: Namespace,
    _witness: Machine,
}

impl World {
    /// Starts all components, and creates an account for each address.
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
            // Clients use both replicas whatever /readyz says, because the trial measures what
            // clients see.
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

    /// Takes down a machine, waits until starts are accepted without it, and brings it back.
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
