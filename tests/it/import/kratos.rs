//! The move from a running Kratos and back, against a double that follows Kratos's documentation.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;

use super::{
    ARGON2ID, BCRYPT, NEW, Outcome, PASSWORD, accounts, count, hash_of, imports, lines, path_of, traders,
    vos_auth,
};
use crate::harness::kratos::Kratos;
use crate::harness::program::{Program, run};
use crate::harness::{PATIENCE, Service, database, now};

/// Identities with everything that a careless PUT would lose.
fn with_metadata(numbers: std::ops::Range<u32>) -> Vec<Value> {
    let mut all = traders(numbers);
    for (n, one) in (0..).zip(&mut all) {
        one["schema_id"] = "trader".into();
        one["external_id"] = format!("crm-{n}").into();
        one["metadata_public"] = json!({ "locale": "vi", "desk": n });
        one["metadata_admin"] = json!({ "limit": 1.50, "notes": ["a", null] });
        one["credentials"]["totp"] =
            json!({ "type": "totp", "identifiers": [one["id"]], "config": { "totp_url": "x" } });
    }
    all
}

pub(super) fn import_from(pool: &PgPool, kratos: &Kratos, more: &[&str]) -> Outcome {
    let url = kratos.url();
    let [refused, left_behind] = lists(pool);
    let lists = ["--refused", &refused, "--left-behind", &left_behind];
    vos_auth(pool, &[&["account", "import", "--from-kratos", &url], &lists[..], more].concat())
}

/// The paths of the two lists that an import writes.
fn lists(pool: &PgPool) -> [String; 2] {
    ["import.refused.ndjson", "import.left-behind.ndjson"].map(|name| path_of(pool, name))
}

pub(super) fn export_to(pool: &PgPool, kratos: &Kratos, since: &str, more: &[&str]) -> Outcome {
    let (url, failed) = (kratos.url(), path_of(pool, "failed.ndjson"));
    let arguments = ["account", "export", "--to-kratos", &url, "--since", since, "--failed", &failed];
    vos_auth(pool, &[&arguments, more].concat())
}

pub(super) fn failed(pool: &PgPool) -> Vec<Value> {
    let file = path_of(pool, "failed.ndjson");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains('$') && !text.contains('@'), "{text}");
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(super) fn present() -> String {
    now().format(&Rfc3339).unwrap()
}

fn trader(n: u32) -> String {
    format!("trader-{n}@example.com")
}

pub(super) async fn resets(service: &Service, numbers: std::ops::Range<u32>) {
    for n in numbers {
        assert!(service.verified(&trader(n)).await.resets(NEW).await.is_signed_in());
    }
}

/// 1,201 identities take three requests for pages of 500, not one request each.
#[sqlx::test]
async fn an_import_reads_pages(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..1201));
    kratos.links_to("http://elsewhere.example");
    let dry = import_from(&pool, &kratos, &["--dry-run"]);
    assert!(
        dry.ok && dry.out.starts_with("1201 records: dry run, the result would be 1201 new"),
        "{}{}",
        dry.out,
        dry.err
    );
    assert_eq!((count(&pool, "account").await, kratos.asked(&Method::GET)), (0, 3));
    let ended = import_from(&pool, &kratos, &[]);
    assert!(ended.ok && ended.out.starts_with("1201 records: 1201 new"), "{}{}", ended.out, ended.err);
    assert!(ended.out.contains("passwords that keep working: bcrypt 1201"), "{}", ended.out);
    assert_eq!(kratos.asked(&Method::GET), 3);
    let here = accounts(&pool).await;
    sqlx::query("DELETE FROM account").execute(&pool).await.unwrap();
    assert!(imports(&pool, &lines(&with_metadata(0..1201)), &[]).ok);
    assert!(accounts(&pool).await == here, "the same accounts as from a file");
    let again = import_from(&pool, &kratos, &["--page-size", "400"]);
    assert!(
        again.ok && again.out.starts_with("1201 records: 0 new, 0 changed, 1201 unchanged"),
        "{}",
        again.out
    );
    assert_eq!((kratos.asked(&Method::GET), kratos.asked(&Method::PUT)), (4, 0));
}

