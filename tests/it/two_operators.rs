//! What two operators have to agree on, by the built program: tickets of protected accounts, and
//! another address.

use serde_json::Value;
use sqlx::PgPool;

use crate::harness::program::{SECRET, run};
use crate::harness::{Service, database};

const TRADER: &str = "trader@example.com";

/// The output of a command of an operator, or its error message.
fn vos_auth(pool: &PgPool, arguments: &[&str]) -> Result<String, String> {
    let url = database::operator_url(pool);
    let environment = [
        ("DATABASE_URL", url.as_str()),
        ("DEVICE_SECRETS", SECRET),
        ("PROTECTED_TRAIT", "protected"),
        ("ADDRESS_CHANGE_DELAY", "2h"),
    ];
    let ended = run(arguments, &environment);
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if ended.status.success() { Ok(text(ended.stdout)) } else { Err(text(ended.stderr)) }
}

async fn has_traits(pool: &PgPool, traits: &str) {
    let set = sqlx::query("UPDATE account SET traits = $1::jsonb").bind(traits);
    assert_eq!(set.execute(pool).await.unwrap().rows_affected(), 1);
}

async fn events(pool: &PgPool, what: &str) -> i64 {
    let count = sqlx::query_scalar("SELECT count(*) FROM audit_event WHERE what = $1").bind(what);
    count.fetch_one(pool).await.unwrap()
}

/// The id in the sentence that says how to approve.
fn id_in(text: &str) -> String {
    text.split([' ', ',']).find(|word| word.len() == 36).expect(text).to_owned()
}

