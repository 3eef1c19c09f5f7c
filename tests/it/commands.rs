//! The operator's commands that read: what they find, for people and for programs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use crate::harness::program::{keys_folder, run};
use crate::harness::relay::Mood;
use crate::harness::{Service, database, place};

const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "morning boat on a green river";

/// What the program prints, or its error message.
pub fn vos_auth(pool: &PgPool, arguments: &[&str]) -> Result<String, String> {
    let url = database::operator_url(pool);
    let ended = run(arguments, &[("DATABASE_URL", &url), ("JWT_KEYS", keys_folder())]);
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if ended.status.success() { Ok(text(ended.stdout)) } else { Err(text(ended.stderr)) }
}

/// The objects that a command prints with `--json`, one on each line.
fn objects(pool: &PgPool, arguments: &[&str]) -> Vec<Value> {
    let printed = vos_auth(pool, &[arguments, &["--json"]].concat()).unwrap();
    printed.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

pub async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect(sql);
}

pub async fn count(pool: &PgPool, of: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {of}"))).fetch_one(pool).await.unwrap()
}

#[sqlx::test]
async fn accounts_are_listed_and_found(pool: PgPool) {
    let numbered = |n: u8| Uuid::from_u128(n.into()).to_string();
    for (n, email, traits) in [
        (1, "zoe@example.com", "{}"),
        (2, "trader@example.com", r#"{"external_id": "crm-7"}"#),
        (3, "trader_two@example.com", r#"{"external_id": "crm-8"}"#),
        (4, "trader%@example.com", "{}"),
        (5, "tra@example.com", r#"{"external_id": 9}"#),
    ] {
        let sql = "INSERT INTO account (id, email, traits, created_at, updated_at) VALUES ($1, $2, $3::jsonb, $4, $4)";
        let created = time::OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        sqlx::query(sql)
            .bind(Uuid::from_u128(n))
            .bind(email)
            .bind(traits)
            .bind(created)
            .execute(&pool)
            .await
            .unwrap();
    }
    let found = |arguments: &[&str]| {
        let objects = objects(&pool, &[&["account"], arguments].concat());
        objects.iter().map(|found| found["email"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(found(&["list"]).len(), 5);
    assert_eq!(found(&["list", "--limit", "2"]), ["zoe@example.com", "trader@example.com"]);
    let rest = ["trader_two@example.com", "trader%@example.com", "tra@example.com"];
    assert_eq!(found(&["list", "--after", &numbered(2)]), rest);
    assert_eq!(found(&["find", " Trader@Example.com"]), ["trader@example.com"]);
    assert_eq!(found(&["find", &numbered(1)]), ["zoe@example.com"]);
    // The order is by octets: `%`, `@`, `_`. Neither `%` nor `_` is a wildcard.
    let traders = ["trader%@example.com", "trader@example.com", "trader_two@example.com"];
    assert_eq!(found(&["find", "TRADER"]), traders);
    assert_eq!(found(&["find", "trader", "--limit", "2"]), traders[..2]);
    assert_eq!(found(&["find", "trader", "--after", &numbered(2)]), traders[2..]);
    assert_eq!(found(&["find", "trader_"]), ["trader_two@example.com"]);
    assert_eq!(found(&["find", "trader@example.co", "--prefix"]), ["trader@example.com"]);
    assert_eq!(found(&["find", "crm-8", "--external-id"]), ["trader_two@example.com"]);
    assert_eq!(found(&["find", "9", "--external-id"]), ["tra@example.com"]);
    for nobody in [&["nobody"][..], &["crm", "--external-id"], &[&numbered(9)]] {
        let why = vos_auth(&pool, &[&["account", "find"], nobody].concat()).unwrap_err();
        assert_eq!(why, "vos-auth: no account is found");
    }
    let listed = vos_auth(&pool, &["account", "list"]).unwrap();
    let row = listed.lines().nth(2).unwrap();
    assert!(row.starts_with(&numbered(2)) && row.ends_with("  trader@example.com"), "{listed}");
    assert!(row.contains("  active  ") && row.contains("  2027-01-15T08:00:00Z  "), "{listed}");
}

/// Why no code came: the relay refused it, the limit was reached, a code is still pending.
#[sqlx::test]
async fn show_says_what_became_of_codes_and_limits(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let show = || {
        let shown = vos_auth(&pool, &["account", "show", TRADER, "--json"]).unwrap();
        serde_json::from_str::<Value>(&shown).unwrap()
    };
    let is_in = |shown: &Value, state: &str| {
        let mails = shown["mails"].as_array().unwrap();
        mails.iter().find(|mail| mail["state"] == state).cloned()
    };
    service.mails_code_to(&mut service.client(), TRADER).await;
    service.until("the delivery is recorded", async || is_in(&show(), "delivered").is_some()).await;
    service.relay.is_in_mood(Mood::RefusesRecipient("550 5.1.1 no such user"));
    assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    service.until("the code is given up", async || is_in(&show(), "given_up").is_some()).await;
    assert_eq!(service.count("audit_event WHERE what = 'recovery_not_sent'").await, 1);
    service.relay.is_in_mood(Mood::RefusesRecipient("450 4.2.0 later"));
    assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    service.until("the code is retried", async || is_in(&show(), "retrying").is_some()).await;
    assert_eq!(service.client().logs_in(TRADER, "not the password").await.status, 401);

    let shown = show();
    let mails = shown["mails"].as_array().unwrap();
    assert_eq!(mails.len(), 3, "{shown}");
    assert_eq!(is_in(&shown, "retrying").unwrap()["last_error"], "rcpt 450 4.2.0", "{shown}");
    assert!(mails.iter().all(|mail| mail["kind"] == "recovery_code"), "{shown}");
    let recoveries = shown["recoveries"].as_array().unwrap();
    assert_eq!(recoveries.len(), 3, "{shown}");
    assert!(recoveries.iter().all(|found| found["state"] == "code_sent" && found["attempts_left"] == 5));
    let limit = |name: &str| {
        let limits = shown["limits"].as_array().unwrap();
        let limit = limits.iter().find(|limit| limit["name"] == name).expect(name);
        (limit["left"].as_i64().unwrap(), limit["capacity"].as_i64().unwrap())
    };
    assert_eq!([limit("recoveries"), limit("recoveries_per_day")], [(0, 3), (7, 10)]);
    assert_eq!([limit("failed_logins"), limit("wrong_passwords")], [(9, 10), (10, 10)]);

    let lines = vos_auth(&pool, &["account", "show", TRADER]).unwrap();
    for part in [
        "\nrecovery  code_sent, started 20",
        "\nlimit     recoveries, 0 of 3 left, full at 20",
        "\nmail      recovery_code retrying 20",
        ", last error rcpt 450 4.2.0",
        "\nmail      recovery_code given_up 20",
    ] {
        assert!(lines.contains(part), "{part} in {lines}");
    }
    assert!(!lines.contains("wrong_passwords"), "a full bucket is left out: {lines}");
    let limits = vos_auth(&pool, &["account", "limits", TRADER]).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("recoveries ") && line.contains("  0         3  20")));
    assert_eq!(objects(&pool, &["account", "limits", TRADER]).len(), 9);
    // An address without an account has limits, too.
    let unknown = vos_auth(&pool, &["account", "limits", "nobody@example.com"]).unwrap();
    assert!(unknown.contains("recoveries") && !unknown.contains("wrong_passwords"), "{unknown}");
    let burst = [("ADDRESS_BURST", "2"), ("DATABASE_URL", &database::operator_url(&pool))];
    let limits = run(&["account", "limits", "nobody@example.com", "--json"], &burst).stdout;
    assert!(String::from_utf8(limits).unwrap().contains(r#""name":"recoveries","capacity":2,"left":2"#));
    service.stops().await;
}

#[sqlx::test]
async fn a_recovery_is_shown_in_each_state(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let states = || {
        let shown = vos_auth(&pool, &["account", "show", TRADER, "--json"]).unwrap();
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let recoveries = shown["recoveries"].as_array().unwrap().clone();
        recoveries.iter().map(|found| found["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut guessing = service.client();
    let code = service.mails_code_to(&mut guessing, TRADER).await;
    let wrong = if code == "00000000" { "11111111" } else { "00000000" };
    for _ in 0..5 {
        guessing.verifies(wrong).await;
    }
    // Recoveries are listed by id, which has the time in milliseconds.
    service.clock.advance(Duration::from_secs(1));
    let mut resetting = service.verified(TRADER).await;
    assert_eq!(states(), ["verified", "spent"]);
    assert!(resetting.resets("night train in autumn rain").await.is_signed_in());
    assert_eq!(states(), ["used", "ended"]);
    service.clock.advance(Duration::from_secs(1));
    service.mails_code_to(&mut service.client(), TRADER).await;
    execute(&pool, "UPDATE recovery_session SET expires_at = now() WHERE state = 'code_sent'").await;
    assert_eq!(states(), ["expired", "used", "ended"]);
    service.stops().await;
}

#[sqlx::test]
async fn the_history_of_an_account_outlives_it(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    service.until("the login is recorded", async || count(&pool, "audit_event").await == 2).await;
    vos_auth(&pool, &["account", "disable", TRADER, "--yes"]).unwrap();
    vos_auth(&pool, &["account", "enable", TRADER]).unwrap();
    let events = |name: &str, more: &[&str]| objects(&pool, &[&["account", "history", name], more].concat());
    let text = |event: &Value, name: &str| event[name].as_str().unwrap_or("-").to_owned();
    let all = events(TRADER, &[]);
    let names: Vec<_> = all.iter().map(|event| text(event, "what")).collect();
    assert_eq!((names.len(), &names[..2]), (4, &["account_enabled".into(), "account_disabled".into()][..]));
    let signed_in = all.iter().find(|event| event["what"] == "signed_in").unwrap();
    assert_eq!(signed_in["client_ip"], "127.0.0.1");
    assert_eq!(events(TRADER, &["--before", &text(&all[0], "id")]), all[1..]);
    assert_eq!(events(TRADER, &["--limit", "2"]), all[..2]);
    let lines = vos_auth(&pool, &["account", "history", TRADER]).unwrap();
    assert!(lines.lines().nth(1).unwrap().contains("  account_enabled "), "{lines}");
    vos_auth(&pool, &["account", "erase", TRADER, "--yes"]).unwrap();
    let after = events(&text(signed_in, "account_id"), &[]);
    assert_eq!((after.len(), &after[0]["what"]), (5, &"account_erased".into()));
    assert!(after.iter().all(|event| event["client_ip"].is_null()), "{after:?}");
    let why = vos_auth(&pool, &["account", "history", TRADER]).unwrap_err();
    assert_eq!(why, "vos-auth: there is no account with this address or id");
    service.stops().await;
}

/// The words of a text that begin with a date.
fn dates(text: &str) -> Vec<&str> {
    let words = text.split(|letter: char| letter.is_whitespace() || "\",".contains(letter));
    words.filter(|word| word.get(4..5) == Some("-") && word.starts_with("20")).collect()
}

/// Every command that reads has `--json`, and prints times in RFC 3339, in UTC, to the second.
#[sqlx::test]
async fn every_reading_command_has_json_and_one_format_of_times(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    service.relay.is_in_mood(Mood::RefusesRecipient("450 4.2.0 later"));
    assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    service
        .until("the code is retried", async || count(&pool, "outbox WHERE last_error <> ''").await == 1)
        .await;
    let pending: Uuid = sqlx::query_scalar("SELECT id FROM outbox").fetch_one(&pool).await.unwrap();
    let pending = pending.to_string();
    vos_auth(&pool, &["operator", "create", "alice", "--role", "auditor"]).unwrap();
    let dead_letter =
        "INSERT INTO event_delivery (hook, subject, event_id, enqueued_at, next_attempt_at, died_at)
         SELECT 'rest', account_id, id, created_at, created_at, created_at FROM audit_event LIMIT 1";
    execute(&pool, dead_letter).await;
    for (arguments, times) in [
        (&["account", "list"][..], true),
        (&["account", "find", "trader"], true),
        (&["account", "show", TRADER], true),
        (&["account", "sessions", TRADER], true),
        (&["account", "history", TRADER], true),
        (&["account", "limits", TRADER], true),
        (&["outbox", "list"], false),
        (&["outbox", "show", &pending], true),
        (&["operator", "list"], true),
        (&["event", "list"], true),
        (&["key", "list"], true),
    ] {
        let objects = objects(&pool, arguments);
        assert!(!objects.is_empty() && objects.iter().all(Value::is_object), "{arguments:?}");
        let text = vos_auth(&pool, arguments).unwrap();
        let json = vos_auth(&pool, &[arguments, &["--json"]].concat()).unwrap();
        for (printed, has_times) in [(&text, times), (&json, true)] {
            let dates = dates(printed);
            assert_eq!(!dates.is_empty(), has_times, "{arguments:?}: {printed}");
            let is_time =
                |date: &&str| date.len() == 20 && date.ends_with('Z') && date.get(10..11) == Some("T");
            assert!(dates.iter().all(is_time), "{arguments:?}: {dates:?}");
        }
    }
    let [listed] = &objects(&pool, &["outbox", "list"])[..] else { panic!("one email") };
    assert_eq!((&listed["id"], &listed["kind"]), (&pending.as_str().into(), &"recovery_code".into()));
    assert!(["waits", "due", "under_way"].contains(&listed["state"].as_str().unwrap()), "{listed}");
    assert!(listed.get("to").is_none(), "a list may be shared: {listed}");
    assert_eq!(objects(&pool, &["outbox", "show", &pending])[0]["to"], TRADER);
    service.stops().await;
}

#[test]
fn keys_are_listed_with_what_they_are_used_for() {
    let folder = place::temporary(&format!("listed-keys-{}", std::process::id()));
    let key = |command: &[&str]| {
        let ended = run(&[&["key"], command].concat(), &[("JWT_KEYS", &folder)]);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    };
    key(&["generate"]);
    key(&["rotate"]);
    let newest = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    for old in ["20260101T000000Z", "20260201T000000Z"] {
        std::fs::copy(&newest, Path::new(&folder).join(old).with_extension("pem")).unwrap();
    }
    let listed = key(&["list", "--json"]);
    let keys: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let states: Vec<_> = keys.iter().map(|key| key["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["expired", "retired", "signing", "waiting"], "{listed}");
    assert_eq!(keys[0]["signs_from"], "2026-01-01T00:00:00Z");
    assert_eq!(keys[0]["signs_until"], "2026-02-01T00:00:00Z");
    assert_eq!(keys[0]["published_until"], "2026-02-01T00:12:00Z");
    assert_eq!((&keys[2]["signs_until"], &keys[3]["signs_until"]), (&keys[3]["signs_from"], &Value::Null));
    assert!(!listed.contains("PRIVATE"), "{listed}");
    let lines = key(&["list"]);
    assert!(lines.lines().nth(3).unwrap().contains("  signing   "), "{lines}");
}

#[test]
fn completions_and_man_pages_are_made_of_the_command_line() {
    let completions = |shell: &str| {
        let ended = run(&["completions", shell], &[]);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    };
    for shell in ["bash", "zsh", "fish"] {
        let script = completions(shell);
        assert!(script.contains("revoke-all") && script.contains("dry-run"), "{shell}");
    }
    let folder = place::temporary(&format!("man-{}", std::process::id()));
    let script = format!("{folder}.bash");
    std::fs::write(&script, completions("bash")).unwrap();
    for (words, completed) in
        [("account rev", "revoke revoke-all"), ("account revoke-all --d", "--dry-run"), ("ou", "outbox")]
    {
        let completes = format!(
            "source \"$0\"; COMP_WORDS=(vos-auth {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            $(complete -p vos-auth | sed -E 's/.*-F ([^ ]+).*/\\1/') vos-auth \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"
            echo \"${{COMPREPLY[@]}}\""
        );
        let bash = Command::new("bash").args(["-c", &completes, &script]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&bash.stdout).trim(), completed, "{bash:?}");
    }

    assert!(run(&["man", &folder], &[]).status.success());
    let page = |name: &str| std::fs::read_to_string(Path::new(&folder).join(name));
    assert!(page("vos-auth.1").unwrap().contains("vos\\-auth\\-account(1)"));
    assert!(page("vos-auth-account-revoke-all.1").unwrap().contains("\\-\\-dry\\-run"));
    assert!(page("vos-auth-man.1").is_err(), "a hidden command has no page");
    let file = run(&["man", &script], &[]);
    assert!(!file.status.success() && String::from_utf8_lossy(&file.stderr).contains("cannot be written"));
}
