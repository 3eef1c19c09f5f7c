//! Answers that are lost after the commit: the page signs the user in, or says what has happened.

use serde_json::Value;
use sqlx::PgPool;

use crate::harness::Service;
use crate::harness::browser::Browser;
use crate::harness::client::Client;
use crate::page::{asks_for_a_code, page_of};

const NEW: &str = "slow lamps over misty rice fields";
const EMAIL: &str = "trader@example.com";
const COOKIE: &str = "__Host-vos_recovery";
const LIVE_SESSIONS: &str = "session WHERE revoked_at IS NULL";

/// Makes the page lose the next answer of a path. The browser keeps its cookies.
pub async fn lose_answer_of(browser: &Browser, path: &str) {
    let script = format!(
        "const real = window.fetch;
         window.fetch = async (...call) => {{
           const answer = await real(...call);
           if (!String(call[0]).endsWith('{path}')) return answer;
           window.fetch = real;
           throw new TypeError('lost');
         }};"
    );
    browser.script(&script).await;
}

/// Holds back the page's next request to a path, so that [`is_answered_elsewhere`] can send it.
async fn holds_request_to(browser: &Browser, path: &str) {
    let script = format!(
        "const real = window.fetch;
         window.fetch = (path, options) => {{
           if (!path.endsWith('{path}')) return real(path, options);
           window.fetch = real;
           return new Promise((_, reject) => {{
             window.held = {{ path, headers: options.headers, body: options.body }};
             window.loses = () => reject(new TypeError('lost'));
           }});
         }};"
    );
    browser.script(&script).await;
}

