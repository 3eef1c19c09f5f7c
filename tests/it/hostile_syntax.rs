//! Invalid HTTP, and HTTP that two parsers could read differently (RFC 9112 §6.3 and §11.2). The
//! service answers once, never with 500, and does not treat what follows as a request.

use sqlx::PgPool;

use crate::harness::Service;
use crate::harness::raw::Raw;

const START: &str = "POST /api/auth/recovery/start HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
const BODY: &str = r#"{"email":"trader@example.com"}"#;
/// What an attacker would want to pass as another client's request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";

async fn patient(pool: &PgPool) -> Service {
    let patience =
        ["--header-timeout=1h", "--body-timeout=1h", "--answer-timeout=1h", "--network-burst=1000"];
    Service::start_with_settings(pool, &patience).await
}

/// The statuses of all answers until the service closes the connection.
async fn statuses(service: &Service, request: impl AsRef<[u8]>) -> Vec<u16> {
    let mut raw = Raw::connect(service.address).await;
    raw.sends(request).await;
    let answers = raw.hears_all().await;
    let lines = answers.split("HTTP/1.").skip(1);
    lines.map(|answer| answer[2..5].parse().unwrap_or_else(|_| panic!("{answers}"))).collect()
}

async fn serves_others(service: Service) {
    assert!(service.client().starts_recovery("another@example.com").await.is_code_sent());
    service.stops().await;
}

#[sqlx::test]
async fn invalid_http_is_refused_and_the_connection_closed(pool: PgPool) {
    let service = patient(&pool).await;
    let get = |headers: &str| format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{headers}\r\n{SMUGGLED}");
    let line = |line: &str| format!("{line}\r\nhost: x\r\n\r\n{SMUGGLED}");
    for (request, status) in [
        (line(&format!("GET /{} HTTP/1.1", "a".repeat(60_000))), 431),
        (line("GET /healthz"), 400),
        (line("GET  /healthz HTTP/1.1"), 400),
        (line("GET /healthz HTTP/9.9"), 400),
        (line("GET /\0 HTTP/1.1"), 400),
        (line("G\0T /healthz HTTP/1.1"), 400),
        (line(&format!("{} / HTTP/1.1", "A".repeat(20_000))), 431),
        (get(&format!("x: {}\r\n", "a".repeat(20_000))), 431),
        (get(&"x: y\r\n".repeat(101)), 431),
        (get("x: a\r\n folded\r\n"), 400),
        (get("x: a\0b\r\n"), 400),
        (get("x\0: a\r\n"), 400),
        (get("x : a\r\n"), 400),
        (get("x: a\rb\r\n"), 400),
        (get(": a\r\n"), 400),
        (get("no colon\r\n"), 400),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}".into(), 400),
    ] {
        let seen = statuses(&service, &request).await;
        assert_eq!(seen, [status], "{:?}", &request[..request.len().min(80)]);
    }
    // The connection preface of HTTP/2, without negotiation.
    assert!(statuses(&service, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.is_empty());
    serves_others(service).await;
}

#[sqlx::test]
async fn an_ambiguous_body_length_smuggles_no_request(pool: PgPool) {
    let service = patient(&pool).await;
    for (lengths, status) in [
        ("content-length: 3\r\ncontent-length: 4\r\n", 400),
        ("content-length: 3, 4\r\n", 400),
        ("content-length: 3, 3\r\n", 400),
        ("content-length: -1\r\n", 400),
        ("content-length: +3\r\n", 400),
        ("content-length: 0x3\r\n", 400),
        ("content-length: \r\n", 400),
        ("content-length: 99999999999999999999999\r\n", 400),
        ("content-length: 18446744073709551615\r\n", 431),
        ("content-length : 3\r\n", 400),
        ("transfer-encoding : chunked\r\n", 400),
        ("transfer-encoding: identity\r\n", 400),
        ("transfer-encoding: xchunked\r\n", 400),
        ("transfer-encoding: \"chunked\"\r\n", 400),
        ("transfer-encoding: chunked, identity\r\n", 400),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", 400),
        ("transfer-encoding:\u{b}chunked\r\n", 400),
        // Transfer-Encoding overrides Content-Length, and the connection ends: RFC 9112 §6.3 (3).
        ("content-length: 5\r\ntransfer-encoding: chunked\r\n", 404),
        ("transfer-encoding: chunked\r\ncontent-length: 5\r\n", 404),
    ] {
        let request = format!("POST /nowhere HTTP/1.1\r\nhost: x\r\n{lengths}\r\n0\r\n\r\n{SMUGGLED}");
        assert_eq!(statuses(&service, request).await, [status], "{lengths:?}");
    }
    let old = format!("POST /nowhere HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}");
    assert_eq!(statuses(&service, old).await, [400]);
    serves_others(service).await;
}

