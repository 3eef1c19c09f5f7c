//! How conversations with relays end, and that a relay's answers and extensions harm no email.

use std::time::Duration;

use sqlx::PgPool;

use crate::harness::relay::{Ended, Mood};
use crate::harness::{Service, Setup};

const TRADER: &str = "trader@example.com";

async fn retried(service: &Service) -> f64 {
    service.metric("vos_auth_mails_total{outcome=\"retried\"").await
}

/// Starts a recovery for a new account from a new client, and waits for its email.
async fn gets_email(service: &Service, number: usize) {
    let email = format!("trader{number}@example.com");
    service.has_account(&email).await;
    assert!(service.client().starts_recovery(&email).await.is_code_sent());
    service.relay.mail_to(&email, 1).await;
    service.until_outbox_has(0).await;
}

/// RFC 5321 §3.8: a relay may answer any command with 421 and close, mostly on a reused connection.
/// The courier sends the email on a new connection at once, and counts no attempt.
#[sqlx::test]
async fn a_421_on_a_reused_connection_costs_no_attempt(pool: PgPool) {
    let service = Service::start(&pool).await;
    gets_email(&service, 0).await;
    let too_many = "421 4.7.0 too many of you\r\n";
    let ends = [
        ("MAIL", too_many),
        ("RCPT", too_many),
        ("DATA", too_many),
        (".", too_many),
        ("MAIL", ""),
        ("RCPT", ""),
        ("DATA", ""),
    ];
    for (number, (command, answer)) in ends.into_iter().enumerate() {
        let connected = service.relay.connected();
        service.relay.is_in_mood(Mood::TiresAt(command, answer));
        gets_email(&service, number + 1).await;
        assert_eq!(service.relay.connected(), connected + 1, "{command} {answer}");
    }
    assert!(retried(&service).await < 0.5);
    // A relay that does not answer the final dot may have accepted the email.
    service.relay.is_in_mood(Mood::TiresAt(".", ""));
    service.has_account(TRADER).await;
    service.client().starts_recovery(TRADER).await;
    service
        .until("the retry is noted", async || service.count("outbox WHERE last_error = 'message'").await == 1)
        .await;
    service.stops().await;
}

/// Retrying at once does not help if the relay answers 421 on a new connection too.
#[sqlx::test]
async fn a_421_on_a_new_connection_costs_an_attempt(pool: PgPool) {
    let service = Service::start(&pool).await;
    gets_email(&service, 0).await;
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

/// A connection that a middlebox dropped is silent. The courier does not wait until the deadline.
#[sqlx::test]
async fn a_reused_connection_that_is_silent_costs_no_attempt(pool: PgPool) {
    let settings = ["--smtp-deadline=2s", "--smtp-probe-interval=1min"];
    let service = Service::start_with_settings(&pool, &settings).await;
    gets_email(&service, 0).await;
    service.relay.loses_its_connections();
    gets_email(&service, 1).await;
    assert!(retried(&service).await < 0.5);
    service.stops().await;
}

#[sqlx::test]
async fn a_connection_carries_the_configured_number_of_emails_and_ends_with_quit(pool: PgPool) {
    let settings = ["--smtp-mails-per-connection=2", "--smtp-connections=1", "--smtp-probe-interval=1min"];
    let service = Service::start_with_settings(&pool, &settings).await;
    for number in 0..5 {
        gets_email(&service, number).await;
    }
    let relay = service.relay.clone();
    let full = Ended { mails: 2, quit: true };
    assert_eq!(relay.until_ended(2).await, [full, full]);
    service.stops().await;
    // The last connection stays open for the next email. The fourth connection is the probe's.
    assert_eq!(relay.until_ended(3).await, [full, full, Ended { mails: 1, quit: true }]);
    assert_eq!(relay.connected(), 4);
}

/// The courier leaves an idle connection with QUIT before the relay closes it.
#[sqlx::test]
async fn an_idle_connection_ends_with_quit(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--smtp-idle=10ms"]).await;
    gets_email(&service, 0).await;
    assert_eq!(service.relay.until_ended(1).await, [Ended { mails: 1, quit: true }]);
    service.stops().await;
}

/// After a refusal the relay waits for a command, so the courier sends QUIT.
#[sqlx::test]
async fn a_refused_email_ends_with_quit(pool: PgPool) {
    let service = Service::start(&pool).await;
    gets_email(&service, 0).await;
    let refusals = [Mood::RefusesRecipient("450 4.2.0 later"), Mood::RefusesMessage("451 4.3.0 later")];
    for (number, mood) in refusals.into_iter().enumerate() {
        service.relay.is_in_mood(mood);
        let email = format!("refused{number}@example.com");
        service.has_account(&email).await;
        service.client().starts_recovery(&email).await;
        assert!(service.relay.until_ended(number + 1).await[number].quit, "{mood:?}");
        service.relay.is_in_mood(Mood::Takes);
        service.clock.advance(Duration::from_secs(2));
        // The retry uses a connection that the next refusal ends.
        service.until_outbox_has(0).await;
    }
    service.stops().await;
}

/// The courier uses no SMTP extension and needs none. The test relay refuses parameters that it did
/// not announce.
#[sqlx::test]
async fn the_extensions_of_a_relay_change_no_email(pool: PgPool) {
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
        gets_email(&service, number).await;
        let mail = service.relay.mail(number + 1).await;
        assert_eq!(mail.recipients, [format!("trader{number}@example.com")]);
        assert!(mail.raw.is_ascii());
        bodies.push(mail.text().replace(&mail.code(), "").replace(&mail.recipients[0], ""));
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert!(retried(&service).await < 0.5);
    service.stops().await;
}
