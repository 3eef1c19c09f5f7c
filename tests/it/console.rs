//! The support console in a real browser: what an operator does while the owner is on the phone.

use serde_json::Value;
use sqlx::PgPool;
use thirtyfour::prelude::*;
use vos_auth::admin::{self, Bounced};
use vos_auth::mail::bounce::SignedAddress;
use vos_auth::operator::Role;

use crate::admin::{ADDRESS, call, desk, id_of, operator};
use crate::harness::browser::{Browser, DESKTOP, PHONE};
use crate::harness::mail::Mail;
use crate::harness::{Service, now};
use crate::page::page_of;

pub const EMAIL: &str = "trader@example.com";
const PASSWORD: &str = "chuyen tau dem mua thu";

/// A service with an account, the URL of its console and that of its recovery page.
pub async fn console_of(pool: &PgPool, settings: &[&str]) -> (Service, String, String) {
    let settings: Vec<_> = [ADDRESS].into_iter().chain(settings.iter().copied()).collect();
    let (service, page) = page_of(pool, &settings).await;
    let console = format!("http://{}/console", service.admin_address.unwrap());
    (service, console, page)
}

pub async fn signs_in(browser: &Browser, console: &str, token: &str) {
    browser.goes_to(console).await;
    browser.sees("#token").await;
    browser.types("#token", token).await;
    browser.clicks("#enter button").await;
    browser.sees("#wanted").await;
}

pub async fn finds(browser: &Browser, wanted: &str) {
    browser.types("#wanted", wanted).await;
    browser.clicks("#find button").await;
    browser.until(&format!("document.querySelector('#email').checkVisibility() && document.querySelector('#email').innerText === '{EMAIL}'")).await;
}

/// Opens a dialog, fills it and confirms.
pub async fn asks(browser: &Browser, button: &str, email: Option<&str>, reason: &str) {
    browser.clicks(button).await;
    browser.sees("#reason").await;
    if let Some(email) = email {
        browser.types("#new-email", email).await;
    }
    browser.types("#reason", reason).await;
    browser.clicks("#confirm").await;
}

pub fn button(act: &str) -> String {
    format!("#acts [data-act={act}]")
}

/// Strangers use up the rate limit of the address, and the first email bounces.
async fn attack(service: &Service) {
    while service.client().starts_recovery(EMAIL).await.is_code_sent() {}
    service.until_outbox_has(0).await;
    let sender = service.relay.mail(1).await.sender;
    let bounced = SignedAddress::find(&service.keys.clone().into(), &sender, now()).unwrap();
    let mut connection = service.pool.acquire().await.unwrap();
    assert_eq!(admin::mark_bouncing(&mut connection, now(), &bounced).await.unwrap(), Bounced::Marked);
}

/// The newest of the codes that were emailed, if there are more than `before`.
pub async fn code_after(service: &Service, before: usize) -> String {
    let codes = || -> Vec<_> { service.relay.mails().iter().filter_map(Mail::code_if_any).collect() };
    service.until("another code is emailed", async || codes().len() > before).await;
    codes().pop().unwrap()
}

