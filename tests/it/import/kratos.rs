//! The move from a running Kratos and back, with the built program, against a counterpart that behaves as Kratos is
//! documented to.

use std::os::unix::fs::PermissionsExt as _;

use axum::http::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use time::format_description::well_known::Rfc3339;

use super::{
    ARGON2ID, BCRYPT, Ended, NEW, PASSWORD, accounts, count, hash_of, imports, lines, path_of, traders,
    vos_auth,
};
use crate::harness::kratos::Kratos;
use crate::harness::program::{Program, run};
use crate::harness::{PATIENCE, Service, database, now};

/// Identities with all that a careless PUT would lose.
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

pub(super) fn takes_over(pool: &PgPool, kratos: &Kratos, more: &[&str]) -> Ended {
    let (url, refused) = (kratos.url(), path_of(pool, "import.refused.ndjson"));
    vos_auth(pool, &[&["account", "import", "--from-kratos", &url, "--refused", &refused], more].concat())
}

pub(super) fn carries_back(pool: &PgPool, kratos: &Kratos, since: &str, more: &[&str]) -> Ended {
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

/// 1,201 identities: three requests of 500, not one for each.
#[sqlx::test]
async fn an_import_asks_for_pages(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..1201));
    kratos.links_to("http://elsewhere.example");
    let dry = takes_over(&pool, &kratos, &["--dry-run"]);
    assert!(
        dry.well && dry.said.starts_with("1201 records: dry run, the result would be 1201 new"),
        "{}{}",
        dry.said,
        dry.why
    );
    assert_eq!((count(&pool, "account").await, kratos.asked(&Method::GET)), (0, 3));
    let ended = takes_over(&pool, &kratos, &[]);
    assert!(ended.well && ended.said.starts_with("1201 records: 1201 new"), "{}{}", ended.said, ended.why);
    assert!(ended.said.contains("passwords that keep working: bcrypt 1201"), "{}", ended.said);
    assert_eq!(kratos.asked(&Method::GET), 3);
    let here = accounts(&pool).await;
    sqlx::query("DELETE FROM account").execute(&pool).await.unwrap();
    assert!(imports(&pool, &lines(&with_metadata(0..1201)), &[]).well);
    assert!(accounts(&pool).await == here, "the same accounts as of a file");
    let again = takes_over(&pool, &kratos, &["--page-size", "400"]);
    assert!(
        again.well && again.said.starts_with("1201 records: 0 new, 0 changed, 1201 unchanged"),
        "{}",
        again.said
    );
    assert_eq!((kratos.asked(&Method::GET), kratos.asked(&Method::PUT)), (4, 0));
}

#[sqlx::test]
async fn what_is_to_be_done_before_the_import_comes_first(pool: PgPool) {
    let mut all = traders(0..3);
    all[0]["credentials"]["password"]["config"]["hashed_password"] = BCRYPT.replace("$04$", "$12$").into();
    all[1]["traits"]["email"] = "trần@example.com".into();
    let kratos = Kratos::start(&all);
    let list = path_of(&pool, "import.refused.ndjson");
    // What was there before could be read by everybody.
    std::fs::write(&list, "").unwrap();
    std::fs::set_permissions(&list, std::fs::Permissions::from_mode(0o644)).unwrap();
    let ended = takes_over(&pool, &kratos, &["--dry-run", "--login-failure-time", "10ms"]);
    let said: Vec<_> = ended.said.lines().collect();
    assert!(said[0].starts_with("1 emails have non-ASCII characters before the @"), "{}", ended.said);
    let advised =
        said[1].strip_prefix("set LOGIN_FAILURE_TIME=").and_then(|rest| rest.split_once("ms for `serve`"));
    assert!(advised.unwrap().0.parse::<u32>().unwrap() >= 100, "Kratos's default cost: {}", ended.said);
    assert!(said[2].starts_with("3 records: dry run, the result would be 2 new"), "{}", ended.said);
    let refused: Value = serde_json::from_str(&std::fs::read_to_string(&list).unwrap()).unwrap();
    assert!(refused["id"] == all[1]["id"] && refused.get("line").is_none(), "{refused}");
    assert_eq!(std::fs::metadata(list).unwrap().permissions().mode() & 0o777, 0o600);
}

