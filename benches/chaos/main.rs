//! `make chaos`: accepted is kept, whatever breaks. Two replicas of the built program behind nginx with deploy/nginx.conf
//! (without TLS), a real PostgreSQL, a real Postfix and clients; faults of every kind at random, by a seed that is printed; at the end every 200 that a client saw is
//! held against every mail that the relay kept. Exits with an error unless nothing was lost.

mod faults;
#[path = "../../tests/it/harness/mod.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod harness;
mod load;
mod names;
mod postfix;
mod proxy;
mod reconcile;
#[path = "../courier/replica.rs"]
#[expect(dead_code, reason = "the courier's measurement uses more of it")]
mod replica;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum as _};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};

use self::faults::{Fault, Kind, Member, Window, World};
use self::harness::cluster::Cluster;
use self::harness::nginx::{Nginx, Setup};
use self::load::{Load, Ready};
use self::names::{Names, RELAY};
use self::postfix::Postfix;
use self::proxy::{Proxy, Upstream};
use self::reconcile::Verdict;

type Failure = Box<dyn std::error::Error>;

/// Between two faults.
const CALM: Duration = Duration::from_secs(5);
/// How long what is owed may take to go out once all is well.
const DRAIN: Duration = Duration::from_mins(5);

/// Breaks everything around two replicas under load, and counts what was lost.
#[derive(Parser)]
struct Options {
    /// Goes on until so many starts were accepted and every fault was injected
    #[arg(long, default_value = "20000")]
    accepted: usize,
    #[arg(long, default_value = "45")]
    faults: usize,
    /// The same seed has the same faults. Default: a random one
    #[arg(long)]
    seed: Option<u64>,
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
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    println!("chaos: seed {seed}; setting up…");
    let began = Instant::now();
    // More than can be asked for: by those that are accepted and refused, and while a fault lasts.
    let addresses = 3 * options.accepted + options.faults * 30 * usize::try_from(options.rate)?;
    let http = [free_address()?, free_address()?];
    let world = world(addresses, http).await?;
    let nginx =
        Nginx::start(http, &Setup { is_documented: true, changes: &[(" ssl;", ";")], ..Setup::default() });
    let mut kinds = Kind::value_variants().to_vec();
    if !world.postfix.lock().await.can_be_full {
        println!("chaos: no file system can be mounted here, so RelayDiskFull is left out");
        kinds.retain(|kind| *kind != Kind::RelayDiskFull);
    }
    let faults = faults::schedule(&mut SmallRng::seed_from_u64(seed), options.faults, &kinds);
    let mails = world.postfix.lock().await.mails();
    let (load, ready, progress) = (Load::new(), Ready::default(), Progress::default());
    ready.is(0, Some((Ipv4Addr::LOCALHOST, nginx.tls).into()));
    let windows = tokio::select! {
        windows = injects(&world, &faults, &load, &progress, options.accepted) => windows?,
        () = load.run(ready.clone(), options.rate, addresses) => return Err("there are no addresses left".into()),
        () = progress.tell(&load, &mails, faults.len()) => unreachable!("it goes on"),
    };
    let healed = Instant::now();
    drains(&world, &progress, &load, &mails).await?;
    let drained = healed.elapsed();
    let kept = reconcile::kept(&mails)?;
    let starts = load.starts.lock().map_err(|_| "a task panicked")?.clone();
    let duplicating: Vec<_> = windows.iter().filter(|window| window.kind.may_duplicate()).copied().collect();
    Verdict::of(&starts, &kept, &duplicating).is_told(&windows, drained, began.elapsed())
}