#[sqlx::test]
async fn advice_for_before_the_import_is_printed_first(pool: PgPool) {
    let mut all = traders(0..3);
    all[0]["credentials"]["password"]["config"]["hashed_password"] = BCRYPT.replace("$04$", "$12$").into();
    all[1]["traits"]["email"] = "trần@example.com".into();
    let kratos = Kratos::start(&all);
    let list = path_of(&pool, "import.refused.ndjson");
    // An older file that everybody could read.
    std::fs::write(&list, "").unwrap();
    std::fs::set_permissions(&list, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ended = import_from(&pool, &kratos, &["--dry-run", "--login-failure-time", "10ms"]);
    let out: Vec<_> = ended.out.lines().collect();
    assert!(out[0].starts_with("1 emails have non-ASCII characters before the @"), "{}", ended.out);
    let advised =
        out[1].strip_prefix("set LOGIN_FAILURE_TIME=").and_then(|rest| rest.split_once("ms for `serve`"));
    assert!(advised.unwrap().0.parse::<u32>().unwrap() >= 100, "Kratos's default cost: {}", ended.out);
    assert!(out[2].starts_with("3 records: dry run, the result would be 2 new"), "{}", ended.out);
    let refused: Value = serde_json::from_str(&std::fs::read_to_string(&list).unwrap()).unwrap();
    assert!(refused["id"] == all[1]["id"] && refused.get("line").is_none(), "{refused}");
    assert_eq!(std::fs::metadata(list).unwrap().permissions().mode() & 0o777, 0o600);
}

/// A round trip changes nothing in Kratos but the passwords that were changed in vos-auth.
#[sqlx::test]
async fn a_round_trip_changes_nothing_but_the_passwords_that_were_changed(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..6));
    assert!(import_from(&pool, &kratos, &[]).ok);
    let (since, before) = (present(), kratos.identities());
    let service = Service::start(&pool).await;
    resets(&service, 0..2).await;
    // A sign-in rehashes the password, which is no change.
    for n in 2..4 {
        assert!(service.client().logs_in(&trader(n), PASSWORD).await.is_signed_in());
        assert_ne!(hash_of(&pool, &trader(n)).await.as_deref(), Some(BCRYPT));
    }
    service.stops().await;
    let dry = export_to(&pool, &kratos, &since, &["--dry-run"]);
    let counts = "2 of 2 accounts that were changed here: dry run, the result would be 2 written, 0 unchanged, 0 failed";
    assert!(dry.ok && dry.out.starts_with(counts), "{}{}", dry.out, dry.err);
    assert_eq!(kratos.asked(&Method::PUT), 0);
    assert_eq!(count(&pool, "audit_event WHERE what = 'accounts_exported'").await, 0);

    let ended = export_to(&pool, &kratos, &since, &[]);
    assert!(ended.ok && ended.out.contains("2 written, 0 unchanged, 0 failed"), "{}{}", ended.out, ended.err);
    assert_eq!(count(&pool, "audit_event WHERE what = 'accounts_exported'").await, 1);
    assert_eq!(kratos.asked(&Method::PUT), 2);
    let mut after = kratos.identities();
    for (n, one) in (0..2).zip(&mut after) {
        let here = hash_of(&pool, &trader(n)).await.unwrap();
        assert_eq!(one["credentials"]["password"]["config"]["hashed_password"], here);
        one["credentials"]["password"] = before[n as usize]["credentials"]["password"].clone();
        one["updated_at"] = before[n as usize]["updated_at"].clone();
    }
    assert_eq!(after, before);
    let again = export_to(&pool, &kratos, &since, &[]);
    assert!(again.ok && again.out.contains("0 written, 2 unchanged, 0 failed"), "{}", again.out);
    assert_eq!(kratos.asked(&Method::PUT), 0, "unchanged identities are not written");
}

