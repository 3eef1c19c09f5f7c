//! Each operation has the same effect by a command and by the admin API: two accounts, one changed
//! by each, end up alike.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use vos_auth::clock::new_id;
use vos_auth::operator::Role;

use crate::admin::{ADDRESS, call, desk, id_of, operator};
use crate::harness::client::Client;
use crate::harness::program::{SECRET, run};
use crate::harness::{Service, database, now};

const PASSWORD: &str = "morning boat on a green river";

/// Everything that is stored about an account and its address, without ids and times. The name of
/// the account is replaced, so that two accounts can be compared.
async fn stored(pool: &PgPool, name: &str, id: uuid::Uuid) -> Value {
    let sql = "SELECT json_build_object(
        'account', (SELECT to_jsonb(a) - '{id,created_at,updated_at,password_changed_at,password_hash,recoveries_ended}'::text[]
            FROM account a WHERE id = $1),
        'has_password', (SELECT password_hash IS NOT NULL FROM account WHERE id = $1),
        'open_sessions', (SELECT count(*) FROM session WHERE account_id = $1 AND revoked_at IS NULL),
        'events', (SELECT coalesce(json_agg(what ORDER BY what), '[]') FROM audit_event WHERE account_id = $1),
        'mails', (SELECT coalesce(json_agg(kind || ' ' || coalesce(address, '-') ORDER BY kind), '[]') FROM outbox
            WHERE account_id = $1),
        'requests', (SELECT coalesce(json_agg(kind || ' ' || state || ' ' || asked_by || ' ' || new_email), '[]')
            FROM operator_request WHERE account_id = $1),
        'recoveries', (SELECT coalesce(json_agg(state ORDER BY state), '[]') FROM recovery_session WHERE email LIKE $2 || '%'))";
    let stored: Value = sqlx::query_scalar(sql).bind(id).bind(name).fetch_one(pool).await.unwrap();
    serde_json::from_str(&stored.to_string().replace(name, "NAME")).unwrap()
}

fn vos_auth(pool: &PgPool, arguments: &[&str]) -> String {
    let url = database::operator_url(pool);
    let ended = run(arguments, &[("DATABASE_URL", url.as_str()), ("DEVICE_SECRETS", SECRET)]);
    assert!(ended.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

/// An operation on an account: its name, its command, and its call (method, rest of the path,
/// body).
type Pair = (&'static str, &'static [&'static str], &'static str, &'static str, Value);

#[sqlx::test]
async fn a_command_and_a_call_have_the_same_effect(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS, "--outbox-poll-interval=1m"]).await;
    let desk = desk(&service, &operator(&service, "alice", Role::Admin).await);
    let pairs: [Pair; 9] = [
        (
            "set_email",
            &["account", "set-email", "EMAIL", "moved-EMAIL"],
            "PUT",
            "/email",
            json!({ "email": "moved-EMAIL" }),
        ),
        (
            "recover_to",
            &["account", "recover-to", "EMAIL", "moved-EMAIL", "--operator", "alice", "--reason", "lost"],
            "POST",
            "/recover-to",
            json!({ "email": "moved-EMAIL" }),
        ),
        (
            "set_locale",
            &["account", "set-locale", "EMAIL", "en"],
            "PUT",
            "/locale",
            json!({ "locale": "en" }),
        ),
        ("disable", &["account", "disable", "--yes", "EMAIL"], "POST", "/disable", Value::Null),
        ("enable", &["account", "enable", "EMAIL"], "POST", "/enable", Value::Null),
        ("end_sessions", &["account", "revoke", "--yes", "EMAIL"], "DELETE", "/sessions", Value::Null),
        ("ticket", &["account", "recover", "EMAIL"], "POST", "/ticket", Value::Null),
        ("lift", &["account", "unblock", "EMAIL"], "POST", "/admin/limits/lift", json!({ "email": "EMAIL" })),
        ("erase", &["account", "erase", "--yes", "EMAIL"], "DELETE", "", Value::Null),
    ];
    service.relay.goes_down().await;
    for (operation, command, method, path, body) in pairs {
        let mut results = Vec::new();
        for by in ["command", "call"] {
            let name = format!("{by}-{operation}");
            let email = format!("{name}@example.com");
            service.has_trader(&email, PASSWORD).await;
            assert!(service.client().logs_in(&email, PASSWORD).await.is_signed_in());
            let id = id_of(&pool, &email).await;
            if operation == "enable" {
                sqlx::query("UPDATE account SET state = 'disabled' WHERE id = $1")
                    .bind(id)
                    .execute(&pool)
                    .await
                    .unwrap();
            }
            if by == "command" {
                let command: Vec<_> = command.iter().map(|word| word.replace("EMAIL", &email)).collect();
                let command: Vec<_> = command.iter().map(String::as_str).collect();
                vos_auth(&pool, &command);
            } else {
                let path = if path.starts_with("/admin") {
                    path.into()
                } else {
                    format!("/admin/accounts/{id}{path}")
                };
                let body = serde_json::from_str(&body.to_string().replace("EMAIL", &email)).unwrap();
                let answer = call(&desk, method, &path, &body).await;
                assert!([200, 201].contains(&answer.status), "{operation}: {}", answer.text);
            }
            results.push(stored(&pool, &name, id).await);
        }
        assert_eq!(results[0], results[1], "{operation}");
        let untouched = format!("untouched-{operation}");
        let email = format!("{untouched}@example.com");
        service.has_trader(&email, PASSWORD).await;
        assert!(service.client().logs_in(&email, PASSWORD).await.is_signed_in());
        let before = stored(&pool, &untouched, id_of(&pool, &email).await).await;
        assert_ne!(before, results[0], "{operation} has an effect");
    }
    service.stops().await;
}

#[sqlx::test]
async fn an_account_is_created_alike(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    let desk = desk(&service, &operator(&service, "alice", Role::Admin).await);
    let traits = r#"{"name":{"first":"Ánh"},"external_id":"77"}"#;
    vos_auth(&pool, &["account", "create", "command@example.com", "--locale", "vi", "--traits", traits]);
    let body = json!({
        "email": "call@example.com",
        "locale": "vi",
        "traits": serde_json::from_str::<Value>(traits).unwrap(),
    });
    let created = call(&desk, "POST", "/admin/accounts", &body).await;
    assert_eq!(created.status, 201, "{}", created.text);
    let (by_command, by_call) =
        (id_of(&pool, "command@example.com").await, id_of(&pool, "call@example.com").await);
    assert_eq!(created.body["id"], by_call.to_string());
    assert_eq!(stored(&pool, "command", by_command).await, stored(&pool, "call", by_call).await);

    // An external id that is too long for an index entry is found, too.
    let mut state = 7_u32;
    let long: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"[state as usize / 65_536 % 62],
        )
    })
    .take(4000)
    .collect();
    let body = json!({ "email": "long@example.com", "traits": { "external_id": &long } });
    assert_eq!(call(&desk, "POST", "/admin/accounts", &body).await.status, 201);
    for (id, found) in [(long.as_str(), 1), (&long[..3999], 0)] {
        let page = desk.get(&format!("/admin/accounts?external_id={id}")).await;
        assert_eq!(page.body["accounts"].as_array().unwrap().len(), found, "{}", page.text);
    }

    // PostgreSQL cannot store U+0000. `what_cannot_be_done_says_why` tests the refusal by the API.
    let url = database::operator_url(&pool);
    let nul = ["account", "create", "nul@example.com", "--traits", r#"{"a":"\u0000"}"#];
    let refused = run(&nul, &[("DATABASE_URL", url.as_str())]);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("U+0000"),
        "{refused:?}"
    );

    // If an account is created with a password, its owner can sign in at once.
    let body = json!({ "email": "trader@example.com", "password": PASSWORD });
    assert_eq!(call(&desk, "POST", "/admin/accounts", &body).await.status, 201);
    assert!(service.client().logs_in("trader@example.com", PASSWORD).await.is_signed_in());
    service.stops().await;
}

