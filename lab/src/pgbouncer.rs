//! A PgBouncer for one test, in front of the test suite's PostgreSQL. It uses
//! `deploy/pgbouncer.ini` with other addresses, and the statements of `docs/operate/poolers.md`
//! with the role and the database of the tests.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use sqlx::{AssertSqlSafe, PgPool};

use crate::place::{self, free_port};
use crate::{PATIENCE, needs};

/// The environment variable with the command that runs PgBouncer. `make pooler` sets it to a
/// command that runs the PgBouncer of another Debian release.
const PROGRAM: &str = "PGBOUNCER";
/// The role that replaces `vos_auth_serve` in the statements of `docs/operate/poolers.md`.
const ROLE: &str = "vos_auth_pooled";
const PASSWORD: &str = "pooled";
/// The beginning of the statements of `docs/operate/poolers.md` that give the role its settings.
const DOCUMENTED: &str = "ALTER ROLE vos_auth_serve SET ";

/// How PgBouncer gives server connections to its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Session,
    Transaction,
}

pub struct PgBouncer {
    home: PathBuf,
    port: u16,
    database: String,
    process: Child,
}

fn program() -> String {
    std::env::var(PROGRAM).unwrap_or_else(|_| "/usr/sbin/pgbouncer".to_owned())
}

fn document() -> String {
    place::text("docs/operate/poolers.md")
}

/// Whether a PgBouncer is installed.
pub fn is_installed() -> bool {
    needs::has_program(program())
}

/// The version of PgBouncer, such as (1, 18).
pub fn version() -> (u32, u32) {
    let said = Command::new(program()).arg("--version").stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let numbers = said.split_whitespace().nth(1).unwrap_or_default();
    let mut numbers = numbers.split('.').map(|number| number.parse().expect(&said));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Gives the role of the tests the settings of the document, in this test's database.
pub async fn has_the_settings_of_the_document(pool: &PgPool) {
    make_role(pool).await;
    let connected = pool.connect_options();
    let database = connected.get_database().unwrap();
    let here = format!("ALTER ROLE {ROLE} IN DATABASE \"{database}\" SET ");
    let document = document();
    let statements = document.lines().filter(|line| line.starts_with(DOCUMENTED));
    let statements: Vec<_> = statements.map(|line| line.replace(DOCUMENTED, &here)).collect();
    assert!(!statements.is_empty(), "docs/operate/poolers.md has the statements");
    sqlx::raw_sql(AssertSqlSafe(statements.join("\n"))).execute(pool).await.unwrap();
}

/// Ends the role's sessions by the statement of the document, so that new ones have the settings.
pub async fn ends_sessions(pool: &PgPool) {
    let document = document();
    let mut quoted = document.lines().flat_map(|line| line.split('"'));
    let end =
        quoted.find(|text| text.contains("pg_terminate_backend")).expect("a statement that ends sessions");
    let here = end.replace("vos_auth_serve", ROLE) + " AND datname = current_database()";
    assert!(here.contains(ROLE), "{here}");
    sqlx::raw_sql(AssertSqlSafe(here)).execute(pool).await.unwrap();
}

impl PgBouncer {
    /// Starts PgBouncer with at most this many server connections.
    pub async fn before(pool: &PgPool, mode: Mode, server_connections: usize) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let home = place::folder("pgbouncer");
        let port = free_port(20 + number % 5);
        let options = pool.connect_options();
        let database = options.get_database().unwrap().to_owned();
        let host =
            options.get_socket().map_or(options.get_host().to_owned(), |path| path.display().to_string());
        let users = home.join("userlist.txt").display().to_string();
        let mut ini = place::text("deploy/pgbouncer.ini");
        for (documented, here) in [
            (
                "vos_auth = host=127.0.0.1 port=5432",
                format!("{database} = host={host} port={}", options.get_port()),
            ),
            ("listen_port = 6432", format!("listen_port = {port}")),
            ("unix_socket_dir = /run/postgresql", "unix_socket_dir =".to_owned()),
            ("/etc/pgbouncer/userlist.txt", users.clone()),
            ("default_pool_size = 40", format!("default_pool_size = {server_connections}")),
        ] {
            assert!(ini.contains(documented), "{documented}");
            ini = ini.replace(documented, &here);
        }
        if mode == Mode::Transaction {
            ini = in_transaction_mode(&ini);
        }
        fs::write(&users, format!("\"{ROLE}\" \"{}\"\n", secret(pool).await)).unwrap();
        fs::write(home.join("pgbouncer.ini"), ini).unwrap();
        let process = start(&home, port);
        Self { home, port, database, process }
    }

    /// The URL of the test's database through PgBouncer.
    pub fn url(&self) -> String {
        let (port, database) = (self.port, &self.database);
        format!("postgres://{ROLE}:{PASSWORD}@127.0.0.1:{port}/{database}")
    }

    /// PgBouncer's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("log")).unwrap()
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// The configuration for transaction mode. The file contains the lines for this mode in a comment;
/// they replace the line for session mode. Versions of PgBouncer that do not know the setting for
/// prepared statements do not get it.
fn in_transaction_mode(ini: &str) -> String {
    let knows_prepared_statements = version() >= (1, 21);
    let is_for_it = |line: &&str| knows_prepared_statements || !line.contains("max_prepared_statements");
    let lines: Vec<_> = ini.lines().filter_map(|line| line.strip_prefix(";   ")).filter(is_for_it).collect();
    assert!(lines.contains(&"pool_mode = transaction"), "{lines:?}");
    ini.replace("\npool_mode = session\n", &format!("\n{}\n", lines.join("\n")))
}

/// Creates the role, which may read and write every table. It owns none, because all tests share
/// it.
async fn make_role(pool: &PgPool) {
    let make = format!(
        "DO $$ BEGIN CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}' IN ROLE pg_read_all_data, pg_write_all_data;
         EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$;
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {ROLE}"
    );
    sqlx::raw_sql(AssertSqlSafe(make)).execute(pool).await.unwrap();
}

/// The hash with which PgBouncer verifies the role's password.
async fn secret(pool: &PgPool) -> String {
    make_role(pool).await;
    let secret = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
    sqlx::query_scalar(secret).bind(ROLE).fetch_one(pool).await.unwrap()
}

/// PgBouncer refuses to run as root. The user of PostgreSQL runs it, because only that user may
/// connect to the test suite's server.
fn start(home: &std::path::Path, port: u16) -> Child {
    let mut pgbouncer = Command::new(program());
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        pgbouncer.arg("--user=postgres");
    }
    let log = File::options().create(true).append(true).open(home.join("log")).unwrap();
    let errors = log.try_clone().unwrap();
    pgbouncer.arg(home.join("pgbouncer.ini")).stdin(Stdio::null()).stdout(log).stderr(errors);
    let process = pgbouncer.spawn().unwrap();
    let began = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        let log = fs::read_to_string(home.join("log")).unwrap();
        assert!(began.elapsed() < PATIENCE, "PgBouncer is not up: {log}");
        std::thread::yield_now();
    }
    process
}