/// The way there and back: nothing of Kratos's changes but the passwords that were changed here.
#[sqlx::test]
async fn a_round_trip_changes_nothing_but_the_passwords_that_were_changed(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..6));
    assert!(takes_over(&pool, &kratos, &[]).well);
    let (since, before) = (present(), kratos.identities());
    let service = Service::start(&pool).await;
    resets(&service, 0..2).await;
    // A sign-in hashes anew, which is no change.
    for n in 2..4 {
        assert!(service.client().logs_in(&trader(n), PASSWORD).await.is_signed_in());
        assert_ne!(hash_of(&pool, &trader(n)).await.as_deref(), Some(BCRYPT));
    }
    service.stops().await;
    let dry = carries_back(&pool, &kratos, &since, &["--dry-run"]);
    let counts = "2 of 2 accounts that were changed here: dry run, the result would be 2 written, 0 unchanged, 0 failed";
    assert!(dry.well && dry.said.starts_with(counts), "{}{}", dry.said, dry.why);
    assert_eq!(kratos.asked(&Method::PUT), 0);
    assert_eq!(count(&pool, "audit_event WHERE what = 'accounts_exported'").await, 0);

    let ended = carries_back(&pool, &kratos, &since, &[]);
    assert!(
        ended.well && ended.said.contains("2 written, 0 unchanged, 0 failed"),
        "{}{}",
        ended.said,
        ended.why
    );
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
    let again = carries_back(&pool, &kratos, &since, &[]);
    assert!(again.well && again.said.contains("0 written, 2 unchanged, 0 failed"), "{}", again.said);
    assert_eq!(kratos.asked(&Method::PUT), 0, "what is the same is not written");
}

#[sqlx::test]
async fn a_rehash_alone_writes_nothing(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..2));
    assert!(takes_over(&pool, &kratos, &[]).well);
    let (since, before) = (present(), kratos.identities());
    let service = Service::start(&pool).await;
    assert!(service.client().logs_in(&trader(0), PASSWORD).await.is_signed_in());
    service.stops().await;
    assert!(hash_of(&pool, &trader(0)).await.unwrap().starts_with("$argon2id$"));
    kratos.asked(&Method::GET);
    let ended = carries_back(&pool, &kratos, &since, &[]);
    assert!(ended.well && ended.said.starts_with("0 of 0 accounts"), "{}{}", ended.said, ended.why);
    assert_eq!((kratos.identities(), kratos.asked(&Method::PUT)), (before, 0));
}

