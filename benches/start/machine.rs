//! What a measurement costs the machine, and what PostgreSQL does alone.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Failure;

/// CPU seconds that a process has used.
pub fn cpu_of(pid: u32) -> f64 {
    stat(pid).map_or(0.0, |stat| stat.own)
}

/// CPU seconds of PostgreSQL: of the server's process `pid`, those that it started, and those of them that have ended.
pub fn cpu_of_postgres(pid: u32) -> f64 {
    loop {
        let ended = || stat(pid).map_or(0.0, |stat| stat.ended);
        let before = ended();
        let children = processes().filter_map(stat).filter(|stat| stat.parent == pid).map(|stat| stat.own);
        let living = children.sum::<f64>() + cpu_of(pid);
        // One that ended meanwhile would count twice, or not at all.
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
    // A name may hold spaces; what follows its bracket may not.
    let fields: Vec<u64> =
        text.rsplit_once(')')?.1.split_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
    // Ticks are hundredths of a second on every Linux that Debian makes.
    let seconds = |from: usize| (fields[from] + fields[from + 1]) as f64 / 100.0;
    Some(Stat { parent: u32::try_from(fields[1]).ok()?, own: seconds(11), ended: seconds(13) })
}

/// The process of the server that a connection leads to.
pub async fn postmaster(pool: &sqlx::PgPool) -> Result<u32, Failure> {
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(pool).await?;
    stat(backend.cast_unsigned()).map(|stat| stat.parent).ok_or_else(|| "PostgreSQL runs elsewhere".into())
}

/// pgbench with the single-row form of the statement, prepared, every address once: transactions a second and their mean
/// time in ms.
pub fn pgbench(url: &str, clients: usize, lasting: Duration) -> Result<(f64, f64), Failure> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/start/start.sql");
    let (clients, threads) = (clients.to_string(), clients.min(2).to_string());
    let seconds = lasting.as_secs().to_string();
    let options = ["-n", "-M", "prepared", "-f", script, "-c", &clients, "-j", &threads, "-T", &seconds, url];
    let output = Command::new("pgbench").args(options).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = |start: &str| {
        text.lines().find_map(|line| line.strip_prefix(start)?.split_whitespace().next()?.parse::<f64>().ok())
    };
    figure("tps = ")
        .zip(figure("latency average = "))
        .ok_or_else(|| format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// What a flush of one page takes on the disk that the database is on by default while nothing else works: one is due every
/// millisecond, and its time counts from then, as in an open loop.
pub fn flushes(lasting: Duration) -> io::Result<Vec<Duration>> {
    const EVERY: Duration = Duration::from_millis(1);
    let file = fs::File::create(concat!(env!("CARGO_TARGET_TMPDIR"), "/flushes"))?;
    file.write_all_at(&[0; 8192], 0)?;
    file.sync_all()?;
    let began = Instant::now();
    let (mut due, mut took) = (began, Vec::new());
    while due < began + lasting {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        file.write_all_at(&[1; 8192], 0)?;
        file.sync_data()?;
        took.push(due.elapsed());
        due += EVERY;
    }
    Ok(took)
}