/// Everything that is needed, and an account for each address.
async fn world(addresses: usize, http: [SocketAddr; 2]) -> Result<World, Failure> {
    let cluster = Cluster::start().await;
    let accounts = "INSERT INTO account (id, email, created_at, updated_at)
        SELECT gen_random_uuid(), 'trader' || n || '@chaos.test', $2, $2 FROM generate_series(0, $1) AS n";
    let inserted = sqlx::query(accounts).bind(i64::try_from(addresses)?).bind(now());
    inserted.execute(&mut cluster.connect().await).await?;
    let postfix = Postfix::start()?;
    let mut names = Names::new()?;
    let relay = Proxy::at(names.second(), Upstream::Port(postfix.port)).await?;
    names.is_at(relay.address.port());
    let database = async || Proxy::before(Upstream::Socket(cluster.socket())).await;
    let databases = [database().await?, database().await?];
    let keys = replica::keys()?;
    let member = async |place: usize| {
        let clock = PathBuf::from(format!("{}/chaos-clock-{place}", env!("CARGO_TARGET_TMPDIR")));
        let environment = vec![
            (
                "DATABASE_URL",
                format!("postgres://vos_auth@{}/postgres?sslmode=disable", databases[place].address),
            ),
            ("SMTP_RELAYS", format!("smtp://{RELAY}:{}?tls=none", relay.address.port())),
            ("HTTP_ADDR", http[place].to_string()),
            ("TRUSTED_PROXIES", "127.0.0.1/32".into()),
            ("JWT_KEYS", keys.clone()),
            ("LD_PRELOAD", faketime()?.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
        ];
        Member::start(names.inside(), environment, clock).await
    };
    let members = [member(0).await?, member(1).await?];
    Ok(World { cluster: cluster.into(), postfix: postfix.into(), databases, relay, names, members })
}

/// nginx has to know the replicas before they are there.
fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Where Debian's package puts it depends on the machine.
fn faketime() -> Result<PathBuf, Failure> {
    let folders = std::fs::read_dir("/usr/lib")?.flatten();
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    found.find(|path| path.exists()).ok_or_else(|| "libfaketime is missing: run `make chaos`".into())
}

async fn injects(
    world: &World,
    faults: &[Fault],
    load: &Load,
    progress: &Progress,
    accepted: usize,
) -> Result<Vec<Window>, Failure> {
    let mut windows = Vec::new();
    for group in faults.chunk_by(|_, next| next.with_the_one_before) {
        tokio::time::sleep(CALM).await;
        progress.suffers(group);
        match group {
            [one, other] => {
                let (one, other) = tokio::join!(world.suffers(*one), world.suffers(*other));
                windows.extend([one?, other?]);
            }
            _ => windows.push(world.suffers(group[0]).await?),
        }
        progress.suffers(&[]);
        progress.faults.fetch_add(group.len(), Ordering::Relaxed);
    }
    while load.accepted.load(Ordering::Relaxed) < accepted {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(windows)
}

/// Until nothing is owed any more, neither by the service nor by the relay.
async fn drains(world: &World, progress: &Progress, load: &Load, mails: &Path) -> Result<(), Failure> {
    let drained = async {
        let mut connection = world.cluster.lock().await.connect().await;
        reconcile::drains(&mut connection, &*world.postfix.lock().await).await
    };
    tokio::select! {
        drained = tokio::time::timeout(DRAIN, drained) => Ok(drained.map_err(|_| "mails are still owed")??),
        () = progress.tell(load, mails, 0) => unreachable!("it goes on"),
    }
}

/// What is going on, for whoever waits.
#[derive(Default)]
struct Progress {
    faults: AtomicUsize,
    now: Mutex<String>,
}

impl Progress {
    fn suffers(&self, group: &[Fault]) {
        let names: Vec<_> = group.iter().map(|fault| format!("{:?}", fault.kind)).collect();
        *self.now.lock().expect("no task panicked") = names.join(" + ");
    }

    async fn tell(&self, load: &Load, mails: &Path, faults: usize) {
        let began = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let kept = std::fs::read_dir(mails).map_or(0, Iterator::count);
            println!(
                "{:4} s  accepted {}, mails {kept}, faults {} of {faults}  {}",
                began.elapsed().as_secs(),
                load.accepted.load(Ordering::Relaxed),
                self.faults.load(Ordering::Relaxed),
                self.now.lock().expect("no task panicked"),
            );
        }
    }
}