/// An address and a state that an operator changed, and what Kratos has changed later, which stays.
#[sqlx::test]
async fn addresses_and_states_come_along_and_later_changes_there_stay(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..4));
    assert!(takes_over(&pool, &kratos, &[]).well);
    let since = present();
    for arguments in [
        ["account", "set-email", "trader-0@example.com", "renamed@example.com"].as_slice(),
        &["account", "disable", "trader-1@example.com"],
        &["account", "disable", "trader-2@example.com"],
        &["account", "enable", "trader-2@example.com"],
    ] {
        assert!(vos_auth(&pool, arguments).well);
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
    let ended = carries_back(&pool, &kratos, &since, &[]);
    assert!(ended.well && ended.said.starts_with("4 of 4 accounts"), "{}{}", ended.said, ended.why);
    assert!(
        ended.said.contains("3 written, 0 unchanged, 0 failed\n1 were changed in Kratos later"),
        "{}",
        ended.said
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
async fn one_that_fails_is_listed_and_the_rest_goes_on(pool: PgPool) {
    let mut all = with_metadata(0..7);
    all[6]["traits"]["email"] = "taken@example.com".into();
    let kratos = Kratos::start(&all);
    assert!(takes_over(&pool, &kratos, &[]).well);
    let since = present();
    let service = Service::start(&pool).await;
    resets(&service, 0..4).await;
    service.stops().await;
    assert!(vos_auth(&pool, &["account", "erase", "trader-5@example.com"]).well);
    assert!(vos_auth(&pool, &["account", "erase", "taken@example.com"]).well);
    assert!(vos_auth(&pool, &["account", "set-email", "trader-4@example.com", "taken@example.com"]).well);
    let id = |n: usize| all[n]["id"].as_str().unwrap();
    kratos.fails_for(&[id(1)]);
    kratos.loses(id(2));
    let ended = carries_back(&pool, &kratos, &since, &[]);
    assert!(!ended.well && ended.why.contains("5 accounts failed: "), "{}", ended.why);
    assert!(ended.said.starts_with("7 of 7 accounts that were changed here: 2 written"), "{}", ended.said);
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
    let again = carries_back(&pool, &kratos, &since, &[]);
    assert!(!again.well && again.said.contains("2 written, 4 unchanged, 1 failed"), "{}", again.said);
}

/// Kratos ends in the middle, and then answers 500 to all: each time it stops, and run again it does the rest, once.
#[sqlx::test]
async fn a_kratos_that_is_down_stops_it_and_run_again_it_goes_on(pool: PgPool) {
    let all = with_metadata(0..6);
    let kratos = Kratos::start(&all);
    assert!(takes_over(&pool, &kratos, &[]).well);
    let since = present();
    let service = Service::start(&pool).await;
    resets(&service, 0..6).await;
    service.stops().await;
    kratos.is_gone_after(2, Method::PUT);
    let ended = carries_back(&pool, &kratos, &since, &[]);
    assert!(!ended.well && ended.why.contains("Kratos cannot be asked: it does not answer"), "{}", ended.why);
    assert!(ended.why.contains("run the same export again to go on"), "{}", ended.why);
    assert!(ended.said.starts_with("2 of 6 accounts that were changed here: 2 written"), "{}", ended.said);
    kratos.is_back();
    kratos.fails_for(&all.iter().map(|one| one["id"].as_str().unwrap()).collect::<Vec<_>>());
    let ended = carries_back(&pool, &kratos, &since, &[]);
    assert!(
        !ended.well && ended.said.starts_with("4 of 6 accounts"),
        "five failures in a row: {}",
        ended.said
    );
    kratos.fails_for(&[]);
    kratos.asked(&Method::PUT);
    let again = carries_back(&pool, &kratos, &since, &[]);
    assert!(
        again.well && again.said.contains("4 written, 2 unchanged, 0 failed"),
        "{}{}",
        again.said,
        again.why
    );
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
    let list = path_of(&pool, "import.refused.ndjson");
    let import = |from: &str, more: &[(&str, &str)]| {
        with(&["import", "--from-kratos", from, "--refused", &list], more)
    };
    let (why, _) = import("http://admin:hunter2@127.0.0.1:4434", &[]);
    assert!(why.contains("KRATOS_AUTHORIZATION") && !why.contains("hunter2"), "{why}");
    assert!(import("http://kratos.example:4434", &[]).0.contains("--plain-http"));
    assert!(import(&format!("{}/elsewhere", kratos.url()), &[]).0.contains("is this the admin API"));
    assert!(import(&kratos.url(), &[("KRATOS_AUTHORIZATION", "Bearer hunter2")]).1);
    assert_eq!(kratos.authorization().as_deref(), Some("Bearer hunter2"));
    let back = |since: &str| with(&["export", "--to-kratos", &kratos.url(), "--since", since], &[]).0;
    assert!(back("yesterday").contains("2026-11-29T12:00:00Z"));
    assert!(back("2999-01-01T00:00:00Z").contains("in the future"));
    assert!(back("2020-01-01T00:00:00Z").contains("longer ago than audit events are kept"));
}

/// A page is written before the next one is answered, and Ctrl-C does not wait for that.
#[sqlx::test]
async fn ctrl_c_ends_an_import_that_waits_for_a_page(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..700));
    let _hold = kratos.holds_after(1, Method::GET);
    let (from, list, url) = (kratos.url(), path_of(&pool, "import.refused.ndjson"), database::url(&pool));
    let arguments = ["account", "import", "--from-kratos", &from, "--refused", &list];
    let program = Program::start(&arguments, &[("DATABASE_URL", url.as_str())]);
    let written = async { while count(&pool, "account").await < 500 {} };
    tokio::time::timeout(PATIENCE, written).await.expect("the first page is written");
    program.signal("-INT");
    let (said, well) = program.ends();
    assert!(!well && said.iter().any(|line| line.contains("stopped after 500 records")), "{said:?}");
}

/// Kratos ends in the middle of its list: what it gave is here, and run again the rest is.
#[sqlx::test]
async fn an_import_whose_kratos_is_down_goes_on_when_it_is_run_again(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..700));
    kratos.is_gone_after(1, Method::GET);
    let ended = takes_over(&pool, &kratos, &[]);
    let why = "Kratos cannot be read: it does not answer";
    assert!(
        !ended.well && ended.why.contains(why) && ended.said.starts_with("500 records: 500 new"),
        "{}",
        ended.why
    );
    assert!(ended.why.contains("run the same import again to go on"), "{}", ended.why);
    kratos.is_back();
    let again = takes_over(&pool, &kratos, &[]);
    assert!(
        again.well && again.said.starts_with("700 records: 200 new, 0 changed, 500 unchanged"),
        "{}",
        again.said
    );
}

/// The signal comes while Kratos has a PUT that it has not answered: that one is waited for, and the next is not sent.
#[sqlx::test]
async fn ctrl_c_waits_for_the_put_that_was_sent(pool: PgPool) {
    let kratos = Kratos::start(&with_metadata(0..3));
    assert!(takes_over(&pool, &kratos, &[]).well);
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
    let (said, well) = program.ends();
    let said = said.join("\n");
    assert!(!well && said.contains("1 of 3 accounts that were changed here: 1 written"), "{said}");
    assert!(said.contains("stopped; run the same export again to go on"), "{said}");
    assert_eq!(kratos.asked(&Method::PUT), 0);
    let again = carries_back(&pool, &kratos, &since, &[]);
    assert!(
        again.well && again.said.contains("2 written, 1 unchanged, 0 failed"),
        "{}{}",
        again.said,
        again.why
    );
}
