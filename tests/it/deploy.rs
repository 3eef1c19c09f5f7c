//! The files of `deploy/`: nginx with two replicas; alerts and dashboard with the real metrics.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::PgPool;
use vos_auth::account::{self, NewAccount};
use vos_auth::email_address::EmailAddress;
use vos_auth::operator::Role;

use crate::admin::{ADDRESS, call, desk, id_of, operator};
use crate::harness::client::Client;
use crate::harness::host::Host;
use crate::harness::needs;
use crate::harness::nginx::{CLIENT, is_installed};
use crate::harness::receiver::{self, Receiver};
use crate::harness::relay::{Mood, Relay};
use crate::harness::webhook::{self, Webhook};
use crate::harness::{Service, Setup, database, now};

const TRADER: &str = "trader@example.com";

/// Two replicas of the built program behind nginx, with a relay.
async fn start(pool: &PgPool) -> (Host, Relay) {
    let relay = Relay::start().await;
    (Host::start(&database::service_url(pool), &relay.url(), &[]).await, relay)
}

#[sqlx::test]
async fn the_recovery_flow_works_through_nginx_which_drops_forwarding_headers_of_clients(pool: PgPool) {
    if !is_installed() {
        return;
    }
    let email = EmailAddress::parse(TRADER).unwrap();
    let new = NewAccount { email, locale: None, traits: serde_json::Map::new(), password_hash: None };
    account::create(&mut pool.acquire().await.unwrap(), now(), new, None).await.unwrap();
    let (relay, traces) = (Relay::start().await, Receiver::start(receiver::Mood::Takes));
    let traces_url = traces.url();
    let traced = [("OTEL_EXPORTER_OTLP_ENDPOINT", traces_url.as_str())];
    let mut host = Host::start(&database::service_url(&pool), &relay.url(), &traced).await;
    let nginx = Arc::clone(&host.nginx);
    let headers = [
        "Host: evil.example",
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Host: evil.example",
        "Forwarded: for=6.6.6.6;host=evil.example",
        "X-Real-IP: 6.6.6.6",
        "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    ];
    let asks = async |path: &str, body: Option<Value>, token: &str| {
        let (body, token) = (body.map(|body| body.to_string()), format!("X-Session-Token: {token}"));
        let mut more: Vec<_> =
            headers.iter().chain([&token.as_str()]).flat_map(|line| ["-H", line]).collect();
        more.extend(body.iter().flat_map(|body| ["--json", body.as_str()]));
        nginx.asks("browser", path, &more).await
    };
    let sent = asks("/api/auth/recovery/start", Some(json!({ "email": TRADER })), "").await;
    assert_eq!(sent, (200, json!({ "status": "code_sent" })));
    let mail = relay.mail(1).await;
    assert!(!mail.raw.contains("evil") && !mail.raw.contains("6.6.6.6"), "{}", mail.raw);
    let verified = asks("/api/auth/recovery/verify", Some(json!({ "code": mail.code() })), "").await;
    assert_eq!(verified, (200, json!({ "status": "verified" })));
    let password = json!({ "password": "morning boat on a green river" });
    let (status, signed_in) = asks("/api/auth/recovery/reset-password", Some(password), "").await;
    assert_eq!(status, 200, "{signed_in}");
    assert_eq!(signed_in["session"]["devices"][0]["ip_address"], CLIENT);
    let token = signed_in["sessionToken"].as_str().unwrap();
    let (status, session) = asks("/api/auth/session", None, token).await;
    assert_eq!((status, &session["session"]["active"]), (200, &json!(true)));
    assert_eq!(asks("/api/auth/logout", Some(json!({})), token).await.0, 200);
    assert_eq!(asks("/api/auth/session", None, token).await.0, 401);

    let stored = "SELECT host(client_ip::inet) FROM recovery_session
        UNION SELECT host(client_ip::inet) FROM session";
    let stored: Vec<String> = sqlx::query_scalar(stored).fetch_all(&pool).await.unwrap();
    assert_eq!(stored, [CLIENT]);

    for replica in host.replicas() {
        replica.signal("-TERM");
        assert!(replica.ends().1);
    }
    let spans = traces.spans();
    let started = spans.iter().find(|span| span.name() == "POST /api/auth/recovery/start").expect("its span");
    assert_eq!(started.parent(), "", "nginx drops the client's trace context");
}

#[sqlx::test]
async fn nginx_exposes_only_public_paths_and_answers_in_the_services_error_shape(pool: PgPool) {
    if !is_installed() {
        return;
    }
    let (mut host, _relay) = start(&pool).await;
    let (nginx, mut replicas) = (Arc::clone(&host.nginx), host.replicas());
    for path in ["/openapi.json", "/.well-known/jwks.json"] {
        assert_eq!(nginx.asks("any", path, &[]).await.0, 200, "{path}");
    }
    for path in ["/.well-known/change-password", "/recovery/"] {
        assert_eq!(nginx.asks("any", path, &[]).await.0, 303, "{path}");
    }
    for path in [
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "//metrics",
        "/api/auth/../../metrics",
        "/api/auth/%2e%2e/%2e%2e/healthz",
        "/api/auth",
        "/dev/mailbox",
    ] {
        let (status, body) = nginx.asks("any", path, &[]).await;
        assert_eq!(
            (status, &body["error"], &body["status"]),
            (404, &json!("not_found"), &json!(404)),
            "{path}"
        );
    }
    for octets in [17_000, 40_000] {
        let body = json!({ "email": "a".repeat(octets) }).to_string();
        let (status, body) = nginx.asks("any", "/api/auth/recovery/start", &["--json", &body]).await;
        assert_eq!((status, &body["error"]), (400, &json!("body_too_large")), "{octets}");
    }
    // Browsers also send cookies of sibling hosts, which can be large.
    let asks_with = async |octets: usize, path: &str, method: &str| {
        let cookies = format!("Cookie: sibling={}", "a".repeat(octets));
        nginx.asks("any", path, &["-H", &cookies, "-X", method]).await
    };
    assert_eq!(asks_with(12_000, "/openapi.json", "GET").await.0, 200);
    let long = format!("/{}", "a".repeat(20_000));
    for (octets, path, method) in
        [(20_000, "/openapi.json", "GET"), (1, long.as_str(), "GET"), (1, "/openapi.json", "G@T")]
    {
        let (status, body) = asks_with(octets, path, method).await;
        let shape = (status, &body["error"], &body["status"]);
        assert_eq!(shape, (400, &json!("request_malformed"), &json!(400)), "{octets} {method}");
    }
    let without_tls = reqwest::get(format!("http://127.0.0.1:{}/openapi.json", nginx.tls)).await.unwrap();
    assert_eq!(without_tls.status(), 400);
    assert_eq!(without_tls.json::<Value>().await.unwrap()["error"], "request_malformed");
    let in_the_clear = Client::new(([127, 0, 0, 1], nginx.plain).into());
    assert_eq!(in_the_clear.post_json("/api/auth/login", "{}").await.status, 404);
    for replica in &mut replicas {
        replica.is_killed();
    }
    let (status, body) = nginx.asks("any", "/api/auth/recovery/start", &["--json", "{}"]).await;
    assert_eq!((status, &body["status"]), (502, &json!(502)), "{body}");
}

/// Each accepted start is one row, so that a lost or repeated request would show.
#[sqlx::test]
async fn a_replica_that_stops_under_load_behind_nginx_loses_and_repeats_no_request(pool: PgPool) {
    if !is_installed() {
        return;
    }
    let (mut host, _relay) = start(&pool).await;
    let (nginx, [stopping, staying]) = (Arc::clone(&host.nginx), host.replicas());
    let mut sent = 0;
    let mut send = async || {
        let bodies: Vec<_> =
            (sent..sent + 40).map(|n| json!({ "email": format!("p{n}@example.com") }).to_string()).collect();
        let statuses = nginx.posts_at_once("/api/auth/recovery/start", &bodies).await;
        assert_eq!(statuses, vec![200; 40], "{}", nginx.log());
        sent += 40;
    };
    send().await;
    stopping.signal("-TERM");
    let ending = std::thread::spawn(move || stopping.ends());
    while !ending.is_finished() {
        send().await;
    }
    send().await;
    let (log, clean) = ending.join().unwrap();
    assert!(clean);
    let draining = log.iter().skip_while(|line| !line.contains("\"stopping\""));
    assert!(draining.filter(|line| line.contains("\"answered\"")).count() > 10, "it served while it drained");
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM recovery_session").fetch_one(&pool).await.unwrap();
    assert_eq!(rows, i64::from(sent));
    drop(staying);
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The expressions of all panels of the dashboard.
fn expressions(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(members) => {
            let own = members.get("expr").and_then(Value::as_str);
            own.into_iter().chain(members.values().flat_map(expressions)).collect()
        }
        Value::Array(items) => items.iter().flat_map(expressions).collect(),
        _ => Vec::new(),
    }
}

/// The values of the label `outcome` in a query.
fn outcomes(text: &str) -> impl Iterator<Item = &str> {
    let matchers = text.split("outcome=").skip(1);
    let values =
        matchers.map(|rest| rest.trim_start_matches(['~', '"', '\\']).split(['"', '\\']).next().unwrap());
    values.flat_map(|values| values.split('|'))
}

#[sqlx::test]
async fn alerts_and_dashboard_use_existing_metrics(pool: PgPool) {
    let (second, webhook) = (Relay::start().await, Webhook::start(webhook::Mood::Takes));
    let setup = Setup {
        further_relays: vec![second.url()],
        settings: [webhook.settings(), vec![ADDRESS.to_owned()]].concat(),
        event_hooks: webhook.entry("rest", "all"),
        ..Setup::default()
    };
    let service = Service::start_with(&pool, setup).await;
    service.has_account("helped@example.com").await;
    let ticket = format!("/admin/accounts/{}/ticket", id_of(&pool, "helped@example.com").await);
    let desk = desk(&service, &operator(&service, "alice", Role::Support).await);
    assert_eq!(call(&desk, "POST", &ticket, &Value::Null).await.status, 200);
    for (email, answer, outcome) in
        [("a@example.com", "450 4.2.1 busy", "retried"), ("b@example.com", "550 5.1.1 unknown", "given_up")]
    {
        service.has_account(email).await;
        for relay in [&service.relay, &second] {
            relay.is_in_mood(Mood::RefusesRecipient(answer));
        }
        assert!(service.client().starts_recovery(email).await.is_code_sent());
        let line = format!("vos_auth_mails_total{{outcome=\"{outcome}\"");
        service.until("an outcome is counted", async || service.metric(&line).await > 0.5).await;
    }
    // The service counts the outbox every few seconds.
    let page = format!("http://{}/metrics", service.metrics_address);
    let page = async || reqwest::get(&page).await.unwrap().text().await.unwrap();
    service.until("metrics of the outbox", async || page().await.contains("vos_auth_outbox_pending{")).await;
    service.until("metrics of hooks", async || page().await.contains("vos_auth_hook_oldest_seconds{")).await;
    let page = page().await;
    let samples: BTreeSet<_> = page.lines().filter_map(|line| line.split(['{', ' ']).next()).collect();

    let rules = read("deploy/prometheus-rules.yml");
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana-dashboard.json")).unwrap();
    let panels = expressions(&dashboard);
    assert!(panels.len() > 10);
    for text in panels.into_iter().chain([rules.as_str()]) {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        for name in words.filter(|word| word.starts_with("vos_auth_")) {
            assert!(samples.contains(name), "{name} is not a metric");
        }
        for outcome in outcomes(text) {
            assert!(page.contains(&format!("outcome=\"{outcome}\"")), "{outcome} is not an outcome");
        }
    }
}

#[test]
fn alerts_and_sections_of_the_runbook_match() {
    let (rules, runbook) = (read("deploy/prometheus-rules.yml"), read("docs/operate/runbook.md"));
    let after = |text: &'static str| move |line: &str| line.trim().strip_prefix(text).map(str::to_owned);
    let alerts: Vec<_> = rules.lines().filter_map(after("- alert: ")).collect();
    let sections: Vec<_> = runbook.lines().filter_map(after("## VosAuth")).collect();
    let sections: Vec<_> = sections.iter().map(|rest| format!("VosAuth{rest}")).collect();
    assert!(alerts.len() > 10);
    assert_eq!(alerts, sections);
    let links: Vec<_> = rules.lines().filter_map(after("runbook: docs/operate/runbook.md#")).collect();
    assert_eq!(links, alerts.iter().map(|alert| alert.to_lowercase()).collect::<Vec<_>>());
}

/// The service's memory besides hashing: 122 MiB with 10,200 connections (docs/security.md).
const SERVICE_KIB: u64 = 128 * 1024;

/// The limit covers the sum that the manifest states, and exceeds it by at most a quarter.
#[test]
fn the_memory_limit_in_kubernetes_follows_from_the_hashing_settings() {
    let manifest = read("deploy/kubernetes.yaml");
    let number = |before: &str| -> u64 {
        let (_, rest) = manifest.split_once(before).expect(before);
        let digits = rest.split(|letter: char| !letter.is_ascii_digit()).next().unwrap();
        digits.parse().expect(before)
    };
    let own = (number("HASHING_THREADS: \"") + 1) * number("ARGON2_MEMORY_KIB: \"");
    let needed = own + number("HASHING_MEMORY_KIB: \"") + SERVICE_KIB;
    let limit = number("limits: { memory: ") * 1024;
    assert!((needed..=needed * 5 / 4).contains(&limit), "{needed} KiB are needed, {limit} KiB given");
}

/// The series in `prometheus-rules.test.yml` make each alert fire, and not fire.
#[test]
fn promtool_accepts_the_rules_and_each_fires_when_it_should() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
    if !needs::has_program("/usr/bin/promtool") {
        return;
    }
    for arguments in [["check", "config", "prometheus.yml"], ["test", "rules", "prometheus-rules.test.yml"]] {
        let output = Command::new("/usr/bin/promtool").args(arguments).current_dir(folder).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}