/// The command and the call export the same lines, and both send a given-up notice again.
#[sqlx::test]
async fn an_export_and_a_retry_are_alike(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    for number in 0..5 {
        service.has_trader(&format!("trader{number}@example.com"), PASSWORD).await;
    }
    let desk = desk(&service, &operator(&service, "alice", Role::Admin).await);
    let file = format!("{}/admin-export-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let _ = std::fs::remove_file(&file);
    vos_auth(&pool, &["account", "export", "--out", &file]);
    let by_command: Vec<Value> = std::fs::read_to_string(&file)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let by_call = exported(&desk, "hashes=true&").await;
    assert_eq!(by_command, by_call);
    let without = exported(&desk, "").await;
    assert!(without.iter().all(|line| !line.to_string().contains("$argon2")), "no hash unless asked for");
    assert_eq!(without.len(), 5);
    // Each of the two exports by call has four pages. Only the pages with hashes count as exports
    // in the audit log.
    let by_alice =
        async |what: &str| service.count(&format!("audit_event WHERE operator = 'alice' AND {what}")).await;
    assert_eq!(by_alice("what = 'accounts_exported'").await, 4);
    assert_eq!(by_alice("call = 'account.export'").await, 4);

    let id = id_of(&pool, "trader0@example.com").await;
    for by in ["command", "call"] {
        let given_up = "INSERT INTO outbox (id, kind, account_id, next_attempt_at, expires_at, created_at)
            VALUES ($1, 'password_changed', $2, $3, $3, $4)";
        let later = now() + Duration::from_hours(30 * 24);
        let given_up = sqlx::query(given_up).bind(new_id(now())).bind(id).bind(later).bind(now());
        given_up.execute(&pool).await.unwrap();
        if by == "command" {
            assert!(vos_auth(&pool, &["outbox", "retry", "--given-up"]).starts_with("1 email"));
        } else {
            let answer = call(&desk, "POST", "/admin/outbox/retry", &json!({})).await;
            assert_eq!(answer.body, json!({ "retried": 1 }));
            assert_eq!(by_alice("call = 'outbox.retry' AND outcome = 'allowed'").await, 1);
        }
        service.clock.advance(Duration::from_mins(1));
        service.until_outbox_has(0).await;
    }
    service.stops().await;
}

/// All lines of an export, in pages of two.
async fn exported(desk: &Client, parameters: &str) -> Vec<Value> {
    let (mut lines, mut after): (Vec<Value>, _) = (Vec::new(), String::new());
    loop {
        let page = desk.get(&format!("/admin/export?{parameters}limit=2{after}")).await;
        assert_eq!(page.header("content-type"), Some("application/x-ndjson"), "{}", page.text);
        let read: Vec<Value> = page.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let Some(last) = read.last() else { return lines };
        after = format!("&after={}", last["id"].as_str().unwrap());
        lines.extend(read);
    }
}
