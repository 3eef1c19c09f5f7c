//! The owner stops an approved change of the address.

use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;
use vos_auth::admin::request::{Approved, Asked, Cancelled, State};

use super::{ANOTHER, DELAY, Desk, NEW, PASSWORD, TRADER};

const STOP: &str = "/api/auth/address-change/stop";

#[sqlx::test]
async fn a_signed_in_owner_stops_a_change_with_the_password(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    let before = desk.signed_in(PASSWORD).await;
    assert_eq!(before.stops_address_change(PASSWORD).await.error(), (404, "address_change_missing"));
    assert!(matches!(desk.asks("alice", "other@example.com").await, Asked::Asked(_)));
    assert_eq!(
        before.stops_address_change(PASSWORD).await.error(),
        (404, "address_change_missing"),
        "not approved"
    );
    desk.service.clock.advance(Duration::from_mins(10));
    let id = desk.agrees_and_tells(NEW).await;
    // A session of another device, opened after the approval.
    let client = desk.signed_in(PASSWORD).await;
    let wrong = client.stops_address_change(ANOTHER).await;
    assert_eq!(wrong.error(), (400, "password_incorrect"));
    assert_eq!((&wrong.body["field"], desk.state(id).await), (&json!("password"), State::Approved));
    let stopped = client.stops_address_change(PASSWORD).await;
    assert_eq!((stopped.status, stopped.text.as_str()), (200, r#"{"status":"stopped"}"#));
    assert_eq!(desk.state(id).await, State::Stopped);
    assert_eq!(before.stops_address_change(PASSWORD).await.error(), (404, "address_change_missing"), "once");
    assert!(client.refreshes().await.is_signed_in() && before.refreshes().await.is_signed_in());
    desk.passes(2 * DELAY).await;
    assert_eq!(desk.email().await, TRADER);
    assert_eq!((desk.events("address_change_stopped").await, desk.events("email_changed").await), (1, 0));
    assert_eq!(desk.cancels("alice", id).await, Cancelled::Ended(State::Stopped));
    assert_eq!(desk.approves("carol", id).await, Approved::NotAsked(State::Stopped), "not revived");
    desk.closes().await;
}

/// A stop and a change of the password draw on one bucket, so a thief of a session gets no
/// additional guesses.
#[sqlx::test]
async fn wrong_passwords_of_a_stop_count_with_those_of_a_new_password(pool: PgPool) {
    let desk = Desk::open(&pool).await;
    let mut client = desk.signed_in(PASSWORD).await;
    for _ in 0..12 {
        assert_eq!(
            client.stops_address_change(PASSWORD).await.error(),
            (404, "address_change_missing"),
            "costs nothing"
        );
    }
    desk.agrees_and_tells(NEW).await;
    for _ in 0..5 {
        assert_eq!(client.stops_address_change("wrong").await.error(), (400, "password_incorrect"));
        assert_eq!(client.changes_password("wrong", ANOTHER).await.error(), (400, "password_incorrect"));
    }
    assert_eq!(client.changes_password(PASSWORD, ANOTHER).await.error(), (429, "password_throttled"));
    let refused = client.stops_address_change(PASSWORD).await;
    assert_eq!(refused.error(), (429, "password_throttled"));
    desk.service.clock.advance(Duration::from_secs(refused.retry_after()));
    assert_eq!(client.stops_address_change(PASSWORD).await.status, 200);
    desk.closes().await;
}

#[sqlx::test]
async fn only_an_open_session_can_stop_a_change(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    let mut stranger = desk.service.client();
    for body in ["{}", "[", r#"{"password":1}"#] {
        assert_eq!(stranger.post_json(STOP, body).await.error(), (401, "session_invalid"), "{body}");
    }
    let foreign = stranger.clone().with("origin", "https://evil.example");
    assert_eq!(foreign.post_json(STOP, "{}").await.error(), (400, "origin_refused"));
    stranger.token = Some("A".repeat(43));
    assert_eq!(stranger.stops_address_change(PASSWORD).await.error(), (401, "session_invalid"));

    // A reset ends the earlier sessions and does not stop the change. With the session that the
    // reset opens, the owner can stop the change.
    let client = desk.signed_in(PASSWORD).await;
    let id = desk.agrees_and_tells(NEW).await;
    let mut recovering = desk.service.verified(TRADER).await;
    assert!(recovering.resets(ANOTHER).await.is_signed_in());
    assert_eq!(client.stops_address_change(PASSWORD).await.error(), (401, "session_invalid"));
    assert_eq!(desk.state(id).await, State::Approved);
    assert_eq!(recovering.stops_address_change(PASSWORD).await.error(), (400, "password_incorrect"));
    assert_eq!(recovering.stops_address_change(ANOTHER).await.status, 200);
    assert_eq!(desk.state(id).await, State::Stopped);
    // The session of another account stops nothing.
    let id = desk.agrees_and_tells(NEW).await;
    desk.service.has_trader("other@example.com", PASSWORD).await;
    let mut other = desk.service.client();
    assert!(other.logs_in("other@example.com", PASSWORD).await.is_signed_in());
    assert_eq!(other.stops_address_change(PASSWORD).await.error(), (404, "address_change_missing"));
    assert_eq!(desk.state(id).await, State::Approved);
    desk.closes().await;
}

/// The session is open when the request arrives, but ends before the request locks the account.
#[sqlx::test]
async fn a_session_that_has_ended_meanwhile_changes_nothing(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    let id = desk.agrees_and_tells(NEW).await;
    let (stopping, mut changing) = (desk.signed_in(PASSWORD).await, desk.signed_in(PASSWORD).await);
    let mut holding = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM account FOR UPDATE").execute(&mut *holding).await.unwrap();
    let stopping = tokio::spawn(async move { stopping.stops_address_change(PASSWORD).await });
    let changing = tokio::spawn(async move { changing.changes_password(PASSWORD, ANOTHER).await });
    let waiting = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    desk.service.until("both wait for the account", async || desk.service.count(waiting).await == 2).await;
    sqlx::query("UPDATE session SET revoked_at = $1")
        .bind(desk.service.app.clock.now())
        .execute(&mut *holding)
        .await
        .unwrap();
    holding.commit().await.unwrap();
    for refused in [stopping.await.unwrap(), changing.await.unwrap()] {
        assert_eq!(refused.error(), (401, "session_invalid"));
    }
    assert_eq!(desk.state(id).await, State::Approved);
    desk.signed_in(PASSWORD).await;
    desk.closes().await;
}

/// The stop and the task that carries out changes both lock the account first. So the second one
/// finds the change done or stopped.
#[sqlx::test]
async fn a_stop_and_the_effect_exclude_each_other(pool: PgPool) {
    let mut desk = Desk::open(&pool).await;
    let client = desk.signed_in(PASSWORD).await;
    for n in 0..10 {
        let (before, new) = (desk.email().await, format!("new{n}@example.com"));
        let id = desk.agrees_and_tells(&new).await;
        // A session that is idle for half an hour ends, so it is refreshed more often.
        for _ in 0..4 {
            desk.service.clock.advance(DELAY / 4);
            assert!(client.refreshes().await.is_signed_in());
        }
        let (stopped, ()) = tokio::join!(client.stops_address_change(PASSWORD), desk.round());
        match stopped.status {
            200 => assert_eq!((desk.state(id).await, desk.email().await), (State::Stopped, before)),
            404 => assert_eq!((desk.state(id).await, desk.email().await), (State::Done, new)),
            other => panic!("{other}: {}", stopped.text),
        }
        desk.service.until_outbox_has(0).await;
    }
    desk.closes().await;
}
