//! The recovery page in trouble: expired codes, missing emails, exhausted rate limits, no network.

use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;
use vos_auth::email_address::EmailAddress;
use vos_auth::known_device::{self, DeviceId, TICKET};

use crate::harness::browser::Browser;
use crate::harness::database;
use crate::harness::now;
use crate::harness::program::Program;
use crate::page::{asks_for_a_code, page_of};

const EMAIL: &str = "trader@example.com";
const IS_REFUSED: &str = "document.querySelector('#start button').ariaDisabled === 'true'";

#[sqlx::test]
async fn an_expired_code_returns_to_the_start_with_the_address_kept(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    let code = service.relay.mail(1).await.code();
    service.clock.advance(Duration::from_secs(601));
    browser.types("#digits", &code).await;
    browser.sees("#email").await;
    assert!(browser.reads("#start-error").await.starts_with("This recovery has expired."));
    assert_eq!(browser.value("document.querySelector('#address').value").await, EMAIL);
    assert_eq!(browser.focus().await, "address");
    browser.clicks("#start button").await;
    browser.sees("#code").await;
    browser.types("#digits", &service.relay.mail(2).await.code()).await;
    browser.sees("#password").await;
    // The time to choose a password expires, too.
    service.clock.advance(Duration::from_secs(901));
    browser.types("#secret", "chuyen tau dem mua thu").await;
    browser.clicks("#reset button").await;
    browser.sees("#email").await;
    assert!(browser.reads("#start-error").await.starts_with("This recovery has expired."));
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn a_session_without_attempts_returns_to_the_start(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("vi").await;
    asks_for_a_code(&browser, &page).await;
    service.relay.mail(1).await;
    for left in ["4", "3", "2", "1", "0"] {
        browser.types("#digits", "00000000").await;
        // The first complete code is sent at once.
        if left != "4" {
            browser.clicks("#verify button").await;
        }
        browser.until(&format!("document.querySelector('#attempts b').textContent === '{left}'")).await;
    }
    assert_eq!(browser.reads("#attempts").await, "Số lần thử còn lại: 0");
    // A reload gives no attempts back.
    browser.driver.refresh().await.unwrap();
    browser.sees("#start-error p").await;
    assert!(browser.reads("#start-error").await.starts_with("Bạn đã nhập sai mã quá nhiều lần."));
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn a_resend_is_delayed_and_sends_the_same_code(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    let first = service.relay.mail(1).await;
    service.until_outbox_has(0).await;
    assert!(browser.reads("#resend-wait").await.starts_with("You can resend it in 0:"));
    browser.clicks("#resend button").await;
    assert_eq!(service.count("outbox").await, 0, "no email is enqueued before the resend is allowed");
    service.clock.advance(Duration::from_mins(2));
    browser.driver.refresh().await.unwrap();
    browser.sees("#resend button").await;
    browser.until("document.querySelector('#resend button').ariaDisabled === 'false'").await;
    browser.clicks("#resend button").await;
    assert!(browser.reads("#resent").await.starts_with("Sent again."));
    let second = service.relay.mail(2).await;
    assert_eq!(first.code(), second.code());
    let left = browser.reads("#code-life time").await;
    assert!(
        left.starts_with("7:") || left.starts_with("8:"),
        "a resend does not extend the code's life: {left}"
    );
    browser.types("#digits", &second.code()).await;
    browser.sees("#password").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn without_a_relay_the_page_says_when_to_try_again(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    service.relay.goes_down().await;
    service.until_mail_is("unavailable").await;
    browser.goes_to(&page).await;
    browser.sees("#email").await;
    browser.types("#address", EMAIL).await;
    browser.clicks("#start button").await;
    assert!(browser.reads("#start-error").await.starts_with("Email cannot be sent at the moment."));
    assert!(browser.reads("#start .wait").await.starts_with("You can try again in 0:"));
    browser.until(IS_REFUSED).await;
    assert_eq!(browser.value("document.querySelector('#address').value").await, EMAIL);
    service.relay.comes_back().await;
    service.until_mail_is("ok").await;
    service.clock.advance(Duration::from_mins(1));
    browser.driver.refresh().await.unwrap();
    browser.until(&format!("!({IS_REFUSED})")).await;
    browser.clicks("#start button").await;
    browser.sees("#code").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn an_empty_bucket_says_when_to_try_again_and_a_ticket_helps(pool: PgPool) {
    let (service, page) = page_of(&pool, &["--address-burst=1"]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    browser.clicks("#other-email").await;
    browser.clicks("#start button").await;
    assert!(
        browser.reads("#start-error").await.starts_with("Too many codes were requested for this address.")
    );
    let wait = browser.reads("#start .wait").await;
    assert!(wait.starts_with("You can try again in 4:") || wait.contains("5:00"), "{wait}");
    browser.until(IS_REFUSED).await;
    browser.sees("#have-code").await;
    // Another address can be tried at once.
    browser.types("#address", "other@example.com").await;
    browser.until(&format!("!({IS_REFUSED})")).await;
    browser.clicks("#start button").await;
    browser.sees("#code").await;

    let email = EmailAddress::parse(EMAIL).unwrap();
    let ticket = known_device::issue(&TICKET, &service.keys.clone().into(), DeviceId::new(now()), &email);
    browser.goes_to(&format!("{page}#t={ticket}")).await;
    browser.sees("#ticket").await;
    assert_eq!(browser.value("location.href").await, page, "the ticket leaves the address bar");
    let kept = browser.value("JSON.stringify([sessionStorage, localStorage, history.state])").await;
    assert!(!kept.contains(&ticket), "{kept}");
    browser.clicks("#language").await;
    browser.until("document.documentElement.lang === 'vi'").await;
    browser.sees("#ticket").await;
    assert_eq!(browser.value("location.href").await, page);
    browser.types("#address", EMAIL).await;
    browser.clicks("#start button").await;
    browser.sees("#code").await;
    browser.closes().await;
    service.stops().await;
}

/// A double click sends one request; without a network the page says so, and works again with it.
#[sqlx::test]
async fn a_double_click_and_a_lost_network_are_harmless(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&page).await;
    browser.sees("#email").await;
    browser.types("#address", EMAIL).await;
    browser.is_offline(true).await;
    assert!(browser.reads("#network").await.starts_with("You are offline."));
    browser.clicks("#start button").await;
    browser.until("document.querySelector('#start').ariaBusy === 'false'").await;
    assert!(browser.reads("#network").await.starts_with("You are offline."));
    browser.is_offline(false).await;
    browser.until("document.querySelector('#network').innerText === ''").await;
    browser
        .script("const button = document.querySelector('#start button'); button.click(); button.click()")
        .await;
    browser.sees("#code").await;
    browser.until("document.querySelector('#start').ariaBusy === 'false'").await;
    assert_eq!(service.count("recovery_session").await, 1);
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn without_scripts_the_page_says_what_to_do(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("vi").await;
    browser.devtools("Emulation.setScriptExecutionDisabled", json!({ "value": true })).await;
    browser.goes_to(&page).await;
    let seen = browser.reads("#unready").await;
    assert!(seen.starts_with("Trang này chưa khởi động được"), "{seen}");
    assert!(seen.contains("support@verolabs.co") && !seen.contains("Gửi mã"), "{seen}");
    browser.closes().await;
    service.stops().await;
}

/// A newcomer sees the page, the mailbox with the code, and the mailbox as the sign-in page.
#[sqlx::test(migrations = false)]
async fn dev_leads_from_the_page_to_the_mailbox_and_signs_in(pool: PgPool) {
    let (url, port) = (database::url(&pool), crate::dev::free_port());
    let mut program =
        Program::start(&["dev"], &[("DATABASE_URL", &url), ("PORT", &port), ("LOG_FORMAT", "json")]);
    let mailbox = format!("http://localhost:{port}/dev/mailbox");
    program.line_with(&format!("http://localhost:{port}/recovery"));
    program.line_with("relay is usable");
    let browser = Browser::open("en").await;
    browser.goes_to(&mailbox).await;
    assert_eq!(browser.reads("#state").await, "No emails yet");
    browser.inspect("mailbox-empty-en").await;
    browser.clicks("#hint a").await;
    browser.sees("#email").await;
    browser.types("#address", "trader.vi@example.com").await;
    browser.clicks("#start button").await;
    browser.sees("#code").await;
    browser.goes_to(&mailbox).await;
    let code = browser.reads(".code output").await;
    let allowed = json!({ "permission": { "name": "clipboard-write" }, "setting": "granted" });
    browser.devtools("Browser.setPermission", allowed).await;
    browser.clicks(".code button").await;
    assert_eq!(browser.reads(".code [role=status]").await, "Copied");
    browser.inspect("mailbox-en").await;
    browser.clicks("header a").await;
    assert_eq!(browser.reads("h1").await, "Hộp thư");
    browser.sees(".code button").await;
    browser.inspect("mailbox-vi").await;

    browser.goes_to(&format!("http://localhost:{port}/recovery")).await;
    browser.sees("#code").await;
    assert_eq!(
        browser.value("document.documentElement.lang").await,
        "vi",
        "both pages use the same chosen language"
    );
    browser.types("#digits", &code).await;
    browser.sees("#password").await;
    browser.types("#secret", "sao hom tren doi thong gio").await;
    browser.clicks("#reset button").await;
    browser.sees("#done").await;
    browser.clicks("#go-on").await;
    assert_eq!(browser.reads("#session b").await, "trader.vi@example.com");
    assert_eq!(browser.value("sessionStorage.length").await, "0", "the mailbox removes the token");
    browser.closes().await;
    program.signal("-TERM");
    assert!(program.ends().1);
}
