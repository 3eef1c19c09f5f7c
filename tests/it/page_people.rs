//! The recovery page under real conditions: blocked storage, old browsers, proxies that answer,
//! links that an app has changed, addresses and codes as they are pasted.

use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;

use crate::harness::Service;
use crate::harness::browser::Browser;
use crate::page::{asks_for_a_code, page_of};

const EMAIL: &str = "trader@example.com";
const PASSWORD: &str = "sao hom tren doi thong gio";

/// Runs a script in every document before any of its own.
pub async fn before_load(browser: &Browser, script: &str) {
    browser.devtools("Page.enable", json!({})).await;
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script })).await;
}

async fn journey(browser: &Browser, service: &Service, page: &str) {
    asks_for_a_code(browser, page).await;
    browser.types("#digits", &service.relay.mail(1).await.code()).await;
    browser.sees("#password").await;
    browser.types("#secret", PASSWORD).await;
    browser.clicks("#reset button").await;
    browser.sees("#done").await;
}

#[sqlx::test]
async fn with_storage_blocked_the_whole_journey_works_and_leads_to_a_sign_in(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    let blocked = "for (const name of ['sessionStorage', 'localStorage']) \
                   Object.defineProperty(window, name, { get() { throw new DOMException('', 'SecurityError') } })";
    before_load(&browser, blocked).await;
    journey(&browser, &service, &page).await;
    assert_eq!(browser.reads("#done h1").await, "Your password was changed");
    assert_eq!(browser.reads("#go-on").await, "Sign in with the new password");
    let open = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM session WHERE revoked_at IS NULL");
    assert_eq!(open.fetch_one(&pool).await.unwrap(), 0, "no session is left that no page can take over");
    browser.closes().await;
    service.stops().await;
}

