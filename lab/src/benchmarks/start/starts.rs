//! `start` in a closed loop compared with pgbench, in an open loop, under overload, and a million
//! times.

use std::fmt::{self, Display, Formatter};
use std::ops::Range;
use std::time::Duration;

use serde_json::{Value, json};

use super::load::{Loaded, quantile};
use super::machine::{cpu_of, cpu_of_postgres, pgbench, pgbench_open};
use super::{Bench, header, is_on_the_disk, row, settles};
use crate::Failure;
use crate::replica::Replica;

const CONNECTIONS: [usize; 5] = [1, 8, 32, 64, 256];
/// Rounds of the closed loop and of pgbench alternate, so that noise affects both alike. They are
/// not short, because each connection of pgbench begins with a cold cache.
const ROUNDS: usize = 5;
/// The length of a round of an open loop. The speed of the machine changes within seconds, so a
/// round is short, and directly follows the closed loop that determined its rate.
const OPEN_ROUND: Duration = Duration::from_secs(1);
/// The number of rounds of an open loop for each second of `--seconds`.
const OPEN_ROUNDS: usize = 3;
/// The rates of an open loop, as shares of the capacity.
const SHARES: [f64; 2] = [0.5, 0.9];
/// Connections of pgbench's open loop. pgbench is fastest with about this many.
const PGBENCH_OPEN: usize = 8;
/// Connections of an open loop: enough that a request hardly ever waits for one.
const OPEN_CONNECTIONS: usize = 1024;
/// Connections of the closed loop that measures the capacity with a slow disk.
const SLOW_DISK_CONNECTIONS: usize = 256;

/// CPU seconds of the service and of PostgreSQL.
#[derive(Default)]
struct Spent(f64, f64);

impl Spent {
    fn by(bench: &Bench, replica: &Replica) -> Self {
        Self(cpu_of(replica.pid()), cpu_of_postgres(bench.postmaster))
    }

    fn add(&mut self, from: &Self, to: &Self) {
        self.0 += to.0 - from.0;
        self.1 += to.1 - from.1;
    }
}

/// Runs a closed loop and pgbench with the same numbers of connections. Reports all rounds
/// together.
pub async fn closed(bench: &Bench) -> Result<Value, Failure> {
    println!(
        "start, closed-loop, beside pgbench with the single-row statement; times in ms, CPU in s per 1,000, memory in MiB"
    );
    header(&[
        "conns",
        "starts/s",
        "p50",
        "p99",
        "p99.9",
        "pgbench/s",
        "ratio",
        "latency",
        "service",
        "postgres",
        "memory",
        "refused",
    ]);
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let (mut seen, mut spent, mut memory) = (Loaded::default(), Spent::default(), 0.0_f64);
        let (mut alone, mut mean) = (0.0, 0.0);
        for _ in 0..ROUNDS {
            let replica = bench.serve(&bench.url, &[]).await?;
            let before = Spent::by(bench, &replica);
            seen.add(bench.starts(&replica).closed(connections, bench.lasting).await?);
            spent.add(&before, &Spent::by(bench, &replica));
            memory = memory.max(resident(&replica));
            settles(&bench.pool).await?;
            // Without the service, so that pgbench has the machine to itself.
            drop(replica);
            let (rate, latency) = pgbench(&bench.url, connections, bench.lasting)?;
            alone += rate / ROUNDS as f64;
            mean += latency / ROUNDS as f64;
        }
        let (rate, p50, thousands) =
            (seen.rate(200), seen.quantile(200, 0.5), seen.answers.len() as f64 / 1e3);
        rows.push(row(&[
            ("conns", connections as f64),
            ("starts/s", rate),
            ("p50", p50),
            ("p99", seen.quantile(200, 0.99)),
            ("p99.9", seen.quantile(200, 0.999)),
            ("pgbench/s", alone),
            ("ratio", rate / alone),
            ("latency", p50 / mean),
            ("service", spent.0 / thousands),
            ("postgres", spent.1 / thousands),
            ("memory", memory),
            ("refused", refused(&seen)),
        ]));
    }
    println!("latency: p50 as a multiple of pgbench's mean");
    Ok(Value::Array(rows))
}

