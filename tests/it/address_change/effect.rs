//! When an approved change of the address takes effect, and what it does.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use uuid::Uuid;
use vos_auth::address_change::AddressChanges;
use vos_auth::admin::request::{Asked, State};

use super::{ANOTHER, DELAY, Desk, NEW, NOTICE, PASSWORD, SETTINGS, TRADER, asks_for_a_ticket};
use crate::harness::relay::Mood;

#[sqlx::test]
async fn an_approved_change_is_told_at_once_and_takes_effect_after_the_wait(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    assert!(matches!(desk.asks("alice", NEW).await, Asked::Asked(_)));
    assert_eq!(desk.service.count("outbox").await, 0, "the owner is told of what is approved");
    desk.service.clock.advance(Duration::from_mins(10));
    let id = desk.agrees_and_tells(NEW).await;
    let told = desk.emails_to(TRADER);
    assert_eq!(told.len(), 1);
    for part in ["n…@example.com", "hoặc muộn hơn", "hủy việc thay đổi", "support@verolabs.co", TRADER]
    {
        assert!(told[0].contains(part), "{part} in {}", told[0]);
    }
    assert!(!told[0].contains(NEW), "a reader of the old mailbox does not learn the new one");

    // Until the change takes effect, nothing is different for either address.
    desk.passes(DELAY.checked_sub(Duration::from_mins(2)).unwrap()).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), (TRADER, State::Approved));
    let (mut at_old, mut at_new) = (desk.service.client(), desk.service.client());
    let old_code = desk.service.mails_code_to(&mut at_old, TRADER).await;
    assert!(at_new.starts_recovery(NEW).await.is_code_sent());
    desk.service.until_outbox_has(0).await;
    assert_eq!(desk.emails_to(NEW), [""; 0], "no account has the new address yet");

    let mut session = desk.signed_in(PASSWORD).await;
    desk.passes(Duration::from_mins(2)).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), (NEW, State::Done));
    desk.service.until_outbox_has(0).await;
    let (old, new) = (desk.emails_to(TRADER), desk.emails_to(NEW));
    assert_eq!((old.len(), new.len()), (3, 1), "two notices and a code; one notice");
    assert!(old[2].contains("đã đổi địa chỉ email"), "{}", old[2]);
    assert!(
        new[0].contains("https://platform.verolabs.co/recovery") && !new[0].contains(TRADER),
        "{}",
        new[0]
    );
    assert!(session.refreshes().await.is_signed_in(), "sessions continue");

    // A recovery of the old address is now a decoy, whether it began before the change or after it.
    assert_eq!(at_old.verifies(&old_code).await.error(), (400, "code_invalid"));
    assert!(desk.service.client().starts_recovery(TRADER).await.is_code_sent());
    desk.service.until_outbox_has(0).await;
    assert_eq!(desk.emails_to(TRADER).len(), 3);
    // A recovery of the new address from before the change is a decoy, too.
    let early = "SELECT id FROM recovery_session WHERE email = $1";
    let early: Uuid = sqlx::query_scalar(early).bind(NEW).fetch_one(&pool).await.unwrap();
    let code = desk.service.keys.code(early);
    assert_eq!(at_new.verifies(&code.expose()).await.error(), (400, "code_invalid"));
    let mut client = desk.service.client();
    let code = desk.service.mails_code_to(&mut client, NEW).await;
    assert!(client.verifies(&code).await.is_verified());
    assert!(client.resets(ANOTHER).await.is_signed_in());
    assert_eq!(session.refreshes().await.error(), (401, "session_invalid"));
    assert!(session.logs_in(NEW, ANOTHER).await.is_signed_in());
    for (what, count) in [
        ("address_change_asked", 2),
        ("address_change_approved", 1),
        ("address_change_notice_sent", 1),
        ("email_changed", 1),
        ("email_notice_sent", 1),
        ("new_address_notice_sent", 1),
    ] {
        assert_eq!(desk.events(what).await, count, "{what}");
    }
    desk.closes().await;
}

/// The service's own task carries the change out. The test does not call it.
#[sqlx::test]
async fn the_service_carries_a_change_out_by_itself(pool: PgPool) {
    let desk = Desk::open(&pool).await;
    desk.agrees_and_tells(NEW).await;
    desk.service.clock.advance(DELAY);
    desk.service.until("the new address", async || desk.email().await == NEW).await;
    desk.closes().await;
}

