//! Parallel logins with imported hashes. A trial is a burst of wrong logins for one kind of address
//! from one network, together with logins for made-up addresses from other networks. It measures
//! what a stranger can see: the slowest answer of each group, and the numbers of 401, 429 and 503.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use tokio::task::JoinSet;
use vos_auth::password::{Cost, Password};
use vos_auth_lab::Failure;
use vos_auth_lab::relay::Relay;
use vos_auth_lab::replica::Replica;

use super::Blind;
use super::auc::{Auc, median};
use super::calls::{KINDS, UNKNOWN, prefix, strangers};

/// The kinds of imported hashes. Half of the accounts have one, the others a hash of the service's
/// own kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scheme {
    Bcrypt,
    Scrypt,
    Pbkdf2,
    Argon2,
}

impl Scheme {
    pub const ALL: [Self; 4] = [Self::Bcrypt, Self::Scrypt, Self::Pbkdf2, Self::Argon2];

    /// A hash of this kind of an unknown password.
    fn hash(self) -> String {
        let tail = |octets: usize| format!("{}${}", "A".repeat(22), "A".repeat(octets));
        match self {
            Self::Bcrypt => format!("$2b$12${}", ".".repeat(53)),
            Self::Scrypt => format!("$scrypt$ln=15,r=8,p=1${}", tail(43)),
            Self::Pbkdf2 => format!("$pbkdf2-sha256$i=200000,l=32${}", tail(43)),
            Self::Argon2 => format!("$argon2id$v=19$m=65536,t=2,p=1${}", tail(43)),
        }
    }

    /// Above twice the time of the hash, as `account import` advises.
    fn failure_time(self) -> &'static str {
        if self == Self::Bcrypt { "700ms" } else { "400ms" }
    }
}

/// A combination of hash and load, which is measured by itself.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub scheme: Scheme,
    pub loaded: bool,
}

impl Cell {
    pub fn all() -> Vec<Self> {
        let both = |scheme| [false, true].map(|loaded| Self { scheme, loaded });
        Scheme::ALL.into_iter().flat_map(both).collect()
    }
}

/// The number of parallel logins for one address, and of further addresses with one login each.
const OF_ONE: usize = 4;
const FURTHER: usize = 4;
/// The number of parallel logins for made-up addresses, each from another network.
const OTHERS: usize = 4;
/// The delay of the logins for made-up addresses after the burst.
const LATER: Duration = Duration::from_millis(30);
/// The names of the measured values of a trial.
const SEEN: [&str; 6] = ["time", "others", "401", "429", "503", "o-503"];
/// The length of a cell that runs with a planted leak: the service counts the hashes again a minute
/// after its start.
const UNCOUNTED: Duration = Duration::from_secs(50);
/// The half-width of an interval in standard errors, so that all comparisons together have 99%
/// confidence (Bonferroni). It is the quantile of the normal distribution at 1 - 0.01 / 288.
const ERRORS: f64 = 3.98;

/// Measures a cell. Returns whether it reveals the kind of an address.
pub async fn tells(
    blind: &Blind,
    cell: Cell,
    trials: usize,
    leak: bool,
    number: u64,
) -> Result<bool, Failure> {
    blind.has_no_accounts().await?;
    let relay = Relay::counting().await;
    let changes = [
        ("TRUSTED_PROXIES", "127.0.0.1/32"),
        ("LOGIN_FAILURE_TIME", cell.scheme.failure_time()),
        // Limits at which answers 429 and 503 begin within a trial.
        ("NETWORK_BURST", if cell.scheme == Scheme::Bcrypt { "60" } else { "20" }),
        ("NETWORK_PER_MINUTE", "60"),
        ("HASHING_THREADS", "2"),
        ("HASHING_QUEUE", "3"),
    ];
    let replica = if leak {
        let replica = Replica::start(&blind.url, &relay.url(), &changes).await?;
        // When the service answers, it has counted the hashes.
        reqwest::get(format!("http://{}/healthz", replica.address)).await?.error_for_status()?;
        has_accounts(blind, cell.scheme, trials, leak).await?;
        replica
    } else {
        has_accounts(blind, cell.scheme, trials, leak).await?;
        Replica::start(&blind.url, &relay.url(), &changes).await?
    };
    let base = format!("http://{}/api/auth", replica.address);
    let mut random = SmallRng::seed_from_u64(number);
    let mut order: Vec<_> = (0..KINDS.len() * trials).collect();
    order.shuffle(&mut random);
    let load = tokio::spawn(strangers(base.clone(), cell.loaded, |number| Some(network_of(9, number))));
    let began = Instant::now();
    let mut seen: [[Vec<f64>; SEEN.len()]; 4] = Default::default();
    for n in order {
        if leak && began.elapsed() > UNCOUNTED {
            break;
        }
        let (kind, number) = (n % KINDS.len(), n / KINDS.len());
        let trial = trial(&base, kind, number, random.random_range(0..1 << 24)).await?;
        for (values, value) in seen[kind].iter_mut().zip(trial) {
            values.push(value);
        }
    }
    load.abort();
    Ok(is_told(cell, &seen, &mut random))
}

