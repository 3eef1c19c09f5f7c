//! Whoever operates the service is told what is wrong with its database: by the log, by `/readyz` and by the metrics.

use serde_json::Value;
use sqlx::Connection as _;

use crate::harness::PATIENCE;
use crate::harness::client::Client;
use crate::harness::cluster::Cluster;
use crate::harness::database::Server;
use crate::harness::pooler;
use crate::harness::program::{Program, serve_environment};
use crate::harness::relay::Relay;

/// The program before a database, and what it says about it.
struct Operated {
    program: Program,
    client: Client,
    _relay: Relay,
}

impl Operated {
    async fn start(database_url: &str) -> Self {
        let relay = Relay::start().await;
        let mut program = Program::start(&["serve"], &serve_environment(database_url, &relay.url(), &[]));
        let client = Client::new(program.address());
        Self { program, client, _relay: relay }
    }

    /// Waits for the line of the log that names the state.
    fn says(&mut self, state: &str) -> Value {
        let line = self.program.line_with(&format!("\"health\":\"{state}\""));
        serde_json::from_str(&line).unwrap()
    }

    async fn readyz(&self) -> (u16, String) {
        let ready = self.client.get("/readyz").await;
        (ready.status, ready.body["parts"]["database"].as_str().unwrap().to_owned())
    }

    async fn until_ready(&self) {
        let ready = async { while self.readyz().await.0 != 200 {} };
        tokio::time::timeout(PATIENCE, ready).await.expect("it is ready");
    }
}

/// A pooler gives a session without the settings that the service asks for: the service says which are missing, and the
/// statements that it names make it well.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_our_settings_is_named_and_what_the_log_says_fixes_it() {
    let cluster = Cluster::start().await;
    let address = pooler::drops_settings_before(Server::Socket(cluster.socket())).await;
    let url = format!("postgres://vos_auth@{address}/postgres?sslmode=disable");
    let mut service = Operated::start(&url).await;
    let line = service.says("settings");
    assert_eq!(line["level"], "WARN");
    let names = line["cause"].as_str().unwrap();
    for name in [
        "statement_timeout",
        "enable_seqscan",
        "enable_bitmapscan",
        "jit",
        "idle_in_transaction_session_timeout",
        "plan_cache_mode",
    ] {
        assert!(names.contains(name), "{name} in {names}");
    }
    assert_eq!(service.readyz().await, (503, "settings".to_owned()));
    let fix = line["fix"].as_str().unwrap();
    assert_eq!(fix.matches("ALTER ROLE vos_auth SET ").count(), 6, "{fix}");
    let mut administrator = cluster.connect().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(fix.to_owned())).execute(&mut administrator).await.unwrap();
    administrator.close().await.unwrap();
    service.until_ready().await;
    assert_eq!(service.says("ok")["level"], "INFO");
}