/// Every screen of the console, checked by axe in both color schemes, until the trader has signed
/// in. `make screenshots` takes the pictures of docs/operate/console.md here.
async fn the_desk_helps(pool: &PgPool, language: &str, screen: (&str, (u32, u32)), words: [&str; 6]) {
    let [sign_in, bouncing, limited, left, given, ticket_event] = words;
    let (service, console, page) = console_of(pool, &["--mail-bounces=@bounces.example.com"]).await;
    let token = operator(&service, "alice", Role::Support).await;
    assert!(service.client().logs_in(EMAIL, "night train in autumn rain").await.is_signed_in());
    attack(&service).await;
    let codes = service.relay.mails().iter().filter_map(Mail::code_if_any).count();

    let browser = Browser::open(language).await;
    let check = async |screen: &str| browser.inspect_on(screen, &[]).await;
    browser.goes_to(&console).await;
    assert_eq!(browser.reads("#sign-in h1").await, sign_in);
    assert_eq!(browser.value("document.documentElement.lang").await, language[..2]);
    check("sign in").await;
    browser.clicks("#enter button").await;
    browser.reads("#enter-error").await;
    check("sign in, refused").await;
    signs_in(&browser, &console, &token).await;
    check("home").await;
    browser.types("#wanted", "nobody").await;
    browser.clicks("#find button").await;
    browser.until("document.querySelector('#find-note').innerText").await;
    finds(&browser, "trad").await;

    let why = browser.reads("#why").await;
    let (first, second) = (why.find(bouncing).expect(&why), why.find(limited).expect(&why));
    assert!(first < second, "{why}");
    assert!(browser.reads("#limits").await.contains(left));
    assert!(browser.reads("#sessions").await.contains("127.0.0.1"));
    browser.until("document.querySelectorAll('#events tr').length > 3").await;
    browser.inspect_on(&format!("console-{}", &language[..2]), &[screen]).await;

    browser.clicks(&button("ticket")).await;
    browser.sees("#reason").await;
    check("ticket").await;
    browser.clicks("#confirm").await;
    browser.reads("#act-error").await;
    browser.types("#reason", "điện thoại mới, vụ 4711").await;
    browser.clicks("#confirm").await;
    assert_eq!(browser.reads("#given-name").await, given);
    check("ticket given").await;
    let link = browser.value("document.querySelector('#link').value").await;
    assert!(link.starts_with(&format!("{page}#t=")), "{link}");
    browser.clicks("#given [data-close]").await;
    browser.until(&format!("document.querySelector('#events').innerText.includes('{ticket_event}')")).await;
    let events = browser.reads("#events").await;
    assert!(events.contains("alice") && events.contains("điện thoại mới, vụ 4711"), "{events}");
    assert_eq!(browser.value("document.querySelector('#link').value").await, "", "the link is not kept");
    browser.closes().await;

    let trader = Browser::open(language).await;
    trader.goes_to(&link).await;
    trader.sees("#ticket").await;
    trader.types("#address", EMAIL).await;
    trader.clicks("#start button").await;
    trader.sees("#code").await;
    trader.types("#digits", &code_after(&service, codes).await).await;
    trader.sees("#password").await;
    trader.types("#secret", PASSWORD).await;
    trader.clicks("#reset button").await;
    trader.sees("#done").await;
    trader.closes().await;
    assert!(service.client().logs_in(EMAIL, PASSWORD).await.is_signed_in());
    service.stops().await;
}

#[sqlx::test]
async fn the_desk_sees_a_bounce_and_gives_a_link_that_lets_the_trader_in_in_english(pool: PgPool) {
    let words = [
        "Sign in to the support console",
        "Emails to this address have bounced",
        "Too many codes were requested",
        "0 / 3",
        "Recovery link",
        "Recovery link given",
    ];
    the_desk_helps(&pool, "en-US", ("desktop", DESKTOP), words).await;
}

#[sqlx::test]
async fn the_desk_sees_a_bounce_and_gives_a_link_that_lets_the_trader_in_in_vietnamese(pool: PgPool) {
    let words = [
        "Đăng nhập bảng hỗ trợ",
        "Email gửi đến địa chỉ này bị trả lại",
        "Đã có quá nhiều lần yêu cầu mã",
        "0 / 3",
        "Liên kết khôi phục",
        "Cấp liên kết khôi phục",
    ];
    the_desk_helps(&pool, "vi-VN", ("phone", PHONE), words).await;
}