#[sqlx::test]
async fn a_rehash_alone_writes_nothing(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..2));
    assert!(import_from(&pool, &kratos, &[]).ok);
    let (since, before) = (present(), kratos.identities());
    let service = Service::start(&pool).await;
    assert!(service.client().logs_in(&trader(0), PASSWORD).await.is_signed_in());
    service.stops().await;
    assert!(hash_of(&pool, &trader(0)).await.unwrap().starts_with("$argon2id$"));
    kratos.asked(&Method::GET);
    let ended = export_to(&pool, &kratos, &since, &[]);
    assert!(ended.ok && ended.out.starts_with("0 of 0 accounts"), "{}{}", ended.out, ended.err);
    assert_eq!((kratos.identities(), kratos.asked(&Method::PUT)), (before, 0));
}

/// An operator's changes are exported; what Kratos changed later stays.
#[sqlx::test]
async fn addresses_and_states_are_exported_and_later_changes_in_kratos_stay(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..4));
    assert!(import_from(&pool, &kratos, &[]).ok);
    let since = present();
    for arguments in [
        ["account", "set-email", "trader-0@example.com", "renamed@example.com"].as_slice(),
        &["account", "disable", "trader-1@example.com", "--yes"],
        &["account", "disable", "trader-2@example.com", "--yes"],
        &["account", "enable", "trader-2@example.com"],
    ] {
        assert!(vos_auth(&pool, arguments).ok);
    }
    let service = Service::start(&pool).await;
    resets(&service, 2..4).await;
    service.stops().await;
    let all = kratos.identities();
    let id = |n: usize| all[n]["id"].as_str().unwrap();
    let password = "/credentials/password";
    kratos.changes(id(3), &format!("{password}/config/hashed_password"), ARGON2ID.into());
    let later = now() + time::Duration::minutes(1);
    kratos.changes(id(3), &format!("{password}/updated_at"), later.format(&Rfc3339).unwrap().into());
    let before = kratos.identities();
    let ended = export_to(&pool, &kratos, &since, &[]);
    assert!(ended.ok && ended.out.starts_with("4 of 4 accounts"), "{}{}", ended.out, ended.err);
    assert!(
        ended.out.contains("3 written, 0 unchanged, 0 failed\n1 were changed in Kratos later"),
        "{}",
        ended.out
    );
    let list = failed(&pool);
    assert!(list.len() == 1 && list[0]["id"] == all[3]["id"], "{list:?}");
    let after = kratos.identities();
    assert_eq!(after[0]["traits"]["email"], "renamed@example.com");
    assert_eq!(after[0]["traits"]["name"], before[0]["traits"]["name"]);
    assert_eq!(after[0]["credentials"]["password"]["config"], before[0]["credentials"]["password"]["config"]);
    assert_eq!((&after[1]["state"], &after[2]["state"]), (&json!("inactive"), &json!("active")));
    assert_eq!(
        after[2]["credentials"]["password"]["config"]["hashed_password"],
        json!(hash_of(&pool, &trader(2)).await)
    );
    assert_eq!(after[3], before[3]);
    for (after, before) in after.iter().zip(&before) {
        for kept in ["schema_id", "metadata_public", "metadata_admin", "external_id"] {
            assert_eq!(after[kept], before[kept], "{kept}");
        }
        assert_eq!(after["credentials"]["totp"], before["credentials"]["totp"]);
    }
}

