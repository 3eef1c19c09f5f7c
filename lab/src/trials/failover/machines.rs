//! Two database machines, the witness (the third etcd) and HAProxy, each in a PID namespace. They
//! use the files of `deploy/` with the addresses and folders of this run. 127.A.B.N replaces
//! 10.0.0.N, so the ports need no change.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use vos_auth_lab::Failure;
use vos_auth_lab::place::{self, output};

use super::namespace::Namespace;

/// The longest time to wait for a machine to reach a state.
const PATIENCE: Duration = Duration::from_mins(2);
/// User and password of the superuser, as in `deploy/patroni.yml`.
const SUPERUSER: &str = "postgres:CHANGE-superuser";

/// The folder and the network of a run.
pub struct Site {
    home: PathBuf,
    network: String,
    client: reqwest::Client,
}

impl Site {
    pub fn new() -> Result<Self, Failure> {
        let (pid, home) = (std::process::id(), place::folder("failover"));
        // Other programs use 127.0.0.0/16. The network is derived from the process id, so that
        // parallel runs hardly ever use the same network.
        let network = format!("127.{}.{}.", 1 + pid / 256 % 254, pid % 256);
        let client = reqwest::Client::builder().timeout(Duration::from_secs(1)).build()?;
        let site = Self { home, network, client };
        site.has_certificates();
        Ok(site)
    }

    /// Makes the certificates by the commands of docs/operate/high-availability.md.
    fn has_certificates(&self) {
        output(Command::new("bash").current_dir(&self.home).env("address", self.balancer_address()).args([
            "-ec",
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=vos-auth database CA' -keyout root.key -out root.crt
             openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 825 -subj /CN=vos-auth-db -CA root.crt -CAkey root.key -extensions usr_cert -addext subjectAltName=IP:$address -keyout server.key -out server.crt
             chown postgres server.key",
        ]));
    }

    pub fn superuser_url(&self, machine: &Machine) -> String {
        self.url(SUPERUSER, &format!("{}:5432/postgres", machine.address), "verify-ca")
    }

    /// The service's URL, through HAProxy.
    pub fn service_url(&self, password: &str) -> String {
        let place = format!("{}:5432/vos_auth", self.balancer_address());
        self.url(&format!("vos_auth:{password}"), &place, "verify-full")
    }

    /// The address of HAProxy, which is at 127.0.0.1 in docs/operate/high-availability.md.
    fn balancer_address(&self) -> String {
        format!("{}11", self.network)
    }

    fn url(&self, user: &str, place: &str, mode: &str) -> String {
        format!("postgres://{user}@{place}?sslmode={mode}&sslrootcert={}/root.crt", self.home.display())
    }

    /// HAProxy, as on a machine with replicas.
    pub async fn balancer(&self) -> Result<Namespace, Failure> {
        let config = self.home.join("haproxy.cfg");
        let template = place::text("deploy/haproxy.cfg").replace("127.0.0.1:", "10.0.0.11:");
        fs::write(&config, self.addressed(&template))?;
        let script = format!("haproxy -db -f {}; wait", config.display());
        Namespace::start(&script, &self.home.join("haproxy.log")).await
    }

    /// The machine of the third etcd, without a database.
    pub async fn witness(&self) -> Result<Machine, Failure> {
        self.machine("witness", 23, false).await
    }

    pub async fn database(&self, name: &'static str, number: u8) -> Result<Machine, Failure> {
        self.machine(name, number, true).await
    }

    async fn machine(&self, name: &'static str, number: u8, has_database: bool) -> Result<Machine, Failure> {
        let home = self.home.join(name);
        fs::create_dir(&home)?;
        let own = |template: &str| -> String {
            let lines = template.lines().map(|line| {
                // A line that names two machines is the same on all machines, so it is not changed.
                if line.contains("10.0.0.22") {
                    return line.to_owned();
                }
                line.replace("pg1", name).replace("10.0.0.21", &format!("10.0.0.{number}"))
            });
            let own = self.addressed(&lines.map(|line| line + "\n").collect::<String>());
            let folders = ["/var/lib/postgresql", "/var/lib/etcd", "/run/postgresql"];
            folders.iter().fold(own, |own, folder| own.replace(folder, &home.display().to_string()))
        };
        fs::write(home.join("etcd.env"), own(&place::text("deploy/etcd.env")))?;
        fs::write(home.join("patroni.yml"), own(&place::text("deploy/patroni.yml")))?;
        output(Command::new("chown").args(["-R", "postgres:postgres"]).arg(&home));
        let as_postgres = "setpriv --reuid=postgres --regid=postgres --clear-groups";
        let etcd = format!("(set -a; . ./etcd.env; exec {as_postgres} etcd)");
        // Patroni remembers the first version that etcd reports, which is an old one until all
        // members have joined.
        let patroni = format!(
            "(until curl -s http://{}{number}:2379/version | grep -q cluster.:.3.4; do sleep 0.2; done
             exec {as_postgres} --reset-env patroni patroni.yml)",
            self.network
        );
        let patroni = if has_database { patroni } else { "true".into() };
        let script = format!("cd {}\n{etcd} &\n{patroni} &\nwait", home.display());
        let address = format!("{}{number}", self.network);
        let log = self.home.join(format!("{name}.log"));
        let running = Some(Namespace::start(&script, &log).await?);
        Ok(Machine { address, script, log, running, client: self.client.clone() })
    }

    /// Fills the addresses and certificates of this run into a file of `deploy/`.
    fn addressed(&self, template: &str) -> String {
        let template = template.replace("10.0.0.", &self.network);
        template.replace("/etc/patroni/tls", &self.home.display().to_string())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// A machine that the trial can take down.
pub struct Machine {
    pub address: String,
    script: String,
    log: PathBuf,
    running: Option<Namespace>,
    client: reqwest::Client,
}

impl Machine {
    /// Whether the machine's Patroni reports this role: `primary`, or `synchronous` for the standby
    /// that commits wait for.
    pub async fn is(&self, role: &str) -> bool {
        let answer = self.client.get(format!("http://{}:8008/{role}", self.address)).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    }

    pub async fn becomes(&self, role: &str) -> Result<(), Failure> {
        let becoming = async {
            while !self.is(role).await {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let became = tokio::time::timeout(PATIENCE, becoming).await;
        became.map_err(|_| {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let last: Vec<_> = log.lines().rev().take(10).collect();
            format!("a machine does not become {role}; the last of its log first:\n{}", last.join("\n"))
                .into()
        })
    }

    pub fn falls_silent(&self) -> Result<(), Failure> {
        self.running.as_ref().map_or(Ok(()), Namespace::falls_silent)
    }

    pub fn is_killed(&mut self) {
        self.running = None;
    }

    /// Starts the machine again, with the data on its disk.
    pub async fn comes_back(&mut self) -> Result<(), Failure> {
        self.is_killed();
        self.running = Some(Namespace::start(&self.script, &self.log).await?);
        Ok(())
    }
}
