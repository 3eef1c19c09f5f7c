//! The operator's commands on one account, with the built program.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use vos_auth::outbox;

use crate::harness::program::run;
use crate::harness::{Service, database, now};

const TRADER: &str = "trader@example.com";
const OTHER: &str = "other@example.com";
const PASSWORD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";

/// The output of `vos-auth account …`, or its error message.
fn account(pool: &PgPool, arguments: &[&str]) -> Result<String, String> {
    let url = database::operator_url(pool);
    let ended = run(&[&["account"], arguments].concat(), &[("DATABASE_URL", url.as_str())]);
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if ended.status.success() { Ok(text(ended.stdout)) } else { Err(text(ended.stderr)) }
}

async fn service(pool: &PgPool) -> Service {
    let service = Service::start(pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    service
}

async fn id_of(service: &Service, email: &str) -> Uuid {
    let id = sqlx::query_scalar("SELECT id FROM account WHERE email = $1").bind(email);
    id.fetch_one(&service.pool).await.unwrap()
}

#[sqlx::test]
async fn show_prints_everything_but_the_hash(pool: PgPool) {
    let service = service(&pool).await;
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    let id = id_of(&service, TRADER).await.to_string();
    for name in [TRADER, " Trader@Example.com ", &id] {
        let shown = account(&pool, &["show", name]).unwrap();
        for part in [id.as_str(), TRADER, "active", "argon2id", "sessions  1"] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        assert!(!shown.contains("$argon2id"), "{shown}");
    }
    let shown = account(&pool, &["show", TRADER, "--json"]).unwrap();
    assert!(!shown.contains("$argon2id"), "{shown}");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let account_shown = &shown["account"];
    assert_eq!((&account_shown["email"], &account_shown["password"]), (&TRADER.into(), &"argon2id".into()));
    assert_eq!(shown["sessions"][0]["client_ip"], "127.0.0.1", "{shown}");
    for command in ["show", "disable", "enable", "sessions", "revoke", "erase"] {
        let why = account(&pool, &[command, "nobody@example.com"]).unwrap_err();
        assert_eq!(why, "vos-auth: there is no account with this address or id", "{command}");
        assert!(account(&pool, &[command, "no address"]).unwrap_err().contains("not an email address"));
    }
    service.stops().await;
}

#[sqlx::test]
async fn a_disabled_account_has_no_session_and_no_recovery(pool: PgPool) {
    let service = service(&pool).await;
    let mut client = service.client();
    assert!(client.logs_in(TRADER, PASSWORD).await.is_signed_in());
    let mut recovering = service.client();
    let code = service.mails_code_to(&mut recovering, TRADER).await;
    let mut verified = service.verified(TRADER).await;
    assert!(
        account(&pool, &["disable", TRADER, "--yes"]).unwrap().starts_with("the account is disabled; its")
    );
    assert_eq!(account(&pool, &["disable", TRADER, "--yes"]).unwrap(), "the account is disabled already");
    assert_eq!(service.count("audit_event WHERE what = 'account_disabled'").await, 1);
    assert_eq!(client.refreshes().await.error(), (401, "session_invalid"));
    assert_eq!(service.client().logs_in(TRADER, PASSWORD).await.error(), (401, "credentials_invalid"));
    assert_eq!(account(&pool, &["enable", TRADER]).unwrap(), "the account is active again");
    assert_eq!(account(&pool, &["enable", TRADER]).unwrap(), "the account is active already");
    assert_eq!(service.count("audit_event WHERE what = 'account_enabled'").await, 1);
    // The recoveries that were pending remain ended: one is now a decoy, and the other is consumed.
    assert_eq!(recovering.verifies(&code).await.attempts_left(), 4);
    assert_eq!(verified.resets(NEW).await.error(), (401, "recovery_session_used"));
    assert_eq!(client.refreshes().await.status, 401);
    assert!(client.logs_in(TRADER, PASSWORD).await.is_signed_in());
    service.stops().await;
}

#[sqlx::test]
async fn changing_the_address_ends_the_recoveries_of_the_old_one(pool: PgPool) {
    let service = service(&pool).await;
    service.has_trader(OTHER, PASSWORD).await;
    let mut client = service.client();
    assert!(client.logs_in(TRADER, PASSWORD).await.is_signed_in());
    let mut recovering = service.client();
    let code = service.mails_code_to(&mut recovering, TRADER).await;
    let mut verified = service.verified(TRADER).await;
    let mut before_move = service.client();
    assert!(before_move.starts_recovery("moved@example.com").await.is_code_sent());
    let mails = service.relay.mails().len();

    let why = account(&pool, &["set-email", TRADER, OTHER]).unwrap_err();
    assert!(why.contains("another account has this address"), "{why}");
    assert!(client.logs_in(TRADER, PASSWORD).await.is_signed_in(), "the account is unchanged");
    let output = account(&pool, &["set-email", TRADER, "Moved@Example.com"]).unwrap();
    assert!(output.starts_with("the account has the new address"), "{output}");
    let output = account(&pool, &["set-email", "moved@example.com", "moved@example.com"]).unwrap();
    assert_eq!(output, "the account has this address already");
    assert_eq!(service.count("audit_event WHERE what = 'email_changed'").await, 1);

    let pending =
        "recovery_session WHERE email = 'trader@example.com' AND state IN ('code_sent', 'verified')";
    assert_eq!(service.count(pending).await, 0);
    assert_eq!(recovering.verifies(&code).await.attempts_left(), 4);
    assert_eq!(verified.resets(NEW).await.error(), (401, "recovery_session_used"));
    let session = client.refreshes().await;
    assert_eq!(session.body["identity"]["traits"]["email"], "moved@example.com", "{}", session.text);
    assert_eq!(service.client().logs_in(TRADER, PASSWORD).await.status, 401);
    assert!(service.client().logs_in("moved@example.com", PASSWORD).await.is_signed_in());
    assert!(before_move.starts_recovery("moved@example.com").await.is_code_sent());
    // The command enqueues the notice at the real time, which the service's clock must reach.
    service.clock.advance(Duration::from_mins(1));
    service.until_outbox_has(0).await;
    let sent = service.relay.mails();
    assert_eq!(sent.len(), mails + 1, "only the notice to the old address");
    assert_eq!(sent[mails].recipients, [TRADER]);
    // The old address is free, and its mailbox gives no access to the moved account.
    service.has_trader(TRADER, PASSWORD).await;
    assert_eq!(recovering.verifies(&code).await.attempts_left(), 3);
    service.stops().await;
}

#[sqlx::test]
async fn sessions_are_listed_and_ended(pool: PgPool) {
    let service = service(&pool).await;
    let mut clients = [service.client(), service.client()];
    for client in &mut clients {
        assert!(client.logs_in(TRADER, PASSWORD).await.is_signed_in());
    }
    sqlx::query("UPDATE session SET user_agent = E'Desk \\x1b[2J'").execute(&pool).await.unwrap();
    let listed = account(&pool, &["sessions", TRADER]).unwrap();
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.contains("127.0.0.1") && !listed.contains('\u{1b}'), "{listed}");
    assert_eq!(account(&pool, &["revoke", TRADER, "--yes"]).unwrap(), "2 sessions have ended");
    for client in &clients {
        assert_eq!(client.refreshes().await.error(), (401, "session_invalid"));
    }
    assert_eq!(account(&pool, &["revoke", TRADER, "--yes"]).unwrap(), "0 sessions have ended");
    assert_eq!(service.count("audit_event WHERE what = 'sessions_revoked'").await, 1);
    assert_eq!(account(&pool, &["sessions", TRADER]).unwrap(), "the account has no open session");
    service.stops().await;
}

