//! Requests that are refused before they are read. The client gets the whole answer, and no proxy
//! mistakes the closed connection for a failed replica.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::harness::line::{Line, can_lay};
use crate::harness::nginx::{Nginx, Setup, is_installed};
use crate::harness::program::{Program, serve_environment};
use crate::harness::raw::Raw;
use crate::harness::{Service, database, needs};

/// The number of requests that each of the two clients sends.
const REQUESTS: usize = 100;
const REQUESTS_PER_SECOND: usize = 20;

/// A replica at the near end of a line, behind a proxy at its far end. It sends no email.
fn replica(line: &Line, database_url: &str) -> (Program, SocketAddr) {
    let (address, proxy) = (format!("{}:0", line.near), format!("{}/32", line.far));
    let changes = [
        ("HTTP_ADDR", address.as_str()),
        ("TRUSTED_PROXIES", &proxy),
        ("NETWORK_BURST", "1000000"),
        ("NETWORK_PER_MINUTE", "1000000"),
    ];
    let environment = serve_environment(database_url, "smtp://127.0.0.1:9", &changes);
    let mut program = Program::start(&["serve"], &environment);
    let address = program.address();
    (program, address)
}

/// 63 KiB of headers in four lines and a body of 32 KiB, as configuration of curl.
fn oversized() -> String {
    let lines = (0..4).map(|number| format!("header = \"X-{number}: {}\"\n", "a".repeat(16_100)));
    format!("{}data = \"{}\"\n", lines.collect::<String>(), "b".repeat(32 * 1024))
}

/// One client sends oversized requests while another asks for its session.
async fn attack(pool: &PgPool, changes: &[(&str, &str)], refusals: &[u16]) {
    if !(can_lay() && is_installed() && needs::has_program("/usr/bin/curl")) {
        return;
    }
    let (line, url) = (Line::lay(), database::url(pool));
    let ((_first, first), (_second, second)) = (replica(&line, &url), replica(&line, &url));
    let setup = Setup { line: Some(&line), changes, ..Setup::default() };
    let nginx = Nginx::start([first, second], &setup);
    let large = oversized();
    let (attacker, victim) = tokio::join!(
        nginx.asks_at_a_rate("/api/auth/login", REQUESTS, REQUESTS_PER_SECOND, &large),
        nginx.asks_at_a_rate("/api/auth/session", REQUESTS, REQUESTS_PER_SECOND, ""),
    );
    let failed = victim.iter().filter(|status| **status != 401).count();
    assert_eq!((failed, victim.len()), (0, REQUESTS), "{}", nginx.log());
    assert!(attacker.iter().all(|status| refusals.contains(status)), "{attacker:?}");
    assert!(!nginx.log().contains("upstream"), "{}", nginx.log());
}

#[sqlx::test]
async fn early_refusals_mark_no_replica_failed_behind_the_shipped_nginx(pool: PgPool) {
    attack(&pool, &[], &[400]).await;
}

/// The proxy passes on more than a replica accepts: the replica refuses, and the proxy reads why.
#[sqlx::test]
async fn early_refusals_mark_no_replica_failed_behind_a_permissive_proxy(pool: PgPool) {
    let permissive = [
        ("large_client_header_buffers 1 14k", "large_client_header_buffers 4 16k"),
        ("client_max_body_size 16k", "client_max_body_size 32k"),
    ];
    attack(&pool, &permissive, &[431]).await;
}

