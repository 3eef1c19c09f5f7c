//! One `vos-auth serve` for load tests, with network limits that are too high to matter. It ends
//! when it is dropped, or when this process ends in any way.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::place::free_address;
use crate::program::{Program, serve_environment};
use crate::service::metric_in;

/// Kills the replica when the thread that started it ends. So never start one from a thread of the
/// blocking pool.
const WITH_THIS_PROCESS: [&str; 3] = ["/usr/bin/setpriv", "--pdeathsig", "KILL"];

pub struct Replica {
    program: Program,
    pub address: SocketAddr,
    metrics_address: SocketAddr,
    http: reqwest::Client,
}

fn environment<'a>(
    database_url: &'a str,
    relay: &'a str,
    changes: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let usual = [
        ("NETWORK_BURST", "1000000"),
        ("NETWORK_PER_MINUTE", "1000000"),
        ("LOG_LEVEL", "error,vos_auth::cli=info"),
    ];
    serve_environment(database_url, relay, &[&usual, changes].concat())
}

impl Replica {
    /// Starts a replica with the usual settings and these `changes`, and waits until it serves.
    /// From then on its log is printed.
    pub async fn start(database_url: &str, relay: &str, changes: &[(&str, &str)]) -> Result<Self, Failure> {
        Self::start_under(&[], database_url, relay, changes).await
    }

    /// Like [`Self::start`], but the command `under` starts the program. The command must end with
    /// an exec of the program.
    pub async fn start_under(
        under: &[&str],
        database_url: &str,
        relay: &str,
        changes: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let under = [&WITH_THIS_PROCESS, under].concat();
        let mut program =
            Program::start_under(&under, &["serve"], &environment(database_url, relay, changes));
        let serving = tokio::task::spawn_blocking(move || {
            let serving = program.line_if_any("\"serving\"");
            (program, serving)
        });
        let (mut program, serving) = serving.await?;
        let serving = serving.map_err(|log| format!("a replica does not start:\n{log}"))?;
        let serving: serde_json::Value = serde_json::from_str(&serving)?;
        let address = |name: &str| serving[name].as_str().unwrap_or_default().parse();
        let (address, metrics_address) = (address("http_addr")?, address("metrics_addr")?);
        program.is_printed();
        Ok(Self { program, address, metrics_address, http: reqwest::Client::new() })
    }

    /// Starts a replica whose log is discarded, so that reading it does not disturb a measurement.
    /// Returns when it listens.
    pub async fn start_unheard(
        database_url: &str,
        relay: &str,
        changes: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let (address, metrics_address) = (free_address(), free_address());
        let addresses = [address.to_string(), metrics_address.to_string()];
        let own = [("HTTP_ADDR", addresses[0].as_str()), ("METRICS_ADDR", &addresses[1])];
        let environment = environment(database_url, relay, &[changes, &own].concat());
        let program = Program::start_unheard(&WITH_THIS_PROCESS, &["serve"], &environment);
        let replica = Self { program, address, metrics_address, http: reqwest::Client::new() };
        let began = Instant::now();
        while [address, metrics_address].iter().any(|address| TcpStream::connect(address).is_err()) {
            if began.elapsed() > Duration::from_secs(10) {
                return Err("the service does not listen; run it by hand to see why".into());
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok(replica)
    }

    /// The id of the replica's process.
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
    }

    /// The value in the first line of the metrics that begins with `line_start`; 0 if there is
    /// none.
    pub async fn metric(&self, line_start: &str) -> Result<usize, Failure> {
        let page =
            self.http.get(format!("http://{}/metrics", self.metrics_address)).send().await?.text().await?;
        Ok(metric_in(&page, line_start).unwrap_or(0))
    }
}
