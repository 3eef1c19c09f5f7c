//! `vos-auth doctor` about the machine: clock, file descriptors, ports, unreadable keys. Also
//! Ctrl-C during `doctor`, and the command of docs/operate/install.md.

use std::path::PathBuf;

use sqlx::PgPool;

use crate::doctor::Diagnosis;
use crate::harness::database::{self, SERVE};
use crate::harness::machine::Machine;
use crate::harness::program::{Program, run_under, serve_environment};
use crate::harness::relay::{Mood, Relay};
use crate::harness::{PATIENCE, Service, needs, place};

/// URLs with no database and no relay behind them.
const NOWHERE: (&str, &str) = ("postgres://nobody@127.0.0.1:9/none", "smtp://127.0.0.1:9?tls=none");

#[sqlx::test]
async fn a_clock_that_is_off_is_named_with_its_difference(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relays, library) = (database::service_url(&pool), relay.url(), crate::clock::library());
    let library = library.to_str().unwrap();
    let shifted = |by| {
        let changes = [("LD_PRELOAD", library), ("FAKETIME", by), ("DONT_FAKE_MONOTONIC", "1")];
        Diagnosis::of(&url, &relays, &changes)
    };
    // With `-30m`, the JWT keys fail as well: the test suite's key is younger than half an hour.
    shifted("+1h").has_failed_at("clock, PostgreSQL", "ms ahead of PostgreSQL's", "NTP");
    shifted("-30m").has(&["JWT keys"], "failed", "clock, PostgreSQL", "ms behind PostgreSQL's", "NTP");
    let slightly = shifted("+0.6s");
    assert!(slightly.ok);
    slightly.has(&[], "warning", "clock, PostgreSQL", "ms ahead of PostgreSQL's", "NTP");
}

