//! The recovery page in a real browser: the whole flow, and what a person does on it.

use serde_json::{Value, json};
use sqlx::PgPool;
use thirtyfour::prelude::*;

use crate::harness::Service;
use crate::harness::browser::Browser;
use crate::harness::place::free_address;

const EMAIL: &str = "trader@example.com";
const PASSWORD: &str = "chuyen tau dem mua thu";

/// A service that a browser may call, and the URL of its page.
pub async fn page_of(pool: &PgPool, settings: &[&str]) -> (Service, String) {
    let address = free_address();
    let origin = format!("http://{address}");
    let (address, public) = (format!("--http-addr={address}"), format!("--public-origin={origin}"));
    let settings: Vec<_> =
        [address.as_str(), public.as_str()].into_iter().chain(settings.iter().copied()).collect();
    let service = Service::start_with_settings(pool, &settings).await;
    service.has_trader(EMAIL, "night train in autumn rain").await;
    (service, format!("{origin}/recovery"))
}

/// Brings a browser to the field of the code.
pub async fn asks_for_a_code(browser: &Browser, page: &str) {
    browser.goes_to(page).await;
    browser.sees("#email").await;
    browser.types("#address", EMAIL).await;
    browser.clicks("#start button").await;
    browser.sees("#code").await;
}

/// Brings a browser to the field of the password.
async fn enters_the_code(browser: &Browser, service: &Service) {
    let code = service.relay.mail(1).await.code();
    // After a wrong code, the page sends the next one only when the button is clicked.
    let is_first = browser.value("document.querySelector('#verify-error').innerText").await.is_empty();
    browser.types("#digits", &code).await;
    if !is_first {
        browser.clicks("#verify button").await;
    }
    browser.sees("#password").await;
}

