//! `Idempotency-Key`: a lost answer of `verify` or `reset-password` is given again.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use sqlx::PgPool;
use tokio::task::JoinSet;
use vos_auth::sweeper::Sweeper;

use crate::harness::Service;
use crate::harness::client::{Answer, Client};
use crate::verify::wrong;

const TRADER: &str = "trader@example.com";
const OLD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";
const OTHER: &str = "slow lamps over misty rice fields";
const HEADER: &str = "idempotency-key";
const KEY: &str = "0123456789abcdefghijkl";
const LIFE: Duration = Duration::from_mins(2);
const ALMOST_LIFE: Duration = Duration::from_secs(119);
const MISSING: (u16, &str) = (401, "recovery_session_missing");
const USED: (u16, &str) = (401, "recovery_session_used");
const LIVE_SESSIONS: &str = "session WHERE revoked_at IS NULL";
const BUSY: &[&str] = &["--network-burst=1000000", "--network-per-minute=1000000"];

/// The client, with a key for its next requests.
fn with_key(client: &Client, key: &str) -> Client {
    let mut client = client.clone();
    client.headers.insert(HEADER, key.parse().unwrap());
    client
}

/// A client that waits for a code, and the code.
async fn with_code(service: &Service) -> (Client, String) {
    service.has_trader(TRADER, OLD).await;
    let mut client = service.client();
    let code = service.mails_code_to(&mut client, TRADER).await;
    (with_key(&client, KEY), code)
}

/// A client that may set a password.
async fn with_verified(service: &Service) -> Client {
    service.has_trader(TRADER, OLD).await;
    with_key(&service.verified(TRADER).await, KEY)
}

#[sqlx::test]
async fn a_lost_answer_of_verify_is_given_again(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (client, code) = with_code(&service).await;
    let mut first = client.clone();
    let lost = first.verifies(&code).await;
    assert!(lost.is_verified(), "{}", lost.text);
    service.clock.advance(ALMOST_LIFE);
    let (mut second, mut third) = (client.clone(), client.clone());
    for again in [second.verifies(&code).await, third.verifies(&code).await] {
        assert!(again.is_verified(), "{}", again.text);
        assert_eq!(again.header("x-recovery-id"), lost.header("x-recovery-id"));
        assert_eq!(again.cookie_life(), lost.cookie_life() - 119, "the recovery lives no longer");
        assert_ne!(again.set_cookie(), lost.set_cookie(), "the token is new");
    }
    for replaced in [&mut first, &mut second] {
        assert_eq!(replaced.resets(NEW).await.error(), MISSING, "a later token has replaced it");
    }
    assert!(third.resets(NEW).await.is_signed_in());
    assert_eq!(client.clone().verifies(&code).await.error(), MISSING, "the password is set");
    service.stops().await;
}

#[sqlx::test]
async fn any_other_request_with_a_replaced_token_is_refused(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (client, code) = with_code(&service).await;
    let mut first = client.clone();
    assert!(first.verifies(&code).await.is_verified());
    let mut without = client.clone();
    without.headers.clear();
    assert_eq!(without.verifies(&code).await.error(), MISSING);
    assert_eq!(with_key(&client, &KEY.replace('0', "1")).verifies(&code).await.error(), MISSING);
    assert_eq!(client.clone().verifies("1234567").await.error(), MISSING);
    assert_eq!(first.clone().verifies(&code).await.error(), USED, "its token is the new one");
    service.has_trader("other@example.com", OLD).await;
    let elsewhere = with_key(&service.verified("other@example.com").await, KEY);
    assert_eq!(elsewhere.clone().verifies(&code).await.error(), USED);
    let named = client.clone().with("x-recovery-id", "0123456789abcdefghijkl").verifies(&code).await;
    assert_eq!(named.error(), (401, "recovery_id_mismatch"));
    service.clock.advance(LIFE);
    assert_eq!(client.clone().verifies(&code).await.error(), MISSING, "after two minutes");
    assert!(first.resets(NEW).await.is_signed_in());
    service.stops().await;
}