/// Runs an open loop at half and at 90% of the rate that a closed loop reached just before. Then
/// runs pgbench alone in the same way.
pub async fn open(bench: &Bench) -> Result<Value, Failure> {
    println!(
        "start, open-loop, at half and at 90% of what a closed loop of 64 reached in the second before each"
    );
    println!("times in ms from when a start was meant to go");
    let replica = bench.serve(&bench.url, &[]).await?;
    let (mut seen, mut meant) = (SHARES.map(|_| Loaded::default()), [0.0; 2]);
    let mut ours = Waits::default();
    let rounds = OPEN_ROUNDS * bench.lasting.as_secs() as usize;
    for number in 1..=rounds {
        for (place, share) in SHARES.iter().enumerate() {
            let capacity = bench.starts(&replica).closed(64, OPEN_ROUND).await?.rate(200);
            settles(&bench.pool).await?;
            let round = bench.starts(&replica).open(OPEN_CONNECTIONS, capacity * share, OPEN_ROUND).await?;
            settles(&bench.pool).await?;
            meant[place] += capacity * share / rounds as f64;
            ours.0[place].push(round.of(200).map(|answer| answer.took).collect());
            seen[place].add(round);
        }
        println!("round {number} of {rounds}: {}", ours.of(number - 1..number));
    }
    header(&OPEN);
    let mut rows: Vec<_> = meant.iter().zip(&seen).map(|(meant, seen)| open_row(*meant, seen)).collect();
    rows.push(ours.report("start"));
    // Without the service, so that pgbench has the machine to itself.
    drop(replica);
    println!("pgbench alone on {PGBENCH_OPEN} connections, in the same way, but at random times");
    let mut alone = Waits::default();
    for number in 1..=rounds {
        for (place, share) in SHARES.iter().enumerate() {
            let (capacity, _) = pgbench(&bench.url, PGBENCH_OPEN, OPEN_ROUND)?;
            is_on_the_disk()?;
            alone.0[place].push(pgbench_open(&bench.url, PGBENCH_OPEN, capacity * share, OPEN_ROUND)?);
            is_on_the_disk()?;
        }
        println!("round {number} of {rounds}: {}", alone.of(number - 1..number));
    }
    rows.push(alone.report("pgbench"));
    Ok(Value::Array(rows))
}

/// How long clients of open loops waited in each round, at half and at 90% of the capacity.
#[derive(Default)]
struct Waits([Vec<Vec<Duration>>; 2]);

impl Waits {
    /// The result of these rounds together.
    fn of(&self, rounds: Range<usize>) -> Multiple {
        let [half, most] = [(&self.0[0], 0.5), (&self.0[1], 0.99)];
        let over = |(all, share): (&Vec<Vec<Duration>>, f64)| {
            quantile(all[rounds.clone()].iter().flatten().copied(), share)
        };
        Multiple { half: over(half), most: over(most) }
    }

    /// Reports all rounds together, and each one.
    fn report(&self, whose: &str) -> Value {
        let rounds = self.0[0].len();
        let together = self.of(0..rounds);
        let mut apart: Vec<_> = (0..rounds).map(|round| self.of(round..round + 1).times()).collect();
        apart.sort_by(f64::total_cmp);
        println!(
            "{whose}, all rounds together: {together}; {:.1} in the median round, {:.1} in the best, {:.1} in the worst",
            apart[rounds / 2],
            apart[0],
            apart[rounds - 1],
        );
        json!({ "of": whose, "together": together.times(), "rounds": apart })
    }
}

/// The p99 of waits at 90% of the capacity, compared with the median at half of it.
struct Multiple {
    half: f64,
    most: f64,
}

impl Multiple {
    fn times(&self) -> f64 {
        self.most / self.half
    }
}

