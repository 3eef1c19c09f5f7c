//! What a request leaves in the log and metrics of the built program, even if it is never answered.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgPool;
use tokio::time::timeout;

use crate::harness::client::Client;
use crate::harness::program::{Program, serve_environment};
use crate::harness::raw::Raw;
use crate::harness::{PATIENCE, database, metric};

const NO_RELAY: &str = "smtp://127.0.0.1:9";

/// The log lines with `message`.
fn lines_with(log: &[String], message: &str) -> Vec<Value> {
    let lines = log.iter().filter_map(|line| serde_json::from_str(line).ok());
    lines.filter(|line: &Value| line["message"].as_str().is_some_and(|text| text.contains(message))).collect()
}

#[sqlx::test]
async fn aborted_logins_are_logged_and_counted(pool: PgPool) {
    let url = database::service_url(&pool);
    let environment = serve_environment(&url, NO_RELAY, &[("LOGIN_FAILURE_TIME", "10s")]);
    let mut program = Program::start(&["serve"], &environment);
    let (address, metrics) = (program.address(), program.metrics_address());
    let body = r#"{"identifier":"trader@example.com","password":"not the password"}"#;
    let request = format!(
        "POST /api/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    for _ in 0..10 {
        let mut raw = Raw::says(address, &request).await;
        assert!(
            timeout(Duration::from_millis(250), raw.hears("HTTP")).await.is_err(),
            "the answer takes longer"
        );
    }
    let aborted = "vos_auth_http_answers_total{route=\"/api/auth/login\",status=\"499\"}";
    let all = async { while metric(metrics, aborted).await < 10.0 {} };
    timeout(PATIENCE, all).await.expect("ten are counted");
    // The first login takes its failure time; the others waited for it.
    let waited = async { while metric(metrics, "vos_auth_logins_total{outcome=\"aborted\"}").await < 9.0 {} };
    timeout(PATIENCE, waited).await.expect("those that waited have an outcome");
    program.signal("-TERM");
    let (log, clean) = program.ends();
    let lines = lines_with(&log, "aborted by the client");
    assert!(clean && lines.len() == 10, "{log:?}");
    for line in lines {
        assert_eq!((&line["route"], &line["status"]), (&"/api/auth/login".into(), &499.into()));
        assert!(line["duration_ms"].as_f64().is_some_and(|duration| duration > 0.0), "{line}");
    }
}

#[sqlx::test]
async fn a_proxy_missing_in_trusted_proxies_is_logged_and_counted(pool: PgPool) {
    let url = database::service_url(&pool);
    for (trusted, warnings, counted) in [("10.0.0.0/8", 1, 3.0), ("127.0.0.1/32", 0, 0.0)] {
        let environment = serve_environment(&url, NO_RELAY, &[("TRUSTED_PROXIES", trusted)]);
        let mut program = Program::start(&["serve"], &environment);
        let (address, metrics) = (program.address(), program.metrics_address());
        for client in ["203.0.113.1", "203.0.113.2", "203.0.113.3"] {
            let answer = Client::new(address).with("x-forwarded-for", client).get("/healthz").await;
            assert_eq!(answer.status, 200);
        }
        assert_eq!(Client::new(address).get("/healthz").await.status, 200);
        let count = metric(metrics, "vos_auth_untrusted_forwarded_total").await;
        assert!((count - counted).abs() < 0.5, "{trusted}: {count}");
        program.signal("-TERM");
        let (log, _) = program.ends();
        let lines = lines_with(&log, "TRUSTED_PROXIES does not name");
        assert_eq!(lines.len(), warnings, "{trusted}: {log:?}");
        assert!(lines.iter().all(|line| line["level"] == "WARN" && line["peer"] == "127.0.0.1"), "{lines:?}");
    }
}
