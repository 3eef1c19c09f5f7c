//! What an operator's help does for the owner of an account: the recovery works and the owner is
//! told. An hourly limit bounds the number of recoveries that one operator can help with.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use vos_auth::operator::Role;

use crate::admin::{ADDRESS, call, desk, id_of, operator};
use crate::harness::Service;

const TRADER: &str = "trader@example.com";
const NEW: &str = "night train in autumn rain";

#[sqlx::test]
async fn a_ticket_opens_one_recovery_and_its_owner_is_told(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    service.has_account(TRADER).await;
    let id = id_of(&pool, TRADER).await;
    for _ in 0..3 {
        assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    }
    assert_eq!(service.client().starts_recovery(TRADER).await.error(), (429, "address_throttled"));
    service.until_outbox_has(0).await;
    let before = service.relay.mails().len();
    let desk = desk(&service, &operator(&service, "alice", Role::Support).await);
    let given = call(&desk, "POST", &format!("/admin/accounts/{id}/ticket"), &Value::Null).await;
    let ticket = given.body["ticket"].as_str().expect("a ticket");
    let link = given.body["link"].as_str().expect("a link");
    assert_eq!(link, format!("https://platform.verolabs.co/recovery#t={ticket}"));
    let notice = service.relay.mail(before + 1).await;
    assert_eq!(notice.recipients, [TRADER]);
    assert!(notice.text().contains("bộ phận hỗ trợ") && !notice.text().contains(ticket), "{}", notice.text());

    let mut trader = service.client().with("x-recovery-ticket", ticket);
    let code = service.mails_code_to(&mut trader, TRADER).await;
    assert!(trader.verifies(&code).await.is_verified() && trader.resets(NEW).await.is_signed_in());
    let again = service.client().with("x-recovery-ticket", ticket).starts_recovery(TRADER).await;
    assert_eq!(again.error(), (429, "address_throttled"), "a ticket opens one recovery");
    let events = service.count("audit_event WHERE what = 'ticket_notice_sent'").await;
    assert_eq!(events, 1);
    service.stops().await;
}

/// The old address is told, because its mailbox may be the owner's and the change an attack.
#[sqlx::test]
async fn the_old_address_is_told_of_another_one(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    service.has_account(TRADER).await;
    let id = id_of(&pool, TRADER).await;
    let desk = desk(&service, &operator(&service, "alice", Role::Admin).await);
    let body = json!({ "email": "moved@example.com" });
    let path = format!("/admin/accounts/{id}/email");
    assert_eq!(call(&desk, "PUT", &path, &body).await.body, json!({ "changed": true }));
    assert_eq!(call(&desk, "PUT", &path, &body).await.body, json!({ "changed": false }));
    let notice = service.relay.mail(1).await;
    assert_eq!(notice.recipients, [TRADER]);
    assert!(!notice.text().contains("moved@example.com"), "the old mailbox may be an attacker's");
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), 1);
    let mut trader = service.client();
    service.mails_code_to(&mut trader, "moved@example.com").await;
    service.stops().await;
}

#[sqlx::test]
async fn one_operator_helps_a_bounded_number_of_recoveries_an_hour(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS, "--operator-per-hour=2"]).await;
    service.has_account(TRADER).await;
    let id = id_of(&pool, TRADER).await;
    let (alice, bob) = (
        desk(&service, &operator(&service, "alice", Role::Admin).await),
        desk(&service, &operator(&service, "bob", Role::Support).await),
    );
    let path = format!("/admin/accounts/{id}/ticket");
    assert_eq!(call(&alice, "POST", &path, &Value::Null).await.status, 200);
    let refused = call(&alice, "POST", &path, &Value::Null).await;
    assert_eq!(refused.error(), (429, "operator_throttled"));
    assert!(refused.retry_after() <= 3600);
    let body = json!({ "email": "moved@example.com" });
    let refused = call(&alice, "PUT", &format!("/admin/accounts/{id}/email"), &body).await;
    assert_eq!(refused.error(), (429, "operator_throttled"), "addresses count, too");
    assert_eq!(call(&bob, "POST", &path, &Value::Null).await.status, 200, "each operator has a bound");
    service.clock.advance(Duration::from_hours(1));
    assert_eq!(call(&alice, "POST", &path, &Value::Null).await.status, 200);
    let helped = "vos_auth_recoveries_helped_total{operator=\"alice\"}";
    assert!((service.metric(helped).await - 2.0).abs() < 0.5);
    service.stops().await;
}

