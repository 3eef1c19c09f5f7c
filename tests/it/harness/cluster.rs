//! A PostgreSQL of a test's own, which may be killed.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};

use super::PATIENCE;
use super::database::Server;

pub struct Cluster {
    home: PathBuf,
    server: Child,
}

impl Cluster {
    /// Makes one, with the schema in its database `postgres`. `initdb` and `postgres` are on the PATH of `make test`.
    pub async fn start() -> Self {
        let home = std::env::temp_dir().join(format!("vos-auth-cluster-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&home);
        std::fs::create_dir(&home).unwrap();
        if is_root() {
            assert!(Command::new("chown").arg("postgres").arg(&home).status().unwrap().success());
        }
        let made = as_owner("initdb")
            .arg("-D")
            .arg(home.join("data"))
            .args(["-U", "vos_auth", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"])
            .current_dir(&home)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let server = serve(&home);
        let cluster = Self { home, server };
        let mut connection = cluster.connect().await;
        vos_auth::database::MIGRATOR.run(&mut connection).await.unwrap();
        cluster
    }

    pub fn server(&self) -> Server {
        Server::Socket(self.home.join(".s.PGSQL.5432"))
    }

    /// Connects, as soon as it is up.
    pub async fn connect(&self) -> PgConnection {
        let options = PgConnectOptions::new().socket(&self.home).username("vos_auth").database("postgres");
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

    /// Kills every process of it at once, and starts it again.
    pub fn is_killed_and_restarted(&mut self) {
        let postmaster = self.server.id();
        let children = children_of(postmaster);
        let all: Vec<_> = std::iter::once(postmaster).chain(children).map(|pid| pid.to_string()).collect();
        let killed =
            Command::new("bash").args(["-c", &format!("kill -9 {}", all.join(" "))]).status().unwrap();
        assert!(killed.success());
        self.server.wait().unwrap();
        self.server = serve(&self.home);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = self.server.id();
        // Immediate: nothing of it is needed any more.
        let _ = Command::new("bash").args(["-c", &format!("kill -QUIT {pid}")]).status();
        let _ = self.server.wait();
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn serve(home: &Path) -> Child {
    as_owner("postgres")
        .arg("-D")
        .arg(home.join("data"))
        .args(["-c", "listen_addresses=", "-c", "max_connections=50", "-c", "shared_buffers=16MB"])
        .args(["-c", &format!("unix_socket_directories={}", home.display())])
        .current_dir(home)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// PostgreSQL refuses to run as root.
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

fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in parentheses: state, parent.
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        rest.split_whitespace().nth(1).and_then(|pid| pid.parse().ok()) == Some(parent)
    };
    processes.filter(is_child).collect()
}
