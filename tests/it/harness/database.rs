//! The test's own database, the roles that connect to it, and a way to it that can be cut.
//!
//! The service connects as in production: as a role that owns nothing and has what `deploy/grants.sql` grants it. So do an
//! operator's commands. A test's own pool, `migrate` and `dev` connect as the owner.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, Mutex};

use sqlx::PgPool;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use url::Url;

use super::PATIENCE;

/// The role of `serve`, as `deploy/grants.sql` names it.
pub const SERVE: &str = "vos_auth_serve";
/// The role of an operator's commands.
pub const OPERATOR: &str = "vos_auth_operator";

/// The owner's URL of a test's database: that of the suite, with the database's name.
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

/// Grants by `deploy/grants.sql` in the database of a URL of its owner.
pub fn grant(url: &str) {
    // Roles are of the whole cluster: another test may make them at the same moment.
    let make = |role| {
        format!(
            "DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
        )
    };
    let psql = Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--dbname", url])
        .args(["--command=SET client_min_messages = warning", "--command", &make(SERVE)])
        .args(["--command", &make(OPERATOR)])
        .args(["--file", concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grants.sql")])
        .output()
        .expect("psql is on the PATH of `make test`");
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
}

/// Waits until no service is connected to a test's database any more, for less than the longest that one may wait for a
/// relay.
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

/// What the way to PostgreSQL does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Connections are cut, and new ones are closed at once.
    Cut,
    /// Connections stand, and nothing comes through.
    Stalled,
    /// Those that stand stay so, silent for ever, as when a machine is gone; new ones come through.
    Lost,
}

/// A TCP forwarder before PostgreSQL.
pub struct Proxy {
    address: SocketAddr,
    way: watch::Sender<Way>,
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where PostgreSQL listens.
#[derive(Clone)]
pub enum Server {
    Socket(PathBuf),
    Tcp(String, u16),
}

impl Server {
    pub fn of(pool: &PgPool) -> Self {
        let options = pool.connect_options();
        match options.get_socket() {
            Some(folder) => Self::Socket(folder.join(format!(".s.PGSQL.{}", options.get_port()))),
            None => Self::Tcp(options.get_host().to_owned(), options.get_port()),
        }
    }

    pub async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Socket(path) => Box::new(UnixStream::connect(path).await?),
            Self::Tcp(host, port) => Box::new(TcpStream::connect((host.as_str(), *port)).await?),
        })
    }
}

impl Proxy {
    pub async fn before(pool: &PgPool) -> Self {
        let server = Server::of(pool);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (way, watching) = watch::channel(Way::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (watching, server) = (watching.clone(), server.clone());
                tokio::spawn(async move { forward(client, server.connect().await.unwrap(), watching).await });
            }
        });
        Self { address, way }
    }

    /// The service's URL of `pool`'s database by this way.
    pub fn url(&self, pool: &PgPool) -> String {
        let mut url: Url = service_url(pool).parse().unwrap();
        url.set_query(None);
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.address.port())).unwrap();
        url.into()
    }

    pub fn is(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// Copies both ways while the way is open. A stall keeps both ends and moves nothing; it ends with the conversation, as
/// bytes that were under way when a network failed do not come out of it later.
async fn forward(mut client: TcpStream, mut server: Box<dyn Stream>, mut watching: watch::Receiver<Way>) {
    let way = *watching.borrow_and_update();
    if way == Way::Open || way == Way::Lost {
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = watching.changed() => {}
        }
    }
    if *watching.borrow() == Way::Lost {
        std::future::pending::<()>().await;
    }
    if *watching.borrow_and_update() == Way::Stalled {
        let _ = watching.changed().await;
    }
}