#[sqlx::test]
async fn what_cannot_be_done_says_why(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    service.has_account(TRADER).await;
    service.has_account("other@example.com").await;
    let id = id_of(&pool, TRADER).await;
    let desk = desk(&service, &operator(&service, "alice", Role::Admin).await);
    let account = |rest: &str| format!("/admin/accounts/{id}{rest}");
    let taken = json!({ "email": "other@example.com" });
    let guessable = json!({ "email": "new@example.com", "password": "passwordpassword" });
    let nul = json!({ "email": "new@example.com", "traits": { "a": [{ "b\0": 1 }] } });
    let large = json!({ "email": "new@example.com", "traits": { "a": f64::MAX } });
    for (method, path, body, error) in [
        ("POST", "/admin/accounts".into(), nul, (400, "field_invalid")),
        ("POST", "/admin/accounts".into(), large, (400, "field_invalid")),
        ("PUT", account("/email"), taken.clone(), (409, "email_taken")),
        ("POST", "/admin/accounts".into(), taken, (409, "email_taken")),
        ("POST", "/admin/accounts".into(), guessable, (400, "password_guessable")),
        ("PUT", account("/email"), json!({ "email": "x" }), (400, "email_invalid")),
        ("PUT", account("/locale"), json!({ "locale": "fr" }), (400, "field_invalid")),
        ("PUT", account("/locale"), json!({}), (400, "field_missing")),
        ("PUT", account("/locale"), json!({ "locale": 1 }), (400, "field_type_invalid")),
        (
            "POST",
            "/admin/accounts".into(),
            json!({ "email": "n@example.com", "x": 1 }),
            (400, "field_unknown"),
        ),
        ("GET", "/admin/accounts?email=a&prefix=b".into(), Value::Null, (400, "query_invalid")),
        ("GET", "/admin/accounts/7".into(), Value::Null, (404, "account_not_found")),
        ("PATCH", account(""), Value::Null, (405, "method_not_allowed")),
        ("GET", "/admin".into(), Value::Null, (404, "not_found")),
    ] {
        let answer = call(&desk, method, &path, &body).await;
        assert_eq!(answer.error(), error, "{method} {path} {body}");
    }
    let nobody = uuid::Uuid::from_u128(7);
    for (method, rest, body) in [
        ("GET", "", Value::Null),
        ("DELETE", "", Value::Null),
        ("POST", "/ticket", Value::Null),
        ("DELETE", "/sessions", Value::Null),
        ("PUT", "/email", json!({ "email": "new@example.com" })),
        ("PUT", "/locale", json!({ "locale": null })),
        ("POST", "/disable", Value::Null),
        ("POST", "/enable", Value::Null),
    ] {
        let answer = call(&desk, method, &format!("/admin/accounts/{nobody}{rest}"), &body).await;
        assert_eq!(answer.error(), (404, "account_not_found"), "{method} {rest}");
    }
    assert_eq!(
        call(&desk, "POST", &account("/disable"), &Value::Null).await.body,
        json!({ "changed": true })
    );
    let ticket = call(&desk, "POST", &account("/ticket"), &Value::Null).await;
    assert_eq!(ticket.error(), (409, "account_disabled"));
    for _ in 0..2 {
        assert_eq!(call(&desk, "POST", "/admin/limits/lift", &json!({ "email": TRADER })).await.status, 200);
    }
    let lifted = call(&desk, "POST", "/admin/limits/lift", &json!({ "email": TRADER })).await;
    assert_eq!(lifted.error(), (429, "lift_throttled"));
    let retry = call(&desk, "POST", "/admin/outbox/retry", &json!({ "id": nobody })).await;
    assert_eq!(retry.error(), (404, "not_found"));
    service.stops().await;
}
