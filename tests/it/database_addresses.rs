//! A PostgreSQL name with two addresses, one of them silent: that one drops all packets.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener};

use crate::harness::client::Client;
use crate::harness::encrypted::Encrypted;
use crate::harness::line::{Line, can_lay};
use crate::harness::program::{Program, run, run_under, serve_environment};
use crate::harness::{PATIENCE, metric};

const NAME: &str = "db.test";
const SILENT: &str = "vos_auth_database_silent_addresses";
/// The time that a busy machine may add. To wait for a silent address would take minutes.
const NOISE: Duration = Duration::from_secs(3);

/// The server at the near end of a line. Programs at the far end resolve its name.
struct Site {
    line: Line,
    server: Encrypted,
    addresses: [Ipv4Addr; 2],
}

impl Site {
    async fn lay() -> Self {
        static COUNT: AtomicU8 = AtomicU8::new(0);
        let number = COUNT.fetch_add(2, Ordering::Relaxed) % 200;
        // TEST-NET-1 (RFC 5737): a resolver would prefer addresses of the line's own network.
        let addresses = [1, 2].map(|host| Ipv4Addr::new(192, 0, 2, number + host));
        let line = Line::lay();
        for address in addresses {
            line.has_address(address);
        }
        let [first, second] = addresses;
        line.knows(&format!("{first} {NAME}\n{second} {NAME}\n"));
        let server = Encrypted::start_at(NAME, &format!("{first},{second}")).await;
        Self { line, server, addresses }
    }

    fn url(&self, mode: &str) -> String {
        self.server.url().replace("verify-full", mode)
    }

    /// Starts the service at the far end of the line. No test here needs its relay.
    fn serves(&self, mode: &str) -> (Program, Client) {
        let (url, any) = (self.url(mode), format!("{}:0", self.line.far));
        let changes =
            [("HTTP_ADDR", any.as_str()), ("METRICS_ADDR", any.as_str()), ("NETWORK_BURST", "100000")];
        let environment = serve_environment(&url, "smtp://127.0.0.1:9?tls=none", &changes);
        let mut program = Program::start_under(&self.line.under(), &["serve"], &environment);
        let client = Client::new(program.address());
        (program, client)
    }

    /// Runs an operator's command, which connects once, and returns its duration.
    fn times_a_command(&self, mode: &str) -> Duration {
        let (url, began) = (self.url(mode), Instant::now());
        let listed = run_under(&self.line.under(), &["outbox", "list"], &[("DATABASE_URL", &url)]);
        assert!(listed.status.success(), "{mode}: {}", String::from_utf8_lossy(&listed.stderr));
        began.elapsed()
    }
}

/// The state of the database in a replica's `/readyz`.
async fn database_state(client: &Client) -> String {
    client.get("/readyz").await.body["parts"]["database"].as_str().unwrap().to_owned()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    let holding = async { while !holds().await {} };
    tokio::time::timeout(PATIENCE, holding).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
    began.elapsed()
}

/// Waits until simultaneous logins all work, so that the pool has to open connections. Each reads
/// PostgreSQL, for a new unknown address.
async fn until_logins_work(client: &Client) -> Duration {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let logs_in = async || {
        let email = format!("trader{}@example.com", COUNT.fetch_add(1, Ordering::Relaxed));
        client.clone().logs_in(&email, "none").await.status
    };
    let work = async || <[u16; 3]>::from(tokio::join!(logs_in(), logs_in(), logs_in())) == [401; 3];
    until("logins", work).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_first_address_delays_a_command_by_half_a_second() {
    if !can_lay() {
        return;
    }
    let site = Site::lay().await;
    for mode in ["require", "verify-ca"] {
        let quick = site.times_a_command(mode);
        site.line.loses(site.addresses[0]);
        let slow = site.times_a_command(mode);
        site.line.finds(site.addresses[0]);
        eprintln!("{mode}: {quick:?} with two addresses that answer, {slow:?} with the first silent");
        assert!(slow > Duration::from_millis(500), "{mode}: the first address is silent: {slow:?}");
        assert!(slow < quick + Duration::from_millis(500) + NOISE, "{mode}: {quick:?} {slow:?}");
    }
}

/// The pools use the address that answers, and change to the other one when it falls silent.
#[tokio::test(flavor = "multi_thread")]
async fn the_service_uses_the_address_that_answers_and_leaves_it_when_it_falls_silent() {
    if !can_lay() {
        return;
    }
    let site = Site::lay().await;
    let [first, second] = site.addresses;
    site.line.loses(first);
    let (mut program, client) = site.serves("require");
    let contact = until("the database", async || database_state(&client).await == "ok").await;
    let logins = until_logins_work(&client).await;
    let line: Value =
        serde_json::from_str(&program.line_with("new connections use another address")).unwrap();
    assert_eq!((line["addresses"].as_u64(), line["silent"].as_u64()), (Some(2), Some(1)), "{line}");
    assert_eq!(line["instead"], second.to_string(), "{line}");
    let metrics = program.metrics_address();
    until("the metric", async || {
        database_state(&client).await;
        metric(metrics, SILENT).await > 0.5
    })
    .await;

    site.line.finds(first);
    site.line.loses(second);
    let recovered = until_logins_work(&client).await;
    until("the database", async || database_state(&client).await == "ok").await;
    program.line_with(&format!("\"instead\":\"{first}\""));
    eprintln!(
        "ready after {contact:?}, then logins after {logins:?}; with the kept address silent, logins after {recovered:?}"
    );
}

/// TLS checks the name that sqlx connects to, so that the service cannot use an address instead.
#[tokio::test(flavor = "multi_thread")]
async fn verify_full_connects_by_name_and_reports_silent_addresses() {
    if !can_lay() {
        return;
    }
    let site = Site::lay().await;
    site.line.loses(site.addresses[0]);
    let (mut program, client) = site.serves("verify-full");
    let line: Value = serde_json::from_str(&program.line_with("\"database\":\"unreachable\"")).unwrap();
    let cause = line["cause"].as_str().unwrap();
    assert_eq!(
        cause, "no answer in time, while connecting to a name with 2 addresses, 1 of them silent",
        "{line}"
    );
    program.line_with("new connections may wait for it");
    assert!(metric(program.metrics_address(), SILENT).await > 0.5);
    site.line.finds(site.addresses[0]);
    until("the database", async || database_state(&client).await == "ok").await;
    program.line_with("every address of PostgreSQL's name answers again");
}

/// The workaround of docs/operate/high-availability.md: a local proxy listens on a socket and knows
/// the address that answers. TLS still checks the name in the URL.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_socket_keeps_the_check_of_the_name() {
    let server = Encrypted::start_at(NAME, "127.0.0.1").await;
    let folder = std::env::temp_dir().join(format!("vos-auth-way-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (port, to) = (server.port(), SocketAddr::from(([127, 0, 0, 1], server.port())));
    let listener = listen(&folder.join(format!(".s.PGSQL.{port}")));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut server = TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let url = format!("{}&host={}", server.url(), folder.display());
    let lists = async |url: String| {
        let listing = move || run(&["outbox", "list"], &[("DATABASE_URL", &url)]);
        tokio::task::spawn_blocking(listing).await.unwrap()
    };
    let listed = lists(url.clone()).await;
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let other = lists(url.replace(NAME, "other.test")).await;
    let line = String::from_utf8(other.stderr).unwrap();
    assert!(!other.status.success() && line.contains("not valid for name"), "{line}");
    std::fs::remove_dir_all(folder).unwrap();
}

fn listen(path: &Path) -> UnixListener {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).unwrap()
}
