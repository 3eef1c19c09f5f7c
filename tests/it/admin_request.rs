//! What two operators have to agree on, by the admin API.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;
use vos_auth::http::admin::OPERATIONS;
use vos_auth::operator::Role;

use crate::admin::{ADDRESS, call, desk, id_of, is_as_described, operator};
use crate::harness::client::{Answer, Client};
use crate::harness::{Service, place};

const TRADER: &str = "trader@example.com";
const NEW: &str = "new@example.com";

/// A service with the admin API, and the published description of that API.
struct Office {
    service: Service,
    document: Value,
}

impl Office {
    async fn open(pool: &PgPool, settings: &[&str]) -> Self {
        let service = Service::start_with_settings(pool, &[&[ADDRESS], settings].concat()).await;
        service.has_account(TRADER).await;
        let document = std::fs::read_to_string(place::file("openapi/admin.json")).unwrap();
        Self { service, document: serde_json::from_str(&document).unwrap() }
    }

    async fn hires(&self, name: &str, role: Role) -> Client {
        desk(&self.service, &operator(&self.service, name, role).await)
    }

    /// Calls an operation with an id in its path, and checks the answer against its description.
    async fn calls(&self, client: &Client, operation: &str, id: &str, body: &Value) -> Answer {
        let operation = OPERATIONS.iter().find(|known| known.name == operation).unwrap();
        let answer = call(client, operation.method, &operation.path.replace("{id}", id), body).await;
        is_as_described(&self.document, operation, &answer);
        answer
    }

    async fn outcomes(&self, name: &str) -> Vec<String> {
        let outcomes =
            "SELECT outcome FROM audit_event WHERE operator = $1 AND outcome IS NOT NULL ORDER BY outcome";
        sqlx::query_scalar(outcomes).bind(name).fetch_all(&self.service.pool).await.unwrap()
    }
}

#[sqlx::test]
async fn two_admins_agree_on_another_address(pool: PgPool) {
    let office = Office::open(&pool, &["--address-change-delay=30min"]).await;
    let account = id_of(&pool, TRADER).await.to_string();
    let (alice, bob, carol) = (
        office.hires("alice", Role::Admin).await,
        office.hires("bob", Role::Admin).await,
        office.hires("carol", Role::Support).await,
    );
    let new = json!({ "email": NEW });
    let asked = office.calls(&alice, "account.recover_to", &account, &new).await;
    assert_eq!(asked.status, 201, "{}", asked.text);
    let id = asked.body["request"].as_str().unwrap();
    for (body, error) in [
        (json!({ "email": "third@example.com" }), (409, "request_pending")),
        (json!({ "email": TRADER }), (409, "email_unchanged")),
        (json!({ "email": "x" }), (400, "email_invalid")),
    ] {
        assert_eq!(office.calls(&bob, "account.recover_to", &account, &body).await.error(), error);
    }
    let own = office.calls(&alice, "request.approve", id, &Value::Null).await;
    assert_eq!(own.error(), (403, "second_operator_required"));
    let support = office.calls(&carol, "request.approve", id, &Value::Null).await;
    assert_eq!(support.error(), (403, "role_insufficient"));
    assert_eq!(office.service.count("outbox").await, 0);
    let approved = office.calls(&bob, "request.approve", id, &Value::Null).await;
    assert_eq!(approved.status, 200, "{}", approved.text);
    let told = office.service.relay.mail(1).await;
    assert_eq!(told.recipients, [TRADER]);
    assert_eq!(office.calls(&bob, "request.approve", id, &Value::Null).await.error(), (409, "request_ended"));

    let listed = office.calls(&carol, "request.list", "", &Value::Null).await;
    let request = &listed.body["requests"][0];
    assert_eq!((&request["state"], &request["asked_by"]), (&json!("approved"), &json!("alice")));
    assert_eq!((&request["approved_by"], &request["reason"]), (&json!("bob"), &json!("desk 4711")));
    assert_eq!(request["effective_at"], approved.body["effective_at"]);
    let open = async || {
        let listed = call(&carol, "GET", "/admin/requests?open=true", &Value::Null).await;
        listed.body["requests"].as_array().unwrap().len()
    };
    assert_eq!(office.outcomes("alice").await, ["allowed", "refused"]);
    assert_eq!(office.outcomes("carol").await, ["allowed", "refused"]);
    let asked_by =
        "audit_event WHERE what = 'address_change_asked' AND operator = 'alice' AND reason = 'desk 4711'";
    assert_eq!(office.service.count(asked_by).await, 1);

    assert_eq!(open().await, 1);
    // The support role may cancel another operator's request. The request can be made again.
    assert_eq!(
        office.calls(&carol, "request.cancel", id, &Value::Null).await.body,
        json!({ "changed": true })
    );
    assert_eq!(
        office.calls(&carol, "request.cancel", id, &Value::Null).await.error(),
        (409, "request_ended")
    );
    assert_eq!(open().await, 0);
    let asked = office.calls(&bob, "account.recover_to", &account, &new).await;
    let id = asked.body["request"].as_str().unwrap();
    office.service.has_account(NEW).await;
    assert_eq!(office.calls(&alice, "request.approve", id, &Value::Null).await.error(), (409, "email_taken"));
    let taken = office.calls(&alice, "account.recover_to", &account, &new).await;
    assert_eq!(taken.error(), (409, "email_taken"));
    let nobody = uuid::Uuid::from_u128(7).to_string();
    for operation in ["request.approve", "request.cancel"] {
        for id in [nobody.as_str(), "7"] {
            assert_eq!(
                office.calls(&alice, operation, id, &Value::Null).await.error(),
                (404, "request_not_found")
            );
        }
    }
    assert_eq!(
        office.calls(&alice, "account.recover_to", &nobody, &new).await.error(),
        (404, "account_not_found")
    );
    office.service.stops().await;
}

