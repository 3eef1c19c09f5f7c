//! Clients that are slow, take up room, or never disconnect. Each is disconnected within the
//! configured timeout, while other clients are served.

use sqlx::PgPool;
use tokio::net::TcpStream;

use crate::harness::client::Client;
use crate::harness::database;
use crate::harness::program::{Program, has_relay, serve_environment};
use crate::harness::raw::Raw;
use crate::harness::relay::Relay;
use crate::harness::{PATIENCE, Service, metric};

const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
const START: &str = "POST /api/auth/recovery/start HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
/// A body of 30 octets.
const BODY: &str = r#"{"email":"trader@example.com"}"#;

/// A service whose timeouts are too long to matter, except those that a test lowers.
async fn patient(pool: &PgPool, settings: &[&str]) -> Service {
    let patience = ["--header-timeout=1h", "--body-timeout=1h", "--answer-timeout=1h"];
    Service::start_with_settings(pool, &[&patience, settings].concat()).await
}

/// Asserts that another client is served.
async fn serves_others(service: &Service) {
    assert!(service.client().starts_recovery("another@example.com").await.is_code_sent());
}

async fn until_open(service: &Service, connections: f64) {
    service
        .until("open connections", async || {
            let open = service.metric("vos_auth_connections{listener=\"api\"}").await;
            (open - connections).abs() < 0.5
        })
        .await;
}

#[sqlx::test]
async fn a_client_slow_with_headers_is_disconnected(pool: PgPool) {
    let service = patient(&pool, &["--header-timeout=300ms"]).await;
    for address in [service.address, service.metrics_address] {
        let nothing = Raw::connect(address).await;
        let half = Raw::says(address, "GET /healthz HTTP/1.1\r\nhost:").await;
        let mut dripping = Raw::says(address, "GET /healthz HTTP/1.1\r\n").await;
        serves_others(&service).await;
        // Another header does not extend the deadline.
        dripping.drips(b"x: y\r\n").await;
        for raw in [nothing, half, dripping] {
            assert_eq!(raw.hears_all().await, "");
        }
    }
    let mut kept = Raw::says(service.address, HEALTH).await;
    kept.hears("{\"status\":\"ok\"}").await;
    assert_eq!(kept.hears_all().await.matches("HTTP/1.1 200").count(), 1);
    until_open(&service, 0.0).await;
    service.stops().await;
}

#[sqlx::test]
async fn a_client_slow_with_a_body_is_answered_and_disconnected(pool: PgPool) {
    let service = patient(&pool, &["--body-timeout=300ms"]).await;
    let nothing = Raw::says(service.address, format!("{START}content-length: 30\r\n\r\n")).await;
    let mut dripping = Raw::says(service.address, format!("{START}content-length: 9999\r\n\r\n")).await;
    let mut chunked = Raw::says(service.address, format!("{START}transfer-encoding: chunked\r\n\r\n")).await;
    let mut zeros = Raw::says(service.address, format!("{START}transfer-encoding: chunked\r\n\r\n")).await;
    serves_others(&service).await;
    tokio::join!(dripping.drips(b" "), chunked.drips(b"1\r\n \r\n"), zeros.drips(b"0"));
    for raw in [nothing, dripping, chunked, zeros] {
        let answer = raw.hears_all().await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("body_incomplete"), "{answer}");
    }
    until_open(&service, 0.0).await;
    service.stops().await;
}

/// The service does not drain a body that it does not need, whatever the answer.
#[sqlx::test]
async fn an_unneeded_body_is_not_drained(pool: PgPool) {
    let service = patient(&pool, &[]).await;
    for (address, request, status) in [
        (service.address, "GET /healthz", 200),
        (service.address, "GET /openapi.json", 200),
        (service.address, "GET /api/auth/session", 401),
        (service.address, "POST /api/auth/logout", 401),
        (service.address, "DELETE /api/auth/sessions", 401),
        (service.address, "POST /api/auth/recovery/start", 400),
        (service.address, "POST /api/auth/recovery/verify", 401),
        (service.address, "POST /nowhere", 404),
        (service.address, "PUT /healthz", 405),
        (service.metrics_address, "GET /metrics", 200),
        (service.metrics_address, "POST /nowhere", 404),
    ] {
        for length in ["content-length: 10000000000", "transfer-encoding: chunked"] {
            let head = format!("{request} HTTP/1.1\r\nhost: x\r\n{length}\r\n\r\n");
            let mut raw = Raw::says(address, head).await;
            let answer = raw.hears("\r\n\r\n").await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
            // The client can send no more than the kernel buffers of both ends hold.
            let sent = raw.floods(&[b'0'; 16384]).await;
            assert!(sent < 64 << 20, "{request}: {sent}");
        }
    }
    let long = format!("{START}content-length: 10000000000\r\n\r\n");
    let mut raw = Raw::says(service.address, long).await;
    raw.floods(&[b' '; 16384]).await;
    until_open(&service, 0.0).await;
    serves_others(&service).await;
    service.stops().await;
}

