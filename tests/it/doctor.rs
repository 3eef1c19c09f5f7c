//! `vos-auth doctor` on installations that are broken in one way each: it says which check has
//! failed, and what to do.

use std::path::PathBuf;

use serde_json::Value;
use sqlx::{PgPool, Row as _};
use vos_auth::database::MIGRATOR;

use crate::harness::cluster::Cluster;
use crate::harness::database::{self, SERVE, Server};
use crate::harness::encrypted::Encrypted;
use crate::harness::postfix::{self, Postfix};
use crate::harness::program::{SECRET, run, run_under, serve_environment};
use crate::harness::relay::{Mood, Relay};
use crate::harness::{place, pooler};

/// The rows of `vos-auth doctor --json`.
pub struct Diagnosis {
    pub rows: Vec<Value>,
    pub ok: bool,
}

impl Diagnosis {
    pub fn of(database_url: &str, relays: &str, changes: &[(&str, &str)]) -> Self {
        Self::under(&[], database_url, relays, changes)
    }

    /// Like [`Diagnosis::of`], for a program that is run by the command `under`.
    pub fn under(under: &[&str], database_url: &str, relays: &str, changes: &[(&str, &str)]) -> Self {
        let environment = serve_environment(database_url, relays, changes);
        let ended = run_under(under, &["doctor", "--json"], &environment);
        let [said, errors] = [ended.stdout, ended.stderr].map(|text| String::from_utf8(text).unwrap());
        for text in [&said, &errors] {
            let secret = SECRET.split_once(':').unwrap().1;
            assert!(
                !text.contains("@example.com") && !text.contains("hunter2") && !text.contains(secret),
                "{text}"
            );
        }
        let found: Value =
            serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{errors}"));
        assert_eq!(found["ok"], ended.status.success(), "{said}");
        let rows = found["checks"].as_array().unwrap().clone();
        for row in &rows {
            let action = row["action"].as_str();
            assert_eq!(action.is_none(), row["state"] == "ok", "{row}");
            assert!(action.is_none_or(|action| action.ends_with(['.', ';'])), "{row}");
        }
        Self { rows, ok: ended.status.success() }
    }

    fn in_state(&self, state: &str) -> Vec<&Value> {
        self.rows.iter().filter(|row| row["state"] == state).collect()
    }

    pub fn row(&self, check: &str) -> &Value {
        let mut found = self.rows.iter().filter(|row| row["check"].as_str().unwrap().starts_with(check));
        found.next().unwrap_or_else(|| panic!("no row {check}: {:#?}", self.rows))
    }

    /// Exactly this row has failed, with these words in what was seen and in what to do.
    #[track_caller]
    pub fn has_failed_at(&self, check: &str, seen: &str, action: &str) {
        self.has(&[], "failed", check, seen, action);
    }

    /// Beside the checks `known`, exactly this row is in this state.
    #[track_caller]
    pub fn has(&self, known: &[&str], state: &str, check: &str, seen: &str, action: &str) {
        assert_eq!(self.ok, self.in_state("failed").is_empty());
        let rows = self.in_state(state);
        let is_known =
            |row: &Value| known.iter().any(|known| row["check"].as_str().unwrap().starts_with(known));
        let rows: Vec<_> = rows.into_iter().filter(|row| !is_known(row)).collect();
        let [row] = rows[..] else { panic!("not one row: {rows:#?}") };
        let text = |name: &str| row[name].as_str().unwrap().to_owned();
        assert!(text("check").starts_with(check), "{row}");
        assert!(text("seen").contains(seen), "{row}");
        assert!(text("action").contains(action), "{row}");
    }
}

