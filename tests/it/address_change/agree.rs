//! A change of the address: who may approve it, until when, and for which account.

use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;
use vos_auth::admin::request::{self, Approved, Asked, Cancelled, State};
use vos_auth::admin::{self, Help};
use vos_auth::email_address::EmailAddress;

use super::{DELAY, Desk, NEW, NOTICE, TRADER};

#[sqlx::test]
async fn nobody_approves_what_they_asked_for(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    let Asked::Asked(id) = desk.asks("alice", NEW).await else { panic!("asked") };
    for same in ["alice", "Alice", "ALICE"] {
        assert_eq!(desk.approves(same, id).await, Approved::SameOperator);
    }
    // The constraints of `operator_request` refuse an approval by the same operator, without an
    // operator, and without a time.
    let approved = "state = 'approved', approved_at = asked_at, notice_id = id";
    for wrong in
        ["approved_by = 'ALICE', effective_at = asked_at", "effective_at = asked_at", "approved_by = 'bob'"]
    {
        let update = sqlx::AssertSqlSafe(format!("UPDATE operator_request SET {approved}, {wrong}"));
        let refused = sqlx::query(update).execute(&pool).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("23514"), "{wrong}");
    }
    assert!(matches!(desk.approves("bob", id).await, Approved::Address(_)));
    assert_eq!(desk.approves("carol", id).await, Approved::NotAsked(State::Approved));
    assert_eq!(desk.approves("carol", Uuid::nil()).await, Approved::NotFound);
    assert_eq!(desk.events("address_change_approved").await, 1);
    desk.closes().await;
}

#[sqlx::test]
async fn an_approval_comes_within_ten_minutes(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    let Asked::Asked(late) = desk.asks("alice", NEW).await else { panic!("asked") };
    desk.service.clock.advance(Duration::from_mins(10));
    assert_eq!(desk.approves("bob", late).await, Approved::NotAsked(State::Expired));
    assert_eq!(desk.cancels("bob", late).await, Cancelled::Ended(State::Expired));
    let Asked::Asked(id) = desk.asks("alice", NEW).await else { panic!("an expired one blocks none") };
    desk.service.clock.advance(Duration::from_mins(10) - Duration::from_secs(1));
    assert!(matches!(desk.approves("bob", id).await, Approved::Address(_)));
    let now = desk.service.app.clock.now();
    for (open, expected) in
        [(false, &[(id, State::Approved), (late, State::Expired)][..]), (true, &[(id, State::Approved)])]
    {
        let listed = request::list(&mut desk.connection, now, open, None, 10).await.unwrap();
        let listed: Vec<_> = listed.iter().map(|request| (request.id, request.state)).collect();
        assert_eq!(listed, expected);
    }
    desk.closes().await;
}

#[sqlx::test]
async fn an_account_has_one_open_change_and_any_operator_can_cancel_it(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    desk.service.has_account("other@example.com").await;
    assert_eq!(desk.asks("alice", TRADER).await, Asked::AlreadySet);
    assert_eq!(desk.asks("alice", "OTHER@example.com").await, Asked::Taken);
    let id = desk.agrees(NEW).await;
    assert_eq!(desk.asks("carol", "third@example.com").await, Asked::Pending(id));
    assert_eq!(desk.cancels("carol", id).await, Cancelled::Cancelled);
    assert_eq!(desk.cancels("carol", id).await, Cancelled::Ended(State::Cancelled));
    let revive = sqlx::query("UPDATE operator_request SET state = 'approved'").execute(&pool).await;
    let refused = revive.unwrap_err();
    assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("23514"));
    desk.passes(2 * DELAY).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), (TRADER, State::Cancelled));
    assert!(matches!(desk.asks("carol", NEW).await, Asked::Asked(_)));
    let account = desk.account;
    desk.account = Uuid::nil();
    assert_eq!(desk.asks("alice", NEW).await, Asked::NotFound);
    desk.account = account;
    desk.closes().await;
}

/// A change has no effect if its account was disabled, got another address or was erased after the
/// request, or if another account took the new address.
#[sqlx::test]
async fn a_change_has_no_effect_on_an_account_that_has_changed(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    let (id, now) = (desk.agrees_and_tells(NEW).await, desk.service.app.clock.now());
    for active in [false, true] {
        assert!(admin::set_active(&mut desk.connection, now, desk.account, active, None).await.unwrap());
    }
    assert_eq!(desk.state(id).await, State::Cancelled);
    desk.passes(DELAY).await;
    assert_eq!(desk.email().await, TRADER);

    let id = desk.agrees_and_tells(NEW).await;
    let (now, third) = (desk.service.app.clock.now(), EmailAddress::parse("third@example.com").unwrap());
    let help = Help::by_command(NOTICE);
    admin::set_email(&mut desk.connection, now, desk.account, &third, help).await.unwrap();
    assert_eq!(desk.state(id).await, State::Cancelled);

    // The account is changed without an operator's command, as by an import.
    let id = desk.agrees_and_tells(NEW).await;
    let set = async |set: &str| {
        let update = sqlx::AssertSqlSafe(format!("UPDATE account SET {set}"));
        assert_eq!(sqlx::query(update).execute(&pool).await.unwrap().rows_affected(), 1);
    };
    set("email = 'fourth@example.com'").await;
    desk.passes(DELAY).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), ("fourth@example.com", State::Failed));
    let id = desk.agrees_and_tells(NEW).await;
    set("state = 'disabled'").await;
    desk.passes(DELAY).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), ("fourth@example.com", State::Failed));
    set("state = 'active'").await;
    for (change, back) in [
        ("state = 'disabled'", "state = 'active'"),
        ("email = 'x@example.com'", "email = 'fourth@example.com'"),
    ] {
        let Asked::Asked(id) = desk.asks("alice", NEW).await else { panic!("asked") };
        set(change).await;
        assert_eq!(desk.approves("bob", id).await, Approved::AccountChanged, "{change}");
        set(back).await;
        assert_eq!(desk.cancels("bob", id).await, Cancelled::Cancelled);
    }

    let id = desk.agrees_and_tells(NEW).await;
    desk.service.has_account(NEW).await;
    desk.passes(DELAY).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), ("fourth@example.com", State::Failed));
    assert_eq!(desk.events("address_change_failed").await, 3);
    let Asked::Asked(id) = desk.asks("alice", "fifth@example.com").await else { panic!("asked") };
    desk.service.has_account("fifth@example.com").await;
    assert_eq!(desk.approves("bob", id).await, Approved::Taken);

    let now = desk.service.app.clock.now();
    assert!(admin::erase(&mut desk.connection, now, desk.account, None).await.unwrap());
    assert_eq!(desk.service.count("operator_request").await, 0, "no address of the owner stays");
    assert_eq!(desk.approves("bob", id).await, Approved::NotFound);
    assert_eq!(desk.events("email_changed").await, 1, "the operator's own change");
    desk.closes().await;
}
