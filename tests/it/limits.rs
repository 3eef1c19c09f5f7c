//! The limits in a replica's memory: what one client may take from others behind the same address.

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

/// A token in the right form that the service did not issue.
fn forged_token() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// Exhausts the network's rate limit for verify and reset-password.
async fn exhaust_network_limit(service: &Service) {
    let mut neighbour = service.client();
    while neighbour.verifies("1234 5678").await.error() != (429, "network_throttled") {
        neighbour.cookie = Some(format!("__Host-vos_recovery={}", forged_token()));
    }
}

/// Another client behind the same address blocks neither start, verify nor reset-password.
#[sqlx::test]
async fn v_another_client_behind_the_address_blocks_no_recovery(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut victim = service.client();
    let code = service.mails_code_to(&mut victim, TRADER).await;
    exhaust_network_limit(&service).await;
    assert!(
        service.client().starts_recovery("other@example.com").await.is_code_sent(),
        "start has its own rate limit"
    );
    assert!(victim.verifies(&code).await.is_verified());
    assert_eq!(victim.resets("short").await.error(), (400, "password_too_short"));
    assert!(victim.resets(PASSWORD).await.is_signed_in());
    service.stops().await;
}

/// A recovery cookie allows 12 requests. After them, or if it is expired or forged, each request
/// draws on the network's rate limit.
#[sqlx::test]
async fn v_a_recovery_cookie_allows_twelve_requests(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut client = service.client();
    assert!(client.starts_recovery(TRADER).await.is_code_sent());
    let mut late = service.client();
    assert!(late.starts_recovery(TRADER).await.is_code_sent());
    exhaust_network_limit(&service).await;
    for _ in 0..12 {
        assert_eq!(client.verifies("no code").await.error(), (400, "code_malformed"));
    }
    let refused = client.verifies("no code").await;
    assert_eq!((refused.error(), refused.retry_after()), ((429, "network_throttled"), 1));
    service.clock.advance(Duration::from_mins(16));
    exhaust_network_limit(&service).await;
    assert_eq!(
        late.verifies("no code").await.error(),
        (429, "network_throttled"),
        "an expired cookie draws on its network"
    );
    service.stops().await;
}

/// A network may start using only as many cookies a minute as its rate limit allows requests.
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
    exhaust_network_limit(&service).await;
    let mut answered = 0;
    for client in &mut collected {
        answered += usize::from(client.verifies("no code").await.status == 400);
    }
    assert_eq!(answered, 10);
    assert_eq!(collected[0].verifies("no code").await.status, 400, "a cookie in use keeps working");
    service.stops().await;
}

async fn signed_in(service: &Service) -> Client {
    let mut client = service.client();
    assert!(client.logs_in(TRADER, PASSWORD).await.is_signed_in());
    client
}

/// Forged session tokens are limited per network. Valid tokens and logins are not affected.
#[sqlx::test]
async fn l_forged_session_tokens_are_bounded_by_network(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let client = signed_in(&service).await;
    let mut stranger = service.client();
    let mut refused = 0;
    for n in 0..45 {
        stranger.token = Some(forged_token());
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
    assert_eq!(refused, 15, "30 tokens are looked up");
    for _ in 0..40 {
        assert!(client.refreshes().await.is_signed_in(), "a valid token draws on no rate limit");
    }
    assert_eq!(
        service.client().refreshes().await.error(),
        (401, "session_invalid"),
        "nor does a request without a token"
    );
    signed_in(&service).await;
    service.stops().await;
}

/// An ended token is looked up three times for free, then counts as a forged one.
#[sqlx::test]
async fn l_an_ended_session_token_counts_as_forged_after_three_lookups(pool: PgPool) {
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

/// A token of an earlier release carries no mark of its issuer. If it is valid, it still draws on
/// no limit.
#[sqlx::test]
async fn l_a_valid_token_of_the_former_format_draws_on_no_limit(pool: PgPool) {
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

/// Requests that end sessions of one account wait in turn. So requests of other accounts still get
/// connections to PostgreSQL.
#[sqlx::test]
async fn l_ending_sessions_of_one_account_blocks_no_other(pool: PgPool) {
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
    service.until("one request waits for the row", waiting).await;
    assert!(other.refreshes().await.is_signed_in());
    assert!(service.client().logs_in(OTHER, PASSWORD).await.is_signed_in());
    assert_eq!(
        sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.unwrap(),
        1,
        "the others hold no connection"
    );
    holding.rollback().await.unwrap();
    for ended in ending {
        assert!(matches!(ended.await.unwrap().status, 200 | 401));
    }
    service.stops().await;
}

/// A failure of PostgreSQL refunds nothing to a forged token.
#[sqlx::test]
async fn l_an_outage_lifts_no_limit_of_forged_tokens(pool: PgPool) {
    let proxy = Proxy::before(&pool).await;
    let settings = vec!["--network-burst=2".to_owned()];
    let setup = Setup { settings, database_url: Some(proxy.url(&pool)), ..Setup::default() };
    let service = Service::start_with(&pool, setup).await;
    proxy.is(Way::Cut);
    let mut stranger = service.client();
    stranger.token = Some(forged_token());
    for status in [502, 502, 429] {
        assert_eq!(stranger.refreshes().await.status, status);
    }
    proxy.is(Way::Open);
    service.stops().await;
}

/// A sibling host's page sends the recovery cookie along, and uses up none of the cookie's
/// requests.
#[sqlx::test]
async fn v_another_origin_uses_up_no_recovery_cookie(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut client = service.client();
    assert!(client.starts_recovery(TRADER).await.is_code_sent());
    let mut sibling = client.clone().with("origin", "https://sibling.example");
    for _ in 0..12 {
        assert_eq!(sibling.verifies("no code").await.error(), (400, "origin_refused"));
    }
    exhaust_network_limit(&service).await;
    assert_eq!(client.verifies("no code").await.error(), (400, "code_malformed"));
    service.stops().await;
}

/// A page of another site, open in a browser, uses up no rate limit of that browser's network.
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

/// Ten browsers of one account share a bucket: more cookies do not allow more requests.
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

/// An old device cookie of the account uses up no bucket of the owner's network.
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

/// Failed logins behind an address block no recovery there, and starts block no login.
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

/// `unblock` works for any address, with or without an account, and is limited.
#[sqlx::test]
async fn s_unblock_works_for_any_address_and_is_bounded(pool: PgPool) {
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

/// The buckets of an erased address stay until they are full, so that its erasure does not show.
#[sqlx::test]
async fn s_an_erased_address_keeps_its_buckets(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    while service.client().starts_recovery(TRADER).await.is_code_sent() {}
    let key = throttle::recovery_key(&EmailAddress::parse(TRADER).unwrap(), None);
    let erase = ["account", "erase", TRADER, "--yes"];
    assert!(run(&erase, &[("DATABASE_URL", &database::operator_url(&pool))]).status.success());
    let kept = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM throttle WHERE key = $1").bind(&key[..]);
    assert_eq!(kept.fetch_one(&pool).await.unwrap(), 1);
    assert_eq!(service.client().starts_recovery(TRADER).await.error(), (429, "address_throttled"));
    service.stops().await;
}