#[sqlx::test]
async fn a_right_installation_passes_every_check_and_no_email_is_sent(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relays) = (database::service_url(&pool), relay.url());
    // Without a PATH, systemd cannot be asked about NTP.
    let found = Diagnosis::of(&url, &relays, &[("PATH", "/nowhere")]);
    assert!(found.ok, "{:#?}", found.rows);
    let checks: Vec<_> = found.rows.iter().map(|row| row["check"].as_str().unwrap()).collect();
    for check in [
        "settings",
        "brand",
        "JWT keys",
        "database connection",
        "database TLS",
        "clock, PostgreSQL",
        "database schema",
        "database indexes",
        "database rights",
        "database settings",
        "database writing",
        "relay 0",
        "clock, NTP",
        "file descriptors",
        "HTTP_ADDR",
        "METRICS_ADDR",
    ] {
        assert!(checks.iter().any(|known| known.starts_with(check)), "{check} in {checks:?}");
    }
    assert!(found.in_state("warning").is_empty(), "{:#?}", found.in_state("warning"));
    assert_eq!((relay.asked(), relay.mails().len()), (1, 0));

    // Without `--json`, the output has a line for each row, and a last line with the count.
    let said = run(
        &["doctor", "--to", "trader@example.com"],
        &serve_environment(&url, &relays, &[("PATH", "/nowhere")]),
    );
    let said = String::from_utf8(said.stdout).unwrap();
    let count = checks.len();
    assert_eq!(said.lines().count(), count + 1, "{said}");
    assert!(said.ends_with(&format!("{count} checks passed\n")) && !said.contains("trader@"), "{said}");
    assert_eq!(relay.asked(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_way_not_to_reach_postgresql_is_named() {
    let server = Encrypted::start().await;
    let relay = Relay::start().await;
    let stranger = server.makes_next_certificate();
    let correct = server.url();
    let at = |place: &str| {
        let (before, after) =
            (correct.split_once('@').unwrap().0, correct.split_once("/postgres?").unwrap().1);
        format!("{before}@{place}/postgres?{after}")
    };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (url, check, seen, action) in [
        (
            correct.replace(":first@", ":hunter2@"),
            "database sign-in",
            "wrong password",
            "Correct the password in DATABASE_URL",
        ),
        (
            correct.replace("vos_auth_1", "nobody"),
            "database sign-in",
            "28P01",
            "Correct the password in DATABASE_URL",
        ),
        (correct.replace("/postgres?", "/elsewhere?"), "database sign-in", "no such database", "createdb"),
        (at(&format!("localhost:{closed}")), "database connection", "refused", "Start PostgreSQL"),
        (at("database.invalid"), "database name", "database.invalid", "DNS"),
        (at(&format!("127.0.0.1:{}", server.port())), "database TLS", "not valid for name", "the host"),
        (server.url_by(&stranger.ca), "database TLS", "invalid peer certificate", "sslrootcert"),
        (server.url_by("/nowhere/ca.pem"), "database TLS", "No such file", "sslrootcert"),
    ] {
        Diagnosis::of(&url, &relay.url(), &[]).has_failed_at(check, seen, action);
    }
    let found = Diagnosis::of(&correct, &relay.url(), &[]);
    assert!(found.row("database TLS")["seen"].as_str().unwrap().contains("verified"), "{:#?}", found.rows);
    let unverified = correct.replace("verify-full", "require");
    Diagnosis::of(&unverified, &relay.url(), &[]).has(
        &[],
        "warning",
        "database TLS",
        "not verified",
        "verify-full",
    );
    // The service's role may only read.
    sqlx::query("ALTER ROLE vos_auth_1 SET default_transaction_read_only = on")
        .execute(&server.pool)
        .await
        .unwrap();
    Diagnosis::of(&correct, &relay.url(), &[]).has_failed_at("database writing", "read-only", "the primary");
}

#[sqlx::test]
async fn a_missing_migration_index_or_right_is_named(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relays) = (database::service_url(&pool), relay.url());
    let operator = Diagnosis::of(&database::operator_url(&pool), &relays, &[]);
    operator.has_failed_at("database rights", "an operator's commands", "DATABASE_URL_FILE");
    let run = async |sql: &str| {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&pool).await.unwrap();
    };
    let version = MIGRATOR.iter().next_back().unwrap().version;
    let moved = format!("UPDATE _sqlx_migrations SET version = -version WHERE abs(version) = {version}");
    run(&moved).await;
    let pending = format!("migration {version}");
    Diagnosis::of(&url, &relays, &[]).has_failed_at("database schema", &pending, "vos-auth migrate");
    run(&moved).await;

    run("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'account_pkey'::regclass").await;
    Diagnosis::of(&url, &relays, &[]).has_failed_at("database indexes", "account_pkey", "vos-auth migrate");
    run("UPDATE pg_index SET indisvalid = true WHERE indexrelid = 'account_pkey'::regclass").await;

    run(&format!("REVOKE DELETE ON outbox FROM {SERVE}")).await;
    Diagnosis::of(&url, &relays, &[]).has_failed_at(
        "database rights",
        &format!("{SERVE} lacks DELETE on outbox"),
        "deploy/grants.sql",
    );
    run(&format!("REVOKE ALL ON _sqlx_migrations FROM {SERVE}")).await;
    Diagnosis::of(&url, &relays, &[]).has_failed_at("database rights", "migrations", "deploy/grants.sql");
    let database: String = sqlx::query("SELECT current_database()").fetch_one(&pool).await.unwrap().get(0);
    run(&format!("REVOKE CONNECT ON DATABASE \"{database}\" FROM {SERVE}")).await;
    Diagnosis::of(&url, &relays, &[]).has_failed_at("database sign-in", "42501", "deploy/grants.sql");
    run("DROP TABLE _sqlx_migrations").await;
    let owner = database::url(&pool);
    Diagnosis::of(&owner, &relays, &[]).has_failed_at("database schema", "no migration", "vos-auth migrate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_drops_settings_is_named_with_the_statements_that_help() {
    let (cluster, relay) = (Cluster::start().await, Relay::start().await);
    let address = pooler::drops_settings_before(Server::Socket(cluster.socket())).await;
    cluster.connect().await;
    let url = format!("postgres://vos_auth@{address}/postgres?sslmode=disable");
    let relays = relay.url();
    let found = tokio::task::spawn_blocking(move || Diagnosis::of(&url, &relays, &[])).await.unwrap();
    found.has_failed_at("database settings", "statement_timeout", "ALTER ROLE vos_auth SET jit");
}

#[sqlx::test]
async fn each_stage_at_which_a_relay_stops_is_named(pool: PgPool) {
    let url = database::service_url(&pool);
    let relay = Relay::start().await;
    for (mood, seen, action) in [
        (Mood::RefusesSender("550 5.7.1 hunter2 may not send"), "mail 550 5.7.1", "MAIL_FROM"),
        (Mood::RefusesRecipient("554 5.7.1 no relaying for hunter2"), "rcpt 554 5.7.1", "other domains"),
        (Mood::GreetsNobody, "greeting (no answer in time)", "465"),
        (Mood::StallsAtRecipient, "deadline", "SMTP_DEADLINE"),
    ] {
        relay.is_in_mood(mood);
        let found = Diagnosis::of(&url, &relay.url(), &[("SMTP_DEADLINE", "500ms")]);
        found.has_failed_at("relay 0 (127.0.0.1:", seen, action);
    }
    // The recipient is wrong, not the relay.
    relay.is_in_mood(Mood::RefusesRecipient("550 5.1.1 hunter2 is unknown"));
    let found = Diagnosis::of(&url, &relay.url(), &[]);
    found.has(&[], "warning", "relay 0", "rcpt 550 5.1.1", "--to EMAIL");
    relay.is_in_mood(Mood::Takes);
    let second = Relay::start().await;
    let both = format!("{},{}", relay.url(), second.url());
    second.goes_down().await;
    Diagnosis::of(&url, &both, &[]).has_failed_at("relay 1", "refused", "Start the relay");
    assert_eq!(relay.mails().len(), 0);
}

#[sqlx::test]
async fn a_refused_password_and_a_wrong_certificate_of_a_relay_are_named(pool: PgPool) {
    if !postfix::can_run() {
        return;
    }
    let url = database::service_url(&pool);
    let relay = Postfix::start(postfix::Setup::default());
    let ca = relay.ca();
    let found = Diagnosis::of(&url, &relay.url_with("hunter2"), &[("SMTP_CA_FILE", &ca)]);
    found.has_failed_at("relay 0 (localhost:", "auth 535", "Correct user and password in SMTP_RELAYS");
    Diagnosis::of(&url, &relay.url(), &[]).has_failed_at("relay 0", "UnknownIssuer", "SMTP_CA_FILE");
    let found = Diagnosis::of(&url, &relay.url(), &[("SMTP_CA_FILE", &ca)]);
    assert!(found.row("relay 0")["state"] != "failed", "{:#?}", found.rows);
    let other = Postfix::start(postfix::Setup { name: "relay.example.net", ..postfix::Setup::default() });
    let ca = other.ca();
    let found = Diagnosis::of(&url, &other.url(), &[("SMTP_CA_FILE", &ca)]);
    found.has_failed_at("relay 0", "not valid for name", "the name of the relay's certificate");
}

#[sqlx::test]
async fn a_setting_key_folder_or_brand_that_cannot_be_used_is_named(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relays) = (database::service_url(&pool), relay.url());
    let folder = PathBuf::from(place::temporary(&format!("doctor-brand-{}", std::process::id())));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("brand.json"), "{").unwrap();
    let brand = folder.to_str().unwrap();
    for (variable, value, check, action) in [
        ("PASSWORD_MIN_CHARS", "7", "settings", "Correct PASSWORD_MIN_CHARS"),
        ("PUBLIC_ORIGIN", "", "settings", "Set it to the origin"),
        ("DEVICE_SECRETS", "test:hunter2", "settings", "Correct DEVICE_SECRETS"),
        ("LOG_LEVEL", "info,=,", "settings", "Correct LOG_LEVEL"),
        ("JWT_KEYS", "", "JWT keys", "vos-auth key generate"),
        ("JWT_KEYS", "/nowhere", "JWT keys", "Correct JWT_KEYS"),
        ("BRAND_DIR", brand, "brand", "Correct BRAND_DIR"),
        ("BRAND_DIR", "/nowhere", "brand", "Correct BRAND_DIR"),
    ] {
        Diagnosis::of(&url, &relays, &[(variable, value)]).has_failed_at(check, variable, action);
    }
    let example = place::file("deploy/brand");
    let found = Diagnosis::of(&url, &relays, &[("BRAND_DIR", example.to_str().unwrap())]);
    assert!(found.row("brand")["seen"].as_str().unwrap().contains("a logo"), "{:#?}", found.rows);
    // Checks that depend on a wrong setting are left out. The other checks run.
    let found = Diagnosis::of("mysql:hunter2", &relays, &[]);
    found.has_failed_at("settings", "DATABASE_URL", "Correct DATABASE_URL");
    assert!(found.row("relay 0")["state"] == "ok", "{:#?}", found.rows);
    std::fs::remove_dir_all(folder).unwrap();
}
