//! `make chaos`: shows that every accepted start gets its email, whatever breaks.
//!
//! Two replicas of the built program run behind nginx with `deploy/nginx.conf` (without TLS), with
//! a real PostgreSQL, a real Postfix and clients. The trial injects faults of every kind at random,
//! by a seed that it prints. At the end it compares every 200 that a client saw with every mail
//! that the relay stored, and every entry of the audit log with every event that a webhook got. It
//! ends with an error if an email or event was lost, or another promise broken.

mod events;
mod faults;
mod names;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum as _};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use vos_auth_lab::cluster::Cluster;
use vos_auth_lab::ledger::{self, Verdict, Window};
use vos_auth_lab::nginx::{Nginx, Setup};
use vos_auth_lab::place::{free_address, temporary};
use vos_auth_lab::postfix::{self, Postfix};
use vos_auth_lab::proxy::{Proxy, Server};
use vos_auth_lab::starts::{Ready, Starts, have_accounts};
use vos_auth_lab::webhook::{Mood, Webhook};
use vos_auth_lab::{Failure, database};

use self::faults::{Fault, Kind, Member, World};
use self::names::{Names, RELAY};

/// The pause between two faults.
const CALM: Duration = Duration::from_secs(5);
/// How long the service may take to send the pending mails and events after the last fault.
const DRAIN: Duration = Duration::from_mins(5);

/// Trial: breaks everything around two replicas under load, and counts what was lost
#[derive(Args)]
pub struct Options {
    /// Accepted starts. The trial ends when it has these and has injected every fault
    #[arg(long, default_value = "20000")]
    accepted: usize,
    #[arg(long, default_value = "45")]
    faults: usize,
    /// The same seed gives the same faults. Default: a random seed
    #[arg(long)]
    seed: Option<u64>,
    /// Starts a second
    #[arg(long, default_value = "60")]
    rate: u32,
}

pub async fn run(options: Options) -> Result<(), Failure> {
    // Without `DATABASE_URL`, runs this program again under `scripts/with-postgres`, which puts
    // `initdb` on the PATH. The trial does not use the database itself.
    database::of_program("chaos", "")?;
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    println!("chaos: seed {seed}; setting up…");
    let began = Instant::now();
    // More addresses than the load can use, even with refused starts and during the faults.
    let addresses = 3 * options.accepted + options.faults * 30 * usize::try_from(options.rate)?;
    let http = [free_address(), free_address()];
    let world = world(addresses, http).await?;
    let nginx =
        Nginx::start(http, &Setup { is_documented: true, changes: &[(" ssl;", ";")], ..Setup::default() });
    let mut kinds = Kind::value_variants().to_vec();
    if world.postfix.lock().await.disk().is_none() {
        println!("chaos: no file system can be mounted here, so RelayDiskFull is left out");
        kinds.retain(|kind| *kind != Kind::RelayDiskFull);
    }
    let faults = faults::schedule(&mut SmallRng::seed_from_u64(seed), options.faults, &kinds);
    let mails = world.postfix.lock().await.maildir();
    let events_from = world.cluster.lock().await.options();
    let (load, ready, progress) = (Starts::default(), Ready::default(), Progress::default());
    ready.is(0, Some((Ipv4Addr::LOCALHOST, nginx.tls).into()));
    let windows = tokio::select! {
        windows = injects(&world, &faults, &load, &progress, options.accepted) => windows?,
        () = load.run(ready.clone(), options.rate, addresses) => return Err("there are no addresses left".into()),
        () = progress.tell(&load, &mails, faults.len()) => unreachable!("it goes on"),
        () = events::appends(events_from) => unreachable!("it goes on"),
    };
    let healed = Instant::now();
    drains(&world, &progress, &load, &mails).await?;
    let drained = healed.elapsed();
    let kept = ledger::kept(&mails)?;
    let duplicating: Vec<_> = windows.iter().filter(|window| window.kind.may_duplicate()).copied().collect();
    let told = Verdict::of(&load.seen(), &kept, &duplicating).is_told(&windows, drained, began.elapsed());
    let mut connection = world.cluster.lock().await.connect().await;
    events::are_told(&mut connection, &world.webhook.lock().await.taken()).await?;
    told
}

/// Starts all components, and creates an account for each address.
async fn world(addresses: usize, http: [SocketAddr; 2]) -> Result<World, Failure> {
    let cluster = Cluster::start().await;
    have_accounts(&mut cluster.connect().await, addresses).await?;
    let postfix =
        Postfix::start(postfix::Setup { is_open: true, has_small_queue: true, ..postfix::Setup::default() });
    let mut names = Names::new()?;
    let relay = Proxy::at(names.second(), Server::Tcp("127.0.0.1".into(), postfix.port)).await;
    names.is_at(relay.address.port());
    let database = async || Proxy::before_server(Server::Socket(cluster.socket())).await;
    let databases = [database().await, database().await];
    let webhook = Webhook::start(Mood::Takes);
    let member = async |place: usize| {
        let clock = PathBuf::from(temporary(&format!("chaos-clock-{place}")));
        let database = format!("postgres://vos_auth@{}/postgres?sslmode=disable", databases[place].address);
        let relay = format!("smtp://{RELAY}:{}?tls=none", relay.address.port());
        let mut changes = webhook.environment().to_vec();
        changes.extend([
            ("HTTP_ADDR", http[place].to_string()),
            ("TRUSTED_PROXIES", "127.0.0.1/32".into()),
            ("LD_PRELOAD", faketime()?.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("DONT_FAKE_MONOTONIC", "1".into()),
        ]);
        Member::start(names.inside(), database, relay, changes, clock).await
    };
    let members = [member(0).await?, member(1).await?];
    let (cluster, postfix, webhook) = (cluster.into(), postfix.into(), webhook.into());
    Ok(World { cluster, postfix, databases, relay, webhook, names, members })
}

/// The path of libfaketime. In Debian's package, the path depends on the architecture.
fn faketime() -> Result<PathBuf, Failure> {
    let folders = std::fs::read_dir("/usr/lib")?.flatten();
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    found.find(|path| path.exists()).ok_or_else(|| "libfaketime is missing: run `make chaos`".into())
}

async fn injects(
    world: &World,
    faults: &[Fault],
    load: &Starts,
    progress: &Progress,
    accepted: usize,
) -> Result<Vec<Window<Kind>>, Failure> {
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
    while load.accepted() < accepted {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(windows)
}

/// Waits until no mail is pending at the service or at the relay, and no event.
async fn drains(world: &World, progress: &Progress, load: &Starts, mails: &Path) -> Result<(), Failure> {
    let drained = async {
        let mut connection = world.cluster.lock().await.connect().await;
        ledger::drains(&mut connection, &*world.postfix.lock().await).await?;
        events::drains(&mut connection).await
    };
    tokio::select! {
        drained = tokio::time::timeout(DRAIN, drained) => Ok(drained.map_err(|_| "mails or events are still pending")??),
        () = progress.tell(load, mails, 0) => unreachable!("it goes on"),
    }
}

/// The progress, printed for the person who runs the trial.
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

    async fn tell(&self, load: &Starts, mails: &Path, faults: usize) {
        let began = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let kept = std::fs::read_dir(mails).map_or(0, Iterator::count);
            println!(
                "{:4} s  accepted {}, mails {kept}, faults {} of {faults}  {}",
                began.elapsed().as_secs(),
                load.accepted(),
                self.faults.load(Ordering::Relaxed),
                self.now.lock().expect("no task panicked"),
            );
        }
    }
}
