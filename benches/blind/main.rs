//! `make blind`: can a stopwatch tell who has an account? Calls for known, disabled, passwordless and unknown addresses at
//! random order, on one connection and on sixteen, quiet and under load, with an idle relay and with one that stalls.
//! Exits with an error if the answer is yes, twice.

mod auc;
#[path = "../courier/replica.rs"]
#[expect(dead_code, reason = "the courier's measurement uses more of it")]
mod replica;
#[path = "../courier/sink.rs"]
#[expect(dead_code, reason = "the courier's measurement uses more of it")]
mod sink;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Parser;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::PgPool;
use vos_auth::password::{Cost, Password};

use self::auc::{Auc, median};
use self::replica::Replica;
use self::sink::Sink;

type Failure = Box<dyn std::error::Error>;

/// Measures whether time tells who has an account.
#[derive(Parser)]
struct Options {
    /// Calls of each kind in each cell; of login a twentieth
    #[arg(long, default_value = "20000")]
    calls: usize,
    /// Default: a random one
    #[arg(long)]
    seed: Option<u64>,
    /// What cargo gives to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Start,
    Verify,
    Login,
}

/// Whose address a call is for.
const KINDS: [&str; 4] = ["unknown", "known", "disabled", "nopassword"];
const UNKNOWN: usize = 0;

#[derive(Clone, Copy, Debug)]
struct Cell {
    call: Call,
    connections: usize,
    loaded: bool,
    stalled: bool,
}

/// Starts a second of strangers while a cell is loaded.
const LOAD: u32 = 300;

fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (call, all) in [(Call::Start, &[1, 16][..]), (Call::Verify, &[1, 16]), (Call::Login, &[16])] {
        for &connections in all {
            for (loaded, stalled) in [(false, false), (true, false), (false, true), (true, true)] {
                cells.push(Cell { call, connections, loaded, stalled });
            }
        }
    }
    cells
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let url = std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL is missing: run `make blind`")?;
    let pool = PgPool::connect(&url).await?;
    sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(&pool).await?;
    vos_auth::database::MIGRATOR.run(&pool).await?;
    let cells = cells();
    println!(
        "seed {seed}; {} calls of each kind in each of {} cells; medians in ms",
        options.calls,
        cells.len()
    );
    println!("call    conns  load   relay     unknown  kind             median    AUC  interval");
    let blind =
        Blind { url, pool, keys: replica::keys()?, calls: options.calls, comparisons: cells.len() * 3 };
    let mut tells = 0;
    for (number, cell) in cells.into_iter().enumerate() {
        let seed = seed + number as u64 * 2;
        // Chance leaves 0.5 out now and then, and not twice.
        if blind.tells(cell, seed).await? && blind.tells(cell, seed + 1).await? {
            tells += 1;
        }
    }
    println!("cells that tell, or are too wide to say: {tells}");
    if tells == 0 { Ok(()) } else { Err("time may tell who has an account".into()) }
}

struct Blind {
    url: String,
    pool: PgPool,
    keys: String,
    calls: usize,
    comparisons: usize,
}

impl Blind {
    /// Measures one cell and prints its rows.
    async fn tells(&self, cell: Cell, seed: u64) -> Result<bool, Failure> {
        let calls = if cell.call == Call::Login { self.calls / 20 } else { self.calls };
        self.has_accounts(calls).await?;
        let (sink, relay) = Sink::start().await;
        sink.stalls.store(cell.stalled, Ordering::Relaxed);
        sink.stall_every.store(1, Ordering::Relaxed);
        let relay = format!("smtp://{relay}?tls=none");
        let environment =
            [("DATABASE_URL", self.url.as_str()), ("SMTP_RELAYS", &relay), ("JWT_KEYS", &self.keys)];
        let replica = Replica::start(&environment).await?;
        let base = format!("http://{}/api/auth", replica.address);
        let mut random = SmallRng::seed_from_u64(seed);
        let mut order: Vec<_> = (0..KINDS.len() * calls).collect();
        order.shuffle(&mut random);
        let load = tokio::spawn(strangers(base.clone(), cell.loaded));
        let mut calls: Vec<_> =
            order.into_iter().map(|n| Subject::new(n % KINDS.len(), n / KINDS.len())).collect();
        if cell.call == Call::Verify {
            calls = in_parallel(16, &calls, |share| begins(base.clone(), share)).await?;
            // The mails of known addresses take time of this machine. That shows, and is said in docs/security.md.
            self.until_mails_are_out(cell.stalled).await?;
        }
        let mut took: [Vec<f64>; 4] = Default::default();
        for (kind, seconds) in
            in_parallel(cell.connections, &calls, |share| calls_one_by_one(cell.call, base.clone(), share))
                .await?
        {
            took[kind].push(seconds);
        }
        load.abort();
        Ok(self.is_told(cell, &took, &mut random))
    }

    fn is_told(&self, cell: Cell, took: &[Vec<f64>; 4], random: &mut SmallRng) -> bool {
        let bound = if cell.call == Call::Login { 0.05 } else { 0.02 };
        let mut tells = false;
        for kind in 1..KINDS.len() {
            let auc = Auc::of(&took[kind], &took[UNKNOWN], errors(self.comparisons), random);
            tells |= auc.tells() || auc.is_wide(bound);
            println!(
                "{:7} {:5}  {:5}  {:7}  {:8.3}  {:14} {:8.3}  {:.3}  {:.3} to {:.3}{}",
                format!("{:?}", cell.call).to_lowercase(),
                cell.connections,
                if cell.loaded { "load" } else { "quiet" },
                if cell.stalled { "stalls" } else { "idle" },
                median(&took[UNKNOWN]) * 1e3,
                KINDS[kind],
                median(&took[kind]) * 1e3,
                auc.at,
                auc.low,
                auc.high,
                if auc.tells() {
                    "  TELLS"
                } else if auc.is_wide(bound) {
                    "  too wide"
                } else {
                    ""
                },
            );
        }
        tells
    }