impl Display for Multiple {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { half, most } = self;
        write!(f, "p99 at 90% {most:.2}, p50 at half {half:.2}, {:.1} times", self.times())
    }
}

const OPEN: [&str; 9] =
    ["meant/s", "starts/s", "p50", "p99", "p99.9", "refused/s", "p99 of it", "late p99", "latest"];

fn open_row(meant: f64, seen: &Loaded) -> Value {
    row(&[
        ("meant/s", meant),
        ("starts/s", seen.rate(200)),
        ("p50", seen.quantile(200, 0.5)),
        ("p99", seen.quantile(200, 0.99)),
        ("p99.9", seen.quantile(200, 0.999)),
        ("refused/s", seen.rate(502)),
        ("p99 of it", if seen.of(502).next().is_some() { seen.quantile(502, 0.99) } else { 0.0 }),
        ("late p99", seen.lateness(0.99)),
        ("latest", seen.lateness(1.0)),
    ])
}

/// Sends twice as many starts as the service can commit with a disk whose every flush takes 5 ms.
pub async fn overload(bench: &Bench) -> Result<Value, Failure> {
    slow_disk(bench, true).await?;
    let measured = overloaded(bench).await;
    slow_disk(bench, false).await?;
    measured
}

async fn overloaded(bench: &Bench) -> Result<Value, Failure> {
    // Small batches, so that the disk is the limit and not the CPU, which the load generator
    // shares.
    let replica = bench.serve(&bench.url, &[("START_BATCH", "16")]).await?;
    let capacity = bench.starts(&replica).closed(SLOW_DISK_CONNECTIONS, bench.lasting).await?.rate(200);
    println!(
        "start with a flush of 5 ms and batches of 16; a closed loop of {SLOW_DISK_CONNECTIONS} reached {capacity:.0} a second; times in ms"
    );
    header(&OPEN);
    settles(&bench.pool).await?;
    let seen = bench.starts(&replica).open(OPEN_CONNECTIONS, capacity * 2.0, bench.lasting).await?;
    let measured = open_row(capacity * 2.0, &seen);
    println!("answers by status: {:?}", seen.statuses());
    Ok(measured)
}

async fn slow_disk(bench: &Bench, slow: bool) -> Result<(), Failure> {
    let statements = if slow {
        ["ALTER SYSTEM SET commit_delay = 5000", "ALTER SYSTEM SET commit_siblings = 0"]
    } else {
        ["ALTER SYSTEM RESET commit_delay", "ALTER SYSTEM RESET commit_siblings"]
    };
    for statement in statements.into_iter().chain(["SELECT pg_reload_conf()"]) {
        sqlx::raw_sql(statement).execute(&bench.pool).await?;
    }
    // The server reads the setting soon after the signal. A connection sees it from its next
    // statement on.
    let wanted = if slow { "5000" } else { "0" };
    loop {
        let delay: String = sqlx::query_scalar("SHOW commit_delay").fetch_one(&bench.pool).await?;
        if delay == wanted {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Sends a million starts on 64 connections, and reports the resident memory.
pub async fn memory(bench: &Bench) -> Result<Value, Failure> {
    println!("a million starts at 64 connections; memory in MiB");
    header(&["starts", "memory"]);
    let replica = bench.serve(&bench.url, &[]).await?;
    let first = bench.numbers.used();
    let mut rows = vec![row(&[("starts", 0.0), ("memory", resident(&replica))])];
    while bench.numbers.used() - first < 1_000_000 {
        bench.starts(&replica).closed(64, Duration::from_secs(10)).await?;
        let made = (bench.numbers.used() - first) as f64;
        rows.push(row(&[("starts", made), ("memory", resident(&replica))]));
    }
    Ok(Value::Array(rows))
}

pub fn resident(replica: &Replica) -> f64 {
    replica.memory() as f64 / 1024.0
}

pub fn refused(seen: &Loaded) -> f64 {
    (seen.answers.len() - seen.of(200).count()) as f64
}
