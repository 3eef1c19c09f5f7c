//! The database of a test or a program, the roles that connect to it, and the proxy before it.
//!
//! In a test, as in production, the service connects as a role that owns nothing and has the
//! rights that `deploy/grants.sql` grants. The commands of an operator connect as another such
//! role. The pool of a test, `migrate`, `dev`, and the replicas of most programs connect as the
//! owner.

use std::collections::HashSet;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use sqlx::PgPool;
use url::Url;

pub use crate::proxy::{Proxy, Server, Way};
use crate::{Failure, PATIENCE, place};

/// The role of `serve`, as `deploy/grants.sql` names it.
pub const SERVE: &str = "vos_auth_serve";
/// The role of an operator's commands.
pub const OPERATOR: &str = "vos_auth_operator";

/// The owner's URL of a test's database: the URL of the test suite with the name of this database.
pub fn url(pool: &PgPool) -> String {
    let mut url: Url = std::env::var("DATABASE_URL").expect("make test sets DATABASE_URL").parse().unwrap();
    url.set_path(pool.connect_options().get_database().unwrap());
    url.into()
}

/// The URL for `serve`, with its rights granted.
pub fn service_url(pool: &PgPool) -> String {
    url_as(pool, SERVE)
}

/// The URL for an operator's commands, with their rights granted.
pub fn operator_url(pool: &PgPool) -> String {
    url_as(pool, OPERATOR)
}

fn url_as(pool: &PgPool, role: &str) -> String {
    static GRANTED: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    let owners = url(pool);
    if GRANTED.lock().unwrap().insert(owners.clone()) {
        grant(&owners);
    }
    let mut url: Url = owners.parse().unwrap();
    url.set_username(role).unwrap();
    url.into()
}

/// Runs `deploy/grants.sql` in the database of `url`, which must be the owner's URL.
pub fn grant(url: &str) {
    // Roles belong to the whole cluster, so another test may create them at the same moment.
    let make = |role| {
        format!(
            "DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
        )
    };
    let psql = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", url])
        .args(["--command=SET client_min_messages = warning", "--command", &make(SERVE)])
        .args(["--command", &make(OPERATOR)])
        .arg("--file")
        .arg(place::file("deploy/grants.sql"))
        .output()
        .expect("psql is on the PATH of `make test`");
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
}

/// Waits until no service is connected to a test's database. The time limit is shorter than the
/// `--smtp-deadline` of the test with a relay that never answers.
pub async fn until_left(pool: &PgPool) {
    let connected = "SELECT EXISTS (SELECT FROM pg_stat_activity
        WHERE application_name = 'vos-auth' AND datname = current_database())";
    let waiting = async {
        while sqlx::query_scalar(connected).fetch_one(pool).await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE / 2, waiting).await.expect("the service leaves the database");
}

impl Server {
    /// The address of the server of a pool.
    pub fn of(pool: &PgPool) -> Self {
        let options = pool.connect_options();
        match options.get_socket() {
            Some(folder) => Self::Socket(folder.join(format!(".s.PGSQL.{}", options.get_port()))),
            None => Self::Tcp(options.get_host().to_owned(), options.get_port()),
        }
    }
}

impl Proxy {
    /// Starts a proxy in front of the server of a pool.
    pub async fn before(pool: &PgPool) -> Self {
        Self::before_server(Server::of(pool)).await
    }

    /// The URL of the pool's database for the service, through this proxy.
    pub fn url(&self, pool: &PgPool) -> String {
        let mut url: Url = service_url(pool).parse().unwrap();
        url.set_query(None);
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.into()
    }
}

/// The URL of the database of a program. If `DATABASE_URL` is not set, runs the program again under
/// `scripts/with-postgres`, which starts the cluster `name` with these server options and sets the
/// variable.
pub fn of_program(name: &str, options: &str) -> Result<String, Failure> {
    if let Ok(url) = std::env::var("DATABASE_URL") {
        return Ok(url);
    }
    let mut again = Command::new(place::file("scripts/with-postgres"));
    again.arg(name).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    Err(again.env("POSTGRES_OPTIONS", options).exec().into())
}

/// Empties the database of a program and creates the schema again.
pub async fn anew(url: &str) -> Result<PgPool, Failure> {
    let pool = PgPool::connect(url).await?;
    sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(&pool).await?;
    vos_auth::database::MIGRATOR.run(&pool).await?;
    Ok(pool)
}