/// The row counts of five tables from which `account erase` deletes.
async fn counts(service: &Service) -> Vec<i64> {
    let mut counts = Vec::new();
    for table in ["account", "session", "recovery_session", "outbox", "throttle"] {
        counts.push(service.count(table).await);
    }
    counts
}

/// Privacy law: no table names the person any more, and the audit log still shows the events.
#[sqlx::test]
async fn an_erased_account_leaves_only_its_id_in_the_audit_log(pool: PgPool) {
    let service = service(&pool).await;
    service.has_trader(OTHER, PASSWORD).await;
    let id = id_of(&service, TRADER).await;
    for email in [TRADER, OTHER] {
        let mut client = service.client();
        assert!(client.logs_in(email, PASSWORD).await.is_signed_in());
        assert_eq!(client.changes_password("not that one at all", NEW).await.status, 400);
        assert_eq!(service.client().logs_in(email, "not the password").await.status, 401);
        service.mails_code_to(&mut service.client(), email).await;
        service.verified(email).await;
    }
    for email in [TRADER, OTHER] {
        // The notice is due later than the courier's clock, so that it stays pending.
        let (mut connection, later) = (pool.acquire().await.unwrap(), now() + Duration::from_hours(1));
        let owner = id_of(&service, email).await;
        outbox::enqueue_notice(&mut connection, later, owner, None, "curl", Duration::from_hours(24))
            .await
            .unwrap();
    }
    service
        .until("failures are recorded", async || {
            service.count("audit_event WHERE what = 'sign_in_failed'").await == 2
        })
        .await;
    let before = counts(&service).await;
    let output = account(&pool, &["erase", TRADER, "--yes"]).unwrap();
    assert_eq!(output, format!("account {id} and all data of its owner are erased"));
    // Both accounts did the same, so that half of each table is left. `throttle` loses only the
    // account's own row: its other rows are keyed by hashes of addresses.
    let mut after = counts(&service).await;
    assert_eq!(after.pop(), before.last().map(|rows| rows - 1), "{before:?}");
    assert_eq!(after, before[..after.len()].iter().map(|rows| rows / 2).collect::<Vec<_>>(), "{before:?}");
    for table in ["account", "session", "recovery_session", "outbox", "audit_event"] {
        let named = format!("{table} t WHERE to_jsonb(t)::text LIKE '%{TRADER}%'");
        assert_eq!(service.count(&named).await, 0, "{table}");
    }
    let events = format!("audit_event WHERE account_id = '{id}'");
    assert!(service.count(&events).await >= 5);
    assert_eq!(
        service.count(&format!("{events} AND (client_ip IS NOT NULL OR user_agent IS NOT NULL)")).await,
        0
    );
    assert_eq!(service.count(&format!("{events} AND what = 'account_erased'")).await, 1);
    let id_of_other = id_of(&service, OTHER).await;
    assert!(
        service
            .count(&format!("audit_event WHERE account_id = '{id_of_other}' AND client_ip IS NOT NULL"))
            .await
            > 0
    );
    assert_eq!(
        account(&pool, &["erase", TRADER, "--yes"]).unwrap_err(),
        "vos-auth: there is no account with this address or id"
    );
    // To a client, the erased address looks like an unknown address.
    assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    assert_eq!(service.client().logs_in(TRADER, PASSWORD).await.error(), (401, "credentials_invalid"));
    service.stops().await;
}