#[sqlx::test]
async fn a_protected_account_gets_a_ticket_from_two_operators(pool: PgPool) {
    let office = Office::open(&pool, &["--protected-trait=vip"]).await;
    let account = id_of(&pool, TRADER).await.to_string();
    let alice = office.hires("alice", Role::Support).await;
    let bob = office.hires("bob", Role::Support).await;
    assert_eq!(office.calls(&alice, "account.ticket", &account, &Value::Null).await.status, 200);
    sqlx::query("UPDATE account SET traits = '{\"vip\": true}'").execute(&pool).await.unwrap();
    let asked = office.calls(&alice, "account.ticket", &account, &Value::Null).await;
    assert_eq!((asked.status, &asked.body["ticket"]), (202, &Value::Null));
    let id = asked.body["request"].as_str().unwrap();
    for client in [&alice, &bob] {
        let again = office.calls(client, "account.ticket", &account, &Value::Null).await;
        assert_eq!((again.status, again.body["request"].as_str()), (202, Some(id)));
    }
    let carol = office.hires("carol", Role::Admin).await;
    let set = office.calls(&carol, "account.set_email", &account, &json!({ "email": NEW })).await;
    assert_eq!(set.error(), (409, "account_protected"), "nor another address from one");
    let own = office.calls(&alice, "request.approve", id, &Value::Null).await;
    assert_eq!(own.error(), (403, "second_operator_required"));
    let approved = office.calls(&bob, "request.approve", id, &Value::Null).await;
    assert_eq!((approved.status, approved.body), (200, json!({ "effective_at": null })));
    assert_eq!(office.calls(&bob, "account.ticket", &account, &Value::Null).await.status, 202);
    let given = office.calls(&alice, "account.ticket", &account, &Value::Null).await;
    assert_eq!(given.status, 200, "{}", given.text);
    assert_eq!(office.calls(&alice, "account.ticket", &account, &Value::Null).await.status, 202, "once");
    office.service.until_outbox_has(0).await;
    assert_eq!(office.service.relay.mails().len(), 2, "the owner is told of each ticket, and of no request");
    office.service.stops().await;
}

/// Each request counts against the operator's hourly limit, so one operator cannot make requests
/// for every account.
#[sqlx::test]
async fn what_an_operator_asks_for_is_bounded(pool: PgPool) {
    let office = Office::open(&pool, &["--operator-per-hour=2"]).await;
    let account = id_of(&pool, TRADER).await.to_string();
    let alice = office.hires("alice", Role::Admin).await;
    let new = json!({ "email": NEW });
    let asked = office.calls(&alice, "account.recover_to", &account, &new).await;
    let id = asked.body["request"].as_str().unwrap();
    assert_eq!(office.calls(&alice, "request.cancel", id, &Value::Null).await.status, 200);
    let refused = office.calls(&alice, "account.recover_to", &account, &new).await;
    assert_eq!(refused.error(), (429, "operator_throttled"));
    office.service.clock.advance(Duration::from_hours(1));
    assert_eq!(office.calls(&alice, "account.recover_to", &account, &new).await.status, 201);
    office.service.stops().await;
}
