//! Who gets into the support console, and what is left in the browser afterwards.

use sqlx::PgPool;
use vos_auth::operator::{self, Role};

use crate::admin::{ADDRESS, operator};
use crate::console::{EMAIL, asks, button, console_of, finds, signs_in};
use crate::harness::browser::Browser;
use crate::harness::relay::Mood;
use crate::harness::{Service, now};
use crate::page_people::before_load;

/// The token is in this tab's storage and nowhere else.
#[sqlx::test]
async fn a_token_is_in_no_url_and_is_forgotten_with_everything_on_the_screen(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let token = operator(&service, "alice", Role::Auditor).await;
    let browser = Browser::open("en").await;
    signs_in(&browser, &console, &token).await;
    finds(&browser, EMAIL).await;
    let left =
        "location.href + document.cookie + JSON.stringify(localStorage) + JSON.stringify(history.state)";
    assert!(!browser.value(left).await.contains(&token));
    let requested = "performance.getEntriesByType('resource').map((entry) => entry.name).join(' ')";
    assert!(!browser.value(requested).await.contains(&token));
    // A reload keeps the operator signed in, at the same account.
    browser.driver.refresh().await.unwrap();
    browser.until(&format!("document.querySelector('#email').innerText === '{EMAIL}'")).await;
    browser.clicks("#sign-out").await;
    browser.sees("#token").await;
    let kept = "JSON.stringify(sessionStorage) + document.documentElement.outerHTML";
    let kept = browser.value(kept).await;
    assert!(!kept.contains(&token) && !kept.contains(EMAIL), "{kept}");
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn an_operator_who_does_nothing_for_15_minutes_is_signed_out(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let token = operator(&service, "alice", Role::Auditor).await;
    let browser = Browser::open("en").await;
    signs_in(&browser, &console, &token).await;
    finds(&browser, EMAIL).await;
    let later = |minutes: u32| format!("const now = Date.now; Date.now = () => now() + {minutes} * 60000");
    browser.script(&later(14)).await;
    browser.clicks("#with-reads").await;
    browser.script(&later(14)).await;
    browser.clicks("#with-reads").await;
    assert!(browser.value("sessionStorage.vos_operator_token").await == token, "each click counts as use");
    browser.script(&later(16)).await;
    browser.sees("#token").await;
    assert!(browser.reads("#enter-error").await.starts_with("You were signed out because you did nothing"));
    assert_eq!(browser.value("sessionStorage.vos_operator_token").await, "undefined");
    // The time of the last use is stored, so it counts even if the browser discarded the tab.
    let idle =
        format!("sessionStorage.vos_operator_token = '{token}'; sessionStorage.vos_operator_used = '1'");
    browser.script(&idle).await;
    browser.driver.refresh().await.unwrap();
    browser.sees("#token").await;
    assert_eq!(browser.value("sessionStorage.vos_operator_token").await, "undefined");
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn refusals_say_what_was_wrong_and_what_to_do(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&console).await;
    browser.sees("#token").await;
    for (typed, words) in [
        (String::new(), "Enter your operator token."),
        ("vosop_short".into(), "This is not an operator token."),
        (format!("vosop_{}", "A".repeat(43)), "There is no valid operator token"),
    ] {
        browser.types("#token", &typed).await;
        browser.clicks("#enter button").await;
        assert!(browser.reads("#enter-error").await.starts_with(words), "{typed}");
        assert_eq!(browser.focus().await, "token");
    }
    let token = operator(&service, "alice", Role::Support).await;
    signs_in(&browser, &console, &token).await;
    finds(&browser, EMAIL).await;

    // The relay fails, so no code can be emailed.
    service.relay.goes_down().await;
    service.until_mail_is("unavailable").await;
    browser.driver.refresh().await.unwrap();
    assert!(browser.reads("#why li").await.starts_with("No relay accepts emails at the moment"));
    service.relay.comes_back().await;
    service.relay.is_in_mood(Mood::Takes);

    // A lost answer to a change may hide a success.
    browser.is_offline(true).await;
    asks(&browser, &button("lift"), None, "attack").await;
    assert!(
        browser.reads("#act-error").await.starts_with("The answer was lost, so this may have been done.")
    );
    browser.is_offline(false).await;
    browser.clicks("#carry-out [data-close]").await;
    browser.until("!document.querySelector('#act').open").await;
    browser.is_offline(true).await;
    browser.clicks("#back").await;
    assert!(browser.reads("#trouble").await.starts_with("The server has not answered."));
    browser.is_offline(false).await;

    // The token is revoked meanwhile.
    assert!(operator::revoke(&pool, now(), &"alice".parse().unwrap()).await.unwrap());
    browser.types("#wanted", EMAIL).await;
    browser.clicks("#find button").await;
    browser.sees("#token").await;
    assert!(browser.reads("#enter-error").await.starts_with("There is no valid operator token"));
    browser.closes().await;
    service.stops().await;
}

/// A browser presents its certificate without the page's help. The test simulates that: its script
/// adds a token to each request.
#[sqlx::test]
async fn with_a_client_certificate_no_token_is_needed(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let token = operator(&service, "desk", Role::Support).await;
    let browser = Browser::open("en").await;
    let presents = format!(
        "const before = fetch; window.fetch = (path, options) => \
           before(path, {{ ...options, headers: {{ ...options.headers, Authorization: 'Bearer {token}' }} }}); \
         document.addEventListener('readystatechange', () => document.body.setAttribute('data-certificates', ''));"
    );
    before_load(&browser, &presents).await;
    browser.goes_to(&console).await;
    finds(&browser, EMAIL).await;
    assert!(browser.reads("#who").await.starts_with("desk (support)"));
    assert_eq!(browser.value("sessionStorage.length").await, "0");
    assert_eq!(browser.value("document.querySelector('#sign-out').checkVisibility()").await, "false");
    browser.closes().await;
    service.stops().await;
}

/// The page is small, loads nothing from other hosts, and is served only at the admin address.
#[sqlx::test]
async fn the_console_is_small_strict_and_not_public(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    let client = service.client().at(service.admin_address.unwrap());
    let page = client.get("/console").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(page.header("cache-control"), Some("no-store"));
    assert_eq!(page.header("set-cookie"), None);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(page.text.contains("lang=\"vi\"") && !page.text.contains("data-certificates"));
    for inline in [" style=", " onclick=", "<style", "<script>", "//cdn", "http://", "https://"] {
        assert!(!page.text.contains(inline), "{inline}");
    }
    assert!(client.get("/console?lang=en").await.text.contains("<html lang=\"en\">"));
    let mut size = page.text.len();
    for name in ["console.css", "console.js", "icon.svg"] {
        let (_, rest) = page.text.split_once(&format!("/console/{name}?")).expect(name);
        let file = client.get(&format!("/console/{name}?{}", rest.split('"').next().unwrap())).await;
        assert!(file.header("cache-control").unwrap().contains("immutable"));
        size += file.text.len();
    }
    assert!(size < 65_000, "{size}");
    assert_eq!(client.get("/console/console.ts").await.error(), (404, "not_found"));
    for path in ["/console", "/console/console.js"] {
        assert_eq!(service.client().get(path).await.error(), (404, "not_found"), "{path}");
    }
    assert_eq!(service.count("audit_event WHERE operator IS NOT NULL").await, 0, "the page is no call");
    service.stops().await;
}
