//! `GET /api/auth/recovery`, and `X-Recovery-Id`, which names the recovery that a request means.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgPool;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::harness::client::{Answer, Client};
use crate::harness::{Service, now};
use crate::verify::wrong;

const PATH: &str = "/api/auth/recovery";
const TRADER: &str = "trader@example.com";
const OTHER: &str = "other@example.com";
const PASSWORD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";

/// The recovery in the answer, after checking the answer's form.
async fn progress_of(client: &Client) -> Value {
    let answer = client.get(PATH).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.set_cookie(), None);
    answer.body["recovery"].clone()
}

fn time_in(recovery: &Value, member: &str) -> OffsetDateTime {
    OffsetDateTime::parse(recovery[member].as_str().unwrap(), &Rfc3339).unwrap()
}

/// Whether the recovery expires in `seconds`, to within a second.
fn is_about(service: &Service, recovery: &Value, seconds: i64) -> bool {
    let life = time_in(recovery, "expires_at") - service.app.clock.now();
    (life - time::Duration::seconds(seconds)).abs() < time::Duration::seconds(1)
}

fn id_of(answer: &Answer) -> String {
    answer.header("x-recovery-id").expect("X-Recovery-Id").to_owned()
}

async fn attempts(pool: &PgPool, email: &str) -> i64 {
    let spent = "SELECT coalesce(sum(5 - attempts_left), 0)::bigint FROM recovery_session WHERE email = $1";
    sqlx::query_scalar(spent).bind(email).fetch_one(pool).await.unwrap()
}

#[sqlx::test]
async fn without_a_cookie_progress_can_be_asked_for_without_an_error(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut client = service.client();
    let optional = format!("{PATH}?required=false");
    let absent = client.get(&optional).await;
    assert_eq!((absent.status, absent.text.as_str()), (204, ""));
    assert_eq!(absent.header("cache-control"), Some("no-store"));
    for required in [PATH, &format!("{PATH}?required=true")] {
        assert_eq!(client.get(required).await.body["error"], "recovery_session_missing");
    }
    for unknown in ["required=0", "required=false&required=false", "other=1", "required"] {
        let refused = client.get(&format!("{PATH}?{unknown}")).await;
        assert_eq!((refused.status, &refused.body["error"]), (400, &"query_invalid".into()), "{unknown}");
    }
    client.starts_recovery(TRADER).await;
    assert_eq!(client.get(&optional).await.status, 200);
    client.cookie = Some(format!("__Host-vos_recovery={}", "A".repeat(43)));
    assert_eq!(client.get(&optional).await.body["error"], "recovery_session_missing");
    service.stops().await;
}

#[sqlx::test]
async fn progress_shows_the_state_of_the_recovery(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    let started = client.starts_recovery(" Trader@Example.COM ").await;
    let id = id_of(&started);
    assert!(id.len() == 22 && !client.cookie.as_ref().unwrap().contains(&id));
    let first = progress_of(&client).await;
    let members: Vec<_> = first.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(members, ["id", "email", "state", "expires_at", "attempts_left", "resend_at"]);
    assert_eq!((&first["id"], &first["email"]), (&id.clone().into(), &TRADER.into()));
    assert_eq!((&first["state"], &first["attempts_left"]), (&"code_sent".into(), &5.into()));
    assert!(is_about(&service, &first, 600));
    assert_eq!(time_in(&client.get(PATH).await.body, "now"), service.app.clock.now());

    let code = service.relay.mail(1).await.code();
    client.verifies(&wrong(&code)).await;
    assert_eq!(progress_of(&client).await["attempts_left"], 4);
    service.clock.advance(Duration::from_mins(1));
    assert_eq!(id_of(&client.starts_recovery(TRADER).await), id, "a resend keeps the recovery");
    let before = client.clone();
    let verified = client.verifies(&code).await;
    assert_eq!(id_of(&verified), id, "the token changes, the id does not");
    let last = progress_of(&client).await;
    assert_eq!((&last["id"], &last["state"]), (&id.into(), &"verified".into()));
    assert!(is_about(&service, &last, 900));
    assert_eq!(before.get(PATH).await.error(), (401, "recovery_session_missing"), "the old token is invalid");

    let consumed = client.clone();
    assert!(client.resets(NEW).await.is_signed_in());
    assert_eq!(consumed.get(PATH).await.error(), (401, "recovery_session_used"));
    assert_eq!(client.get(PATH).await.error(), (401, "recovery_session_missing"), "its cookie is cleared");
    let mut next = service.client();
    next.starts_recovery("a@Việt.vn").await;
    assert_eq!(progress_of(&next).await["email"], "a@việt.vn");
    service.stops().await;
}