#[sqlx::test]
async fn valid_chunks_are_read_and_invalid_ones_refused(pool: PgPool) {
    let service = patient(&pool).await;
    let close = "connection: close\r\n";
    let of_one: String = BODY.chars().flat_map(|c| ["1\r\n".into(), c.to_string(), "\r\n".into()]).collect();
    let padding = "1\r\n \r\n".repeat(16 * 1024 - BODY.len());
    for (chunks, status) in [
        (format!("{of_one}0\r\n\r\n"), 200),
        (format!("{padding}{of_one}0\r\n\r\n"), 200),
        (format!("{padding}{of_one}1\r\n \r\n0\r\n\r\n"), 400),
        (format!("1e;name=value\r\n{BODY}\r\n0\r\nx: y\r\n\r\n"), 200),
        (format!("1e;{}\r\n{BODY}\r\n0\r\n\r\n", "x".repeat(20_000)), 400),
        (format!("1e\r\n{BODY}\r\n0\r\n{}\r\n", "x: y\r\n".repeat(200)), 400),
        (format!("1e\r\n{BODY}\r\n0\r\nx: {}\r\n\r\n", "y".repeat(20_000)), 400),
        (format!("fffffffffffffffff\r\n{BODY}"), 400),
        (format!("ffffffffffffffff\r\n{}", " ".repeat(20_000)), 400),
        (format!("-1e\r\n{BODY}\r\n0\r\n\r\n"), 400),
        (format!("0x1e\r\n{BODY}\r\n0\r\n\r\n"), 400),
        (format!("1e\n{BODY}\r\n0\r\n\r\n"), 400),
        (format!("1d\r\n{BODY}\r\n0\r\n\r\n"), 400),
    ] {
        let request = format!("{START}{close}transfer-encoding: chunked\r\n\r\n{chunks}");
        let seen = statuses(&service, request).await;
        assert_eq!(seen, [status], "{:?}", &chunks[..chunks.len().min(80)]);
        service.clock.advance(std::time::Duration::from_hours(1));
    }
    serves_others(service).await;
}

#[sqlx::test]
async fn unusual_requests_get_ordinary_answers(pool: PgPool) {
    let service = patient(&pool).await;
    for (line, status) in [
        ("GET /healthz HTTP/1.0", 200),
        ("GET http://evil.example/healthz HTTP/1.1", 200),
        ("GET /healthz?a#b HTTP/1.1", 200),
        ("GET //healthz HTTP/1.1", 404),
        ("GET /../healthz HTTP/1.1", 404),
        ("GET * HTTP/1.1", 404),
        ("OPTIONS * HTTP/1.1", 200),
        ("CONNECT evil.example:443 HTTP/1.1", 404),
        ("get /healthz HTTP/1.1", 405),
        ("BREW /healthz HTTP/1.1", 405),
    ] {
        let request = format!("{line}\r\nhost: x\r\nconnection: close\r\n\r\n{SMUGGLED}");
        assert_eq!(statuses(&service, request).await, [status], "{line}");
    }
    let upgrade =
        "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n";
    assert_eq!(statuses(&service, upgrade).await, [200]);
    serves_others(service).await;
}

/// The service answers pipelined requests one by one, in order.
#[sqlx::test]
async fn pipelined_requests_are_answered_in_order(pool: PgPool) {
    let service = patient(&pool).await;
    let two = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n";
    let last = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let expected: Vec<u16> = [200, 404].repeat(100).into_iter().chain([200]).collect();
    assert_eq!(statuses(&service, two.repeat(100) + last).await, expected);
    serves_others(service).await;
}

#[sqlx::test]
async fn expect_100_continue_is_granted_only_if_the_body_is_wanted(pool: PgPool) {
    let service = patient(&pool).await;
    let expect = "content-length: 30\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
    let mut wanted = Raw::says(service.address, format!("{START}{expect}")).await;
    wanted.hears("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert!(wanted.sends(BODY).await);
    assert!(wanted.hears_all().await.contains("HTTP/1.1 200"));
    let form = START.replace("application/json", "text/plain");
    let unwanted = Raw::says(service.address, format!("{form}{expect}")).await;
    let answers = unwanted.hears_all().await;
    assert!(answers.starts_with("HTTP/1.1 400") && answers.contains("content_type_unsupported"), "{answers}");
    serves_others(service).await;
}
