//! Sessions: refresh, logout, list, change of password. The ids are those of docs/catalogue.md.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use vos_auth::sweeper::Sweeper;

use crate::harness::Service;

const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";

/// Logout ends the session on the server, whatever the body.
#[sqlx::test]
async fn l4_a_token_is_invalid_after_logout(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    for body in ["", "{", r#"{"session_token":"x"}"#, &"x".repeat(20_000)] {
        client.logs_in(TRADER, PASSWORD).await;
        assert!(client.refreshes().await.is_signed_in());
        let answer = client.post_json("/api/auth/logout", body).await;
        assert_eq!((answer.status, answer.text.as_str()), (200, r#"{"status":"signed_out"}"#));
        assert_eq!(client.refreshes().await.error(), (401, "session_invalid"));
        assert_eq!(client.logs_out().await.error(), (401, "session_invalid"));
    }
    assert_eq!(service.client().logs_out().await.error(), (401, "session_invalid"));
    assert_eq!(service.count("audit_event WHERE what = 'signed_out'").await, 4);
    service.stops().await;
}

/// 30 minutes idle, 12 hours in all: a refresh extends the idle time, never the total.
#[sqlx::test]
async fn l5_sessions_end_when_idle_and_at_their_absolute_limit(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut idle = service.client();
    idle.logs_in(TRADER, PASSWORD).await;
    service.clock.advance(Duration::from_secs(30 * 60 - 1));
    assert!(idle.refreshes().await.is_signed_in());
    service.clock.advance(Duration::from_secs(30 * 60 - 1));
    assert!(idle.refreshes().await.is_signed_in());
    service.clock.advance(Duration::from_mins(30));
    assert_eq!(idle.refreshes().await.error(), (401, "session_invalid"));

    let mut busy = service.client();
    let began = busy.logs_in(TRADER, PASSWORD).await.body["session"].clone();
    let time = |value: &Value| {
        let format = &time::format_description::well_known::Rfc3339;
        time::OffsetDateTime::parse(value.as_str().unwrap(), format).unwrap()
    };
    let mut last = Value::Null;
    for _ in 0..12 * 60 / 20 - 1 {
        service.clock.advance(Duration::from_mins(20));
        let answer = busy.refreshes().await;
        assert!(answer.is_signed_in());
        assert!(
            time(&answer.body["session"]["expires_at"]) - time(&began["authenticated_at"])
                <= Duration::from_hours(12)
        );
        last = answer.body;
    }
    // The last JWT expires with the session.
    service.clock.advance(Duration::from_mins(15));
    last = Some(busy.refreshes().await.body).filter(|body| body["jwt"].is_string()).unwrap_or(last);
    let claims = last["jwt"].as_str().unwrap().split('.').nth(1).unwrap().to_owned();
    let claims = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, claims).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    assert_eq!(claims["exp"], (time(&began["authenticated_at"]) + Duration::from_hours(12)).unix_timestamp());
    service.clock.advance(Duration::from_mins(5));
    assert_eq!(busy.refreshes().await.error(), (401, "session_invalid"));
    assert_eq!(service.count("session").await, 2);
    service.clock.advance(Duration::from_hours(37));
    Sweeper::new(std::sync::Arc::clone(&service.app)).sweep().await;
    assert_eq!(service.count("session").await, 0, "expired sessions are deleted");
    service.stops().await;
}

#[sqlx::test]
async fn a_session_token_is_read_from_either_header(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    client.logs_in(TRADER, PASSWORD).await;
    let token = client.token.take().unwrap();
    for (name, value) in
        [("authorization", format!("Bearer {token}")), ("authorization", format!("bearer {token}"))]
    {
        assert!(client.clone().with(name, &value).refreshes().await.is_signed_in(), "{value}");
    }
    for (name, value) in [
        ("authorization", format!("Basic {token}")),
        ("authorization", token.clone()),
        ("x-session-token", format!("{token}x")),
        ("cookie", format!("session_token={token}")),
    ] {
        let answer = client.clone().with(name, &value).refreshes().await;
        assert_eq!(answer.error(), (401, "session_invalid"), "{name}: {value}");
    }
    let doubled = client.clone().with("x-session-token", &token).with("x-session-token", &token);
    assert_eq!(doubled.refreshes().await.error(), (401, "session_invalid"));
    service.stops().await;
}

#[sqlx::test]
async fn a_user_lists_and_ends_their_sessions(pool: PgPool) {
    let service = Service::start(&pool).await;
    for email in [TRADER, "other@example.com"] {
        service.has_trader(email, PASSWORD).await;
    }
    let mut clients = Vec::new();
    for n in 0..4 {
        let mut client = service.client().with("user-agent", &format!("agent/{n}"));
        client.logs_in(TRADER, PASSWORD).await;
        service.clock.advance(Duration::from_secs(1));
        clients.push(client);
    }
    let mut other = service.client();
    let others = other.logs_in("other@example.com", PASSWORD).await.body["session"]["id"].clone();
    let listed = clients[0].get("/api/auth/sessions").await.body["sessions"].as_array().unwrap().clone();
    let agents: Vec<_> =
        listed.iter().map(|session| session["devices"][0]["user_agent"].as_str().unwrap()).collect();
    assert_eq!(agents, ["agent/3", "agent/2", "agent/1", "agent/0"], "the newest first");
    let current: Vec<_> = listed.iter().map(|session| session["current"] == true).collect();
    assert_eq!(current, [false, false, false, true]);
    assert!(!listed[0].to_string().contains(clients[3].token.as_ref().unwrap()));

    let path = |id: &Value| format!("/api/auth/sessions/{}", id.as_str().unwrap());
    assert_eq!(clients[0].delete(&path(&listed[0]["id"])).await.status, 200);
    assert_eq!(clients[3].refreshes().await.status, 401);
    assert_eq!(clients[0].delete(&path(&listed[0]["id"])).await.error(), (404, "not_found"));
    assert_eq!(
        clients[0].delete(&path(&others)).await.error(),
        (404, "not_found"),
        "a session of another account"
    );
    for bad in ["x", "%ff", "00000000-0000-0000-0000-000000000000"] {
        assert_eq!(clients[0].delete(&format!("/api/auth/sessions/{bad}")).await.error(), (404, "not_found"));
        assert_eq!(service.client().delete(&format!("/api/auth/sessions/{bad}")).await.status, 401);
    }
    assert_eq!(clients[0].delete("/api/auth/sessions").await.status, 200);
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(client.refreshes().await.status == 200, n == 0);
    }
    assert!(other.refreshes().await.is_signed_in());
    sqlx::query("UPDATE account SET state = 'disabled'").execute(&pool).await.unwrap();
    assert_eq!(
        other.refreshes().await.error(),
        (401, "session_invalid"),
        "a disabled account has no session"
    );
    service.stops().await;
}

