//! Clients that take their time, take up room, and do not go away: each ends within its setting, and somebody else is
//! served meanwhile.

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
/// 30 octets.
const BODY: &str = r#"{"email":"trader@example.com"}"#;

/// With limits that end nobody, but for those that a test lowers.
async fn patient(pool: &PgPool, settings: &[&str]) -> Service {
    let patience = ["--header-timeout=1h", "--body-timeout=1h", "--answer-timeout=1h"];
    Service::start_with_settings(pool, &[&patience, settings].concat()).await
}

/// Somebody else is served.
async fn is_there_for_others(service: &Service) {
    assert!(service.client().starts_recovery("somebody.else@example.com").await.is_code_sent());
}

async fn has_open(service: &Service, connections: f64) {
    service
        .until("open connections", async || {
            let open = service.metric("vos_auth_connections{listener=\"api\"}").await;
            (open - connections).abs() < 0.5
        })
        .await;
}

#[sqlx::test]
async fn who_is_slow_with_headers_is_cut_off(pool: PgPool) {
    let service = patient(&pool, &["--header-timeout=300ms"]).await;
    for address in [service.address, service.metrics_address] {
        let nothing = Raw::connect(address).await;
        let half = Raw::says(address, "GET /healthz HTTP/1.1\r\nhost:").await;
        let mut dripping = Raw::says(address, "GET /healthz HTTP/1.1\r\n").await;
        is_there_for_others(&service).await;
        // Another header buys no more time.
        dripping.drips(b"x: y\r\n").await;
        for raw in [nothing, half, dripping] {
            assert_eq!(raw.hears_all().await, "");
        }
    }
    let mut kept = Raw::says(service.address, HEALTH).await;
    kept.hears("{\"status\":\"ok\"}").await;
    assert_eq!(kept.hears_all().await.matches("HTTP/1.1 200").count(), 1);
    has_open(&service, 0.0).await;
    service.stops().await;
}

#[sqlx::test]
async fn who_is_slow_with_a_body_is_answered_and_cut_off(pool: PgPool) {
    let service = patient(&pool, &["--body-timeout=300ms"]).await;
    let nothing = Raw::says(service.address, format!("{START}content-length: 30\r\n\r\n")).await;
    let mut dripping = Raw::says(service.address, format!("{START}content-length: 9999\r\n\r\n")).await;
    let mut chunked = Raw::says(service.address, format!("{START}transfer-encoding: chunked\r\n\r\n")).await;
    let mut zeros = Raw::says(service.address, format!("{START}transfer-encoding: chunked\r\n\r\n")).await;
    is_there_for_others(&service).await;
    tokio::join!(dripping.drips(b" "), chunked.drips(b"1\r\n \r\n"), zeros.drips(b"0"));
    for raw in [nothing, dripping, chunked, zeros] {
        let heard = raw.hears_all().await;
        assert!(heard.starts_with("HTTP/1.1 400") && heard.contains("body_incomplete"), "{heard}");
    }
    has_open(&service, 0.0).await;
    service.stops().await;
}

/// A body that nobody asked for is not read to its end, however the request is answered.
#[sqlx::test]
async fn a_body_that_nobody_reads_is_not_drained(pool: PgPool) {
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
            let heard = raw.hears("\r\n\r\n").await;
            assert!(heard.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {heard}");
            // What the kernels hold at both ends, and no more.
            let sent = raw.floods(&[b'0'; 16384]).await;
            assert!(sent < 64 << 20, "{request}: {sent}");
        }
    }
    let long = format!("{START}content-length: 10000000000\r\n\r\n");
    let mut raw = Raw::says(service.address, long).await;
    raw.floods(&[b' '; 16384]).await;
    has_open(&service, 0.0).await;
    is_there_for_others(&service).await;
    service.stops().await;
}

