//! What people see of an email: rendered by Chromium, with and without the styles that some clients
//! remove, and its links.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sqlx::PgPool;
use thirtyfour::prelude::*;
use vos_auth::locale::Locale;

use crate::harness::Service;
use crate::harness::browser::Browser;
use crate::harness::mail::Mail;

const URL: &str = "https://platform.verolabs.co/recovery";
const SETTINGS: [&str; 2] =
    ["--recovery-url=https://platform.verolabs.co/recovery", "--support-phone=1900 1234"];
/// An address whose local part has the maximum length (RFC 5321 §4.5.3.1.1), and no place to break.
const LONG: &str = "accountwiththelongestlocalpartthatanaddresscanhaveinanysystemata@example.com";
const WIDTHS: [(&str, (u32, u32)); 2] = [("360", (360, 640)), ("640", (640, 760))];

/// The emails of the code and of the new password, in the language of an account.
async fn both_kinds(service: &Service, email: &str, language: Locale) -> [Mail; 2] {
    service.has_account_in(email, Some(language)).await;
    let before = service.relay.mails().len();
    let mut client = service.client();
    let code = service.mails_code_to(&mut client, email).await;
    assert_eq!(client.verifies(&code).await.status, 200);
    assert!(client.resets("sao hom tren doi thong gio").await.is_signed_in());
    [service.relay.mail(before + 1).await, service.relay.mail(before + 2).await]
}

/// The HTML as Gmail shows it in some of its apps: without `<style>`.
fn without_style(html: &str) -> String {
    let (before, rest) = html.split_once("<style>").expect("a style");
    let (_, after) = rest.split_once("</style>").expect("its end");
    assert!(!after.contains("<style"), "one style");
    format!("{before}{after}")
}

async fn shows(browser: &Browser, html: &str) {
    browser.goes_to(&format!("data:text/html;base64,{}", STANDARD.encode(html))).await;
}

#[sqlx::test]
async fn every_email_is_readable_with_and_without_styles(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &SETTINGS).await;
    let browser = Browser::open("en").await;
    for (language, email) in [(Locale::Vi, "trader@example.com"), (Locale::En, LONG)] {
        let tag: &str = language.into();
        for (kind, mail) in ["code", "changed"].iter().zip(both_kinds(&service, email, language).await) {
            let html = mail.html();
            for (styles, html) in [("", html.clone()), ("-unstyled", without_style(&html))] {
                shows(&browser, &html).await;
                browser.inspect_on(&format!("email-{kind}-{tag}{styles}"), &WIDTHS).await;
            }
            // Without styles, a dark screen shows the light email: all text has our colors.
            browser.is_in("dark").await;
            let colors = "return [...document.querySelectorAll('h1, p, li, a, b, .text')]
                .map((node) => getComputedStyle(node).color)";
            let colors = browser.script(colors).await;
            let colors = colors.as_array().unwrap();
            assert!(colors.iter().all(|color| color == "rgb(27, 31, 39)" || color == "rgb(11, 87, 208)"));
            browser.is_in("light").await;
        }
    }
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn one_double_click_selects_the_code(pool: PgPool) {
    let service = Service::start(&pool).await;
    let browser = Browser::open("en").await;
    let [mail, _] = both_kinds(&service, "trader@example.com", Locale::En).await;
    shows(&browser, &mail.html()).await;
    let code = mail.code();
    let find = format!("//td[text()='{code}']");
    let cell = browser.driver.find(By::XPath(&find)).await.expect("the code is one text");
    browser.driver.action_chain().double_click_element(&cell).perform().await.unwrap();
    assert_eq!(browser.value("getSelection().toString().trim()").await, code);
    browser.closes().await;
    service.stops().await;
}

/// Checks every link of an email. No link has data about the recipient.
#[sqlx::test]
async fn an_email_links_to_support_and_the_recovery_page_alone(pool: PgPool) {
    for (settings, in_code, in_notice) in [
        (&[][..], &["mailto:support@verolabs.co"][..], &["mailto:support@verolabs.co"][..]),
        (
            &SETTINGS[..],
            &[URL, "mailto:support@verolabs.co", "tel:19001234"],
            &[URL, "mailto:support@verolabs.co", "tel:19001234"],
        ),
    ] {
        let service = Service::start_with_settings(&pool, settings).await;
        for language in [Locale::Vi, Locale::En] {
            let tag: &str = language.into();
            let email = format!("trader-{tag}-{}@example.com", settings.len());
            let mails = both_kinds(&service, &email, language).await;
            for (mail, expected) in mails.iter().zip([in_code, in_notice]) {
                let (html, text) = (mail.html(), mail.text());
                let links: Vec<_> =
                    html.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
                assert_eq!(links, expected);
                assert_eq!(text.contains("http"), settings.len() == 2, "{text}");
                assert_eq!(text.contains("1900 1234"), settings.len() == 2, "{text}");
                assert_eq!(text.matches("://").count(), settings.len() / 2);
                assert!(!html.contains("<img") && !html.contains("url("), "{html}");
                assert!(html.contains(&email) && text.contains(&email), "the account is named");
            }
        }
        service.stops().await;
    }
}

/// A new code is not in a thread with an old one, where the old one may be read for the newest.
#[sqlx::test]
async fn emails_are_threads_of_their_own(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    let mut ids = std::collections::BTreeSet::new();
    for n in 1..=2 {
        service.client().starts_recovery("trader@example.com").await;
        let mail = service.relay.mail(n).await;
        let parsed = mail.parsed();
        assert!(parsed.header_raw("In-Reply-To").or(parsed.header_raw("References")).is_none());
        ids.insert(parsed.header_raw("X-Entity-Ref-ID").expect("an id").trim().to_owned());
    }
    assert_eq!(ids.len(), 2);
    service.stops().await;
}