#[sqlx::test]
async fn a_failed_identity_is_listed_and_the_others_are_written(pool: PgPool) {
    let mut all = with_metadata(0..7);
    all[6]["traits"]["email"] = "taken@example.com".into();
    let kratos = Kratos::start(&all);
    assert!(import_from(&pool, &kratos, &[]).ok);
    let since = present();
    let service = Service::start(&pool).await;
    resets(&service, 0..4).await;
    service.stops().await;
    assert!(vos_auth(&pool, &["account", "erase", "trader-5@example.com", "--yes"]).ok);
    assert!(vos_auth(&pool, &["account", "erase", "taken@example.com", "--yes"]).ok);
    assert!(vos_auth(&pool, &["account", "set-email", "trader-4@example.com", "taken@example.com"]).ok);
    let id = |n: usize| all[n]["id"].as_str().unwrap();
    kratos.fails_for(&[id(1)]);
    kratos.loses(id(2));
    let ended = export_to(&pool, &kratos, &since, &[]);
    assert!(!ended.ok && ended.err.contains("5 accounts failed; "), "{}", ended.err);
    assert!(ended.out.starts_with("7 of 7 accounts that were changed here: 2 written"), "{}", ended.out);
    let found: Vec<_> =
        failed(&pool).iter().map(|one| (one["id"].clone(), one["reason"].to_string())).collect();
    for ((found, reason), (n, part)) in found.iter().zip([
        (1, "it answered 500"),
        (2, "no identity"),
        (4, "has this email"),
        (5, "erased"),
        (6, "erased"),
    ]) {
        assert!(found == id(n) && reason.contains(part), "{found}: {reason}");
    }
    let after = kratos.identities();
    assert_eq!(
        after[2]["credentials"]["password"]["config"]["hashed_password"],
        json!(hash_of(&pool, &trader(3)).await)
    );
    kratos.fails_for(&[]);
    kratos.loses(id(5));
    kratos.loses(id(6));
    let again = export_to(&pool, &kratos, &since, &[]);
    assert!(!again.ok && again.out.contains("2 written, 4 unchanged, 1 failed"), "{}", again.out);
}

/// Kratos stops, then answers 500: the export stops, and a repeated one does the rest.
#[sqlx::test]
async fn an_export_stops_when_kratos_is_down_and_a_repeated_one_continues(pool: PgPool) {
    let all = with_metadata(0..6);
    let kratos = Kratos::start(&all);
    assert!(import_from(&pool, &kratos, &[]).ok);
    let since = present();
    let service = Service::start(&pool).await;
    resets(&service, 0..6).await;
    service.stops().await;
    kratos.is_gone_after(2, Method::PUT);
    let ended = export_to(&pool, &kratos, &since, &[]);
    assert!(
        !ended.ok && ended.err.contains("the request to Kratos failed: it does not answer"),
        "{}",
        ended.err
    );
    assert!(ended.err.contains("run the same export again to continue"), "{}", ended.err);
    assert!(ended.out.starts_with("2 of 6 accounts that were changed here: 2 written"), "{}", ended.out);
    kratos.is_back();
    kratos.fails_for(&all.iter().map(|one| one["id"].as_str().unwrap()).collect::<Vec<_>>());
    let ended = export_to(&pool, &kratos, &since, &[]);
    assert!(!ended.ok && ended.out.starts_with("4 of 6 accounts"), "five failures in a row: {}", ended.out);
    kratos.fails_for(&[]);
    kratos.asked(&Method::PUT);
    let again = export_to(&pool, &kratos, &since, &[]);
    assert!(again.ok && again.out.contains("4 written, 2 unchanged, 0 failed"), "{}{}", again.out, again.err);
    assert_eq!(kratos.asked(&Method::PUT), 4);
}

#[sqlx::test]
async fn a_url_that_shows_secrets_or_is_not_kratos_is_refused(pool: PgPool) {
    let url = database::url(&pool);
    let kratos = Kratos::start(&traders(0..1));
    let with = |arguments: &[&str], more: &[(&str, &str)]| {
        let environment = [&[("DATABASE_URL", url.as_str())], more].concat();
        let ended = run(&[&["account"], arguments].concat(), &environment);
        (String::from_utf8(ended.stderr).unwrap(), ended.status.success())
    };
    let [refused, left_behind] = lists(&pool);
    let import = |from: &str, more: &[(&str, &str)]| {
        let lists = ["--refused", &refused, "--left-behind", &left_behind];
        with(&[&["import", "--from-kratos", from], &lists[..]].concat(), more)
    };
    let (err, _) = import("http://admin:hunter2@127.0.0.1:4434", &[]);
    assert!(err.contains("KRATOS_AUTHORIZATION") && !err.contains("hunter2"), "{err}");
    assert!(import("http://kratos.example:4434", &[]).0.contains("--plain-http"));
    assert!(import(&format!("{}/elsewhere", kratos.url()), &[]).0.contains("is this the admin API"));
    assert!(import(&kratos.url(), &[("KRATOS_AUTHORIZATION", "Bearer hunter2")]).1);
    assert_eq!(kratos.authorization().as_deref(), Some("Bearer hunter2"));
    let export_since = |since: &str| with(&["export", "--to-kratos", &kratos.url(), "--since", since], &[]).0;
    assert!(export_since("yesterday").contains("2026-11-29T12:00:00Z"));
    assert!(export_since("2999-01-01T00:00:00Z").contains("in the future"));
    assert!(export_since("2020-01-01T00:00:00Z").contains("longer ago than audit events are kept"));
}

