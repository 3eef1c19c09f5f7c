//! The log, `/readyz` and the metrics tell the operator what is wrong with the database.

use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::net::TcpSocket;
use vos_auth::database::MIGRATOR;

use crate::harness::client::Client;
use crate::harness::cluster::Cluster;
use crate::harness::database::Server;
use crate::harness::encrypted::Encrypted;
use crate::harness::program::{Program, has_relay, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::small_disk::SmallDisk;
use crate::harness::{PATIENCE, Service, database, metric, needs, pooler};

/// The program with a database, and a client of it.
struct Running {
    program: Program,
    client: Client,
    _relay: Relay,
}

impl Running {
    async fn start(database_url: &str) -> Self {
        Self::start_with(database_url, &[]).await
    }

    async fn start_with(database_url: &str, changes: &[(&str, &str)]) -> Self {
        let relay = Relay::start().await;
        let relay_url = relay.url();
        let environment = serve_environment(database_url, &relay_url, changes);
        let mut program = Program::start(&["serve"], &environment);
        let client = Client::new(program.address());
        Self { program, client, _relay: relay }
    }

    /// Waits for the log line that names a state with this prefix.
    fn says(&mut self, state: &str) -> Value {
        let line = self.program.line_with(&format!("\"database\":\"{state}"));
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

    async fn metric(&mut self, line_start: &str) -> f64 {
        metric(self.program.metrics_address(), line_start).await
    }

    /// Stops the program, and gives its whole log.
    fn log(self) -> Vec<String> {
        self.program.signal("-TERM");
        let (log, clean) = self.program.ends();
        assert!(clean, "{log:?}");
        log
    }
}

async fn executes(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// The log names each state once, with its reason, within seconds; `/readyz` and metrics agree.
#[tokio::test(flavor = "multi_thread")]
async fn each_misconfiguration_is_named_by_log_readyz_and_metrics() {
    let server = Encrypted::start().await;
    let mut administrator = server.pool.acquire().await.unwrap();
    executes(
        &mut administrator,
        "CREATE ROLE no_grants LOGIN PASSWORD 'first';
         CREATE ROLE most_grants LOGIN PASSWORD 'first';
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO most_grants;
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO most_grants;
         REVOKE DELETE ON outbox FROM most_grants;
         REVOKE INSERT ON audit_event FROM most_grants;
         CREATE ROLE former_grants LOGIN PASSWORD 'first';
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO former_grants;
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO former_grants;
         REVOKE UPDATE ON account FROM former_grants;
         GRANT UPDATE (password_hash) ON account TO former_grants;
         CREATE ROLE reader LOGIN PASSWORD 'first' IN ROLE vos_auth;
         ALTER ROLE reader SET default_transaction_read_only = on;",
    )
    .await;
    let correct = server.url();
    let stranger = server.makes_next_certificate();
    let (_reserved, closed) = closed_port();
    let as_role = |role: &str| correct.replace("vos_auth_1", role);
    let at = |place: &str| {
        let (before, after) =
            (correct.split_once('@').unwrap().0, correct.split_once("/postgres?").unwrap().1);
        format!("{before}@{place}/postgres?{after}")
    };
    let cases = [
        ("wrong password", correct.replace("first", "not-the-password"), "refused", "SQLSTATE 28P01"),
        ("wrong database", correct.replace("/postgres?", "/elsewhere?"), "refused", "SQLSTATE 3D000"),
        ("no grants", as_role("no_grants"), "refused", "SQLSTATE 42501"),
        (
            "two grants missing",
            as_role("most_grants"),
            "refused",
            "most_grants lacks INSERT on audit_event, DELETE on outbox",
        ),
        (
            "a column's grant missing",
            as_role("former_grants"),
            "refused",
            "former_grants lacks UPDATE on account.bouncing_since",
        ),
        ("wrong CA", server.url_by(&stranger.ca), "certificate", "invalid peer certificate"),
        ("missing CA", server.url_by("/nowhere/ca.pem"), "certificate", "No such file or directory"),
        ("another name", at(&format!("127.0.0.1:{}", server.port())), "certificate", "not valid for name"),
        ("closed port", at(&format!("localhost:{closed}")), "unreachable", "Connection refused"),
        ("unknown host", at("database.invalid"), "unreachable", "failed to lookup address"),
        ("read only", as_role("reader"), "read_only", ""),
    ];
    let mut wrong = Vec::new();
    for (case, url, state, cause) in cases {
        let began = Instant::now();
        let mut service = Running::start(&url).await;
        let line = service.says("");
        let said_at = began.elapsed();
        let mut ready = Vec::new();
        for _ in 0..3 {
            ready.push(service.readyz().await);
        }
        let of_state = format!("vos_auth_database_state{{state=\"{state}\"}}");
        let metrics = [
            service.metric("vos_auth_database_up").await,
            service.metric(&of_state).await,
            service.metric("vos_auth_database_state{state=\"ok\"}").await,
        ];
        let log = service.log();
        let found = [
            ("warns", line["level"] == "WARN"),
            ("state", line["database"] == state),
            ("cause", line["cause"].as_str().unwrap().contains(cause)),
            ("at once", said_at < Duration::from_secs(10)),
            ("readyz", ready == vec![(503, state.to_owned()); 3]),
            ("metrics", metrics.map(|value| value > 0.5) == [false, true, false]),
            ("once", log.iter().filter(|line| line.contains("\"database\":\"")).count() == 1),
            (
                "no secret",
                !log.iter().any(|line| line.contains("not-the-password") || line.contains("first@")),
            ),
        ];
        let failed: Vec<_> = found.iter().filter(|(_, holds)| !holds).map(|(what, _)| *what).collect();
        if !failed.is_empty() {
            wrong.push(format!("{case}: {failed:?}: {line} {ready:?} {metrics:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let service = Running::start(&correct).await;
    service.until_ready().await;
    assert!(!service.log().iter().any(|line| line.contains("\"database\":\"")), "no state is reported");
}

/// A port on which nothing listens. No other process can have it until the socket is dropped.
fn closed_port() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// The disk of the tables is full: reads work, writes fail. The service reports it even without
/// requests, not once per request, and recovers when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_fails_readyz_and_does_not_flood_the_log() {
    if !needs::has_root("a disk of its own") {
        return;
    }
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(why) => {
            needs::has(false, &format!("a file system cannot be mounted here ({why})"));
            return;
        }
    };
    let cluster = Cluster::start().await;
    let mut administrator = cluster.connect().await;
    let tablespace = format!("CREATE TABLESPACE small LOCATION '{}'", disk.path().display());
    executes(&mut administrator, &tablespace).await;
    executes(&mut administrator, "CREATE DATABASE vos TABLESPACE small").await;
    let mut inside = PgConnection::connect_with(&cluster.options().database("vos")).await.unwrap();
    MIGRATOR.run(&mut inside).await.unwrap();
    let url = cluster.url_for("vos_auth", "none").replace("/postgres?", "/vos?");
    let mut service = Running::start_with(&url, &[("NETWORK_BURST", "100000")]).await;
    has_relay(&service.client).await;
    service.until_ready().await;
    assert!(service.client.starts_recovery("before@example.com").await.is_code_sent());

    disk.fills();
    // The existing pages have room for a few more rows.
    let mut tried = 0..2000;
    let refused = loop {
        let n = tried.next().expect("the disk is full");
        let answer = service.client.clone().starts_recovery(&format!("trader{n}@example.com")).await;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(refused.error(), (502, "storage_unavailable"));
    assert_eq!(service.readyz().await, (503, "full".to_owned()));
    assert_eq!(service.says("full")["level"], "WARN");
    assert!(service.metric("vos_auth_database_state{state=\"full\"}").await > 0.5);
    for n in 0..200 {
        let answer = service.client.clone().starts_recovery(&format!("late{n}@example.com")).await;
        assert_eq!(answer.status, 502, "{n}");
    }

    // A replica without requests notices the full disk by itself.
    let mut idle = Running::start(&url).await;
    let line = idle.says("full");
    assert!(line["cause"].as_str().unwrap().contains("SQLSTATE 53100"), "{line}");
    assert!(idle.metric("vos_auth_database_up").await < 0.5);

    disk.has_room_again();
    for service in [&mut service, &mut idle] {
        assert_eq!(service.says("ok")["level"], "INFO");
        service.until_ready().await;
    }
    assert!(service.client.starts_recovery("after@example.com").await.is_code_sent());
    let log = service.log();
    let failed: Vec<_> = log.iter().filter(|line| line.contains("a database operation failed")).collect();
    assert!((1..10).contains(&failed.len()), "{failed:#?}");
    drop(cluster);
}

/// A notice, warning, failure or detail of PostgreSQL may quote a row.
#[tokio::test(flavor = "multi_thread")]
async fn messages_of_postgresql_never_reach_the_log() {
    let cluster = Cluster::start().await;
    let mut administrator = cluster.connect().await;
    executes(
        &mut administrator,
        "CREATE FUNCTION talks() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE NOTICE 'verbatim notice %', NEW;
            RAISE WARNING 'verbatim warning %', NEW;
            IF TG_TABLE_NAME = 'session' THEN
                RAISE EXCEPTION 'verbatim failure %', NEW USING DETAIL = 'verbatim detail', HINT = 'verbatim hint';
            END IF;
            RETURN NEW;
         END $$;
         CREATE TRIGGER talks BEFORE INSERT ON recovery_session FOR EACH ROW EXECUTE FUNCTION talks();
         CREATE TRIGGER talks BEFORE INSERT ON session FOR EACH ROW EXECUTE FUNCTION talks();",
    )
    .await;
    let pool = sqlx::PgPool::connect_with(cluster.options()).await.unwrap();
    Service::has_trader_at(&pool, "trader@example.com", "morning boat on a green river").await;
    let url = cluster.url_for("vos_auth", "none");
    let mut service = Running::start_with(&url, &[("LOG_LEVEL", "trace")]).await;
    has_relay(&service.client).await;
    assert!(service.client.starts_recovery("trader@example.com").await.is_code_sent());
    let mut client = service.client.clone();
    let logs_in = client.logs_in("trader@example.com", "morning boat on a green river").await;
    assert_eq!(logs_in.error(), (502, "storage_unavailable"));
    // A pool learns why an idle connection was ended only when it uses it again.
    executes(
        &mut administrator,
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = 'vos-auth'",
    )
    .await;
    client.logs_in("trader@example.com", "morning boat on a green river").await;
    service.program.line_with("a database operation failed");
    let log = service.log().join("\n");
    assert!(log.contains("\"cause\":\"SQLSTATE P0001\""), "{log}");
    for words in ["verbatim", "terminating connection", "trader@example.com"] {
        assert!(!log.contains(words), "{words} in {log}");
    }
}

/// A pooler drops the settings that the service asks for. The service names the missing ones, and
/// the statements that it logs fix them.
#[tokio::test(flavor = "multi_thread")]
async fn missing_session_settings_are_named_and_the_logged_statements_fix_them() {
    let cluster = Cluster::start().await;
    let address = pooler::drops_settings_before(Server::Socket(cluster.socket())).await;
    let url = format!("postgres://vos_auth@{address}/postgres?sslmode=disable");
    let mut service = Running::start(&url).await;
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
    executes(&mut administrator, fix).await;
    administrator.close().await.unwrap();
    service.until_ready().await;
    assert_eq!(service.says("ok")["level"], "INFO");
}

/// Every migration of this program must be applied. A newer one in the database may be of another
/// release.
#[sqlx::test]
async fn a_version_that_is_missing_below_the_newest_is_named(pool: PgPool) {
    let version = MIGRATOR.iter().next_back().unwrap().version;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9999, 'of a later release', true, '', 0)";
    sqlx::query(newer).execute(&pool).await.unwrap();
    let moved = "UPDATE _sqlx_migrations SET version = -version WHERE abs(version) = $1";
    sqlx::query(moved).bind(version).execute(&pool).await.unwrap();
    let mut service = Running::start(&database::service_url(&pool)).await;
    let line = service.says("migrations_missing");
    assert!(line["cause"].as_str().unwrap().ends_with(&format!("migration {version}")), "{line}");
    let missing = (503, "migrations_missing".to_owned());
    assert_eq!(service.readyz().await, missing);
    sqlx::query(moved).bind(version).execute(&pool).await.unwrap();
    service.until_ready().await;

    // A migration that has not succeeded counts as missing.
    let succeeded = "UPDATE _sqlx_migrations SET success = $1 WHERE version = $2";
    sqlx::query(succeeded).bind(false).bind(version).execute(&pool).await.unwrap();
    assert_eq!(service.readyz().await, missing);
    sqlx::query(succeeded).bind(true).bind(version).execute(&pool).await.unwrap();
    service.until_ready().await;
    service.log();
}