/// Commands print no terminal control characters from traits, a User-Agent or a file name.
#[sqlx::test]
async fn no_stored_or_imported_text_controls_the_terminal(pool: PgPool) {
    const CONTROL: [char; 6] = ['\u{1b}', '\u{9b}', '\u{9d}', '\u{202e}', '\u{2066}', '\u{2028}'];
    let service = service(&pool).await;
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    let control: String = CONTROL.iter().collect();
    sqlx::query("UPDATE session SET user_agent = $1").bind(&control).execute(&pool).await.unwrap();
    sqlx::query("UPDATE account SET traits = $1")
        .bind(json!({ "name": control, &control: 1 }))
        .execute(&pool)
        .await
        .unwrap();
    let url = database::url(&pool);
    let file = std::env::temp_dir().join(format!("{control}{}.ndjson", std::process::id()));
    std::fs::write(&file, "{}\n").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, parts) in [
        (vec!["account", "show", TRADER], "\\u009b"),
        (vec!["account", "show", TRADER, "--json"], "\\u009b"),
        (vec!["account", "sessions", TRADER], "\\u009d"),
        (vec!["account", "export"], "\\u202e"),
        (vec!["account", "import", file], "\\u001b"),
    ] {
        let ended = run(&arguments, &[("DATABASE_URL", url.as_str())]);
        let output = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(!output.concat().contains(CONTROL), "{arguments:?}: {output:?}");
        assert!(output.concat().contains(parts), "{arguments:?}: {output:?}");
        if arguments.contains(&"--json") {
            let shown: Value = serde_json::from_str(&output[0]).unwrap();
            assert_eq!(shown["account"]["traits"]["name"], *control);
        }
    }
    std::fs::remove_file(file).unwrap();
    std::fs::remove_file(format!("{file}.refused.ndjson")).unwrap();
    service.stops().await;
}