/// Sends the request that is held back, with the browser's cookie. The browser gets neither the
/// answer nor its cookies.
async fn is_answered_elsewhere(browser: &Browser, service: &Service) {
    browser.until("window.held").await;
    let held = browser.script("return window.held").await;
    let mut client = service.client();
    let cookies = browser.driver.get_all_cookies().await.unwrap();
    let cookie = cookies.iter().find(|cookie| cookie.name == COOKIE);
    client.cookie = cookie.map(|cookie| format!("{COOKIE}={}", cookie.value));
    for (name, value) in held["headers"].as_object().unwrap() {
        let name: reqwest::header::HeaderName = name.to_lowercase().parse().unwrap();
        if name != "content-type" {
            client.headers.insert(name, value.as_str().unwrap().parse().unwrap());
        }
    }
    let (path, body) = (held["path"].as_str().unwrap(), held["body"].as_str().unwrap());
    let answer = client.post_json(path, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

/// The service handles the request that is held back. The browser loses the answer and its cookies.
async fn loses_all_of(browser: &Browser, service: &Service) {
    is_answered_elsewhere(browser, service).await;
    browser.script("window.loses()").await;
}

/// Brings a browser to the step of the password.
async fn at_the_password(service: &Service, page: &str) -> Browser {
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, page).await;
    browser.types("#digits", &service.relay.mail(1).await.code()).await;
    browser.sees("#password").await;
    browser.types("#secret", NEW).await;
    browser
}

async fn is_told_that_the_password_has_probably_changed(browser: Browser, service: Service) {
    let told = browser.reads("#start-error").await;
    assert!(told.starts_with("Your password has probably been changed."), "{told}");
    assert_eq!(browser.reads("#start-error a.button").await, "Sign In");
    browser.inspect("recovery-1-email-changed-en").await;
    assert!(service.client().logs_in(EMAIL, NEW).await.is_signed_in());
    browser.closes().await;
    service.stops().await;
}

async fn is_signed_in(browser: Browser, service: Service) {
    browser.sees("#done").await;
    let mut owner: Client = service.client();
    owner.token = Some(browser.value("sessionStorage.vos_session_token").await);
    assert!(owner.refreshes().await.is_signed_in());
    assert_eq!(service.count(LIVE_SESSIONS).await, 1);
    assert!(service.client().logs_in(EMAIL, NEW).await.is_signed_in());
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn start_lost_with_its_cookie_can_be_pressed_again(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&page).await;
    browser.sees("#email").await;
    browser.types("#address", EMAIL).await;
    holds_request_to(&browser, "/start").await;
    browser.clicks("#start button").await;
    loses_all_of(&browser, &service).await;
    assert!(browser.reads("#network").await.starts_with("The server has not answered."));
    browser.clicks("#start button").await;
    browser.sees("#code").await;
    browser.types("#digits", &service.relay.mail(2).await.code()).await;
    browser.sees("#password").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn start_lost_without_its_cookie_shows_the_code_step(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&page).await;
    browser.sees("#email").await;
    browser.types("#address", EMAIL).await;
    lose_answer_of(&browser, "/start").await;
    browser.clicks("#start button").await;
    browser.sees("#code").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn verify_lost_with_its_cookie_is_repeated(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    holds_request_to(&browser, "/verify").await;
    browser.types("#digits", &service.relay.mail(1).await.code()).await;
    loses_all_of(&browser, &service).await;
    browser.sees("#password").await;
    browser.types("#secret", NEW).await;
    browser.clicks("#reset button").await;
    is_signed_in(browser, service).await;
}

#[sqlx::test]
async fn verify_lost_without_its_cookie_shows_the_password_step(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    lose_answer_of(&browser, "/verify").await;
    browser.types("#digits", &service.relay.mail(1).await.code()).await;
    browser.sees("#password").await;
    browser.types("#secret", NEW).await;
    browser.clicks("#reset button").await;
    is_signed_in(browser, service).await;
}

#[sqlx::test]
async fn reset_lost_with_its_cookies_is_repeated(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = at_the_password(&service, &page).await;
    holds_request_to(&browser, "/reset-password").await;
    browser.clicks("#reset button").await;
    loses_all_of(&browser, &service).await;
    is_signed_in(browser, service).await;
}

/// The answer's head has deleted the recovery cookie, so nothing can be repeated.
#[sqlx::test]
async fn reset_lost_without_its_cookies_says_what_probably_happened(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = at_the_password(&service, &page).await;
    lose_answer_of(&browser, "/reset-password").await;
    browser.clicks("#reset button").await;
    is_told_that_the_password_has_probably_changed(browser, service).await;
}

#[sqlx::test]
async fn reset_lost_for_more_than_two_minutes_says_what_probably_happened(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = at_the_password(&service, &page).await;
    holds_request_to(&browser, "/reset-password").await;
    browser.clicks("#reset button").await;
    is_answered_elsewhere(&browser, &service).await;
    service.clock.advance(std::time::Duration::from_mins(2));
    browser.script("window.loses()").await;
    is_told_that_the_password_has_probably_changed(browser, service).await;
}

/// A reload of the page forgets the `Idempotency-Key`. The service still says that the recovery was
/// used.
#[sqlx::test]
async fn a_reload_after_a_lost_reset_says_what_probably_happened(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = at_the_password(&service, &page).await;
    holds_request_to(&browser, "/reset-password").await;
    browser.clicks("#reset button").await;
    is_answered_elsewhere(&browser, &service).await;
    browser.driver.refresh().await.unwrap();
    is_told_that_the_password_has_probably_changed(browser, service).await;
}

#[sqlx::test]
async fn reset_lost_while_offline_is_repeated_when_online(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = at_the_password(&service, &page).await;
    holds_request_to(&browser, "/reset-password").await;
    browser.clicks("#reset button").await;
    is_answered_elsewhere(&browser, &service).await;
    browser.is_offline(true).await;
    browser.script("window.loses()").await;
    assert!(browser.reads("#network").await.starts_with("You are offline."));
    browser.until("!document.querySelector('[aria-busy=true]')").await;
    browser.is_offline(false).await;
    is_signed_in(browser, service).await;
}

/// Makes the page's requests for the recovery's state fail, until `window.recovers()`.
async fn loses_the_state(browser: &Browser) {
    let script = "const real = window.fetch;
         window.recovers = () => { window.fetch = real; };
         window.fetch = (path, options) =>
           path.endsWith('/recovery') ? Promise.reject(new TypeError('lost')) : real(path, options);";
    browser.script(script).await;
}

/// The `Idempotency-Key` of a press whose answer was lost is used only with the same password.
#[sqlx::test]
async fn another_password_after_a_lost_reset_is_sent_only_if_the_first_was_not_set(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = at_the_password(&service, &page).await;
    holds_request_to(&browser, "/reset-password").await;
    browser.clicks("#reset button").await;
    is_answered_elsewhere(&browser, &service).await;
    loses_the_state(&browser).await;
    browser.script("window.loses()").await;
    assert!(browser.reads("#network").await.starts_with("The server has not answered."));
    browser.types("#secret", "quiet rivers under paper bridges").await;
    browser.script("window.recovers()").await;
    browser.clicks("#reset button").await;
    is_signed_in(browser, service).await;
}

/// The request never reached the service, so it changed nothing. Meanwhile the recovery has
/// expired.
#[sqlx::test]
async fn a_reset_that_was_not_sent_in_time_says_that_the_recovery_expired(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = at_the_password(&service, &page).await;
    holds_request_to(&browser, "/reset-password").await;
    browser.clicks("#reset button").await;
    browser.until("window.held").await;
    loses_the_state(&browser).await;
    browser.script("window.loses()").await;
    assert!(browser.reads("#network").await.starts_with("The server has not answered."));
    let later =
        "const real = performance.now.bind(performance); performance.now = () => real() + 16 * 60_000;";
    browser.script(later).await;
    service.clock.advance(std::time::Duration::from_mins(16));
    browser.script("window.recovers(); dispatchEvent(new Event('online'))").await;
    let told = browser.reads("#start-error").await;
    assert!(!told.contains("password has probably been changed"), "{told}");
    browser.closes().await;
    service.stops().await;
}

/// Each press of the button has a new `Idempotency-Key`. A press after a lost answer sends the lost
/// request's key again.
#[sqlx::test]
async fn every_press_has_a_random_key(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    let record = "const real = window.fetch;
         window.keys = [];
         window.fetch = (path, options) => {
           if (path.endsWith('/verify')) window.keys.push(options.headers['Idempotency-Key']);
           return real(path, options);
         };";
    browser.script(record).await;
    let presses = async |code: &str, left: u64| {
        browser.types("#digits", code).await;
        if left < 4 {
            browser.clicks("#verify button").await;
        }
        browser.until(&format!("document.querySelector('#attempts').innerText.endsWith(' {left}')")).await;
        browser.until("!document.querySelector('[aria-busy=true]')").await;
    };
    presses("00000000", 4).await;
    presses("00000000", 3).await;
    lose_answer_of(&browser, "/verify").await;
    presses("00000000", 2).await;
    presses("00000000", 1).await;
    let keys = browser.script("return window.keys").await;
    let keys: Vec<_> = keys.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    assert!(keys.iter().all(|key| key.len() == 32), "{keys:?}");
    assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[2] == keys[3], "{keys:?}");
    browser.closes().await;
    service.stops().await;
}
