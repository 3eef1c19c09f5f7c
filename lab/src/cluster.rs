//! A PostgreSQL cluster that a test or a trial starts, and can kill.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};

use crate::place;

/// How long a cluster may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);
/// The default port. It is only a part of the socket's name, unless the settings make the cluster
/// listen on a network.
const PORT: u16 = 5432;

pub struct Cluster {
    home: PathBuf,
    port: u16,
    server: Child,
}

impl Cluster {
    /// Makes a cluster, with the schema in its database `postgres`. Needs `initdb` and `postgres`
    /// on the PATH, as `make test` sets it.
    pub async fn start() -> Self {
        Self::start_with(|_| String::new()).await
    }

    /// Like [`Self::start`], with further lines of `postgresql.conf`. `settings` makes them from
    /// the path of the cluster's folder.
    pub async fn start_with(settings: impl FnOnce(&Path) -> String) -> Self {
        Self::start_at(PORT, settings).await
    }

    /// Like [`Self::start_with`], at a given port, for settings that make the cluster listen on a
    /// network.
    pub async fn start_at(port: u16, settings: impl FnOnce(&Path) -> String) -> Self {
        let cluster = Self::make(port, "vos_auth", settings);
        let mut connection = cluster.connect().await;
        vos_auth::database::MIGRATOR.run(&mut connection).await.unwrap();
        cluster
    }

    /// Makes an empty cluster, as Debian's package does. The system's user `postgres` connects as
    /// the superuser by the socket. All other roles connect over TCP to 127.0.0.1 at `port` and
    /// need a password.
    pub async fn as_debian_makes_it(port: u16) -> Self {
        let cluster = Self::make(port, "postgres", |home| {
            let rules =
                "local all postgres peer\nlocal all all peer\nhost all all 127.0.0.1/32 scram-sha-256\n";
            std::fs::write(home.join("data/pg_hba.conf"), rules).unwrap();
            "listen_addresses = '127.0.0.1'\n".to_owned()
        });
        let ready = async {
            while !as_owner("pg_isready")
                .args(["-q", "-p", &cluster.port.to_string(), "-h"])
                .arg(&cluster.home)
                .status()
                .unwrap()
                .success()
            {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("PostgreSQL comes up");
        cluster
    }

    fn make(port: u16, superuser: &str, settings: impl FnOnce(&Path) -> String) -> Self {
        let home = place::folder("cluster");
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&home).status().unwrap().success());
        }
        let made = as_owner("initdb")
            .arg("-D")
            .arg(home.join("data"))
            .args(["-U", superuser, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"])
            .current_dir(&home)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut file =
            std::fs::OpenOptions::new().append(true).open(home.join("data/postgresql.conf")).unwrap();
        write!(file, "listen_addresses = ''\nport = {port}\n{}", settings(&home)).unwrap();
        let server = serve(&home);
        Self { home, port, server }
    }

    pub fn socket(&self) -> PathBuf {
        self.home.join(format!(".s.PGSQL.{}", self.port))
    }

    /// Options to connect as the owner, without a password.
    pub fn options(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new().socket(&self.home).port(self.port);
        options.username("vos_auth").database("postgres")
    }

    /// From now on, every user needs a password, except the owner at the socket. Network
    /// connections need TLS.
    pub async fn asks_for_passwords(&self) {
        let rules =
            "local all vos_auth trust\nlocal all all scram-sha-256\nhostssl all all all scram-sha-256\n";
        std::fs::write(self.home.join("data/pg_hba.conf"), rules).unwrap();
        sqlx::query("SELECT pg_reload_conf()").execute(&mut self.connect().await).await.unwrap();
    }

    /// The URL of the cluster's database for a user with a password.
    pub fn url_for(&self, user: &str, password: &str) -> String {
        let folder = self.home.display().to_string().replace('/', "%2F");
        format!("postgres://{user}:{password}@localhost/postgres?host={folder}")
    }

    /// Connects as soon as the cluster is up.
    pub async fn connect(&self) -> PgConnection {
        let options = self.options();
        let connecting = async {
            loop {
                if let Ok(connection) = PgConnection::connect_with(&options).await {
                    return connection;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, connecting).await.expect("PostgreSQL comes up")
    }

    /// Runs lines of bash in the cluster's folder, as the user who owns the folder. The environment
    /// (`PGHOST` and so on) leads to the cluster.
    pub fn owner_runs(&self, lines: &str, environment: &[(&str, &str)]) {
        let mut bash = as_owner("bash");
        bash.args(["-euc", lines]).current_dir(&self.home).env_remove("DATABASE_URL");
        bash.env("PGHOST", &self.home).env("PGUSER", "vos_auth").env("PGDATA", self.home.join("data"));
        let output =
            bash.env("PGPORT", self.port.to_string()).envs(environment.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{lines}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn is_killed_and_restarted(&mut self) {
        self.is_killed();
        self.starts_again();
    }

    /// Stops the cluster as `pg_ctl stop -m immediate` does: without a checkpoint, so that it
    /// recovers when it starts again.
    pub fn stops_at_once(&mut self) {
        signal("-QUIT", &[self.server.id()]);
        self.server.wait().unwrap();
    }

    pub fn starts_again(&mut self) {
        self.server = serve(&self.home);
    }

    /// Kills all processes of the cluster at once.
    pub fn is_killed(&mut self) {
        let postmaster = self.server.id();
        // SIGSTOP comes first, so that the postmaster forks no child after its children are listed.
        // A child that survived would keep the shared memory, and PostgreSQL would refuse the next
        // start.
        signal("-STOP", &[postmaster]);
        let children = children_of(postmaster);
        signal("-KILL", &children);
        signal("-KILL", &[postmaster]);
        self.server.wait().unwrap();
        let began = Instant::now();
        while children.iter().any(|pid| is_alive(*pid)) {
            assert!(began.elapsed() < PATIENCE, "a killed process of PostgreSQL lives on");
            std::thread::yield_now();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Stops at once: its data is not needed again.
        signal("-QUIT", &[self.server.id()]);
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn serve(home: &Path) -> Child {
    as_owner("postgres")
        .arg("-D")
        .arg(home.join("data"))
        .args(["-c", "max_connections=100", "-c", "shared_buffers=16MB"])
        .args(["-c", &format!("unix_socket_directories={}", home.display())])
        .current_dir(home)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A command as the owner of the cluster: PostgreSQL refuses to run as root.
fn as_owner(program: &str) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", program]);
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

fn signal(name: &str, processes: &[u32]) {
    let processes: Vec<_> = processes.iter().map(ToString::to_string).collect();
    // Errors are ignored: a process may have ended by itself.
    let _ = Command::new("bash").args(["-c", &format!("kill {name} {} 2>&-", processes.join(" "))]).status();
}

fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| stat(*pid).is_some_and(|(_, its)| its == parent);
    processes.filter(is_child).collect()
}

fn is_alive(pid: u32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != "Z")
}

/// The state and the parent of a process.
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // State and parent follow the name, which is in parentheses.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    Some((rest.next()?.to_owned(), rest.next()?.parse().ok()?))
}