fn is_told(cell: Cell, seen: &[[Vec<f64>; SEEN.len()]; 4], random: &mut SmallRng) -> bool {
    let mut tells = false;
    for (what, name) in SEEN.into_iter().enumerate() {
        for kind in 1..KINDS.len() {
            let (one, unknown) = (&seen[kind][what], &seen[UNKNOWN][what]);
            if one.is_empty() || unknown.is_empty() {
                continue;
            }
            let auc = Auc::of(one, unknown, ERRORS, random);
            tells |= auc.tells();
            let middle = |sample: &[f64]| if what < 2 { median(sample) * 1e3 } else { mean(sample) };
            println!(
                "{:7} {:5}  {:6}  {:8.2}  {:10} {:8.2}  {:.3}  {:.3} to {:.3}{}",
                format!("{:?}", cell.scheme).to_lowercase(),
                if cell.loaded { "load" } else { "quiet" },
                name,
                middle(unknown),
                KINDS[kind],
                middle(one),
                auc.at,
                auc.low,
                auc.high,
                if auc.tells() { "  TELLS" } else { "" },
            );
        }
    }
    tells
}

fn mean(sample: &[f64]) -> f64 {
    sample.iter().sum::<f64>() / sample.iter().map(|_| 1.0).sum::<f64>()
}

/// Runs one burst, and returns what a stranger sees.
async fn trial(base: &str, kind: usize, number: usize, network: u32) -> Result<[f64; SEEN.len()], Failure> {
    let address = |of: usize| format!("{}{number}-{of}@example.com", prefix(kind));
    let attacker = network_of(0, network);
    let (mut burst, mut others) = (JoinSet::new(), JoinSet::new());
    for n in 0..OF_ONE + FURTHER {
        burst.spawn(login(base.to_owned(), address(n.saturating_sub(OF_ONE - 1)), attacker.clone()));
    }
    tokio::time::sleep(LATER).await;
    for n in 0..OTHERS {
        let made_up = format!("madeup{network}-{n}@example.com");
        others.spawn(login(base.to_owned(), made_up, network_of(1 + n, network)));
    }
    let (burst, others) = (ended(burst).await?, ended(others).await?);
    let slowest = |answers: &[(u16, f64)]| answers.iter().map(|(_, took)| *took).fold(0.0, f64::max);
    let count = |answers: &[(u16, f64)], status| {
        answers.iter().filter(|(found, _)| *found == status).map(|_| 1.0).sum::<f64>()
    };
    Ok([
        slowest(&burst),
        slowest(&others),
        count(&burst, 401),
        count(&burst, 429),
        count(&burst, 503),
        count(&others, 503),
    ])
}

/// An address of a client in a network of its own for each `part` and each `network`.
fn network_of(part: usize, network: u32) -> String {
    let [_, a, b, c] = network.to_be_bytes();
    format!("2001:db8:{part:x}{a:02x}:{b:02x}{c:02x}::1")
}

async fn login(base: String, email: String, from: String) -> Result<(u16, f64), reqwest::Error> {
    let body = serde_json::json!({ "identifier": email, "password": "a guess that is wrong" });
    let client = reqwest::Client::new();
    let request = client.post(format!("{base}/login")).header("content-type", "application/json");
    let request = request.header("x-forwarded-for", from).body(body.to_string());
    let began = Instant::now();
    let answer = request.send().await?;
    let status = answer.status().as_u16();
    answer.bytes().await?;
    Ok((status, began.elapsed().as_secs_f64()))
}

async fn ended(mut logins: JoinSet<Result<(u16, f64), reqwest::Error>>) -> Result<Vec<(u16, f64)>, Failure> {
    let mut answers = Vec::new();
    while let Some(ended) = logins.join_next().await {
        answers.push(ended??);
    }
    Ok(answers)
}

/// Inserts the accounts for all trials, of every kind of address but `unknown`. Half of the hashes
/// are imported, in each kind that has hashes. With the planted leak all hashes are imported,
/// because otherwise too few trials would fit into the minute before the hashes are counted.
async fn has_accounts(blind: &Blind, scheme: Scheme, trials: usize, leak: bool) -> Result<(), Failure> {
    let own = Password::new("a password that nobody guesses").hash(Cost::default());
    let accounts = "INSERT INTO account (id, email, state, password_hash, created_at, updated_at)
        SELECT gen_random_uuid(), $2 || n || '-' || k || '@example.com', $3,
            CASE WHEN $6 THEN CASE WHEN (n + k) % 2 = 0 AND NOT $7 THEN $4 ELSE $5 END END, clock_timestamp(), clock_timestamp()
        FROM generate_series(0, $1) AS n CROSS JOIN generate_series(0, 9) AS k";
    for (kind, (state, has_hash)) in
        (UNKNOWN + 1..).zip([("active", true), ("disabled", true), ("active", false)])
    {
        let insert = sqlx::query(accounts).bind(i64::try_from(trials)?).bind(prefix(kind)).bind(state);
        insert.bind(&own).bind(scheme.hash()).bind(has_hash).bind(leak).execute(&blind.pool).await?;
    }
    sqlx::raw_sql("VACUUM ANALYZE").execute(&blind.pool).await?;
    Ok(())
}
