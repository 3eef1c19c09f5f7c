//! `/metrics`: on which address, and in which formats.

use std::io::Write as _;
use std::process::{Command, Stdio};

use reqwest::Method;
use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::{Service, needs};

/// The head and body of the page, as curl gets them.
async fn curl(service: &Service, accept: &str) -> (String, String) {
    let (url, accept) = (format!("http://{}/metrics", service.metrics_address), format!("Accept: {accept}"));
    let asking = tokio::task::spawn_blocking(move || {
        Command::new("curl").args(["-sSi", "-H", &accept, &url]).output().unwrap()
    });
    let output = asking.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = String::from_utf8(output.stdout).unwrap();
    let (head, body) = page.split_once("\r\n\r\n").unwrap();
    (head.to_ascii_lowercase(), body.to_owned())
}

#[sqlx::test]
async fn metrics_are_on_the_private_address_only(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.client().starts_recovery("trader@example.com").await;
    for accept in ["*/*", "application/openmetrics-text"] {
        let (_, page) = curl(&service, accept).await;
        for line in [
            "vos_auth_build_info{version=\"",
            "vos_auth_http_answers_total{route=\"/api/auth/recovery/start\",status=\"200\"} 1",
            "vos_auth_relay_up{relay=\"0\"} 1",
            "vos_auth_database_up 1",
            "vos_auth_database_state{state=\"ok\"} 1",
            "vos_auth_database_state{state=\"full\"} 0",
        ] {
            assert!(page.contains(line), "{line} in {page}");
        }
    }
    let request = service.client().request(Method::GET, "/metrics");
    assert_eq!(Client::answer(request).await.status, 404);
    service.stops().await;
}

/// Accept headers of Prometheus, of a client that accepts anything, and of one that knows only
/// text.
#[sqlx::test]
async fn metrics_are_openmetrics_if_accepted_and_else_text_that_promtool_accepts(pool: PgPool) {
    if !needs::has_program("/usr/bin/promtool") {
        return;
    }
    let service = Service::start(&pool).await;
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let (head, page) = curl(&service, prometheus).await;
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    assert!(page.contains("# TYPE vos_auth_codes counter\n"), "{page}");
    assert!(page.contains("# UNIT vos_auth_http_duration_seconds seconds\n"), "{page}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    for accept in ["*/*", "text/plain"] {
        let (head, page) = curl(&service, accept).await;
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(page.contains("# TYPE vos_auth_codes_total counter\n"), "{page}");
        assert!(!page.contains("# EOF") && !page.contains("# UNIT"), "{page}");
        let mut promtool = Command::new("/usr/bin/promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
    service.stops().await;
}