/// Every step and error of the page, checked by axe in both color schemes.
async fn whole_journey(pool: &PgPool, language: &str, words: [&str; 7]) {
    let [forgot, not_an_address, enter, wrong, left, guessable, signed_in] = words;
    let (service, page) = page_of(pool, &[]).await;
    let browser = Browser::open(language).await;
    let inspect = async |step: &str| browser.inspect(&format!("recovery-{step}-{}", &language[..2])).await;

    browser.goes_to(&page).await;
    assert_eq!(browser.reads("#email h1").await, forgot);
    assert_eq!(browser.value("document.documentElement.lang").await, language[..2]);
    inspect("1-email").await;
    browser.clicks("#start button").await;
    assert!(browser.reads("#start-error").await.starts_with(not_an_address));
    assert_eq!(browser.focus().await, "address", "the invalid field has the focus");
    assert_eq!(browser.value("document.activeElement.ariaInvalid").await, "true");
    inspect("1-email-refused").await;

    browser.types("#address", EMAIL).await;
    browser.clicks("#start button").await;
    assert_eq!(browser.reads("#code h1").await, enter);
    assert_eq!(browser.focus().await, "digits", "the next step's field has the focus");
    assert!(browser.reads("#code .address").await.contains(EMAIL));
    inspect("2-code").await;
    browser.types("#digits", "0000 0000").await;
    assert!(browser.reads("#verify-error").await.starts_with(wrong));
    assert_eq!(browser.reads("#attempts").await, left);
    browser.clicks("summary").await;
    inspect("2-code-refused").await;

    enters_the_code(&browser, &service).await;
    assert_eq!(browser.focus().await, "secret");
    inspect("3-password").await;
    browser.types("#secret", "passwordpassword").await;
    browser.sees("#long-enough").await;
    browser.clicks("#reset button").await;
    assert!(browser.reads("#reset-error p").await.starts_with(guessable));
    browser.sees("#reset-error li").await;
    inspect("3-password-refused").await;

    browser.types("#secret", PASSWORD).await;
    browser.clicks("#reset button").await;
    assert_eq!(browser.reads("#done h1").await, signed_in);
    assert!(browser.value("document.title").await.starts_with(signed_in));
    inspect("4-done").await;
    let mut owner = service.client();
    owner.token = Some(browser.value("sessionStorage.vos_session_token").await);
    assert!(owner.refreshes().await.is_signed_in(), "the sign-in page gets a session");
    assert!(service.client().logs_in(EMAIL, PASSWORD).await.is_signed_in());
    let kept =
        browser.value("JSON.stringify(sessionStorage) + JSON.stringify(localStorage) + location").await;
    assert!(!kept.contains(PASSWORD) && !kept.contains(&service.relay.mails()[0].code()), "{kept}");
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn the_whole_journey_in_vietnamese(pool: PgPool) {
    let words = [
        "Quên mật khẩu?",
        "Địa chỉ email không hợp lệ.",
        "Nhập mã trong email",
        "Mã không đúng hoặc không còn hiệu lực.",
        "Số lần thử còn lại: 4",
        "Mật khẩu này dễ đoán.",
        "Bạn đã đăng nhập",
    ];
    whole_journey(&pool, "vi-VN", words).await;
}

#[sqlx::test]
async fn the_whole_journey_in_english(pool: PgPool) {
    let words = [
        "Forgot your password?",
        "This email address is not valid.",
        "Enter the code from your email",
        "Invalid or expired code.",
        "Attempts left: 4",
        "This password is easy to guess.",
        "You are signed in",
    ];
    whole_journey(&pool, "en-US", words).await;
}

#[sqlx::test]
async fn e10_a_code_can_be_pasted_as_written_in_the_email(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    let code = service.relay.mail(1).await.code();
    browser.pastes(&format!("Your code: {} {}\n", &code[..4], &code[4..])).await;
    browser.sees("#password").await;
    browser.pastes(PASSWORD).await;
    browser.clicks("#reset button").await;
    browser.sees("#done").await;
    browser.closes().await;
    service.stops().await;
}

/// The attributes that browsers and password managers use (WHATWG, "Autofill").
#[sqlx::test]
async fn e10_password_managers_find_address_code_and_new_password(pool: PgPool) {
    let (service, page) = page_of(&pool, &["--password-min-chars=20"]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    enters_the_code(&browser, &service).await;
    let fields = browser
        .script(
            "return [...document.querySelectorAll('input:not([type=checkbox], [type=button])')]
               .map((field) => [field.id, field.type, field.autocomplete, field.inputMode, field.value])",
        )
        .await;
    let expected = json!([
        ["address", "email", "username", "", EMAIL],
        ["digits", "text", "one-time-code", "numeric", ""],
        ["account", "email", "username", "", EMAIL],
        ["secret", "password", "new-password", "", ""],
    ]);
    assert_eq!(fields, expected);
    assert_eq!(browser.value("document.querySelector('#secret').minLength").await, "20");
    browser.clicks("#reveal").await;
    assert_eq!(browser.value("document.querySelector('#secret').type").await, "text");
    browser.clicks("#secret").await;
    // The page counts as the server does: 20 code points in NFC, whatever was typed.
    browser.pastes(&"e\u{302}\u{301}".repeat(19)).await;
    assert_eq!(browser.reads("#length").await, "1 more character");
    browser.pastes("x").await;
    assert_eq!(browser.reads("#length").await, "Long enough");
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn a_reload_or_the_back_button_keeps_the_step(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    // The browser's clock is wrong by decades; the remaining times are right all the same.
    let wrong = json!({ "source": "Date.now = () => 0" });
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", wrong).await;
    browser.goes_to(&page).await;
    browser.sees("#email").await;
    browser.types("#address", "half@exam").await;
    browser.driver.refresh().await.unwrap();
    browser.sees("#email").await;
    assert_eq!(browser.value("document.querySelector('#address').value").await, "half@exam");

    asks_for_a_code(&browser, &page).await;
    browser.driver.refresh().await.unwrap();
    browser.sees("#code").await;
    // The service's clock does not move, so that the time is the same after the reload.
    let left = browser.reads("#code-life time").await;
    assert!(left.starts_with("9:") || left.starts_with("10:"), "{left}");
    browser.driver.back().await.unwrap();
    browser.sees("#have-code").await;
    assert_eq!(browser.value("document.querySelector('#address').value").await, EMAIL);
    browser.driver.forward().await.unwrap();
    browser.sees("#code").await;
    browser.clicks("#other-email").await;
    browser.sees("#email").await;
    browser.clicks("#have-code").await;
    browser.sees("#code").await;

    enters_the_code(&browser, &service).await;
    browser.driver.refresh().await.unwrap();
    browser.sees("#password").await;
    assert_eq!(browser.value("document.querySelector('#account').value").await, EMAIL);
    browser.driver.back().await.unwrap();
    browser.sees("#email").await;
    browser.driver.forward().await.unwrap();
    browser.sees("#password").await;
    browser.types("#secret", PASSWORD).await;
    browser.clicks("#reset button").await;
    browser.sees("#done").await;
    browser.driver.refresh().await.unwrap();
    browser.sees("#done").await;
    browser.driver.back().await.unwrap();
    browser.sees("#email").await;
    browser.closes().await;
    service.stops().await;
}

/// A whole recovery with the keyboard only.
#[sqlx::test]
async fn the_whole_journey_by_keyboard(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&page).await;
    browser.sees("#email").await;
    browser.presses(Key::Tab).await;
    assert_eq!(browser.focus().await, "language");
    browser.presses(Key::Tab).await;
    browser.presses(EMAIL).await;
    browser.presses(Key::Enter).await;
    browser.sees("#code").await;
    // The last digit sends the code.
    browser.presses(service.relay.mail(1).await.code()).await;
    browser.sees("#password").await;
    browser.presses(PASSWORD).await;
    browser.presses(Key::Tab).await;
    browser.presses(Key::Space).await;
    assert_eq!(browser.value("document.querySelector('#secret').type").await, "text");
    browser.presses(Key::Tab).await;
    browser.presses(Key::Enter).await;
    browser.sees("#done").await;
    browser.presses(Key::Tab).await;
    assert_eq!(browser.focus().await, "go-on");
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn a_chosen_language_is_kept(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("vi").await;
    asks_for_a_code(&browser, &page).await;
    browser.clicks("#language").await;
    browser.until("document.documentElement.lang === 'en'").await;
    browser.sees("#code").await;
    browser.types("#digits", "1").await;
    browser.clicks("#verify button").await;
    assert!(browser.reads("#verify-error").await.starts_with("A recovery code has 8 digits."));
    browser.goes_to(&page).await;
    assert_eq!(browser.value("document.documentElement.lang").await, "en");
    assert_eq!(browser.value("location.href").await, page);
    browser.closes().await;
    service.stops().await;
}

/// The page is small enough for a phone on a slow network. Its files are cached while their version
/// is the same.
#[sqlx::test]
async fn the_page_is_small_strict_and_can_be_turned_off(pool: PgPool) {
    let (service, _) =
        page_of(&pool, &["--password-min-chars=20", "--sign-in-url=https://oms.verolabs.co/login"]).await;
    let client = service.client();
    let page = client.get("/recovery").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    assert!(
        page.text.contains("lang=\"vi\"") && page.text.contains("href=\"https://oms.verolabs.co/login\"")
    );
    assert!(page.text.contains("data-min-chars=\"20\"") && !page.text.contains("data-hands-over"));
    for inline in [" style=", " onclick=", "<style", "<script>", "//cdn"] {
        assert!(!page.text.contains(inline), "{inline}");
    }
    let mut size = page.text.len();
    for name in ["page.css", "page.js", "icon.svg"] {
        let (_, rest) = page.text.split_once(&format!("/recovery/{name}?")).expect(name);
        let version = rest.split('"').next().unwrap();
        let file = client.get(&format!("/recovery/{name}?{version}")).await;
        assert!(file.header("cache-control").unwrap().contains("immutable"));
        let other = client.get(&format!("/recovery/{name}?0")).await;
        assert_eq!(
            (other.status, other.header("cache-control")),
            (200, Some("no-store")),
            "another version is not cached"
        );
        size += file.text.len();
    }
    assert!(size < 45_000, "{size}");
    for nothing in ["/recovery/page.ts", "/recovery/%FF", "/recovery/../page.js"] {
        assert_eq!(client.get(nothing).await.error(), (404, "not_found"), "{nothing}");
    }
    let off = service.replica(&["--recovery-page=off"]).await;
    for path in ["/recovery", "/recovery/page.js"] {
        assert_eq!(off.client().get(path).await.error(), (404, "not_found"));
    }
    off.stops().await;
    service.stops().await;
}

/// The sign-in page of another host could not read the session, so the page ends it.
#[sqlx::test]
async fn a_session_that_the_sign_in_page_cannot_read_is_ended(pool: PgPool) {
    let (service, page) = page_of(&pool, &["--sign-in-url=https://oms.verolabs.co/login"]).await;
    let browser = Browser::open("en").await;
    asks_for_a_code(&browser, &page).await;
    enters_the_code(&browser, &service).await;
    browser.types("#secret", PASSWORD).await;
    browser.clicks("#reset button").await;
    assert_eq!(browser.reads("#done h1").await, "Your password was changed");
    assert_eq!(browser.script("return sessionStorage.vos_session_token ?? null").await, Value::Null);
    let live: i64 = sqlx::query_scalar("SELECT count(*) FROM session WHERE revoked_at IS NULL")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(live, 0);
    browser.closes().await;
    service.stops().await;
}
