//! `make hostile`: how 10,000 idle connections and 200 slow writers (the crowd) affect ordinary
//! clients and the service's memory.
//!
//! Rounds without and with the crowd alternate, with the release binary, its default limits and a
//! real PostgreSQL. The trial ends with an error in any of three cases:
//!
//! - the crowd makes the p99 of starts more than three times as long, in two measurements;
//! - the memory exceeds its bound;
//! - a request through nginx fails while others hold its connections.

mod crowd;
mod proxied;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use vos_auth_lab::relay::Relay;
use vos_auth_lab::replica::Replica;
use vos_auth_lab::{Failure, database};

use self::crowd::{Crowd, IDLE, SLOW};

/// The number of rounds without the crowd in one measurement, and of those with it.
const ROUNDS: usize = 3;
/// The length of a round: longer than BODY_TIMEOUT, so that clients that send a body slowly are
/// disconnected during it.
const ROUND: Duration = Duration::from_secs(11);
/// The number of ordinary clients, and the pause of each between an answer and its next start.
const CLIENTS: usize = 4;
const PAUSE: Duration = Duration::from_millis(5);
/// A client opens a new connection after this many starts.
const STARTS_A_CONNECTION: usize = 16;
const PROXY: (&str, &str) = ("TRUSTED_PROXIES", "127.0.0.1/32");
/// The largest allowed ratio of the p99 with the crowd to that without.
const MAX_RATIO: f64 = 3.0;
/// The largest allowed resident memory with the crowd, in MiB.
const MAX_MEMORY: f64 = 256.0;

/// Trial: how idle and slow connections affect ordinary clients
#[derive(Args)]
pub struct Options {}

pub async fn run(_: Options) -> Result<(), Failure> {
    let url = database::of_program("hostile", "")?;
    let descriptors = rlimit::increase_nofile_limit(u64::MAX)?;
    if descriptors < (IDLE + SLOW + 100) as u64 {
        return Err(format!("{descriptors} descriptors are too few: raise RLIMIT_NOFILE").into());
    }
    database::anew(&url).await?;
    let relay = Relay::counting().await;
    let replica = Replica::start(&url, &relay.url(), &[PROXY]).await?;
    // Warms up connections, pages and plans.
    starts(&replica, Duration::from_secs(2)).await?;
    let alone = resident(&replica);
    println!(
        "{IDLE} idle connections, {SLOW} slow writers; {CLIENTS} ordinary clients; times in ms, memory in MiB"
    );
    println!("          starts     p50     p99  resident    open   cut off");
    // Measures a second time if the ratio is too large, because noise rarely occurs twice.
    let mut measured = measure(&replica, alone).await?;
    if measured.ratio > MAX_RATIO {
        measured = measure(&replica, alone).await?;
    }
    if measured.ratio > MAX_RATIO {
        return Err(format!("the slowest hundredth is {:.2} times as slow", measured.ratio).into());
    }
    if measured.memory > MAX_MEMORY {
        return Err(format!("{:.0} MiB are over the bound of {MAX_MEMORY}", measured.memory).into());
    }
    proxied::measure(&replica).await
}

struct Measured {
    ratio: f64,
    memory: f64,
}

/// Alternates rounds without and with the crowd, and prints a row for each kind. `alone` is the
/// memory in MiB before the first crowd. It is not measured again, because the allocator keeps
/// memory that a crowd has used.
async fn measure(replica: &Replica, alone: f64) -> Result<Measured, Failure> {
    let (mut quiet, mut crowded) = (Vec::new(), Vec::new());
    let (mut memory, mut open, mut cut) = (0.0_f64, 0, 0);
    for _ in 0..ROUNDS {
        quiet.extend(starts(replica, ROUND).await?);
        let crowd = Crowd::gathers(replica.address).await?;
        crowded.extend(starts(replica, ROUND).await?);
        open = open.max(connections(replica).await?);
        memory = memory.max(resident(replica));
        cut += crowd.cut.load(Ordering::Relaxed);
        drop(crowd);
        until_alone(replica).await?;
    }
    let (quiet, crowded) = (Times::of(quiet), Times::of(crowded));
    row("quiet", &quiet, alone, 0, 0);
    row("crowd", &crowded, memory, open, cut);
    let ratio = crowded.p99 / quiet.p99;
    println!(
        "p99 with the crowd is {ratio:.2} times the quiet one; {:.1} MiB after they left",
        resident(replica)
    );
    Ok(Measured { ratio, memory })
}

fn row(name: &str, times: &Times, memory: f64, open: usize, cut: usize) {
    let Times { count, p50, p99 } = times;
    println!("{name:8} {count:7} {p50:7.2} {p99:7.2} {memory:9.1} {open:7} {cut:9}");
}

struct Times {
    count: usize,
    p50: f64,
    p99: f64,
}

impl Times {
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |percent: usize| seconds[(seconds.len() - 1) * percent / 100] * 1e3;
        Self { count: seconds.len(), p50: at(50), p99: at(99) }
    }
}

/// The times that ordinary clients wait for their starts, in seconds.
async fn starts(replica: &Replica, lasting: Duration) -> Result<Vec<f64>, Failure> {
    let url = format!("http://{}/api/auth/recovery/start", replica.address);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(one_after_the_other(url.clone(), Instant::now() + lasting));
    }
    let mut took = Vec::new();
    while let Some(ended) = clients.join_next().await {
        took.extend(ended??);
    }
    Ok(took)
}

async fn one_after_the_other(url: String, until: Instant) -> Result<Vec<f64>, reqwest::Error> {
    let client = reqwest::Client::new();
    let mut took = Vec::new();
    while Instant::now() < until {
        // Every address is new, so that no rate limit of an address refuses it.
        let body = format!(r#"{{"email":"{}@example.com"}}"#, rand::random::<u64>());
        let mut request = client.post(&url).header("content-type", "application/json").body(body);
        if took.len() % STARTS_A_CONNECTION == 0 {
            request = request.header("connection", "close");
        }
        let began = Instant::now();
        request.send().await?.error_for_status()?.bytes().await?;
        took.push(began.elapsed().as_secs_f64());
        tokio::time::sleep(PAUSE).await;
    }
    Ok(took)
}

async fn connections(replica: &Replica) -> Result<usize, Failure> {
    replica.metric("vos_auth_connections{listener=\"api\"}").await
}

/// Waits until the service, too, has closed the crowd's connections.
async fn until_alone(replica: &Replica) -> Result<(), Failure> {
    while connections(replica).await? > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "KiB of a process are few enough")]
fn resident(replica: &Replica) -> f64 {
    replica.memory() as f64 / 1024.0
}