/// An operator works with the keyboard only, from the sign-in to the recovery link.
#[sqlx::test]
async fn the_desk_helps_by_keyboard(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let token = operator(&service, "alice", Role::Support).await;
    while service.client().starts_recovery(EMAIL).await.is_code_sent() {}
    let browser = Browser::open("en").await;
    browser.goes_to(&console).await;
    browser.sees("#token").await;
    assert_eq!(browser.focus().await, "token");
    browser.presses(token).await;
    browser.presses(Key::Enter).await;
    browser.until("document.activeElement.id === 'wanted'").await;
    browser.presses(EMAIL).await;
    browser.presses(Key::Enter).await;
    browser.until("document.activeElement.id === 'email'").await;
    // The first button after the heading is the remedy for the first finding.
    browser.presses(Key::Tab).await;
    assert_eq!(browser.value("document.activeElement.dataset.act").await, "ticket");
    browser.presses(Key::Enter).await;
    browser.until("document.activeElement.id === 'reason'").await;
    browser.presses(Key::Escape).await;
    browser.until("!document.querySelector('#act').open").await;
    assert_eq!(browser.value("document.activeElement.dataset.act").await, "ticket");
    browser.presses(Key::Enter).await;
    browser.until("document.activeElement.id === 'reason'").await;
    browser.presses("new phone, case 4711").await;
    browser.presses(Key::Enter).await;
    browser.until("document.activeElement.id === 'copy'").await;
    browser.presses(Key::Shift + Key::Tab).await;
    assert_eq!(browser.focus().await, "link");
    let selected = "document.activeElement.selectionEnd - document.activeElement.selectionStart";
    assert!(browser.value(selected).await.parse::<u32>().unwrap() > 60, "the link is selected for Ctrl+C");
    browser.presses(Key::Escape).await;
    browser.until("document.querySelector('#events').innerText.includes('new phone, case 4711')").await;
    browser.until("document.activeElement.id === 'email'").await;
    browser.closes().await;
    service.stops().await;
}

/// The console shows an operator only the buttons that the role allows.
#[sqlx::test]
async fn each_role_is_offered_what_it_may_do(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let offered = "[...document.querySelectorAll('#acts button')].filter((one) => one.checkVisibility()).map((one) => one.dataset.act)";
    for (role, acts) in [
        (Role::Auditor, ""),
        (Role::Support, "ticket,lift,end"),
        (Role::Admin, "ticket,lift,end,recover,set,disable"),
    ] {
        let token = operator(&service, &role.to_string(), role).await;
        let browser = Browser::open("en").await;
        signs_in(&browser, &console, &token).await;
        assert!(browser.reads("#who").await.starts_with(&format!("{role} ({role})")));
        finds(&browser, EMAIL).await;
        assert_eq!(browser.value(offered).await, acts, "{role}");
        let reads_only = browser.value("document.querySelector('#reads-only').checkVisibility()").await;
        assert_eq!(reads_only, (role == Role::Auditor).to_string());
        browser.closes().await;
    }
    service.stops().await;
}