#[sqlx::test]
async fn a_ticket_of_a_protected_account_needs_two_operators(pool: PgPool) {
    Service::has_account_at(&pool, TRADER).await;
    let recover = |operator: &str| {
        let who = ["--operator", operator, "--reason", "locked out"];
        vos_auth(&pool, &[&["account", "recover", TRADER], &who[..]].concat())
    };
    let decide = |verb: &str, id: &str, operator: &str| {
        vos_auth(&pool, &["request", verb, id, "--operator", operator, "--reason", "called back"])
    };
    assert_eq!(vos_auth(&pool, &["account", "recover", TRADER]).unwrap().len(), 64, "not protected");
    has_traits(&pool, r#"{"email": "trader@example.com", "protected": false}"#).await;
    assert_eq!(vos_auth(&pool, &["account", "recover", TRADER]).unwrap().len(), 64);

    has_traits(&pool, r#"{"email": "trader@example.com", "protected": true}"#).await;
    let why = vos_auth(&pool, &["account", "recover", TRADER]).unwrap_err();
    assert!(why.contains("this account is protected") && why.contains("--operator"), "{why}");
    let why = recover("alice").unwrap_err();
    assert!(why.contains("this account is protected"), "{why}");
    let id = id_in(&why);
    for operator in ["alice", "bob"] {
        assert!(recover(operator).unwrap_err().contains("is not approved"), "{operator}");
    }
    assert!(decide("approve", &id, "alice").unwrap_err().contains("another one has to approve it"));
    assert_eq!(decide("approve", &id, "bob").unwrap(), "the operator who asked can now give the ticket");
    assert!(recover("bob").is_err(), "the one who asked gets it");
    assert_eq!(recover("alice").unwrap().len(), 64);
    assert_eq!((events(&pool, "ticket_asked").await, events(&pool, "ticket_approved").await), (1, 1));
    assert_eq!(events(&pool, "recovery_ticket_issued").await, 3);

    // An approval is for one ticket, and a cancelled request for none.
    let id = id_in(&recover("alice").unwrap_err());
    assert_eq!(decide("cancel", &id, "carol").unwrap(), "the request is cancelled");
    assert!(decide("approve", &id, "bob").unwrap_err().contains("is cancelled already"));
    // Ten minutes later, neither a request nor its approval is valid.
    for approved in [false, true] {
        let id = id_in(&recover("alice").unwrap_err());
        if approved {
            decide("approve", &id, "bob").unwrap();
        }
        let past = "UPDATE operator_request SET asked_at = asked_at - '10min'::interval,
            approved_at = approved_at - '10min'::interval WHERE state IN ('asked', 'approved')";
        sqlx::query(past).execute(&pool).await.unwrap();
        assert!(decide("approve", &id, "bob").unwrap_err().contains("is expired already"));
    }
    assert_eq!(events(&pool, "recovery_ticket_issued").await, 3);
}

#[sqlx::test]
async fn two_operators_agree_on_another_address_by_commands(pool: PgPool) {
    Service::has_account_at(&pool, TRADER).await;
    let ask = |new: &str, reason: &str| {
        vos_auth(&pool, &["account", "recover-to", TRADER, new, "--operator", "alice", "--reason", reason])
    };
    assert_eq!(vos_auth(&pool, &["request", "list"]).unwrap(), "no operator has asked for anything");
    assert!(ask("no address", "x").unwrap_err().contains("not an email address"));
    assert!(ask(TRADER, "x").unwrap_err().contains("has this address already"));
    for reason in ["", "two\nlines", &"x".repeat(201)] {
        assert!(ask("new@example.com", reason).unwrap_err().contains("1 to 200 characters"), "{reason:?}");
    }
    let id = ask("new@example.com", "the mailbox is lost").unwrap();
    assert!(ask("other@example.com", "x").unwrap_err().contains(&id), "the open one is named");
    let approve = |operator: &str| {
        vos_auth(&pool, &["request", "approve", &id, "--operator", operator, "--reason", "called back"])
    };
    assert!(approve("alice").unwrap_err().contains("another one has to approve it"));
    assert!(approve("bob").unwrap().starts_with("the owner is told now; the address changes at "));
    let waits = "SELECT effective_at - approved_at = '2h'::interval FROM operator_request";
    assert!(sqlx::query_scalar::<_, bool>(waits).fetch_one(&pool).await.unwrap(), "the setting counts");

    let listed = vos_auth(&pool, &["request", "list"]).unwrap();
    let row = listed.lines().find(|line| line.starts_with(&id)).unwrap();
    for part in
        ["address", "approved", "alice", "bob", "trader@example.com to new@example.com", "mailbox is lost"]
    {
        assert!(row.contains(part), "{part} in {row}");
    }
    let listed = vos_auth(&pool, &["request", "list", "--json"]).unwrap();
    let one: Value = serde_json::from_str(&listed).expect("one object, on a line");
    assert_eq!(
        (&one["id"], &one["state"], &one["new_email"]),
        (&id.into(), &"approved".into(), &"new@example.com".into())
    );
    assert!(one["effective_at"].as_str().unwrap().ends_with('Z'), "RFC 3339: {one}");

    let cancel =
        ["request", "cancel", one["id"].as_str().unwrap(), "--operator", "alice", "--reason", "found again"];
    assert_eq!(vos_auth(&pool, &cancel).unwrap(), "the request is cancelled");
    assert!(vos_auth(&pool, &cancel).unwrap_err().contains("is cancelled already"));
    let recorded = "SELECT concat_ws(' ', what, operator, reason) FROM audit_event WHERE operator IS NOT NULL ORDER BY id";
    let recorded: Vec<String> = sqlx::query_scalar(recorded).fetch_all(&pool).await.unwrap();
    assert_eq!(
        recorded,
        [
            "address_change_asked alice the mailbox is lost",
            "address_change_approved bob called back",
            "address_change_cancelled alice found again"
        ]
    );
    let unknown = "00000000-0000-0000-0000-000000000000";
    let unknown = ["request", "approve", unknown, "--operator", "alice", "--reason", "x"];
    assert!(vos_auth(&pool, &unknown).unwrap_err().contains("there is no request with the id"));
}