#[sqlx::test]
async fn a_password_change_needs_the_current_password(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    service.has_trader(TRADER, PASSWORD).await;
    let (mut client, mut elsewhere) = (service.client(), service.client());
    client.logs_in(TRADER, PASSWORD).await;
    elsewhere.logs_in(TRADER, PASSWORD).await;
    let mut pending = service.client();
    let code = service.mails_code_to(&mut pending, TRADER).await;
    assert_eq!(service.client().changes_password(PASSWORD, NEW).await.error(), (401, "session_invalid"));
    assert_eq!(
        service.client().post_json("/api/auth/password", "{").await.status,
        401,
        "the session is checked first"
    );
    let refused = client.changes_password(PASSWORD, "short").await;
    assert_eq!(
        (refused.error(), &refused.body["field"]),
        ((400, "password_too_short"), &json!("newPassword"))
    );
    for _ in 0..10 {
        let refused = client.changes_password("not the password", NEW).await;
        assert_eq!(
            (refused.error(), &refused.body["field"]),
            ((400, "password_incorrect"), &json!("currentPassword"))
        );
    }
    assert_eq!(client.changes_password(PASSWORD, NEW).await.error(), (429, "password_throttled"));
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in(), "login has its own rate limit");
    service.clock.advance(Duration::from_mins(5));
    assert!(client.changes_password(PASSWORD, NEW).await.is_signed_in());
    assert!(client.refreshes().await.is_signed_in());
    assert_eq!(elsewhere.refreshes().await.status, 401);
    assert_eq!(pending.verifies(&code).await.attempts_left(), 4);
    let notice = service.relay.mail(2).await;
    assert!(notice.text().contains("mật khẩu") || notice.text().contains("Mật khẩu"));
    assert_eq!(service.client().logs_in(TRADER, PASSWORD).await.status, 401);
    assert!(service.client().logs_in(TRADER, NEW).await.is_signed_in());
    service.stops().await;
}

/// A client that learned a password cannot create sessions and known browsers without limit.
#[sqlx::test]
async fn sessions_and_known_browsers_of_an_account_are_bounded(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    service.has_trader(TRADER, PASSWORD).await;
    let (mut known, mut clients) = (0, Vec::new());
    for _ in 0..105 {
        let mut client = service.client();
        let answer = client.logs_in(TRADER, PASSWORD).await;
        assert!(answer.is_signed_in());
        known += usize::from(answer.device_cookie().is_some());
        clients.push(client);
        service.clock.advance(Duration::from_millis(1));
    }
    let (mut last, oldest) = (clients.pop().unwrap(), clients.swap_remove(5));
    assert_eq!(known, 10);
    assert_eq!(service.count("session").await, 100);
    assert_eq!(last.get("/api/auth/sessions").await.body["sessions"].as_array().unwrap().len(), 100);
    // An ended session, logged out or idle, does not count against the limit.
    assert_eq!(last.logs_out().await.status, 200);
    assert!(last.logs_in(TRADER, PASSWORD).await.is_signed_in());
    assert_eq!(service.count("session").await, 100);
    assert_eq!(service.count("session WHERE revoked_at IS NULL").await, 100);
    for _ in 0..2 {
        service.clock.advance(Duration::from_mins(20));
        assert!(oldest.refreshes().await.is_signed_in());
    }
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    assert_eq!(service.count("session").await, 100);
    assert!(oldest.refreshes().await.is_signed_in());
    service.stops().await;
}