/// Before a right code, `GET` answers with the error of `verify`. After it, `GET` answers with the
/// error of `reset-password`, such as when another reset has ended the recovery.
#[sqlx::test]
async fn a_recovery_that_cannot_be_continued_is_401(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    assert_eq!(service.client().get(PATH).await.error(), (401, "recovery_session_missing"));
    let mut verified = service.verified(TRADER).await;
    let mut other = service.verified(TRADER).await;
    assert!(other.resets(NEW).await.is_signed_in());
    assert_eq!(verified.get(PATH).await.error(), (401, "recovery_session_used"));
    assert_eq!(verified.resets(PASSWORD).await.error(), (401, "recovery_session_used"));
    let mut client = service.client();
    client.starts_recovery(OTHER).await;
    for left in (0..5).rev() {
        assert_eq!(client.verifies("00000000").await.attempts_left(), left);
    }
    assert_eq!(client.get(PATH).await.error(), (401, "recovery_session_spent"));
    client.starts_recovery(OTHER).await;
    service.clock.advance(Duration::from_secs(601));
    assert_eq!(client.get(PATH).await.error(), (401, "recovery_session_expired"));
    service.stops().await;
}

/// Invariant 1 of `src/lib.rs`: before a right code, `GET` reads neither `account` nor the outbox.
#[sqlx::test]
async fn s2_progress_answers_while_account_and_outbox_are_locked(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut seen = Vec::new();
    for email in [TRADER, "nobod@example.com"] {
        let mut client = service.client();
        assert!(client.starts_recovery(email).await.is_code_sent());
        let mut lock = pool.begin().await.unwrap();
        sqlx::query("LOCK TABLE account, outbox IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
        let mut recovery = progress_of(&client).await;
        lock.rollback().await.unwrap();
        for own in ["id", "email"] {
            recovery[own] = recovery[own].as_str().unwrap().len().into();
        }
        seen.push(recovery);
    }
    assert_eq!(seen[0].as_object().unwrap().len(), 6);
    service.stops().await;
}

/// `resend_at` is the time from which `start` sends again, by this browser's bucket.
#[sqlx::test]
async fn resend_at_is_when_start_is_admitted(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--address-burst=2", "--address-per-day=4"]).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut known = service.client();
    assert!(known.logs_in(TRADER, PASSWORD).await.is_signed_in());
    let mut client = service.client();
    client.starts_recovery(TRADER).await;
    assert!(
        time_in(&progress_of(&client).await, "resend_at") <= service.app.clock.now(),
        "one start is left"
    );
    for _ in 0..3 {
        assert!(client.starts_recovery(TRADER).await.is_code_sent());
        let wait = time_in(&progress_of(&client).await, "resend_at") - service.app.clock.now();
        assert!(wait > time::Duration::minutes(4), "{wait}");
        service.clock.advance((wait - time::Duration::milliseconds(1)).try_into().unwrap());
        let mut early = client.clone();
        assert_eq!(early.starts_recovery(TRADER).await.error(), (429, "address_throttled"));
        service.clock.advance(Duration::from_millis(2));
    }
    assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    known.starts_recovery(TRADER).await;
    assert!(
        time_in(&progress_of(&known).await, "resend_at") <= service.app.clock.now(),
        "a known browser has its own bucket"
    );
    service.stops().await;
}

/// `GET` draws on the cookie's bucket first, then on the network's. An unknown cookie has no
/// bucket.
#[sqlx::test]
async fn progress_draws_on_the_cookies_bucket_and_then_on_the_networks(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=3"]).await;
    let mut client = service.client();
    client.starts_recovery(TRADER).await;
    let mut stranger = service.client();
    stranger.cookie = Some(format!("__Host-vos_recovery={}", "A".repeat(43)));
    for _ in 0..3 {
        assert_eq!(stranger.get(PATH).await.error(), (401, "recovery_session_missing"));
    }
    assert_eq!(stranger.get(PATH).await.error(), (429, "network_throttled"));
    for _ in 0..12 {
        progress_of(&client).await;
    }
    assert_eq!(client.get(PATH).await.error(), (429, "network_throttled"));
    let foreign = service.client().with("origin", "https://evil.example");
    assert_eq!(foreign.get(PATH).await.error(), (400, "origin_refused"));
    service.stops().await;
}

/// A page that shows one recovery changes nothing in another, whatever the current cookie.
#[sqlx::test]
async fn a_request_for_another_recovery_is_refused_and_costs_nothing(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    for email in [TRADER, OTHER] {
        service.has_trader(email, PASSWORD).await;
    }
    let mut client = service.client();
    let shown = id_of(&client.starts_recovery(TRADER).await);
    let code_of_trader = service.relay.mail(1).await.code();
    let code = service.mails_code_to(&mut client, OTHER).await;
    let own = progress_of(&client).await["id"].as_str().unwrap().to_owned();
    assert_ne!(own, shown);
    let twice = client.clone().with("x-recovery-id", &own).with("x-recovery-id", &own);
    let naming = |client: &Client, id: &str| client.clone().with("x-recovery-id", id);
    let mut others = vec![twice];
    let malformed = ["", "x", &own[1..], &format!("{own}="), &format!("{own}{own}"), "é", &"x".repeat(5000)];
    others.extend(malformed.iter().chain([&shown.as_str()]).map(|id| naming(&client, id)));
    for other in &mut others {
        let before = other.cookie.clone();
        for typed in [code.as_str(), code_of_trader.as_str(), "no code"] {
            let refused = other.verifies(typed).await;
            assert_eq!(refused.error(), (401, "recovery_id_mismatch"), "{:?}", other.headers);
            assert_eq!(refused.set_cookie(), None);
        }
        assert_eq!(other.resets(NEW).await.error(), (401, "recovery_id_mismatch"));
        assert_eq!(other.cookie, before);
    }
    assert_eq!(attempts(&pool, OTHER).await + attempts(&pool, TRADER).await, 0, "no attempt was spent");
    let without = service.client().with("x-recovery-id", &own).verifies(&code).await;
    assert_eq!(without.error(), (401, "recovery_session_missing"), "there is no cookie");

    let mut right = naming(&client, &own);
    assert_eq!(right.verifies(&wrong(&code)).await.attempts_left(), 4);
    assert!(right.verifies(&code).await.is_verified());
    let mut other = right.clone();
    other.headers = naming(&service.client(), &shown).headers;
    assert_eq!(other.resets(NEW).await.error(), (401, "recovery_id_mismatch"));
    assert!(service.client().logs_in(OTHER, PASSWORD).await.is_signed_in(), "the password is unchanged");
    assert!(right.resets(NEW).await.is_signed_in());
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    service.stops().await;
}

/// The public id gives no access, and reveals neither the session's id nor its age.
#[sqlx::test]
async fn the_public_id_gives_no_access_and_reveals_nothing(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut client = service.client();
    let id = id_of(&client.starts_recovery(TRADER).await);
    let session: uuid::Uuid =
        sqlx::query_scalar("SELECT id FROM recovery_session").fetch_one(&pool).await.unwrap();
    assert!(!session.simple().to_string().contains(&id.to_lowercase()));
    let mut thief = service.client();
    thief.cookie = Some(format!("__Host-vos_recovery={id}"));
    assert_eq!(thief.get(PATH).await.error(), (401, "recovery_session_missing"));
    assert!(
        session.get_timestamp().is_some_and(|at| at
            .to_unix()
            .0
            .abs_diff(now().unix_timestamp().unsigned_abs())
            < 600)
    );
    service.stops().await;
}
