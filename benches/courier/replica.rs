//! One `vos-auth serve`, ended when it is dropped.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Failure;

/// 32 bytes in base64, for measurements alone.
const SECRET: &str = "bench:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

pub struct Replica {
    child: Child,
    pub address: SocketAddr,
    metrics_address: SocketAddr,
    http: reqwest::Client,
}

/// A folder with a key for JWTs.
pub fn keys() -> Result<String, Failure> {
    let folder = format!("{}/courier-jwt-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let made =
        vos_auth(&[]).args(["key", "generate", "--jwt-keys", &folder]).stdout(Stdio::null()).status()?;
    if !made.success() {
        return Err("no key for JWTs could be made".into());
    }
    Ok(folder)
}

/// The program, which ends with this process however that ends; started by the command `inside`, if there is one.
fn vos_auth(inside: &[String]) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig", "KILL"]).args(inside).arg(env!("CARGO_BIN_EXE_vos-auth")).env_clear();
    command
}

fn serve(inside: &[String], environment: &[(&str, &str)]) -> Command {
    let usual = [
        ("PUBLIC_ORIGIN", "https://platform.verolabs.co"),
        ("HTTP_ADDR", "127.0.0.1:0"),
        ("METRICS_ADDR", "127.0.0.1:0"),
        ("RECOVERY_SECRETS", SECRET),
        ("DEVICE_SECRETS", SECRET),
        ("DRAIN_DELAY", "0s"),
        ("NETWORK_BURST", "1000000"),
        ("NETWORK_PER_MINUTE", "1000000"),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "error,vos_auth::cli=info"),
    ];
    let mut command = vos_auth(inside);
    command.arg("serve").envs(usual).envs(environment.iter().copied());
    command
}

impl Replica {
    pub async fn start(environment: &[(&str, &str)]) -> Result<Self, Failure> {
        Self::start_inside(&[], environment).await
    }

    /// Started by the command `inside`, which ends by executing the program.
    pub async fn start_inside(inside: &[String], environment: &[(&str, &str)]) -> Result<Self, Failure> {
        let mut command = serve(inside, environment);
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let log = child.stderr.take().ok_or("no log")?;
        let (sender, serving) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut sender = Some(sender);
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                match sender.take_if(|_| line.contains("\"serving\"")) {
                    Some(sender) => drop(sender.send(line)),
                    None => eprintln!("{line}"),
                }
            }
        });
        let serving: serde_json::Value = serde_json::from_str(&serving.await?)?;
        let address = |name: &str| serving[name].as_str().unwrap_or_default().parse();
        let (address, metrics_address) = (address("http_addr")?, address("metrics_addr")?);
        Ok(Self { child, address, metrics_address, http: reqwest::Client::new() })
    }

    /// One whose log nobody reads, so that reading it costs the measurement nothing. Returns once it listens.
    pub async fn start_unheard(environment: &[(&str, &str)]) -> Result<Self, Failure> {
        let (address, metrics_address) = (free_address()?, free_address()?);
        let mut command = serve(&[], environment);
        command.env("HTTP_ADDR", address.to_string()).env("METRICS_ADDR", metrics_address.to_string());
        let child = command.stderr(Stdio::null()).spawn()?;
        let replica = Self { child, address, metrics_address, http: reqwest::Client::new() };
        let began = Instant::now();
        while [address, metrics_address].iter().any(|address| TcpStream::connect(address).is_err()) {
            if began.elapsed() > Duration::from_secs(10) {
                return Err("the service does not listen; run it by hand to see why".into());
            }
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        Ok(replica)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or_default()
    }

    /// The figure in the first line that begins so; 0 if there is none.
    pub async fn metric(&self, line_start: &str) -> Result<usize, Failure> {
        let page =
            self.http.get(format!("http://{}/metrics", self.metrics_address)).send().await?.text().await?;
        let line = page.lines().find(|line| line.starts_with(line_start));
        Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
    }
}

fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