/// The right code uses one of the five attempts, and a replay compares one wrong code at most. So
/// no more than five wrong codes are compared.
#[sqlx::test]
async fn v2_a_wrong_code_ends_the_replay_of_verify(pool: PgPool) {
    let service = Service::start_with_settings(&pool, BUSY).await;
    let (client, code) = with_code(&service).await;
    let wrong = wrong(&code);
    for _ in 0..4 {
        client.clone().verifies(&wrong).await.attempts_left();
    }
    assert!(client.clone().verifies(&code).await.is_verified(), "with the fifth attempt");
    assert!(client.clone().verifies(&code).await.is_verified(), "a right code spends nothing");
    assert_eq!(client.clone().verifies(&wrong).await.error(), MISSING);
    assert_eq!(client.clone().verifies(&code).await.error(), MISSING, "no further guess is compared");
    assert_eq!(service.count("recovery_session WHERE replay_key IS NOT NULL").await, 0);
    service.stops().await;
}

#[sqlx::test]
async fn a_lost_answer_of_reset_is_given_again(pool: PgPool) {
    let service = Service::start(&pool).await;
    let client = with_verified(&service).await;
    let (mut first, mut second, mut third) = (client.clone(), client.clone(), client.clone());
    assert!(first.resets(NEW).await.is_signed_in());
    service.clock.advance(ALMOST_LIFE);
    for again in [&mut second, &mut third] {
        let answer = again.resets(NEW).await;
        assert!(answer.is_signed_in(), "{}", answer.text);
        assert!(answer.set_cookie().unwrap().contains("Max-Age=0"));
    }
    for replaced in [&first, &second] {
        assert_eq!(replaced.refreshes().await.error(), (401, "session_invalid"));
    }
    assert!(third.refreshes().await.is_signed_in());
    assert_eq!(service.count(LIVE_SESSIONS).await, 1);
    assert_eq!(service.count("audit_event WHERE what = 'password_reset'").await, 1);
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), 2, "a code and one notice");
    service.clock.advance(Duration::from_secs(1));
    assert_eq!(client.clone().resets(NEW).await.error(), USED, "after two minutes");
    assert!(third.refreshes().await.is_signed_in());
    service.stops().await;
}

/// The recovery may expire before its replay does.
#[sqlx::test]
async fn a_reset_in_the_last_minute_can_be_repeated(pool: PgPool) {
    let service = Service::start(&pool).await;
    let client = with_verified(&service).await;
    service.clock.advance(Duration::from_secs(899));
    assert!(client.clone().resets(NEW).await.is_signed_in());
    service.clock.advance(ALMOST_LIFE);
    assert!(client.clone().resets(NEW).await.is_signed_in());
    service.stops().await;
}

#[sqlx::test]
async fn any_other_request_after_a_reset_is_refused(pool: PgPool) {
    let service = Service::start(&pool).await;
    let client = with_verified(&service).await;
    let mut first = client.clone();
    assert!(first.resets(NEW).await.is_signed_in());
    let mut without = client.clone();
    without.headers.clear();
    assert_eq!(without.resets(NEW).await.error(), USED);
    assert_eq!(with_key(&client, &KEY.replace('0', "1")).resets(NEW).await.error(), USED);
    assert_eq!(client.clone().resets(OTHER).await.error(), USED, "another password");
    assert_eq!(client.clone().resets("").await.error(), USED);
    assert!(first.refreshes().await.is_signed_in());
    assert_eq!(first.logs_out().await.status, 200);
    assert_eq!(client.clone().resets(NEW).await.error(), USED, "the session has ended");
    assert_eq!(service.count(LIVE_SESSIONS).await, 0);
    service.stops().await;
}

