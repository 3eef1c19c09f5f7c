//! What one client behind an address may take from others behind it: the limits that a replica keeps in memory.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use vos_auth::email_address::EmailAddress;
use vos_auth::throttle;

use crate::harness::client::Client;
use crate::harness::database::{Proxy, Way};
use crate::harness::program::run;
use crate::harness::{Service, Setup, database};

const TRADER: &str = "trader@example.com";
const OTHER: &str = "other@example.com";
const PASSWORD: &str = "morning boat on a green river";

/// A token that looks like one and was issued by nobody.
fn made_up() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// Uses up what the address may ask of verify and reset-password.
async fn a_neighbour_spends_the_address(service: &Service) {
    let mut neighbour = service.client();
    while neighbour.verifies("1234 5678").await.error() != (429, "network_throttled") {
        neighbour.cookie = Some(format!("__Host-vos_recovery={}", made_up()));
    }
}

/// One neighbour behind the same address cuts no recovery off: neither at verify nor at reset-password, nor at start.
#[sqlx::test]
async fn v_a_neighbour_does_not_end_a_recovery(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut victim = service.client();
    let code = service.mails_code_to(&mut victim, TRADER).await;
    a_neighbour_spends_the_address(&service).await;
    assert!(service.client().starts_recovery("other@example.com").await.is_code_sent(), "start has its own");
    assert!(victim.verifies(&code).await.is_verified());
    assert_eq!(victim.resets("short").await.error(), (400, "password_too_short"));
    assert!(victim.resets(PASSWORD).await.is_signed_in());
    service.stops().await;
}

/// A recovery cookie is good for 12 requests, then it draws on its network; so does a forged one, and one that has expired.
#[sqlx::test]
async fn v_a_recovery_cookie_is_good_for_twelve_requests(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut client = service.client();
    assert!(client.starts_recovery(TRADER).await.is_code_sent());
    let mut late = service.client();
    assert!(late.starts_recovery(TRADER).await.is_code_sent());
    a_neighbour_spends_the_address(&service).await;
    for _ in 0..12 {
        assert_eq!(client.verifies("no code").await.error(), (400, "code_malformed"));
    }
    let refused = client.verifies("no code").await;
    assert_eq!((refused.error(), refused.retry_after()), ((429, "network_throttled"), 1));
    service.clock.advance(Duration::from_mins(16));
    a_neighbour_spends_the_address(&service).await;
    assert_eq!(late.verifies("no code").await.error(), (429, "network_throttled"), "its time is over");
    service.stops().await;
}

/// Collected recovery cookies gain nothing: a network may begin to use so many a minute as it may send requests.
#[sqlx::test]
async fn v_collected_recovery_cookies_are_bounded_by_network(pool: PgPool) {
    let service =
        Service::start_with_settings(&pool, &["--network-burst=30", "--network-per-minute=10"]).await;
    let mut collected = Vec::new();
    for n in 0..15 {
        let mut client = service.client();
        assert!(client.starts_recovery(&format!("nobody{n}@example.com")).await.is_code_sent());
        collected.push(client);
    }
    a_neighbour_spends_the_address(&service).await;
    let mut answered = 0;
    for client in &mut collected {
        answered += usize::from(client.verifies("no code").await.status == 400);
    }
    assert_eq!(answered, 10);
    assert_eq!(collected[0].verifies("no code").await.status, 400, "one that has begun goes on");
    service.stops().await;
}

async fn signed_in(service: &Service) -> Client {
    let mut client = service.client();
    assert!(client.logs_in(TRADER, PASSWORD).await.is_signed_in());
    client
}