/// Removes features that some browsers of the last five years lack, if Chromium can run without
/// them.
#[sqlx::test]
async fn without_younger_apis_the_whole_journey_works(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    let older = "delete AbortSignal.timeout; delete AbortSignal.any; delete Performance.prototype.getEntriesByType; \
                 delete HTMLFormElement.prototype.requestSubmit; \
                 for (const name of Object.getOwnPropertyNames(Element.prototype)) \
                   if (name.startsWith('aria')) delete Element.prototype[name];";
    before_load(&browser, older).await;
    asks_for_a_code(&browser, &page).await;
    browser.types("#digits", &service.relay.mail(1).await.code()).await;
    // Without requestSubmit, the page does not send a complete code itself. The button does.
    browser.clicks("#verify button").await;
    browser.sees("#password").await;
    browser.types("#secret", PASSWORD).await;
    browser.clicks("#reset button").await;
    browser.sees("#done").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn a_script_that_does_not_load_or_fails_leaves_a_sentence_with_the_contact(pool: PgPool) {
    let settings = ["--support-phone=+84 28 1234 5678", "--mail-support=a?b@verolabs.co"];
    let (service, page) = page_of(&pool, &settings).await;
    let browser = Browser::open("en").await;
    before_load(&browser, "delete window.AbortController; delete window.history.__proto__.replaceState")
        .await;
    browser.goes_to(&page).await;
    let seen = browser.reads("#unready").await;
    assert!(seen.starts_with("This page could not start"), "{seen}");
    let contact =
        browser.value("[...document.querySelectorAll('#unready a')].map((link) => link.href)").await;
    assert_eq!(contact, "mailto:a%3Fb@verolabs.co,tel:+842812345678");
    // Not by `Browser::closes`, which fails on script errors: this test expects one.
    browser.driver.clone().quit().await.unwrap();

    let browser = Browser::open("vi").await;
    browser.devtools("Network.enable", json!({})).await;
    browser.devtools("Network.setBlockedURLs", json!({ "urls": ["*page.js*"] })).await;
    browser.goes_to(&page).await;
    let seen = browser.reads("#unready").await;
    assert!(seen.starts_with("Trang này chưa khởi động được"), "{seen}");
    browser.inspect("recovery-unready-vi").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn the_first_visit_leaves_the_console_empty(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&page).await;
    browser.until("performance.getEntriesByType('resource').some((one) => one.name.includes('/api/'))").await;
    let console = browser.driver.browser_log().await.unwrap();
    assert!(console.is_empty(), "{console:?}");
    browser.closes().await;
    service.stops().await;
}

/// An error page of a proxy is not a lost connection, and says nothing of the recovery.
#[sqlx::test]
async fn the_error_page_of_a_proxy_is_not_taken_for_a_lost_connection(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    let proxied = "const real = window.fetch; window.fetch = (path, options) => /start/.test(path) \
                   ? Promise.resolve(new Response('<html>502 Bad Gateway</html>', { status: 502 })) : real(path, options)";
    before_load(&browser, proxied).await;
    browser.goes_to(&page).await;
    browser.sees("#email").await;
    browser.types("#address", EMAIL).await;
    browser.clicks("#start button").await;
    let seen = browser.reads("#start-error").await;
    assert!(seen.starts_with("The service is temporarily unavailable."), "{seen}");
    assert!(seen.contains("support@verolabs.co"), "{seen}");
    assert_eq!(browser.value("document.querySelector('#network').innerText").await, "");
    assert!(browser.value("document.title").await.starts_with("Error: "));
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn links_that_an_app_has_changed_still_lead_there_and_damaged_ones_say_so(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&format!("{page}/?fbclid=x&lang=vi&zarsrc=1#utm_source=zalo&t=abc")).await;
    browser.sees("#ticket-damaged").await;
    assert_eq!(browser.value("location.pathname").await, "/recovery");
    browser.goes_to(&format!("{page}?fbclid=x&lang=vi")).await;
    browser.until("document.documentElement.lang === 'vi'").await;
    let ticket = "x".repeat(60);
    browser.goes_to("about:blank").await;
    browser.goes_to(&format!("{page}#utm_source=zalo&t={ticket}")).await;
    browser.sees("#ticket").await;
    assert!(!browser.value("location.href").await.contains(&ticket));
    browser.goes_to(&page.replace("/recovery", "/.well-known/change-password")).await;
    browser.sees("#email").await;
    assert_eq!(browser.value("location.pathname").await, "/recovery");
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn an_address_is_cleaned_and_what_is_probably_wrong_with_it_is_said(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&page).await;
    browser.sees("#email").await;
    let address = "document.querySelector('#address').value";
    let pasted = async |text: &str| {
        browser.script("document.querySelector('#address').value = ''").await;
        browser.script("document.querySelector('#address').focus()").await;
        browser.pastes(text).await;
        browser.script("document.activeElement.blur()").await;
    };
    for text in [
        "\u{200b}trader@example.com\u{202c}",
        "mailto:trader@example.com",
        "A Trader <trader@example.com>",
        "trader＠example.com",
        "trader@example.com.",
    ] {
        pasted(text).await;
        assert_eq!(browser.value(address).await, EMAIL, "{text:?}");
    }
    pasted("trader@gmial.com").await;
    assert_eq!(
        browser.value("document.querySelector('#address-typo input').value").await,
        "trader@gmail.com"
    );
    assert_eq!(browser.value(address).await, "trader@gmial.com", "it is offered, not corrected");
    browser.clicks("#address-typo input").await;
    assert_eq!(browser.value(address).await, "trader@gmail.com");
    browser.until("!document.querySelector('#address-typo').checkVisibility()").await;
    pasted("trader@localhost").await;
    browser.sees("#address-domain").await;
    pasted("tráder@example.com").await;
    browser.sees("#address-ascii").await;
    pasted("trader@tàu.vn").await;
    browser.until("!document.querySelector('#address-domain').checkVisibility()").await;
    browser.inspect("recovery-1-email-typo-en").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn a_code_is_sent_by_itself_once_and_its_error_names_the_attempts_left(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    let code = service.relay.mail(1).await.code();
    browser.pastes("\u{200f}٠٠٠٠ ٠٠٠٠\u{2069}").await;
    let error = browser.reads("#verify-error").await;
    assert!(error.contains("Attempts left: 4"), "{error}");
    assert_eq!(
        browser
            .value("document.activeElement.selectionEnd - document.activeElement.selectionStart > 8")
            .await,
        "true",
        "the wrong code is selected"
    );
    browser.pastes(&code).await;
    assert_eq!(
        browser.value("document.querySelector('#verify-error').innerText").await,
        "",
        "a stale error goes"
    );
    browser.clicks("#verify button").await;
    browser.sees("#password").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn at_none_left_or_expired_the_button_that_helps_is_the_primary_one(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    service.relay.mail(1).await;
    browser.types("#digits", "00000000").await;
    for left in (0..4).rev() {
        browser.until(&format!("document.querySelector('#attempts b').textContent === '{}'", left + 1)).await;
        browser.types("#digits", "00000000").await;
        browser.clicks("#verify button").await;
    }
    browser.until("document.querySelector('#code').classList.contains('needs-code')").await;
    browser.closes().await;
    service.stops().await;
}

/// The service's time goes on while the page's clock stands still, as in a phone that sleeps. The
/// phone's own clock is wrong.
#[sqlx::test]
async fn after_the_phone_slept_the_countdowns_are_right(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    before_load(&browser, "Date.now = () => 0").await;
    asks_for_a_code(&browser, &page).await;
    let code = service.relay.mail(1).await.code();
    assert!(browser.reads("#resend-wait").await.starts_with("You can resend it in 0:"));
    let is_left = |step: &str, minutes: u32| {
        format!("/^({}:|{minutes}:00)/.test(document.querySelector('#{step}').innerText)", minutes - 1)
    };
    let [wakes, returns] = [
        "document.dispatchEvent(new Event('visibilitychange'))",
        "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))",
    ];
    for (event, minutes) in [(wakes, 6), (returns, 2)] {
        service.clock.advance(Duration::from_mins(4));
        browser.script(event).await;
        browser.until(&is_left("code-life time", minutes)).await;
    }
    browser.until("!document.querySelector('#resend-wait').checkVisibility()").await;
    browser.types("#digits", &code).await;
    browser.sees("#password").await;
    browser.until(&is_left("password [data-until=password] time", 15)).await;
    service.clock.advance(Duration::from_mins(10));
    browser.script(wakes).await;
    browser.until(&is_left("password [data-until=password] time", 5)).await;
    browser.closes().await;
    service.stops().await;
}