/// A client that reads nothing, or very slowly, soon loses the memory and the place that it uses.
#[sqlx::test]
async fn a_client_that_does_not_read_is_disconnected(pool: PgPool) {
    let service = patient(&pool, &["--answer-timeout=300ms"]).await;
    let page = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut deaf = Raw::connect_narrow(service.address).await;
    deaf.floods(page.as_bytes()).await;
    let mut sipping = Raw::connect_narrow(service.address).await;
    sipping.sends(page.repeat(50)).await;
    let sipped = sipping.sips().await;
    assert!(sipped < 50 * 100_000, "{sipped}");
    until_open(&service, 0.0).await;
    serves_others(&service).await;
    service.stops().await;
}

#[sqlx::test]
async fn a_new_client_gets_the_place_of_an_idle_one_when_all_are_taken(pool: PgPool) {
    let service = patient(&pool, &["--max-connections=4", "--network-burst=1000"]).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(Raw::connect(service.address).await);
        waiting.push(Raw::says(service.address, "GET /healthz HTTP/1.1\r\nhost:").await);
    }
    until_open(&service, 4.0).await;
    // More clients than there are places: each place is freed.
    for _ in 0..12 {
        let client = service.client();
        let answer = tokio::time::timeout(PATIENCE, client.get("/healthz")).await.expect("a place");
        assert_eq!(answer.status, 200);
    }
    for raw in waiting {
        assert_eq!(raw.hears_all().await, "");
    }
    until_open(&service, 0.0).await;
    assert!(service.metric("vos_auth_connections_crowded_total{listener=\"api\"}").await > 0.0);
    service.stops().await;
}

#[sqlx::test]
async fn a_request_in_progress_keeps_its_place(pool: PgPool) {
    let service = patient(&pool, &["--max-connections=2"]).await;
    let (first, rest) = BODY.split_at(12);
    let mut in_progress =
        Raw::says(service.address, format!("{START}content-length: 30\r\n\r\n{first}")).await;
    let waiting = Raw::connect(service.address).await;
    until_open(&service, 2.0).await;
    serves_others(&service).await;
    assert_eq!(waiting.hears_all().await, "");
    assert!(in_progress.sends(rest).await);
    let answer = in_progress.hears_all().await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    // All places are busy: the next client waits until a request ends.
    let half = format!("{START}content-length: 30\r\n\r\n{first}");
    let (mut one, two) = (Raw::says(service.address, &half).await, Raw::says(service.address, &half).await);
    until_open(&service, 2.0).await;
    let late = service.client();
    let (answer, _) = tokio::join!(late.get("/healthz"), one.sends(rest));
    assert_eq!(answer.status, 200);
    assert!(one.hears_all().await.starts_with("HTTP/1.1 200"));
    drop(two);
    service.stops().await;
}

#[sqlx::test]
async fn the_metrics_are_served_however_many_connections_are_open(pool: PgPool) {
    let service = patient(&pool, &[]).await;
    let mut waiting = Vec::new();
    for _ in 0..80 {
        waiting.push(Raw::connect(service.metrics_address).await);
    }
    assert!(service.metric("vos_auth_connections_crowded_total{listener=\"metrics\"}").await > 0.0);
    assert!(service.metric("vos_auth_connections{listener=\"metrics\"}").await <= 64.0);
    service.stops().await;
}

/// Idle connections leave enough descriptors for PostgreSQL and the relays.
#[sqlx::test]
async fn a_process_with_few_descriptors_takes_few_connections(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relay_url) = (database::service_url(&pool), relay.url());
    let environment = serve_environment(&url, &relay_url, &[("SMTP_IDLE", "0s")]);
    let few = ["prlimit", "--nofile=600:600"];
    let mut program = Program::start_under(&few, &["serve"], &environment);
    program.line_with("raise it");
    let (address, metrics) = (program.address(), program.metrics_address());
    has_relay(&Client::new(address)).await;
    let mut idle = Vec::new();
    for _ in 0..700 {
        idle.push(Raw::connect(address).await);
    }
    Service::has_account_at(&pool, "trader@example.com").await;
    assert!(Client::new(address).starts_recovery("trader@example.com").await.is_code_sent());
    assert_eq!(relay.mail(1).await.recipients, ["trader@example.com"]);
    assert!(metric(metrics, "vos_auth_connections{listener=\"api\"}").await <= 88.0);
    program.signal("-TERM");
    let (log, clean) = program.ends();
    assert!(clean && !log.iter().any(|line| line.contains("cannot be accepted")), "{log:?}");
}

/// A proxy connects, the service begins to stop, and the proxy sends its request. The service may
/// not have accepted the connection by then.
#[sqlx::test]
async fn a_stopping_service_answers_clients_that_have_just_connected(pool: PgPool) {
    let service = patient(&pool, &[]).await;
    let mut connected = Vec::new();
    for _ in 0..50 {
        connected.push(Raw::connect(service.address).await);
    }
    service.is_told_to_stop();
    service
        .until("the service has stopped listening", async || {
            TcpStream::connect(service.address).await.is_err()
        })
        .await;
    for mut raw in connected {
        assert!(raw.sends(HEALTH).await);
        assert!(raw.hears_all().await.starts_with("HTTP/1.1 200"));
    }
    service.stops().await;
}