/// The import writes a page before it asks for the next one. Ctrl-C does not wait until the next
/// page arrives.
#[sqlx::test]
async fn ctrl_c_ends_an_import_that_waits_for_a_page(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..700));
    let _hold = kratos.holds_after(1, Method::GET);
    let (from, url, [refused, left_behind]) = (kratos.url(), database::url(&pool), lists(&pool));
    let lists = ["--refused", &refused, "--left-behind", &left_behind];
    let arguments = [&["account", "import", "--from-kratos", &from], &lists[..]].concat();
    let program = Program::start(&arguments, &[("DATABASE_URL", url.as_str())]);
    let written = async { while count(&pool, "account").await < 500 {} };
    tokio::time::timeout(PATIENCE, written).await.expect("the first page is written");
    program.signal("-INT");
    let (out, ok) = program.ends();
    assert!(!ok && out.iter().any(|line| line.contains("stopped after 500 records")), "{out:?}");
    assert!(!Path::new(&refused).exists(), "a list without records is deleted");
}

/// Kratos stops in the middle of its list: a repeated import does the rest.
#[sqlx::test]
async fn an_import_stops_when_kratos_is_down_and_a_repeated_one_continues(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..700));
    kratos.is_gone_after(1, Method::GET);
    let ended = import_from(&pool, &kratos, &[]);
    let reason = "Kratos cannot be read: it does not answer";
    assert!(
        !ended.ok && ended.err.contains(reason) && ended.out.starts_with("500 records: 500 new"),
        "{}",
        ended.err
    );
    assert!(ended.err.contains("run the same import again to continue"), "{}", ended.err);
    assert!(!Path::new(&lists(&pool)[0]).exists(), "a list without records is deleted");
    kratos.is_back();
    let again = import_from(&pool, &kratos, &[]);
    assert!(
        again.ok && again.out.starts_with("700 records: 200 new, 0 changed, 500 unchanged"),
        "{}",
        again.out
    );
}

/// Ctrl-C while a PUT is unanswered: the export waits for the answer, and sends no other.
#[sqlx::test]
async fn ctrl_c_waits_for_the_put_that_was_sent(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..3));
    assert!(import_from(&pool, &kratos, &[]).ok);
    let since = present();
    let service = Service::start(&pool).await;
    resets(&service, 0..3).await;
    service.stops().await;
    let hold = kratos.holds_after(0, Method::PUT);
    let (to, list, url) = (kratos.url(), path_of(&pool, "failed.ndjson"), database::url(&pool));
    let arguments = ["account", "export", "--to-kratos", &to, "--since", &since, "--failed", &list];
    let mut program = Program::start(&arguments, &[("DATABASE_URL", url.as_str())]);
    while kratos.asked(&Method::PUT) == 0 {
        tokio::task::yield_now().await;
    }
    program.signal("-INT");
    program.line_with("stopping as soon as Kratos has answered");
    drop(hold);
    let (out, ok) = program.ends();
    let out = out.join("\n");
    assert!(!ok && out.contains("1 of 3 accounts that were changed here: 1 written"), "{out}");
    assert!(out.contains("stopped; run the same export again to continue"), "{out}");
    assert_eq!(kratos.asked(&Method::PUT), 0);
    let again = export_to(&pool, &kratos, &since, &[]);
    assert!(again.ok && again.out.contains("2 written, 1 unchanged, 0 failed"), "{}{}", again.out, again.err);
}
