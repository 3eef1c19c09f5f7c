//! What needs two operators, each with a console of their own.

use std::time::Duration;

use sqlx::PgPool;
use vos_auth::operator::Role;

use crate::admin::operator;
use crate::console::{EMAIL, asks, button, code_after, console_of, finds, signs_in};
use crate::harness::Service;
use crate::harness::browser::Browser;

const NEW: &str = "new.mailbox@example.com";
const PASSWORD: &str = "night train in autumn rain";

/// A browser of an operator with this role.
async fn desk(service: &Service, console: &str, name: &str, role: Role) -> Browser {
    let token = operator(service, name, role).await;
    let browser = Browser::open("en").await;
    signs_in(&browser, console, &token).await;
    browser
}

/// Alice asks for another address, and bob approves it by her link.
async fn two_agree(alice: &Browser, bob: &Browser) {
    asks(alice, &button("recover"), Some(NEW), "the mailbox is lost, passport seen").await;
    assert_eq!(alice.reads("#given-name").await, "A second operator must approve");
    let link = alice.value("document.querySelector('#link').value").await;
    alice.clicks("#given [data-close]").await;
    alice
        .until("document.querySelector('#waiting').innerText.includes('Waits for a second operator until')")
        .await;
    let buttons = "[...document.querySelectorAll('#waiting button')].map((button) => button.innerText)";
    assert_eq!(alice.value(buttons).await, "Cancel Request", "nobody approves what they asked for");

    bob.goes_to(&link).await;
    // If bob already looks at the account, the link does not load it again.
    bob.sees("#again").await;
    bob.clicks("#again").await;
    bob.until(&format!(
        "document.querySelector('#waiting').innerText.includes('alice asks for the address {NEW}')"
    ))
    .await;
    assert!(bob.reads("#waiting").await.contains("the mailbox is lost, passport seen"));
    bob.inspect_on("request", &[]).await;
    asks(bob, "#waiting button", None, "called the owner back").await;
    bob.until("document.querySelector('#said').innerText.startsWith('Approved. The address changes at')")
        .await;
    bob.until("document.querySelector('#waiting').innerText.includes('Approved by bob; takes effect at')")
        .await;
}

#[sqlx::test]
async fn another_address_is_stopped_once_and_carried_out_once(pool: PgPool) {
    let (service, console, page) = console_of(&pool, &[]).await;
    let mut owner = service.client();
    assert!(owner.logs_in(EMAIL, PASSWORD).await.is_signed_in());
    let alice = desk(&service, &console, "alice", Role::Admin).await;
    let bob = desk(&service, &console, "bob", Role::Admin).await;
    finds(&alice, EMAIL).await;
    two_agree(&alice, &bob).await;
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mail(1).await.recipients, [EMAIL], "the owner is told at once");
    assert_eq!(owner.stops_address_change(PASSWORD).await.status, 200);
    bob.clicks("#again").await;
    bob.until("document.querySelector('#events').innerText.includes('Another address stopped by the owner')")
        .await;
    assert_eq!(bob.value("document.querySelector('#waiting').innerText").await, "");

    two_agree(&alice, &bob).await;
    service.until_outbox_has(0).await;
    service.clock.advance(Duration::from_hours(1));
    service.relay.mail_to(NEW, 1).await;
    bob.driver.refresh().await.unwrap();
    bob.until(&format!("document.querySelector('#email').innerText === '{NEW}'")).await;
    assert!(bob.reads("#events").await.contains("Address changed"));
    alice.closes().await;
    bob.closes().await;

    let trader = Browser::open("en").await;
    trader.goes_to(&page).await;
    trader.sees("#email").await;
    trader.types("#address", NEW).await;
    trader.clicks("#start button").await;
    trader.sees("#code").await;
    trader.types("#digits", &code_after(&service, 0).await).await;
    trader.sees("#password").await;
    trader.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn a_link_for_a_protected_account_needs_a_second_operator(pool: PgPool) {
    let (service, console, _) = console_of(&pool, &["--protected-trait=protected"]).await;
    let protect = "UPDATE account SET traits = '{\"protected\": true}' WHERE email = $1";
    sqlx::query(protect).bind(EMAIL).execute(&pool).await.unwrap();
    let alice = desk(&service, &console, "alice", Role::Support).await;
    let bob = desk(&service, &console, "bob", Role::Support).await;
    finds(&alice, EMAIL).await;
    asks(&alice, &button("ticket"), None, "new phone").await;
    assert_eq!(alice.reads("#given-name").await, "A second operator must approve");
    alice.clicks("#given [data-close]").await;

    // Bob finds the request on his overview.
    bob.driver.refresh().await.unwrap();
    bob.until("document.querySelector('#requests').innerText.includes('alice asks for a recovery link')")
        .await;
    bob.inspect_on("overview", &[]).await;
    asks(&bob, "#requests button", None, "called the owner back").await;
    bob.until("document.querySelector('#said').innerText.startsWith('Approved. The operator who asked')")
        .await;
    asks(&alice, &button("ticket"), None, "new phone, approved by bob").await;
    alice.until("document.querySelector('#given-name').innerText === 'Recovery link'").await;
    assert!(alice.value("document.querySelector('#link').value").await.contains("/recovery#t="));
    alice.closes().await;
    bob.closes().await;
    service.stops().await;
}