#[sqlx::test]
async fn two_replicas_carry_a_change_out_once(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    let replica = desk.service.replica(&SETTINGS).await;
    let id = desk.agrees_and_tells(NEW).await;
    desk.service.clock.advance(DELAY);
    // The request is for a ticket for the account's present address, so the change cancels it.
    let ticket = asks_for_a_ticket(&pool, desk.service.app.clock.now(), desk.account).await;
    let rounds = (0..8).map(|n| {
        let app = if n % 2 == 0 { &desk.service.app } else { &replica.app };
        let changes = AddressChanges::new(Arc::clone(app));
        tokio::spawn(async move { changes.round().await })
    });
    for round in rounds.collect::<Vec<_>>() {
        round.await.unwrap();
    }
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), (NEW, State::Done));
    assert_eq!(desk.state(ticket).await, State::Cancelled);
    desk.service.until_outbox_has(0).await;
    assert_eq!((desk.events("email_changed").await, desk.emails_to(NEW).len()), (1, 1));
    assert_eq!(desk.emails_to(TRADER).len(), 2);
    replica.stops().await;
    desk.closes().await;
}

/// The owner's time to stop a change begins only when a relay has accepted the notice.
#[sqlx::test]
async fn a_change_waits_until_its_notice_is_sent(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    desk.service.relay.is_in_mood(Mood::RefusesRecipient("450 4.2.0 later"));
    let id = desk.agrees(NEW).await;
    let refused = async || desk.service.count("outbox WHERE last_error IS NOT NULL").await == 1;
    desk.service.until("a refusal", refused).await;
    desk.passes(DELAY).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), (TRADER, State::Approved));
    desk.service.relay.is_in_mood(Mood::Takes);
    desk.service.clock.advance(Duration::from_mins(3));
    desk.service.until_outbox_has(0).await;
    desk.passes(DELAY.checked_sub(Duration::from_mins(4)).unwrap()).await;
    assert_eq!(desk.email().await, TRADER);
    desk.passes(Duration::from_mins(1)).await;
    assert_eq!(desk.email().await, TRADER, "the owner was told 57 minutes ago");
    desk.passes(Duration::from_secs(3 * 60 + 1)).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), (NEW, State::Done));
    desk.service.until_outbox_has(0).await;

    // The lost mailbox may not exist any more. A notice that is given up does not stop the change.
    desk.service.relay.is_in_mood(Mood::RefusesRecipient("550 5.1.1 no such user"));
    let id = desk.agrees("third@example.com").await;
    let given_up = async || desk.service.count("outbox WHERE next_attempt_at >= expires_at").await == 1;
    desk.service.until("the notice is given up", given_up).await;
    desk.passes(DELAY).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), ("third@example.com", State::Done));
    desk.service.relay.is_in_mood(Mood::Takes);
    desk.closes().await;
}

/// If no relay has accepted the notice within a week, the owner was not told. So another notice is
/// sent, and the wait begins again.
#[sqlx::test]
async fn a_notice_that_has_expired_is_sent_again(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    desk.service.relay.is_in_mood(Mood::RefusesRecipient("450 4.2.0 later"));
    let id = desk.agrees(NEW).await;
    let notice = async || -> Uuid {
        let notice = "SELECT notice_id FROM operator_request WHERE id = $1";
        sqlx::query_scalar(notice).bind(id).fetch_one(&pool).await.unwrap()
    };
    let first = notice().await;
    desk.service.clock.advance(NOTICE + DELAY);
    let expired = async || desk.service.count(&format!("outbox WHERE id = '{first}'")).await == 0;
    desk.service.until("the notice has expired", expired).await;
    desk.passes(DELAY).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), (TRADER, State::Approved));
    assert_ne!(notice().await, first);
    desk.service.relay.is_in_mood(Mood::Takes);
    desk.service.clock.advance(Duration::from_mins(3));
    desk.service.until_outbox_has(0).await;
    assert_eq!(desk.emails_to(TRADER).len(), 1);
    desk.passes(DELAY).await;
    assert_eq!((desk.email().await.as_str(), desk.state(id).await), (NEW, State::Done));
    desk.closes().await;
}

/// Without the admin API, no replica has a database role that may carry a change out. A metric
/// reports overdue changes, and an alert uses it.
#[sqlx::test]
async fn a_change_that_is_due_and_not_carried_out_is_counted(pool: PgPool) {
    let desk = Desk::open_with(&pool, &[]).await;
    desk.agrees_and_tells(NEW).await;
    desk.passes(DELAY.checked_sub(Duration::from_secs(1)).unwrap()).await;
    assert!(desk.service.metric("vos_auth_address_changes_overdue").await < 0.5);
    desk.passes(Duration::from_secs(1)).await;
    assert_eq!(desk.email().await, TRADER);
    assert!(desk.service.metric("vos_auth_address_changes_overdue").await > 0.5);
    let replica = desk.service.replica(&SETTINGS).await;
    AddressChanges::new(Arc::clone(&replica.app)).round().await;
    desk.round().await;
    assert_eq!(desk.email().await, NEW);
    assert!(desk.service.metric("vos_auth_address_changes_overdue").await < 0.5);
    replica.stops().await;
    desk.closes().await;
}