/// Made-up session tokens are bounded for each network; a good one pays nothing and is not held up, nor is a login.
#[sqlx::test]
async fn l_made_up_session_tokens_are_bounded_by_network(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let client = signed_in(&service).await;
    let mut stranger = service.client();
    let mut refused = 0;
    for n in 0..45 {
        stranger.token = Some(made_up());
        let answer = match n % 3 {
            0 => stranger.refreshes().await,
            1 => stranger.get("/api/auth/sessions").await,
            _ => stranger.logs_out().await,
        };
        match answer.error() {
            (401, "session_invalid") => {}
            (429, "network_throttled") => refused += usize::from((1..=60).contains(&answer.retry_after())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 15, "30 are looked up");
    for _ in 0..40 {
        assert!(client.refreshes().await.is_signed_in(), "a good token pays nothing");
    }
    assert_eq!(service.client().refreshes().await.error(), (401, "session_invalid"), "nor does none");
    signed_in(&service).await;
    service.stops().await;
}

/// A token that was good and has ended is looked up three times more for nothing, then as a made-up one.
#[sqlx::test]
async fn l_an_ended_session_token_counts_as_made_up_in_the_end(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let client = signed_in(&service).await;
    assert_eq!(client.logs_out().await.status, 200);
    let mut answers = Vec::new();
    for _ in 0..3 + 30 + 5 {
        answers.push(client.refreshes().await.status);
    }
    assert_eq!(answers.iter().filter(|status| **status == 401).count(), 3 + 30);
    assert!(answers[33..].iter().all(|status| *status == 429));
    service.stops().await;
}

/// A token of a release before does not say that it was issued here, and pays nothing either, as it is good.
#[sqlx::test]
async fn l_a_good_token_of_the_form_before_pays_nothing(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = signed_in(&service).await;
    let token: [u8; 32] = rand::random();
    let former = sqlx::query("UPDATE session SET token_hash = $1").bind(&Sha256::digest(token)[..]);
    former.execute(&pool).await.unwrap();
    client.token = Some(URL_SAFE_NO_PAD.encode(token));
    for _ in 0..40 {
        assert!(client.refreshes().await.is_signed_in());
    }
    service.stops().await;
}

/// Requests that end sessions of one account wait for its row one at a time: they take no connection from others.
#[sqlx::test]
async fn l_ending_sessions_of_one_account_holds_nobody_up(pool: PgPool) {
    let service = Service::start(&pool).await;
    for email in [TRADER, OTHER] {
        service.has_trader(email, PASSWORD).await;
    }
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(signed_in(&service).await);
    }
    let mut other = service.client();
    assert!(other.logs_in(OTHER, PASSWORD).await.is_signed_in());
    let mut holding = pool.begin().await.unwrap();
    let held = sqlx::query("SELECT FROM account WHERE email = $1 FOR UPDATE").bind(TRADER);
    held.execute(&mut *holding).await.unwrap();
    let ending = sessions
        .into_iter()
        .map(|client| tokio::spawn(async move { client.delete("/api/auth/sessions").await }));
    let ending: Vec<_> = ending.collect();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting = async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.unwrap() > 0;
    service.until("one waits for the row", waiting).await;
    assert!(other.refreshes().await.is_signed_in());
    assert!(service.client().logs_in(OTHER, PASSWORD).await.is_signed_in());
    assert_eq!(
        sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.unwrap(),
        1,
        "the others wait outside"
    );
    holding.rollback().await.unwrap();
    for ended in ending {
        assert!(matches!(ended.await.unwrap().status, 200 | 401));
    }
    service.stops().await;
}

/// A failure of PostgreSQL's gives a made-up token nothing back.
#[sqlx::test]
async fn l_an_outage_lifts_no_limit_of_made_up_tokens(pool: PgPool) {
    let way = Proxy::before(&pool).await;
    let settings = vec!["--network-burst=2".to_owned()];
    let setup = Setup { settings, database_url: Some(way.url(&pool)), ..Setup::default() };
    let service = Service::start_with(&pool, setup).await;
    way.is(Way::Cut);
    let mut stranger = service.client();
    stranger.token = Some(made_up());
    for status in [502, 502, 429] {
        assert_eq!(stranger.refreshes().await.status, status);
    }
    way.is(Way::Open);
    service.stops().await;
}

/// A page of a sibling host sends a trader's cookies along, and uses none of their requests up.
#[sqlx::test]
async fn v_another_origin_uses_up_no_recovery_cookie(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut client = service.client();
    assert!(client.starts_recovery(TRADER).await.is_code_sent());
    let mut sibling = client.clone().with("origin", "https://sibling.example");
    for _ in 0..12 {
        assert_eq!(sibling.verifies("no code").await.error(), (400, "origin_refused"));
    }
    a_neighbour_spends_the_address(&service).await;
    assert_eq!(client.verifies("no code").await.error(), (400, "code_malformed"));
    service.stops().await;
}

/// A page of another site, open in one browser of an office, uses up nothing of what its network may ask.
#[sqlx::test]
async fn l_another_origin_uses_up_no_limit_of_a_network(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut page = service.client().with("origin", "https://elsewhere.example");
    for _ in 0..40 {
        assert_eq!(page.starts_recovery(TRADER).await.error(), (400, "origin_refused"));
        assert_eq!(page.logs_in(TRADER, PASSWORD).await.error(), (400, "origin_refused"));
    }
    assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    signed_in(&service).await;
    service.stops().await;
}

/// Ten browsers of one account share a bucket: cookies do not multiply what one may ask.
#[sqlx::test]
async fn l_device_cookies_of_one_account_share_a_bucket(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut browsers = Vec::new();
    for _ in 0..10 {
        let mut browser = service.client();
        assert!(browser.logs_in(TRADER, PASSWORD).await.is_signed_in());
        assert!(browser.device.is_some());
        browsers.push(browser);
    }
    let mut accepted = 0;
    for n in 0..50 {
        let browser = &mut browsers[n % 10];
        browser.cookie = None;
        accepted +=
            usize::from(browser.starts_recovery(&format!("nobody{n}@example.com")).await.is_code_sent());
    }
    assert_eq!(accepted, 30);
    service.stops().await;
}

/// Who has a device cookie of the account, as of long ago, uses up nothing of its owner's from elsewhere.
#[sqlx::test]
async fn l_a_device_cookie_uses_up_no_bucket_of_another_network(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--trusted-proxies=127.0.0.1/32"]).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut owner = signed_in(&service).await.with("x-forwarded-for", "203.0.113.7");
    let mut former = service.client().with("x-forwarded-for", "198.51.100.9");
    former.device.clone_from(&owner.device);
    assert!(former.device.is_some());
    let mut accepted = 0;
    for n in 0..40 {
        former.cookie = None;
        accepted +=
            usize::from(former.starts_recovery(&format!("nobody{n}@example.com")).await.is_code_sent());
    }
    assert_eq!(accepted, 30);
    while former.logs_in("nobody@example.com", PASSWORD).await.error().1 != "network_throttled" {}
    assert!(owner.starts_recovery(TRADER).await.is_code_sent());
    assert!(owner.logs_in(TRADER, PASSWORD).await.is_signed_in());
    service.stops().await;
}

/// Wrong logins of a neighbour keep nobody behind the same address from a recovery, nor starts anybody from a login.
#[sqlx::test]
async fn l_logins_and_starts_of_a_network_have_buckets_of_their_own(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut neighbour = service.client();
    let mut n = 0;
    while neighbour.logs_in(&format!("nobody{n}@example.com"), PASSWORD).await.status == 401 {
        n += 1;
    }
    assert_eq!(neighbour.logs_in(TRADER, PASSWORD).await.error(), (429, "network_throttled"));
    assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    service.clock.advance(std::time::Duration::from_mins(1));
    while service.client().starts_recovery(&format!("nobody{n}@example.com")).await.is_code_sent() {
        n += 1;
    }
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    service.stops().await;
}

fn operator(pool: &PgPool, command: &str, email: &str) -> Result<String, String> {
    let ended = run(&["account", command, email], &[("DATABASE_URL", &database::operator_url(pool))]);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if ended.status.success() { Ok(text(ended.stdout)) } else { Err(text(ended.stderr)) }
}

/// An operator's help tells a stranger nothing: it is there for any address, and bounded.
#[sqlx::test]
async fn s_unblock_is_there_for_any_address_and_bounded(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    for email in [TRADER, "nobody@example.com"] {
        let mut said = Vec::new();
        for _ in 0..2 {
            while service.client().starts_recovery(email).await.is_code_sent() {}
            said.push(operator(&pool, "unblock", email).unwrap());
            assert!(service.client().starts_recovery(email).await.is_code_sent(), "{email}");
        }
        assert_eq!(said, vec!["1 rate limits of this address are reset\n"; 2]);
        let why = operator(&pool, "unblock", email).unwrap_err();
        assert!(why.contains("it can be unblocked again after"), "{why}");
    }
    assert_eq!(service.count("audit_event WHERE what = 'account_unblocked'").await, 4);
    service.stops().await;
}

/// The buckets of an erased address stay until they are full: a stranger who used them up sees no difference.
#[sqlx::test]
async fn s_an_erased_address_keeps_its_buckets(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    while service.client().starts_recovery(TRADER).await.is_code_sent() {}
    let key = throttle::recovery_key(&EmailAddress::parse(TRADER).unwrap(), None);
    operator(&pool, "erase", TRADER).unwrap();
    let kept = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM throttle WHERE key = $1").bind(&key[..]);
    assert_eq!(kept.fetch_one(&pool).await.unwrap(), 1);
    assert_eq!(service.client().starts_recovery(TRADER).await.error(), (429, "address_throttled"));
    service.stops().await;
}
