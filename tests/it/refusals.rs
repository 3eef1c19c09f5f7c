//! What `start` refuses, by error code; one error shape everywhere; the headers of every answer.

use std::io::{Read, Write};
use std::net::TcpStream;

use reqwest::Method;
use serde_json::json;
use sqlx::PgPool;

use crate::harness::Service;
use crate::harness::client::Client;

const START: &str = "/api/auth/recovery/start";

#[sqlx::test]
async fn each_fault_of_a_body_is_named(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    let client = service.client();
    for (body, code) in [
        ("", "json_malformed"),
        ("{", "json_malformed"),
        (r#"{"email":"a@example.com"}{}"#, "json_malformed"),
        (r#"{"email":"\ud800@example.com"}"#, "json_malformed"),
        ("[]", "json_not_object"),
        ("\"a@example.com\"", "json_not_object"),
        ("{}", "field_missing"),
        (r#"{"email":"a@example.com","x":1}"#, "field_unknown"),
        (r#"{"email":"a@example.com","email":"b@example.com"}"#, "field_duplicate"),
        (r#"{"email":1}"#, "field_type_invalid"),
        (r#"{"email":null}"#, "field_type_invalid"),
        (r#"{"email":""}"#, "email_invalid"),
        (r#"{"email":"a"}"#, "email_invalid"),
        (r#"{"email":"a\u0000@example.com"}"#, "email_invalid"),
        (r#"{"email":"a..b@example.com"}"#, "email_invalid"),
    ] {
        let answer = client.post_json(START, body).await;
        assert_eq!(answer.error(), (400, code), "{body}");
        assert_eq!(answer.set_cookie(), None);
    }
    let missing = client.post_json(START, "{}").await;
    assert_eq!(missing.body["field"], "email");
    let long = json!({ "email": "a".repeat(17 * 1024) }).to_string();
    assert_eq!(client.post_json(START, &long).await.error(), (400, "body_too_large"));
    let bytes = client.request(Method::POST, START).header("content-type", "application/json");
    let bytes = Client::answer(bytes.body(b"{\"email\":\"\xff@example.com\"}".to_vec())).await;
    assert_eq!(bytes.error(), (400, "json_malformed"));
    assert_eq!(service.count("recovery_session").await, 0);
    service.stops().await;
}

/// S4 of docs/catalogue.md: `email` is exactly one address, as a string.
#[sqlx::test]
async fn s4_several_addresses_are_refused(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    service.has_account("victim@example.com").await;
    for body in [
        json!({ "email": ["victim@example.com", "evil@example.com"] }).to_string(),
        json!({ "email": { "0": "victim@example.com" } }).to_string(),
        json!({ "email": "victim@example.com,evil@example.com" }).to_string(),
        json!({ "email": "victim@example.com evil@example.com" }).to_string(),
        json!({ "email": "victim@example.com\0evil@example.com" }).to_string(),
        r#"{"email":"victim@example.com","email":"evil@example.com"}"#.into(),
        r#"{"email":"evil@example.com","email":"victim@example.com"}"#.into(),
        r#"{"email":null,"Email":"victim@example.com"}"#.into(),
    ] {
        assert_eq!(service.client().post_json(START, &body).await.status, 400, "{body}");
    }
    assert_eq!(service.count("recovery_session").await, 0);
    service.stops().await;
}

/// S8: size limits, and no address that would need SMTPUTF8.
#[sqlx::test]
async fn s8_addresses_that_smtp_cannot_carry_are_refused(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    let label = "b".repeat(60);
    let of_octets =
        |octets: usize| format!("{}@{label}.{label}.{label}.{label}.vn", "a".repeat(octets - 247));
    for email in [format!("{}@example.com", "a".repeat(65)), of_octets(255), "nguyễn@example.com".into()] {
        let answer = service.client().starts_recovery(&email).await;
        assert_eq!(answer.error(), (400, "email_invalid"), "{email}");
    }
    for email in [format!("{}@example.com", "a".repeat(64)), of_octets(254), "a@bücher.example".into()] {
        assert!(service.client().starts_recovery(&email).await.is_code_sent(), "{email}");
    }
    service.stops().await;
}

#[sqlx::test]
async fn e1_simple_cross_site_requests_do_nothing(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--allowed-origins=https://oms.verolabs.co"]).await;
    let body = r#"{"email":"trader@example.com"}"#;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""] {
        let request =
            service.client().request(Method::POST, START).header("content-type", content_type).body(body);
        assert_eq!(
            Client::answer(request).await.error(),
            (400, "content_type_unsupported"),
            "{content_type}"
        );
    }
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "https://platform.verolabs.co.evil.example"),
        ("origin", "https://sub.platform.verolabs.co"),
        ("origin", "http://platform.verolabs.co"),
        ("sec-fetch-site", "cross-site"),
    ] {
        let answer = service.client().with(name, value).post_json(START, body).await;
        assert_eq!(answer.error(), (400, "origin_refused"), "{name}: {value}");
    }
    for path in [
        "/api/auth/recovery/verify",
        "/api/auth/recovery/reset-password",
        "/api/auth/login",
        "/api/auth/password",
    ] {
        let answer = service.client().with("origin", "https://evil.example").post_json(path, "{}").await;
        assert_eq!(answer.error(), (400, "origin_refused"), "{path}");
    }
    let both = service.client().with("origin", "https://evil.example").with("sec-fetch-site", "same-origin");
    assert_eq!(both.post_json(START, body).await.error(), (400, "origin_refused"));
    assert_eq!(service.count("recovery_session").await, 0);
    for (name, value) in [
        ("origin", "https://platform.verolabs.co"),
        ("origin", "https://oms.verolabs.co"),
        ("sec-fetch-site", "same-site"),
    ] {
        assert!(
            service.client().with(name, value).post_json(START, body).await.is_code_sent(),
            "{name}: {value}"
        );
    }
    service.stops().await;
}

#[sqlx::test]
async fn e2_cors_is_for_exact_origins_on_every_status(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--allowed-origins=https://oms.verolabs.co"]).await;
    let allowed = service.client().with("origin", "https://oms.verolabs.co");
    for answer in [
        allowed.post_json(START, r#"{"email":"trader@example.com"}"#).await,
        allowed.post_json(START, "{}").await,
        allowed.get("/nowhere").await,
        allowed.get(START).await,
    ] {
        assert_eq!(
            answer.header("access-control-allow-origin"),
            Some("https://oms.verolabs.co"),
            "{answer:?}"
        );
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
        assert_eq!(
            answer.header("access-control-expose-headers"),
            Some("retry-after,x-recovery-id,x-request-id")
        );
        assert!(answer.header("vary").unwrap().contains("origin"));
    }
    for origin in
        ["https://evil-oms.verolabs.co", "https://x.oms.verolabs.co", "null", "https://oms.verolabs.co:444"]
    {
        let answer = service.client().with("origin", origin).get("/healthz").await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{origin}");
    }
    let preflight = allowed
        .with("access-control-request-method", "POST")
        .with("access-control-request-headers", "content-type,x-recovery-id,x-session-token");
    let answer = Client::answer(preflight.request(Method::OPTIONS, START)).await;
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
    let allowed = answer.header("access-control-allow-headers").unwrap();
    assert!(allowed.contains("x-session-token") && allowed.contains("x-recovery-id"));
    service.stops().await;
}

#[sqlx::test]
async fn e3_the_networks_rate_limit_comes_before_any_parsing(pool: PgPool) {
    let service = Service::start(&pool).await;
    for _ in 0..30 {
        assert_eq!(service.client().post_json(START, "{").await.status, 400);
    }
    let refused = service.client().starts_recovery("trader@example.com").await;
    assert_eq!(refused.error(), (429, "network_throttled"));
    assert_eq!(refused.retry_after(), 1);
    assert_eq!(refused.header("cache-control"), Some("no-store"));
    // `/healthz` draws on no rate limit.
    assert_eq!(service.client().get("/healthz").await.status, 200);
    service.clock.advance(std::time::Duration::from_secs(2));
    assert!(service.client().starts_recovery("trader@example.com").await.is_code_sent());
    service.stops().await;
}

#[sqlx::test]
async fn e4_only_a_trusted_proxy_sets_the_clients_address(pool: PgPool) {
    let service = Service::start(&pool).await;
    let refused = async |service: &Service| {
        let mut refused = 0;
        for n in 0..40 {
            let client = service.client().with("x-forwarded-for", &format!("198.51.100.{n}"));
            let client = client.with("forwarded", &format!("for=198.51.100.{n}"));
            refused += u32::from(client.post_json(START, "{}").await.status == 429);
        }
        refused
    };
    assert_eq!(refused(&service).await, 10);
    service.stops().await;
    let behind = Service::start_with_settings(&pool, &["--trusted-proxies=127.0.0.0/8"]).await;
    assert_eq!(refused(&behind).await, 0);
    let client = behind.client().with("x-forwarded-for", "203.0.113.5, 198.51.100.77");
    let client = client.with("x-request-id", "from-the-proxy-1");
    let answer = client.post_json(START, r#"{"email":"trader@example.com"}"#).await;
    assert_eq!(answer.header("x-request-id"), Some("from-the-proxy-1"));
    let stored: String =
        sqlx::query_scalar("SELECT host(client_ip) FROM recovery_session").fetch_one(&pool).await.unwrap();
    assert_eq!(stored, "198.51.100.77");
    behind.stops().await;
}

/// E5: one error shape, in the language of the request, for every request.
#[sqlx::test]
async fn e5_one_error_shape_in_two_languages_everywhere(pool: PgPool) {
    let service = Service::start(&pool).await;
    for path in [
        "/",
        "/nowhere",
        "/api/auth/recovery/start/",
        "/api/auth/recovery/",
        "/dev/mailbox",
        "/dev/mailbox.json",
        "/metrics",
        "/%00",
        "//",
    ] {
        assert_eq!(service.client().get(path).await.error(), (404, "not_found"), "{path}");
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH, Method::TRACE] {
        let answer = Client::answer(service.client().request(method.clone(), START)).await;
        assert_eq!(answer.error(), (405, "method_not_allowed"), "{method}");
        assert_eq!(answer.header("allow"), Some("POST"));
    }
    for (path, allowed) in [
        ("/api/auth/recovery", "GET,HEAD"),
        ("/api/auth/session", "GET,HEAD"),
        ("/api/auth/sessions", "GET,HEAD,DELETE"),
        ("/api/auth/sessions/x", "DELETE"),
        ("/.well-known/jwks.json", "GET,HEAD"),
    ] {
        let answer = Client::answer(service.client().request(Method::PUT, path)).await;
        assert_eq!(answer.error(), (405, "method_not_allowed"), "{path}");
        assert_eq!(answer.header("allow"), Some(allowed), "{path}");
    }
    for (language, expected) in
        [("vi-VN,vi;q=0.9", "Không có gì"), ("fr", "There is nothing"), ("en,vi;q=0.1", "There is nothing")]
    {
        let answer = service.client().with("accept-language", language).get("/nowhere").await;
        assert!(answer.body["message"].as_str().unwrap().starts_with(expected), "{language}");
    }
    // Header values that could break a careless parser.
    for value in ["vi;q=nan,en;q=inf", ";;;;", "\u{fc}\u{fc}", &"en,".repeat(2000)] {
        assert_eq!(service.client().with("accept-language", value).get("/nowhere").await.error().0, 404);
    }
    service.stops().await;
}

#[sqlx::test]
async fn e6_no_answer_is_cached_sniffed_or_sent_as_referrer(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut client = service.client();
    for answer in [
        client.starts_recovery("trader@example.com").await,
        client.post_json(START, "{").await,
        client.get("/nowhere").await,
        client.get(START).await,
        client.get("/healthz").await,
        client.get("/readyz").await,
        client.verifies("12345678").await,
        client.resets("x").await,
        client.logs_in("trader@example.com", "x").await,
        client.refreshes().await,
        client.logs_out().await,
    ] {
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
    service.stops().await;
}

#[sqlx::test]
async fn an_incomplete_body_is_a_400(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--body-timeout=50ms"]).await;
    let address = service.address;
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        let head = "POST /api/auth/recovery/start HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"em";
        stream.write_all(head.as_bytes()).unwrap();
        stream.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..read]).into_owned()
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(answer.contains("body_incomplete"), "{answer}");
    service.stops().await;
}
