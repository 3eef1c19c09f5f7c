//! The CPU time that a measurement uses, and pgbench, which measures PostgreSQL alone.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::{Failure, place};

/// CPU seconds that a process has used.
pub fn cpu_of(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |stat| stat.own)
}

/// The CPU seconds of PostgreSQL: of the server's process `pid` and of all its child processes,
/// including those that have ended.
pub fn cpu_of_postgres(pid: u32) -> f64 {
    loop {
        let ended = || stat(pid).map_or(0.0, |stat| stat.ended);
        let before = ended();
        let children = processes().filter_map(stat).filter(|stat| stat.parent == pid).map(|stat| stat.own);
        let living = children.sum::<f64>() + cpu_of(pid);
        // A child that ended during the reading would count twice or not at all, so read all again.
        if ended() <= before {
            return living + before;
        }
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

struct Stat {
    parent: u32,
    own: f64,
    ended: f64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain spaces, so the fields begin after it.
    let fields: Vec<u64> =
        text.rsplit_once(')')?.1.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
    // A tick is a hundredth of a second on every Debian.
    let seconds = |from: usize| (fields[from] + fields[from + 1]) as f64 / 100.0;
    Some(Stat { parent: u32::try_from(fields[1]).ok()?, own: seconds(11), ended: seconds(13) })
}

/// The process id of the postmaster: the parent of the backend that the pool is connected to.
pub async fn postmaster(pool: &sqlx::PgPool) -> Result<u32, Failure> {
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(pool).await?;
    stat(backend.cast_unsigned()).map(|stat| stat.parent).ok_or_else(|| "PostgreSQL runs elsewhere".into())
}

/// Runs pgbench with the statement of `start` for one row, prepared, with a new address each time.
/// Returns the transactions a second and their mean time in ms.
pub fn pgbench(url: &str, clients: usize, lasting: Duration) -> Result<(f64, f64), Failure> {
    let said = run_pgbench(url, clients, lasting, &[])?;
    let number = |start: &str| {
        said.lines().find_map(|line| line.strip_prefix(start)?.split_whitespace().next()?.parse::<f64>().ok())
    };
    number("tps = ").zip(number("latency average = ")).ok_or_else(|| format!("pgbench: {said}").into())
}

/// Like [`pgbench`], but as an open loop: at a given rate, at random times (a Poisson process).
/// Returns how long each transaction took from the moment when it was due.
pub fn pgbench_open(
    url: &str,
    clients: usize,
    rate: f64,
    lasting: Duration,
) -> Result<Vec<Duration>, Failure> {
    let folder = &place::temporary("pgbench");
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let (rate, prefix) = (format!("--rate={rate}"), format!("--log-prefix={folder}/log"));
    run_pgbench(url, clients, lasting, &["--log", &prefix, &rate])?;
    let mut took = Vec::new();
    for log in fs::read_dir(folder)? {
        for line in fs::read_to_string(log?.path())?.lines() {
            let time = line.split_whitespace().nth(2).ok_or("pgbench's log has another form")?;
            took.push(Duration::from_micros(time.parse()?));
        }
    }
    Ok(took)
}

fn run_pgbench(url: &str, clients: usize, lasting: Duration, more: &[&str]) -> Result<String, Failure> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/benchmarks/start/start.sql");
    let (clients, threads) = (clients.to_string(), clients.min(2).to_string());
    let seconds = lasting.as_secs().to_string();
    let options = ["-n", "-M", "prepared", "-f", script, "-c", &clients, "-j", &threads, "-T", &seconds];
    let output = Command::new("pgbench").args(options).args(more).arg(url).output()?;
    if !output.status.success() {
        return Err(format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
