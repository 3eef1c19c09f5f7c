//! Credentials of operators: which are refused, how failed ones are throttled, and that neither a
//! token nor an address is logged.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::net::TcpStream;
use vos_auth::http::admin::OPERATIONS;
use vos_auth::operator::Role;
use vos_auth::secret::OperatorToken;

use crate::admin::{ADDRESS, Holder, call, certificates, desk, id_of, operator};
use crate::harness::client::Client;
use crate::harness::program::{Program, run, serve_environment};
use crate::harness::{PATIENCE, Service, database, place};

const TRADER: &str = "trader@example.com";

/// The output of `vos-auth operator …`, and whether it succeeded.
fn vos_auth(pool: &PgPool, arguments: &[&str]) -> (String, String, bool) {
    let url = database::operator_url(pool);
    let ended = run(&[&["operator"], arguments].concat(), &[("DATABASE_URL", url.as_str())]);
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    (text(ended.stdout), text(ended.stderr), ended.status.success())
}

/// A user who can run commands can make anyone an admin, so `operator create` and `operator revoke`
/// are recorded.
#[sqlx::test]
async fn a_command_that_issues_or_revokes_a_token_is_recorded(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    let auditor = desk(&service, &operator(&service, "auditor", Role::Auditor).await);
    for (arguments, done) in [
        (&["create", "alice", "--role", "admin"][..], true),
        (&["create", "alice", "--role", "admin"], false),
        (&["revoke", "alice"], true),
        (&["revoke", "alice"], false),
    ] {
        assert_eq!(vos_auth(&pool, arguments).2, done, "{arguments:?}");
    }
    let answer = call(&auditor, "GET", "/admin/operators/alice/events", &Value::Null).await;
    let events: Vec<_> =
        answer.body["events"].as_array().unwrap().iter().map(|event| &event["what"]).collect();
    assert_eq!(events, ["operator_revoked", "operator_created"]);
    service.stops().await;
}

#[sqlx::test]
async fn a_change_needs_a_reason(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    service.has_account(TRADER).await;
    let (id, token) = (id_of(&pool, TRADER).await, operator(&service, "alice", Role::Admin).await);
    let mut client = desk(&service, &token);
    client.headers.remove("x-reason");
    for operation in OPERATIONS {
        let path = operation.path.replace("{id}", &id.to_string()).replace("{name}", "alice");
        let answer = call(&client, operation.method, &path, &json!({})).await;
        if operation.changes {
            assert_eq!(answer.error(), (400, "reason_invalid"), "{path}");
        } else {
            assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        }
    }
    let events = "SELECT DISTINCT what FROM audit_event WHERE account_id = $1";
    let events: Vec<String> = sqlx::query_scalar(events).bind(id).fetch_all(&pool).await.unwrap();
    assert!(
        events.iter().all(|what| ["account_created", "operator_call"].contains(&what.as_str())),
        "{events:?}"
    );
    let long = "x".repeat(201);
    for reason in [" ", &long] {
        let answer =
            call(&client.clone().with("x-reason", reason), "GET", "/admin/outbox", &Value::Null).await;
        assert_eq!(answer.error(), (400, "reason_invalid"));
    }
    service.stops().await;
}

#[sqlx::test]
async fn an_expired_or_revoked_token_is_refused(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    let get = async |token: &str| call(&desk(&service, token), "GET", "/admin/outbox", &Value::Null).await;
    let (alice, bob) =
        (operator(&service, "alice", Role::Auditor).await, operator(&service, "bob", Role::Auditor).await);
    assert_eq!((get(&alice).await.status, get(&bob).await.status), (200, 200));
    let (said, _, ok) = vos_auth(&pool, &["revoke", "alice"]);
    assert!(ok && said == "the token of alice is revoked", "{said}");
    assert_eq!(get(&alice).await.error(), (401, "operator_unknown"));
    assert!(!vos_auth(&pool, &["revoke", "alice"]).2, "it is revoked already");
    service.clock.advance(Duration::from_hours(31 * 24));
    assert_eq!(get(&bob).await.error(), (401, "operator_unknown"));
    let none = Client::new(service.admin_address.unwrap());
    assert_eq!(none.get("/admin/outbox").await.error(), (401, "operator_unknown"));
    assert!((service.metric("vos_auth_operators_unknown_total").await - 3.0).abs() < 0.5);
    service.stops().await;
}