#[sqlx::test]
async fn an_admin_lifts_ends_disables_enables_and_sets_the_address(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let token = operator(&service, "alice", Role::Admin).await;
    let mut owner = service.client();
    assert!(owner.logs_in(EMAIL, "night train in autumn rain").await.is_signed_in());
    while service.client().starts_recovery(EMAIL).await.is_code_sent() {}
    let browser = Browser::open("en").await;
    signs_in(&browser, &console, &token).await;
    finds(&browser, &id_of(&pool, EMAIL).await.to_string()).await;
    let said = async |text: &str| {
        browser.until(&format!("document.querySelector('#said').innerText.startsWith('{text}')")).await;
    };

    asks(&browser, &button("lift"), None, "attack of 10 o'clock").await;
    said("The limits are lifted.").await;
    browser.until("!document.querySelector('#limits').innerText.includes('0 / 3')").await;
    assert!(service.client().starts_recovery(EMAIL).await.is_code_sent());
    asks(&browser, &button("end"), None, "lost phone").await;
    said("Sessions ended: 1.").await;
    assert_eq!(owner.refreshes().await.error().0, 401);
    asks(&browser, &button("disable"), None, "fraud").await;
    said("The account is disabled.").await;
    browser.until("document.querySelector('#why li').innerText.startsWith('The account is disabled')").await;
    assert!(!service.client().logs_in(EMAIL, "night train in autumn rain").await.is_signed_in());
    asks(&browser, "#why [data-act=enable]", None, "it was no fraud").await;
    said("The account is active again.").await;
    // Another account has this address. The dialog says so and stays open.
    service.has_account("taken@example.com").await;
    asks(&browser, &button("set"), Some("taken@example.com"), "new mailbox").await;
    browser.reads("#act-error").await;
    browser.types("#new-email", "new@example.com").await;
    browser.clicks("#confirm").await;
    said("The address is changed.").await;
    browser.until("document.querySelector('#email').innerText === 'new@example.com'").await;
    assert!(service.client().logs_in("new@example.com", "night train in autumn rain").await.is_signed_in());
    browser.clicks("#back").await;
    browser.until("document.querySelectorAll('#own-events tr').length === 7").await;
    let own = browser.reads("#own-events").await;
    assert!(own.contains("it was no fraud") && own.contains("Set address (failed)"), "{own}");
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn accounts_are_found_by_what_people_know_of_them(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let token = operator(&service, "alice", Role::Admin).await;
    let new = serde_json::json!({ "email": "trader2@example.com", "traits": { "external_id": "C-0042" } });
    assert_eq!(call(&desk(&service, &token), "POST", "/admin/accounts", &new).await.status, 201);
    let browser = Browser::open("en").await;
    signs_in(&browser, &console, &token).await;
    let id = id_of(&pool, "trader2@example.com").await.to_string();
    for wanted in ["trader2", "Trader2@Example.com", "trader2@exam", &id, "C-0042"] {
        browser.types("#wanted", wanted).await;
        browser.clicks("#find button").await;
        browser
            .until(&format!(
                "location.hash === '#{id}' && document.querySelector('#account').checkVisibility()"
            ))
            .await;
        browser.clicks("#back").await;
        browser.until("document.querySelector('#home').checkVisibility()").await;
    }
    browser.types("#wanted", "trader").await;
    browser.clicks("#find button").await;
    browser.until("document.querySelectorAll('#found li').length === 2").await;
    assert_eq!(browser.reads("#find-note").await, "2 found. Select one.");
    browser.inspect_on("found", &[]).await;
    browser.clicks("#found li:nth-child(2) a").await;
    browser.until("document.querySelector('#account').checkVisibility()").await;
    browser.driver.back().await.unwrap();
    browser.until("document.querySelectorAll('#found li').length === 2 && document.querySelector('#found').checkVisibility()").await;
    browser.types("#wanted", "nobody@example.com").await;
    browser.clicks("#find button").await;
    browser.until("document.querySelector('#find-note').innerText.startsWith('Nothing was found.')").await;
    browser.closes().await;
    service.stops().await;
}

/// A double click reads a page of events once, and a second Escape loses no link.
#[sqlx::test]
async fn impatience_loses_and_repeats_nothing(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let token = operator(&service, "alice", Role::Support).await;
    let many = "INSERT INTO audit_event (id, what, account_id, created_at)
        SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'signed_in', $1, $2
        FROM generate_series(1, 250) AS n";
    sqlx::query(many).bind(id_of(&pool, EMAIL).await).bind(now()).execute(&pool).await.unwrap();
    let browser = Browser::open("en").await;
    signs_in(&browser, &console, &token).await;
    finds(&browser, EMAIL).await;
    browser.until("!document.querySelector('#older').hidden").await;
    browser.script("const older = document.querySelector('#older'); older.click(); older.click()").await;
    browser.until("document.querySelector('#older').hidden").await;
    let signed_in = "[...document.querySelectorAll('#events tr')].filter((row) => row.innerText.includes('Signed in')).length";
    assert_eq!(browser.value(signed_in).await, "250");

    browser.clicks(&button("ticket")).await;
    browser.sees("#reason").await;
    browser.types("#reason", "new phone").await;
    browser
        .script("document.querySelector('#confirm').click(); document.querySelector('#act').close()")
        .await;
    browser.until("document.querySelector('#act').open && document.querySelector('#link').value").await;
    browser.clicks("#given [data-close]").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn a_chosen_language_keeps_the_account_and_the_sign_in(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &[]).await;
    let token = operator(&service, "alice", Role::Auditor).await;
    let browser = Browser::open("vi").await;
    signs_in(&browser, &console, &token).await;
    finds(&browser, EMAIL).await;
    assert!(browser.reads("#why").await.contains("Trong 7 ngày qua không có yêu cầu mã nào"));
    browser.clicks("#language").await;
    browser.until("document.documentElement.lang === 'en'").await;
    browser.until(&format!("document.querySelector('#email').innerText === '{EMAIL}'")).await;
    assert!(
        browser.reads("#why").await.contains("No code was requested for this address in the last 7 days.")
    );
    assert_eq!(browser.script("return document.cookie").await, Value::from(""));
    browser.closes().await;
    service.stops().await;
}
