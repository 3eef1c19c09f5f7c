//! How conversations with relays end, and what a relay may say in them without harm to a mail.

use std::time::Duration;

use sqlx::PgPool;

use crate::harness::relay::{Ended, Mood};
use crate::harness::{Service, Setup};

const TRADER: &str = "trader@example.com";

async fn retried(service: &Service) -> f64 {
    service.metric("vos_auth_mails_total{outcome=\"retried\"").await
}

/// Starts a recovery from a browser of its own, so that it is a mail of its own, and waits for that.
async fn is_mailed(service: &Service, number: usize) {
    let email = format!("trader{number}@example.com");
    service.has_account(&email).await;
    assert!(service.client().starts_recovery(&email).await.is_code_sent());
    service.relay.mail_to(&email, 1).await;
    service.until_outbox_has(0).await;
}

/// RFC 5321 §3.8: a relay may say 421 to any command and close, above all on a connection that has been in use. The mail goes
/// on a new one at once, and is not tried for a second time.
#[sqlx::test]
async fn a_kept_connection_that_the_relay_gives_up_costs_no_attempt(pool: PgPool) {
    let service = Service::start(&pool).await;
    is_mailed(&service, 0).await;
    let tired = "421 4.7.0 too many of you\r\n";
    let ends = [
        ("MAIL", tired),
        ("RCPT", tired),
        ("DATA", tired),
        (".", tired),
        ("MAIL", ""),
        ("RCPT", ""),
        ("DATA", ""),
    ];
    for (number, (command, answer)) in ends.into_iter().enumerate() {
        let connected = service.relay.connected();
        service.relay.is_in_mood(Mood::TiresAt(command, answer));
        is_mailed(&service, number + 1).await;
        assert_eq!(service.relay.connected(), connected + 1, "{command} {answer}");
    }
    assert!(retried(&service).await < 0.5);
    // A relay that says nothing to the dot may have taken the mail.
    service.relay.is_in_mood(Mood::TiresAt(".", ""));
    service.has_account(TRADER).await;
    service.client().starts_recovery(TRADER).await;
    service
        .until("the retry is noted", async || service.count("outbox WHERE last_error = 'message'").await == 1)
        .await;
    service.stops().await;
}

/// A relay that says 421 to a new connection, too, is no better tried again at once.
#[sqlx::test]
async fn a_421_on_a_new_connection_costs_an_attempt(pool: PgPool) {
    let service = Service::start(&pool).await;
    is_mailed(&service, 0).await;
    service.relay.is_in_mood(Mood::RefusesRecipient("421 4.3.2 closing"));
    service.has_account(TRADER).await;
    service.client().starts_recovery(TRADER).await;
    service
        .until("the retry is noted", async || {
            service.count("outbox WHERE last_error = 'rcpt 421 4.3.2'").await == 1
        })
        .await;
    service.stops().await;
}

/// A connection that something on the way forgot is silent. A mail does not wait for it until its deadline.
#[sqlx::test]
async fn a_kept_connection_that_fell_silent_costs_no_attempt(pool: PgPool) {
    let settings = ["--smtp-deadline=2s", "--smtp-probe-interval=1min"];
    let service = Service::start_with_settings(&pool, &settings).await;
    is_mailed(&service, 0).await;
    service.relay.loses_its_connections();
    is_mailed(&service, 1).await;
    assert!(retried(&service).await < 0.5);
    service.stops().await;
}

#[sqlx::test]
async fn a_connection_carries_as_many_mails_as_the_setting_says_and_is_left_with_quit(pool: PgPool) {
    let settings = ["--smtp-mails-per-connection=2", "--smtp-connections=1", "--smtp-probe-interval=1min"];
    let service = Service::start_with_settings(&pool, &settings).await;
    for number in 0..5 {
        is_mailed(&service, number).await;
    }
    let relay = service.relay.clone();
    let left = Ended { mails: 2, quit: true };
    assert_eq!(relay.until_ended(2).await, [left, left]);
    service.stops().await;
    // The last one was kept for the next mail until the end; and with the probe's there are no more than these.
    assert_eq!(relay.until_ended(3).await, [left, left, Ended { mails: 1, quit: true }]);
    assert_eq!(relay.connected(), 4);
}

/// Idle connections are left with QUIT before the relay closes them.
#[sqlx::test]
async fn an_idle_connection_is_left_with_quit(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--smtp-idle=10ms"]).await;
    is_mailed(&service, 0).await;
    assert_eq!(service.relay.until_ended(1).await, [Ended { mails: 1, quit: true }]);
    service.stops().await;
}

/// A refusal leaves the relay waiting for a command.
#[sqlx::test]
async fn a_refused_mail_ends_with_quit(pool: PgPool) {
    let service = Service::start(&pool).await;
    is_mailed(&service, 0).await;
    let refusals = [Mood::RefusesRecipient("450 4.2.0 later"), Mood::RefusesMessage("451 4.3.0 later")];
    for (number, mood) in refusals.into_iter().enumerate() {
        service.relay.is_in_mood(mood);
        let email = format!("refused{number}@example.com");
        service.has_account(&email).await;
        service.client().starts_recovery(&email).await;
        assert!(service.relay.until_ended(number + 1).await[number].quit, "{mood:?}");
        service.relay.is_in_mood(Mood::Takes);
        service.clock.advance(Duration::from_secs(2));
        // On a connection that the next refusal ends.
        service.until_outbox_has(0).await;
    }
    service.stops().await;
}

/// Nothing that a relay announces is used, and nothing is needed. A parameter that it has not announced it would refuse.
#[sqlx::test]
async fn what_a_relay_announces_changes_no_mail(pool: PgPool) {
    let settings = ["--smtp-idle=0s", "--network-burst=1000"];
    let service = Service::start_with(
        &pool,
        Setup { settings: settings.map(str::to_owned).into(), ..Setup::default() },
    )
    .await;
    let variants: [&[&str]; 8] = [
        &[],
        &["PIPELINING"],
        &["SIZE"],
        &["SIZE 10240000"],
        &["8BITMIME"],
        &["SMTPUTF8"],
        &["size 0", "pipelining", "8bitmime", "smtputf8"],
        &[
            "PIPELINING",
            "SIZE 52428800",
            "ETRN",
            "ENHANCEDSTATUSCODES",
            "8BITMIME",
            "DSN",
            "SMTPUTF8",
            "CHUNKING",
            "X-OURS a=b",
        ],
    ];
    let mut bodies = Vec::new();
    for (number, announced) in variants.into_iter().enumerate() {
        service.relay.announces(announced);
        is_mailed(&service, number).await;
        let mail = service.relay.mail(number + 1).await;
        assert_eq!(mail.recipients, [format!("trader{number}@example.com")]);
        assert!(mail.raw.is_ascii());
        bodies.push(mail.text().replace(&mail.code()[..4], "").replace(&mail.code()[4..], ""));
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert!(retried(&service).await < 0.5);
    service.stops().await;
}