#[test]
fn the_state_of_ntp_is_read_where_systemd_shows_it() {
    let folder = PathBuf::from(place::temporary(&format!("doctor-systemd-{}", std::process::id())));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.to_str().unwrap();
    for (script, state, seen) in [
        ("echo no", "warning", "not synchronized"),
        ("echo yes", "ok", "synchronized"),
        ("exec sleep 60", "ok", "not visible"),
        ("exit 1", "ok", "not visible"),
    ] {
        let program = folder.join("timedatectl");
        std::fs::write(&program, format!("#!/bin/sh\nPATH=/usr/bin:/bin; {script}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let found = Diagnosis::of(NOWHERE.0, NOWHERE.1, &[("PATH", path)]);
        let row = found.row("clock, NTP");
        assert_eq!(row["state"], state, "{script}: {row}");
        assert!(row["seen"].as_str().unwrap().starts_with(seen), "{script}: {row}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn too_few_descriptors_are_named() {
    let found = Diagnosis::under(&["prlimit", "--nofile=600"], NOWHERE.0, NOWHERE.1, &[]);
    let row = found.row("file descriptors");
    assert_eq!(row["state"], "warning", "{row}");
    assert!(row["seen"].as_str().unwrap().starts_with("600 allowed"), "{row}");
    assert!(row["action"].as_str().unwrap().contains("LimitNOFILE"), "{row}");
    let few =
        Diagnosis::under(&["prlimit", "--nofile=600"], NOWHERE.0, NOWHERE.1, &[("MAX_CONNECTIONS", "80")]);
    assert_eq!(few.row("file descriptors")["state"], "ok");
}

#[sqlx::test]
async fn a_taken_port_is_told_from_a_running_service(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relays) = (database::service_url(&pool), relay.url());
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    for variable in ["HTTP_ADDR", "METRICS_ADDR"] {
        let found = Diagnosis::of(&url, &relays, &[(variable, &taken)]);
        found.has_failed_at(variable, "another program listens", "ss -ltnp");
        let found = Diagnosis::of(&url, &relays, &[(variable, "192.0.2.1:8080")]);
        found.has_failed_at(variable, "not an address of this machine", variable);
    }
    let service = Service::start(&pool).await;
    let (api, metrics) = (service.address.to_string(), service.metrics_address.to_string());
    let ports = [("HTTP_ADDR", api.as_str()), ("METRICS_ADDR", metrics.as_str())];
    let diagnose = {
        let (url, relays) = (url.clone(), relays.clone());
        let ports = ports.map(|(name, value)| (name.to_owned(), value.to_owned()));
        move || {
            let ports: Vec<_> = ports.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            Diagnosis::of(&url, &relays, &ports)
        }
    };
    // The service is a task of this test, so the test must not block it.
    let found = tokio::task::spawn_blocking(diagnose.clone()).await.unwrap();
    assert_eq!(found.row("HTTP_ADDR")["seen"], "a running service is alive and ready");
    assert_eq!(found.row("METRICS_ADDR")["seen"], "a running service has metrics there");
    assert!(found.ok, "{:#?}", found.rows);
    service.relay.goes_down().await;
    service.until_mail_is("unavailable").await;
    let found = tokio::task::spawn_blocking(diagnose).await.unwrap();
    found.has_failed_at("HTTP_ADDR", "mail is unavailable", "log of the service");
    service.stops().await;
}

/// Ctrl-C does not wait for the relay, which may take 20 s by default.
#[sqlx::test]
async fn ctrl_c_ends_it_while_a_relay_stalls(pool: PgPool) {
    let relay = Relay::start().await;
    relay.is_in_mood(Mood::GreetsNobody);
    let (url, relays) = (database::service_url(&pool), relay.url());
    let mut program = Program::start(&["doctor"], &serve_environment(&url, &relays, &[]));
    // The rows before the relay's are printed while the relay is waited for.
    program.line_with("database writing");
    relay.until_connected(1).await;
    let began = std::time::Instant::now();
    program.signal("-INT");
    let (lines, clean) = program.ends();
    assert!(!clean && !lines.iter().any(|line| line.contains("relay 0")), "{lines:?}");
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
}

/// The command of docs/operate/install.md, before the relay and the JWT keys are there.
#[tokio::test]
async fn the_command_of_the_installation_checks_the_role_of_the_service() {
    if !needs::has_root("docs/operate/install.md") {
        return;
    }
    let machine = Machine::start().await;
    let page = place::text("docs/operate/install.md");
    let section = page.split("\n## Check the installation\n").nth(1).expect("the section");
    let block = section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let said = machine.operator_runs(&format!("{{ {block} }} || true"));
    let row = said.lines().find(|line| line.contains("database rights")).expect("the row");
    assert!(row.starts_with("ok") && row.contains(SERVE), "{said}");
    assert!(said.contains("JWT_KEYS") && said.contains("SMTP_RELAYS"), "{said}");
}

/// Root can read a key that the user of the service cannot. The test replaces /etc/passwd for the
/// program alone.
#[test]
fn a_key_that_only_root_can_read_is_named() {
    let users = format!("{}/doctor-passwd-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let (root, service) = ("root:x:0:0::/root:/bin/sh\n", "vos-auth:x:999:999::/nonexistent:/bin/false\n");
    std::fs::write(&users, format!("{root}{service}")).unwrap();
    let script = format!("mount --bind {users} /etc/passwd && exec \"$0\" \"$@\"");
    let under = ["unshare", "--mount", "bash", "-c", &script];
    let can_mount = run_under(&under, &["--version"], &[]).status.success();
    if needs::has(can_mount, "a file system of its own needs root: run the tests as root") {
        let found = Diagnosis::under(&under, NOWHERE.0, NOWHERE.1, &[]);
        let row = found.row("JWT keys");
        assert_eq!(row["state"], "warning", "{row}");
        assert!(row["seen"].as_str().unwrap().starts_with("only root can read"), "{row}");
        assert!(row["action"].as_str().unwrap().contains("chown"), "{row}");
    }
    std::fs::remove_file(users).unwrap();
}

/// `ADMIN_DATABASE_URL` with the service's role or a wrong database, and `ADMIN_ADDR` with a taken
/// port.
#[sqlx::test]
async fn what_the_admin_api_lacks_is_named(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relays, operator) = (database::service_url(&pool), relay.url(), database::operator_url(&pool));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (free, taken) = ("127.0.0.1:0", listener.local_addr().unwrap().to_string());
    let of = |address: &str, database: &str| {
        Diagnosis::of(&url, &relays, &[("ADMIN_ADDR", address), ("ADMIN_DATABASE_URL", database)])
    };
    let found = of(free, &operator);
    assert_eq!(
        (&found.row("database, admin API")["state"], &found.row("ADMIN_ADDR")["state"]),
        (&"ok".into(), &"ok".into())
    );
    of(free, &url).has_failed_at("database, admin API", "may not change accounts", "vos_auth_operator");
    let nowhere = "postgres://hunter2@127.0.0.1:9/none";
    of(free, nowhere).has_failed_at("database, admin API", "refused", "port in ADMIN_DATABASE_URL");
    of(&taken, &operator).has_failed_at("ADMIN_ADDR", "another program listens", "change ADMIN_ADDR");
    of(free, "").has_failed_at("settings", "ADMIN_DATABASE_URL", "Set it to the URL of the operator's role");
}
