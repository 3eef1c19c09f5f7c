//! PgBouncer between the program and PostgreSQL, as in docs/operate/poolers.md. `make test` uses
//! the installed version, `make pooler` that of Debian 13.

use serde_json::Value;
use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::pgbouncer::{self, Mode, PgBouncer};
use crate::harness::program::{Program, has_relay, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::{PATIENCE, Service, journey};

const TRADER: &str = "trader@example.com";
/// The settings that the service relies on.
const SETTINGS: [&str; 6] = [
    "statement_timeout",
    "enable_seqscan",
    "enable_bitmapscan",
    "jit",
    "idle_in_transaction_session_timeout",
    "plan_cache_mode",
];

/// The program behind a pooler, with a usable relay.
async fn serves_behind(pgbouncer: &PgBouncer, relay: &Relay) -> (Program, Client) {
    let (url, relay_url) = (pgbouncer.url(), relay.url());
    let mut program = Program::start(&["serve"], &serve_environment(&url, &relay_url, &[]));
    let client = Client::new(program.address());
    has_relay(&client).await;
    (program, client)
}

async fn database_is(client: &Client, state: &str) {
    let said = async { while client.get("/readyz").await.body["parts"]["database"] != state {} };
    tokio::time::timeout(PATIENCE, said).await.unwrap_or_else(|_| panic!("/readyz never said {state}"));
}

/// Stops the program. Gives its log lines above INFO.
fn warnings_of(program: Program) -> Vec<String> {
    program.signal("-TERM");
    let (lines, clean) = program.ends();
    assert!(clean, "{lines:#?}");
    lines.into_iter().filter(|line| !line.contains(r#""level":"INFO""#)).collect()
}

/// The whole user journey, then eight parallel requests.
async fn serves_the_whole_journey(pool: &PgPool, mode: Mode, server_connections: usize) {
    pgbouncer::has_the_settings_of_the_document(pool).await;
    let (pgbouncer, relay) = (PgBouncer::before(pool, mode, server_connections).await, Relay::start().await);
    Service::has_account_at(pool, TRADER).await;
    let (program, client) = serves_behind(&pgbouncer, &relay).await;
    database_is(&client, "ok").await;
    journey::is_walked_by(&client, &relay, TRADER).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        requests.spawn(async move { client.get("/api/auth/session").await.status });
    }
    assert_eq!(requests.join_all().await, [401; 8]);
    let warnings = warnings_of(program);
    assert!(warnings.is_empty(), "{warnings:#?}\n{}", pgbouncer.log());
}

#[sqlx::test]
async fn session_mode_serves_the_whole_journey(pool: PgPool) {
    if pgbouncer::is_installed() {
        serves_the_whole_journey(&pool, Mode::Session, 9).await;
    }
}

/// The service answers and names the missing settings; with them it is ready without a restart.
#[sqlx::test]
async fn settings_that_a_pooler_drops_are_named_until_the_role_has_them(pool: PgPool) {
    if !pgbouncer::is_installed() {
        return;
    }
    let (pgbouncer, relay) = (PgBouncer::before(&pool, Mode::Session, 9).await, Relay::start().await);
    Service::has_account_at(&pool, TRADER).await;
    let (mut program, client) = serves_behind(&pgbouncer, &relay).await;
    let ready = client.get("/readyz").await;
    assert_eq!(ready.error(), (503, "not_ready"));
    assert_eq!(ready.body["parts"]["database"], "settings");
    let warning: Value = serde_json::from_str(&program.line_with(r#""database":"settings""#)).unwrap();
    assert_eq!(warning["level"], "WARN");
    for name in SETTINGS {
        let statement = format!("ALTER ROLE vos_auth_pooled SET {name} = ");
        assert!(warning["fix"].as_str().unwrap().contains(&statement), "{name}: {warning}");
    }
    journey::is_walked_by(&client, &relay, TRADER).await;
    pgbouncer::has_the_settings_of_the_document(&pool).await;
    pgbouncer::ends_sessions(&pool).await;
    database_is(&client, "ok").await;
    let warnings = warnings_of(program).into_iter().filter(|line| line.contains(r#""database":"settings""#));
    assert_eq!(warnings.count(), 1);
}

/// PgBouncer supports prepared statements from 1.21 on. With an older version, a server connection
/// may have another client's statements, as docs/operate/poolers.md says.
#[sqlx::test]
async fn transaction_mode_serves_the_whole_journey_if_pgbouncer_supports_prepared_statements(pool: PgPool) {
    if !pgbouncer::is_installed() {
        return;
    }
    if pgbouncer::version() >= (1, 21) {
        return serves_the_whole_journey(&pool, Mode::Transaction, 2).await;
    }
    pgbouncer::has_the_settings_of_the_document(&pool).await;
    let (pgbouncer, relay) = (PgBouncer::before(&pool, Mode::Transaction, 1).await, Relay::start().await);
    let (mut program, client) = serves_behind(&pgbouncer, &relay).await;
    // The first requests may succeed, if by chance the one server connection has their statements.
    let refused = async {
        for n in 0.. {
            let started = client.clone().starts_recovery(&format!("nobody{n}@example.com")).await;
            let logged_in = client.clone().logs_in("nobody@example.com", "not the password").await;
            if let Some(refused) = [started, logged_in].into_iter().find(|answer| answer.status == 502) {
                return refused;
            }
        }
        unreachable!("the loop does not end")
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.expect("a request is refused");
    assert_eq!(refused.error(), (502, "storage_unavailable"));
    program.line_with("SQLSTATE ");
}