/// nginx refuses a head that is too large for a replica, however the head is split into lines.
#[sqlx::test]
async fn nginx_passes_on_no_more_than_a_replica_accepts(pool: PgPool) {
    if !is_installed() {
        return;
    }
    let service = Service::start_with_settings(&pool, &["--network-burst=1000000"]).await;
    let without_tls = [(" ssl;", ";")];
    let setup = Setup { changes: &without_tls, ..Setup::default() };
    let nginx = Nginx::start([service.address; 2], &setup);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, nginx.tls));
    let request = "GET /openapi.json HTTP/1.1\nHost:platform.verolabs.co\nConnection:close\n";
    for lines in [1, 2, 16, 90] {
        let mut passed = 0;
        for octets in (13_000..16_500).step_by(100) {
            // nginx adds a space and a CR to each line.
            let line = format!("x:{}\n", "a".repeat((octets - request.len() - 1) / lines - 3));
            let head = format!("{request}{}\n", line.repeat(lines));
            let answer = Raw::says(address, &head).await.hears_all().await;
            match &answer[..12] {
                "HTTP/1.1 200" => passed = head.len(),
                "HTTP/1.1 400" => {
                    assert!(answer.contains("request_malformed"), "{octets} in {lines}: {answer}");
                }
                _ => panic!("{octets} in {lines}: {answer}"),
            }
        }
        assert!((13_900..=15_360).contains(&passed), "{passed} in {lines}");
    }
    for (octets, problem) in [(16_384, "email_invalid"), (16_385, "body_too_large")] {
        let body = format!(r#"{{"email":"{}"}}"#, "a".repeat(octets - 12));
        let request =
            "POST /api/auth/recovery/start HTTP/1.1\r\nHost: platform.verolabs.co\r\nConnection: close\r\n";
        let head =
            format!("{request}Content-Type: application/json\r\nContent-Length: {octets}\r\n\r\n{body}");
        let answer = Raw::says(address, head).await.hears_all().await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(problem), "{octets}: {answer}");
    }
    service.stops().await;
}

/// A TCP reset could discard the answer while the client is still sending.
#[sqlx::test]
async fn an_early_refusal_ends_without_a_reset(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--body-timeout=300ms"]).await;
    let rest = "z".repeat(60_000);
    let post =
        "POST /api/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length:";
    for (request, status) in [
        (format!("GET /{rest} HTTP/1.1\r\n"), 431),
        (format!("GET / HTTP/1.1\r\n{}\r\n{rest}", "x: y\r\n".repeat(101)), 431),
        (format!("GET / HTTP/9.9\r\n{rest}"), 400),
        (format!("{post} 60000\r\n\r\n{rest}"), 400),
        (format!("{post} 90000\r\n\r\n{rest}"), 400),
        (format!("POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n{rest}"), 404),
        (format!("POST /api/auth/logout HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n{rest}"), 401),
        (format!("{post} 100\r\n\r\n{{"), 400),
    ] {
        let mut raw = Raw::says(service.address, &request).await;
        let answer = raw.hears_until_the_end().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{}: {answer}", &request[..40]);
        assert!(raw.drips_on(b"z", 10).await, "{}: reset", &request[..40]);
    }
    service.stops().await;
}

/// After an early refusal, a client that continues to send or stays connected is disconnected. If
/// others need its place, it is disconnected earlier.
#[sqlx::test]
async fn a_client_that_was_refused_early_does_not_keep_its_place(pool: PgPool) {
    let settings = ["--max-connections=4", "--header-timeout=1h", "--network-burst=1000000"];
    let service = Service::start_with_settings(&pool, &settings).await;
    let refused = format!("GET /{} HTTP/1.1\r\n", "a".repeat(20_000));
    let mut flooding = Raw::says(service.address, &refused).await;
    let sent = flooding.floods(&[b'0'; 16384]).await;
    assert!(sent < 16 << 20, "{sent}");
    let mut staying = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::says(service.address, &refused).await;
        raw.hears("HTTP/1.1 431").await;
        staying.push(raw);
    }
    // The answer comes long before the refused clients would be disconnected by their timeout.
    let began = Instant::now();
    assert_eq!(service.client().get("/healthz").await.status, 200);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    drop(staying);
    let mut dripping = Raw::says(service.address, &refused).await;
    dripping.drips(b"0").await;
    service.stops().await;
}