/// Whoever asks and does not read, or reads an octet now and then, holds neither memory nor a place for long.
#[sqlx::test]
async fn who_does_not_read_is_cut_off(pool: PgPool) {
    let service = patient(&pool, &["--answer-timeout=300ms"]).await;
    let page = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut deaf = Raw::connect_narrow(service.address).await;
    deaf.floods(page.as_bytes()).await;
    let mut sipping = Raw::connect_narrow(service.address).await;
    sipping.sends(page.repeat(50)).await;
    let sipped = sipping.sips().await;
    assert!(sipped < 50 * 100_000, "{sipped}");
    has_open(&service, 0.0).await;
    is_there_for_others(&service).await;
    service.stops().await;
}

#[sqlx::test]
async fn one_who_comes_when_all_places_are_taken_gets_that_of_one_who_waits(pool: PgPool) {
    let service = patient(&pool, &["--max-connections=4", "--network-burst=1000"]).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(Raw::connect(service.address).await);
        waiting.push(Raw::says(service.address, "GET /healthz HTTP/1.1\r\nhost:").await);
    }
    has_open(&service, 4.0).await;
    // More than there are places: each is given back.
    for _ in 0..12 {
        let client = service.client();
        let answer = tokio::time::timeout(PATIENCE, client.get("/healthz")).await.expect("a place");
        assert_eq!(answer.status, 200);
    }
    for raw in waiting {
        assert_eq!(raw.hears_all().await, "");
    }
    has_open(&service, 0.0).await;
    assert!(service.metric("vos_auth_connections_crowded_total{listener=\"api\"}").await > 0.0);
    service.stops().await;
}

#[sqlx::test]
async fn a_request_under_way_loses_its_place_to_nobody(pool: PgPool) {
    let service = patient(&pool, &["--max-connections=2"]).await;
    let (first, rest) = BODY.split_at(12);
    let mut under_way = Raw::says(service.address, format!("{START}content-length: 30\r\n\r\n{first}")).await;
    let waiting = Raw::connect(service.address).await;
    has_open(&service, 2.0).await;
    is_there_for_others(&service).await;
    assert_eq!(waiting.hears_all().await, "");
    assert!(under_way.sends(rest).await);
    let heard = under_way.hears_all().await;
    assert!(heard.starts_with("HTTP/1.1 200") && heard.contains("connection: close"), "{heard}");
    // Everybody under way: the next one waits for the end of one of them.
    let half = format!("{START}content-length: 30\r\n\r\n{first}");
    let (mut one, two) = (Raw::says(service.address, &half).await, Raw::says(service.address, &half).await);
    has_open(&service, 2.0).await;
    let late = service.client();
    let (answer, _) = tokio::join!(late.get("/healthz"), one.sends(rest));
    assert_eq!(answer.status, 200);
    assert!(one.hears_all().await.starts_with("HTTP/1.1 200"));
    drop(two);
    service.stops().await;
}

#[sqlx::test]
async fn the_figures_are_there_however_many_hold_their_address(pool: PgPool) {
    let service = patient(&pool, &[]).await;
    let mut waiting = Vec::new();
    for _ in 0..80 {
        waiting.push(Raw::connect(service.metrics_address).await);
    }
    assert!(service.metric("vos_auth_connections_crowded_total{listener=\"metrics\"}").await > 0.0);
    assert!(service.metric("vos_auth_connections{listener=\"metrics\"}").await <= 64.0);
    service.stops().await;
}

/// Idle connections leave the descriptors that PostgreSQL and the relays need.
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
    let (log, well) = program.ends();
    assert!(well && !log.iter().any(|line| line.contains("cannot be accepted")), "{log:?}");
}

/// A proxy connects, and sends its request to a service that stops in between: whether it was accepted by then or not.
#[sqlx::test]
async fn who_has_just_come_is_answered_by_a_service_that_stops(pool: PgPool) {
    let service = patient(&pool, &[]).await;
    let mut come = Vec::new();
    for _ in 0..50 {
        come.push(Raw::connect(service.address).await);
    }
    service.is_told_to_stop();
    service.until("it listens no more", async || TcpStream::connect(service.address).await.is_err()).await;
    for mut raw in come {
        assert!(raw.sends(HEALTH).await);
        assert!(raw.hears_all().await.starts_with("HTTP/1.1 200"));
    }
    service.stops().await;
}
