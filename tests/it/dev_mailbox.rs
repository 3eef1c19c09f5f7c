//! The mailbox of `vos-auth dev`, with as many emails as a day of development sends.

use std::collections::BTreeSet;

use sqlx::PgPool;

use crate::dev::{free_port, mailbox_has};
use crate::harness::browser::Browser;
use crate::harness::client::Client;
use crate::harness::database;
use crate::harness::program::Program;

const ALL: &str = "document.querySelectorAll('#mails > details')";
const VISIBLE: &str = "document.querySelectorAll('#mails > details:not([hidden])')";

async fn starts(client: &Client, email: &str) {
    assert!(Client::clone(client).starts_recovery(email).await.is_code_sent());
}

#[sqlx::test]
async fn a_hundred_emails_are_closed_but_the_newest_filtered_and_deleted(pool: PgPool) {
    let (url, port) = (database::url(&pool), free_port());
    let environment = [("DATABASE_URL", url.as_str()), ("PORT", &port), ("DEV_NO_LIMITS", "1")];
    let mut program = Program::start(&["dev"], &environment);
    program.line_with("relay is usable");
    let client = Client::new(format!("127.0.0.1:{port}").parse().unwrap());
    for n in 1..=100 {
        starts(&client, if n % 10 == 0 { "trader.en@example.com" } else { "trader.vi@example.com" }).await;
    }
    mailbox_has(&client, 100).await;

    let browser = Browser::open("en").await;
    // The path `/` leads to the mailbox.
    browser.goes_to(&format!("http://localhost:{port}/")).await;
    browser.until(&format!("{ALL}.length === 100")).await;
    assert_eq!(browser.value("location.pathname").await, "/dev/mailbox");
    assert_eq!(browser.reads("#state").await, "Emails: 100");
    let open = format!("[...{ALL}].flatMap((mail, n) => mail.open ? [n] : [])");
    assert_eq!(browser.value(&open).await, "0", "the newest is open");
    browser.until("document.querySelectorAll('iframe[srcdoc]').length === 1").await;
    browser.inspect("mailbox-hundred-en").await;

    // An email that the user opened stays open. The newest one is opened in place of the one that
    // was newest before.
    browser.clicks("#mails > details:nth-child(3) summary").await;
    starts(&client, "trader.vi@example.com").await;
    browser.until(&format!("{ALL}.length === 101")).await;
    assert_eq!(browser.value(&open).await, "0,3");

    browser.types("#filter", "TRADER.EN@").await;
    assert_eq!(browser.reads("#state").await, "Emails: 10 of 101");
    let recipients = format!("return [...{VISIBLE}].map((mail) => mail.querySelector('.to').innerText)");
    let recipients = browser.script(&recipients).await;
    let recipients: BTreeSet<_> =
        recipients.as_array().unwrap().iter().map(|to| to.as_str().unwrap()).collect();
    assert_eq!(recipients, BTreeSet::from(["trader.en@example.com"]));
    browser.types("#filter", "mã khôi phục").await;
    assert_eq!(browser.reads("#state").await, "Emails: 91 of 101");
    // A new email is filtered, too.
    starts(&client, "trader.en@example.com").await;
    browser.until(&format!("{ALL}.length === 102")).await;
    assert_eq!(browser.reads("#state").await, "Emails: 91 of 102");

    browser.clicks("#clear").await;
    browser.sees("#sure").await;
    browser.inspect("mailbox-delete-en").await;
    browser.clicks("#keep").await;
    assert_eq!(client.get("/dev/mailbox.json").await.body.as_array().unwrap().len(), 102);
    browser.clicks("#clear").await;
    browser.clicks("#delete").await;
    browser.until("document.querySelector('#state').innerText === 'No emails yet'").await;
    assert_eq!(client.get("/dev/mailbox.json").await.body.as_array().unwrap().len(), 0);
    browser.closes().await;
    program.signal("-TERM");
    assert!(program.ends().1);
}