#[sqlx::test]
async fn a_changed_password_ends_the_replay_of_reset(pool: PgPool) {
    let service = Service::start(&pool).await;
    let client = with_verified(&service).await;
    let mut first = client.clone();
    assert!(first.resets(NEW).await.is_signed_in());
    assert!(first.changes_password(NEW, OTHER).await.is_signed_in());
    assert_eq!(client.clone().resets(NEW).await.error(), USED);
    assert_eq!(client.clone().resets(OTHER).await.error(), USED, "the first session has ended");
    assert!(first.refreshes().await.is_signed_in());
    service.stops().await;
}

#[sqlx::test]
async fn a_right_password_in_a_replay_costs_nothing_though_its_session_has_ended(pool: PgPool) {
    let service = Service::start_with_settings(&pool, BUSY).await;
    let client = with_verified(&service).await;
    let mut first = client.clone();
    assert!(first.resets(NEW).await.is_signed_in());
    assert_eq!(first.logs_out().await.status, 200);
    for _ in 0..10 {
        assert_eq!(client.clone().resets(NEW).await.error(), USED);
    }
    assert!(service.client().logs_in(TRADER, NEW).await.is_signed_in());
    service.stops().await;
}

/// A wrong password in a replay is a failed login of the address, and draws on the same bucket.
#[sqlx::test]
async fn l2_a_wrong_password_in_a_replay_counts_as_a_failed_login(pool: PgPool) {
    let service = Service::start_with_settings(&pool, BUSY).await;
    let client = with_verified(&service).await;
    assert!(client.clone().resets(NEW).await.is_signed_in());
    for _ in 0..10 {
        assert_eq!(client.clone().resets(OTHER).await.error(), USED);
    }
    assert_eq!(client.clone().resets(NEW).await.error(), USED, "no further password is compared");
    let mut stranger = service.client();
    assert_eq!(stranger.logs_in(TRADER, NEW).await.error(), (429, "login_throttled"));
    assert_eq!(service.count("audit_event WHERE what = 'sign_in_failed'").await, 10);
    service.stops().await;
}

/// Sends 50 requests at once, to two replicas. `key` returns the key of the request with a number.
async fn fifty(
    (one, two): (&Service, &Service),
    client: &Client,
    key: impl Fn(usize) -> String,
    call: impl AsyncFn(&mut Client) -> Answer + Clone + 'static,
) -> Vec<(Client, Answer)> {
    let local = tokio::task::LocalSet::new();
    let mut calls = JoinSet::new();
    for n in 0..50 {
        let mut client = with_key(client, &key(n)).at([one, two][n % 2].address);
        let call = call.clone();
        calls.spawn_local_on(
            async move {
                let answer = call(&mut client).await;
                (client, answer)
            },
            &local,
        );
    }
    let answered = local.run_until(calls.join_all()).await;
    answered.into_iter().filter(|(_, answer)| answer.status == 200).collect()
}

fn one_key(_: usize) -> String {
    KEY.into()
}

fn fifty_keys(n: usize) -> String {
    format!("{KEY}{n}")
}