/// Someone who tries tokens neither learns anything nor locks out operators in the same network.
#[sqlx::test]
async fn failed_tokens_are_throttled_and_operators_are_not(pool: PgPool) {
    let settings = [ADDRESS, "--trusted-proxies=127.0.0.1/32"];
    let service = Service::start_with_settings(&pool, &settings).await;
    let token = operator(&service, "alice", Role::Auditor).await;
    let alice = desk(&service, &token);
    assert_eq!(alice.get("/admin/outbox").await.status, 200);
    let mut answers = Vec::new();
    for attempt in 0..12 {
        let wrong = if attempt % 2 == 0 { OperatorToken::random().expose() } else { "guess".into() };
        // The admin API ignores X-Forwarded-For, although 127.0.0.1 is a trusted proxy of the
        // public API.
        let client = desk(&service, &wrong).with("x-forwarded-for", &format!("198.51.100.{attempt}"));
        answers.push(client.get("/admin/outbox").await);
    }
    let refused = answers.iter().filter(|answer| answer.error() == (401, "operator_unknown")).count();
    assert_eq!(refused, 10);
    assert_eq!(answers[11].error(), (429, "network_throttled"));
    assert!(answers[11].retry_after() <= 10);
    assert_eq!(alice.get("/admin/outbox").await.status, 200, "her token was valid before");
    assert!((service.metric("vos_auth_operators_unknown_total").await - 12.0).abs() < 0.5);
    service.clock.advance(Duration::from_secs(10));
    let bob = operator(&service, "bob", Role::Auditor).await;
    assert_eq!(desk(&service, &bob).get("/admin/outbox").await.status, 200);
    service.stops().await;
}

#[sqlx::test]
async fn a_token_is_shown_once_and_stored_as_a_hash(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    let (token, said, ok) = vos_auth(&pool, &["create", "alice", "--role", "support", "--expires", "1day"]);
    assert!(ok && said.contains("alice (support)") && !said.contains(&token), "{said}");
    assert_eq!(desk(&service, &token).get("/admin/outbox").await.status, 200);
    let stored: String =
        sqlx::query_scalar("SELECT operator::text FROM operator").fetch_one(&pool).await.unwrap();
    assert!(!stored.contains(&token) && !stored.contains(&token[6..]), "{stored}");
    let (_, why, ok) = vos_auth(&pool, &["create", "alice", "--role", "admin"]);
    assert!(!ok && why.contains("alice has a valid token"), "{why}");
    let (listed, _, _) = vos_auth(&pool, &["list"]);
    assert!(listed.contains("alice") && listed.contains("support") && listed.contains("active"), "{listed}");
    assert!(!listed.contains(&token[6..]));
    assert!(vos_auth(&pool, &["revoke", "alice"]).2);
    let (other, _, ok) = vos_auth(&pool, &["create", "alice", "--role", "admin"]);
    assert!(ok && other != token, "a revoked name gets another token");
    assert_eq!(desk(&service, &token).get("/admin/outbox").await.status, 401);
    for bad in [["create", "a b", "--role", "admin"], ["create", "carol", "--role", "root"]] {
        assert!(!vos_auth(&pool, &bad).2, "{bad:?}");
    }
    service.stops().await;
}