    /// With a relay that stalls they never are.
    async fn until_mails_are_out(&self, stalled: bool) -> Result<(), Failure> {
        let owed = "SELECT count(*) FROM outbox";
        while !stalled && sqlx::query_scalar::<_, i64>(owed).fetch_one(&self.pool).await? > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn has_accounts(&self, calls: usize) -> Result<(), Failure> {
        sqlx::raw_sql("TRUNCATE account, recovery_session, outbox, throttle, audit_event CASCADE")
            .execute(&self.pool)
            .await?;
        let hash = Password::new("a password that nobody guesses").hash(Cost {
            memory_kib: 19456,
            passes: 2,
            lanes: 1,
        });
        let accounts = "INSERT INTO account (id, email, state, password_hash, created_at, updated_at)
            SELECT gen_random_uuid(), $2 || n || '@example.com', $3, $4, clock_timestamp(), clock_timestamp()
            FROM generate_series(0, $1) AS n";
        for (kind, state, hash) in [
            ("known", "active", Some(&hash)),
            ("disabled", "disabled", Some(&hash)),
            ("nopassword", "active", None),
        ] {
            let insert = sqlx::query(accounts).bind(i64::try_from(calls)?).bind(kind).bind(state).bind(hash);
            insert.execute(&self.pool).await?;
        }
        sqlx::raw_sql("VACUUM ANALYZE").execute(&self.pool).await?;
        Ok(())
    }
}

/// So many standard errors to each side hold all comparisons together at 95% (Bonferroni).
fn errors(comparisons: usize) -> f64 {
    // Quantiles of the normal distribution at 1 - 0.05 / (2 n).
    match comparisons {
        0..=20 => 3.02,
        21..=40 => 3.23,
        41..=60 => 3.34,
        _ => 3.48,
    }
}

/// Whom a call is about.
#[derive(Clone)]
struct Subject {
    kind: usize,
    email: String,
    /// Of the recovery that was begun for it.
    cookie: String,
}

impl Subject {
    fn new(kind: usize, number: usize) -> Self {
        Self { kind, email: format!("{}{number}@example.com", KINDS[kind]), cookie: String::new() }
    }
}

/// Has so many connections work through their shares at once.
async fn in_parallel<T: Send + 'static, W>(
    connections: usize,
    subjects: &[Subject],
    work: impl Fn(Vec<Subject>) -> W,
) -> Result<Vec<T>, Failure>
where
    W: Future<Output = Result<Vec<T>, reqwest::Error>> + Send + 'static,
{
    let mut working = tokio::task::JoinSet::new();
    for share in subjects.chunks(subjects.len().div_ceil(connections)) {
        working.spawn(work(share.to_vec()));
    }
    let mut all = Vec::new();
    while let Some(ended) = working.join_next().await {
        all.extend(ended??);
    }
    Ok(all)
}

/// Begins a recovery for each.
async fn begins(base: String, share: Vec<Subject>) -> Result<Vec<Subject>, reqwest::Error> {
    let client = reqwest::Client::new();
    let mut begun = Vec::new();
    for subject in share {
        let body = serde_json::json!({ "email": subject.email });
        let started = post(&client, &base, "/recovery/start", &body).send().await?.error_for_status()?;
        let cookie = started.headers()["set-cookie"].to_str().unwrap_or_default();
        let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
        begun.push(Subject { cookie, ..subject });
    }
    Ok(begun)
}

/// One connection, one call after the other. Gives the kind of each, and how long its answer took.
async fn calls_one_by_one(
    call: Call,
    base: String,
    share: Vec<Subject>,
) -> Result<Vec<(usize, f64)>, reqwest::Error> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(1).build()?;
    let mut took = Vec::new();
    for Subject { kind, email, cookie } in share {
        let (path, body, status) = match call {
            Call::Start => ("/recovery/start", serde_json::json!({ "email": email }), 200),
            Call::Verify => ("/recovery/verify", serde_json::json!({ "code": "00000000" }), 400),
            Call::Login => (
                "/login",
                serde_json::json!({ "identifier": email, "password": "a guess that is wrong" }),
                401,
            ),
        };
        let request = post(&client, &base, path, &body).header("cookie", cookie);
        let began = Instant::now();
        let answer = request.send().await?;
        assert_eq!(answer.status().as_u16(), status, "{call:?} of {email}");
        answer.bytes().await?;
        took.push((kind, began.elapsed().as_secs_f64()));
    }
    Ok(took)
}

fn post(
    client: &reqwest::Client,
    base: &str,
    path: &str,
    body: &serde_json::Value,
) -> reqwest::RequestBuilder {
    client.post(format!("{base}{path}")).header("content-type", "application/json").body(body.to_string())
}

/// Others who ask for codes meanwhile.
async fn strangers(base: String, are_there: bool) {
    let client = reqwest::Client::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / LOAD);
    for number in 0_u64.. {
        tick.tick().await;
        if are_there {
            let body = serde_json::json!({ "email": format!("stranger{number}@example.com") }).to_string();
            let start =
                client.post(format!("{base}/recovery/start")).header("content-type", "application/json");
            tokio::spawn(start.body(body).send());
        }
    }
}