/// Each answer has a new token of the recovery or the session. Only the last token is valid.
#[sqlx::test]
async fn l3_of_parallel_requests_with_one_key_or_fifty_one_token_is_live(pool: PgPool) {
    let one = Service::start_with_settings(&pool, BUSY).await;
    let two = one.replica(BUSY).await;
    for key in [one_key, fifty_keys] {
        let email = format!("trader{}@example.com", key(1).len());
        one.has_trader(&email, OLD).await;
        let mut client = one.client();
        let code = one.mails_code_to(&mut client, &email).await;
        let verify = async move |client: &mut Client| client.verifies(&code).await;
        let verified = fifty((&one, &two), &client, key, verify).await;
        let mut live = Vec::new();
        for (client, _) in &verified {
            if client.get("/api/auth/recovery").await.status == 200 {
                live.push(client.clone());
            }
        }
        assert_eq!(live.len(), 1, "of {} answers", verified.len());

        let reset = async |client: &mut Client| client.resets(NEW).await;
        let signed_in = fifty((&one, &two), &live[0], key, reset).await;
        let mut live = 0;
        for (client, _) in &signed_in {
            live += usize::from(client.refreshes().await.is_signed_in());
        }
        assert_eq!(live, 1, "of {} answers", signed_in.len());
        if key(0) == key(1) {
            assert!(verified.len() > 1 && signed_in.len() > 1, "{} {}", verified.len(), signed_in.len());
        } else {
            assert_eq!((verified.len(), signed_in.len()), (1, 1));
        }
        let mut tokens: Vec<_> = signed_in.iter().filter_map(|(client, _)| client.token.clone()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), signed_in.len(), "each token is new");
        one.until_outbox_has(0).await;
    }
    assert_eq!(one.count(LIVE_SESSIONS).await, 2, "one for each account");
    assert_eq!(one.relay.mails().len(), 4, "for each account a code and one notice");
    two.stops().await;
    one.stops().await;
}

#[sqlx::test]
async fn a_success_is_stored_for_two_minutes_and_nothing_else_is(pool: PgPool) {
    let service = Service::start(&pool).await;
    let stored = "recovery_session WHERE num_nonnulls(replay_until, replay_key, replay_token_hash, replay_session_id) > 0";
    let (client, code) = with_code(&service).await;
    client.clone().verifies(&wrong(&code)).await.attempts_left();
    assert_eq!(service.count(stored).await, 0, "an error is not a success");
    let mut first = client.clone();
    assert!(first.verifies(&code).await.is_verified());
    let mut sweeper = Sweeper::new(Arc::clone(&service.app));
    service.clock.advance(ALMOST_LIFE);
    sweeper.sweep().await;
    assert_eq!(service.count(stored).await, 1);
    service.clock.advance(Duration::from_secs(1));
    sweeper.sweep().await;
    assert_eq!(service.count(stored).await, 0);
    let mut without = first.clone();
    without.headers.clear();
    assert!(without.resets(NEW).await.is_signed_in());
    assert_eq!(service.count(stored).await, 0, "no key was sent");
    service.stops().await;
}

/// The key is checked first, so the answer does not depend on the recovery.
#[sqlx::test]
async fn a_malformed_key_is_refused(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (client, code) = with_code(&service).await;
    let too_long = "k".repeat(65);
    for key in ["", "short", &KEY[1..], &too_long, "with a space in its middle", "\"0123456789abcdefghijk\""]
    {
        let mut client = with_key(&client, key);
        assert_eq!(client.verifies(&code).await.error(), (400, "idempotency_key_invalid"), "{key}");
        assert_eq!(client.resets(NEW).await.error(), (400, "idempotency_key_invalid"), "{key}");
        let mut stranger = with_key(&service.client(), key);
        assert_eq!(stranger.verifies(&code).await.error(), (400, "idempotency_key_invalid"), "{key}");
    }
    let mut twice = client.clone().with(HEADER, KEY);
    assert_eq!(twice.verifies(&code).await.error(), (400, "idempotency_key_invalid"));
    assert!(with_key(&client, &format!("\"{KEY}\"")).verifies(&code).await.is_verified());
    assert!(client.clone().verifies(&code).await.is_verified(), "quotation marks do not count");
    service.stops().await;
}

#[sqlx::test]
async fn preflights_allow_the_key(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--allowed-origins=https://app.example.com"]).await;
    let preflight = service
        .client()
        .request(Method::OPTIONS, "/api/auth/recovery/verify")
        .header("origin", "https://app.example.com")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", HEADER)
        .body(json!({}).to_string());
    let answer = Client::answer(preflight).await;
    let allowed = answer.header("access-control-allow-headers").unwrap_or_default();
    assert!(allowed.split(',').any(|name| name.trim() == HEADER), "{allowed}");
    service.stops().await;
}