/// Idle clients keep no operator out, and a stop does not wait for them.
#[sqlx::test]
async fn connections_without_a_handshake_are_closed(pool: PgPool) {
    let folder = PathBuf::from(place::temporary("admin-silent"));
    let settings = certificates(&folder);
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let service = Service::start_with_settings(&pool, &settings).await;
    let address = service.admin_address.unwrap();
    let mut silent = Vec::new();
    for _ in 0..256 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let auditor = Holder::new(&service, &folder, Some("auditor"));
    let answer = tokio::time::timeout(PATIENCE, auditor.calls("GET", "/admin/outbox", &Value::Null)).await;
    assert_eq!(answer.expect("an answer in time").expect("a handshake").status, 200);
    silent.push(TcpStream::connect(address).await.unwrap());
    let began = Instant::now();
    service.stops().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// Searches all output of the built program while operators call it, some with wrong tokens.
#[sqlx::test]
async fn neither_tokens_nor_addresses_are_logged(pool: PgPool) {
    Service::has_account_at(&pool, TRADER).await;
    let (url, admin_url) = (database::service_url(&pool), database::operator_url(&pool));
    let changes =
        [("ADMIN_ADDR", "127.0.0.1:0"), ("ADMIN_DATABASE_URL", admin_url.as_str()), ("LOG_LEVEL", "trace")];
    let environment = serve_environment(&url, "smtp://127.0.0.1:9", &changes);
    let mut program = Program::start(&["serve"], &environment);
    let address = program.admin_address();
    let (token, _, _) = vos_auth(&pool, &["create", "alice", "--role", "admin"]);
    let wrong = OperatorToken::random().expose();
    let id = id_of(&pool, TRADER).await;
    let as_operator = |token: &str| {
        Client::new(address).with("authorization", &format!("Bearer {token}")).with("x-reason", "desk")
    };
    let found = as_operator(&token).get("/admin/accounts?email=trader%40example.com").await;
    assert_eq!(found.body["accounts"][0]["email"], TRADER, "{}", found.text);
    let ticket =
        call(&as_operator(&token), "POST", &format!("/admin/accounts/{id}/ticket"), &Value::Null).await;
    let given = ticket.body["ticket"].as_str().expect("a ticket").to_owned();
    assert_eq!(as_operator(&wrong).get("/admin/outbox").await.status, 401);
    let moved = json!({ "email": "moved@example.com" });
    let set = call(&as_operator(&token), "PUT", &format!("/admin/accounts/{id}/email"), &moved).await;
    assert_eq!(set.status, 200, "{}", set.text);
    program.signal("-TERM");
    let (log, _) = program.ends();
    assert!(log.iter().any(|line| line.contains("/admin/accounts/{id}/ticket")), "the route is logged");
    for secret in [token.as_str(), &wrong, &given, "example.com", "desk"] {
        let line = log.iter().find(|line| line.contains(secret));
        assert!(line.is_none(), "{line:?}");
    }
}

#[test]
fn settings_that_cannot_work_stop_the_start() {
    for (changes, why) in [
        (&[("ADMIN_ADDR", "0.0.0.0:9091")][..], "ADMIN_ADDR is not an address of this machine alone"),
        (&[("ADMIN_ADDR", "127.0.0.1:0"), ("ADMIN_TLS_CERT", "x")], "ADMIN_TLS_KEY is missing"),
        (&[("ADMIN_ADDR", "127.0.0.1:0"), ("ADMIN_CLIENT_CA", "x")], "ADMIN_CLIENT_CA is set without"),
        (
            &[("ADMIN_ADDR", "127.0.0.1:0"), ("ADMIN_TLS_CERT", "none.pem"), ("ADMIN_TLS_KEY", "none.key")],
            "ADMIN_TLS_CERT names a file that cannot be read",
        ),
        (&[("ADMIN_ADDR", "127.0.0.1:0")], "ADMIN_DATABASE_URL is missing"),
        (
            &[
                ("ADMIN_ADDR", "127.0.0.1:0"),
                ("ADMIN_TLS_CERT", "x"),
                ("ADMIN_TLS_KEY", "x"),
                ("ADMIN_CLIENT_CA", "x"),
                ("ADMIN_CLIENT_ROLES", "CN=a=admin,CN=a=auditor"),
            ],
            "ADMIN_CLIENT_ROLES names an identity twice",
        ),
        (&[("ADMIN_CLIENT_ROLES", "alice=admin")], "ADMIN_CLIENT_ROLES cannot be"),
    ] {
        let environment =
            serve_environment("postgres://nobody@127.0.0.1:9/none", "smtp://127.0.0.1:9", changes);
        let ended = run(&["serve"], &environment);
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success() && said.contains(why), "{changes:?}: {said}");
    }
}
