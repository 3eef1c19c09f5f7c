//! Several relays: which one gets an email, and the limits of each.

use std::io::Write as _;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::program::{Program, serve_environment};
use crate::harness::relay::{Mood, Relay};
use crate::harness::{Service, Setup, database};

/// The courier uses relays in order of preference, and the next one when the first is down.
#[sqlx::test]
async fn the_second_relay_takes_over(pool: PgPool) {
    let second = Relay::start().await;
    let setup = Setup { further_relays: vec![second.url()], ..Setup::default() };
    let service = Service::start_with(&pool, setup).await;
    let up =
        async |place: usize| service.metric(&format!("vos_auth_relay_up{{relay=\"{place}\"}}")).await > 0.5;
    for email in ["one@example.com", "two@example.com", "three@example.com"] {
        service.has_account(email).await;
    }
    service.client().starts_recovery("one@example.com").await;
    service.relay.mail(1).await;
    service.relay.goes_down().await;
    service.until("the probe's finding", async || !up(0).await).await;
    assert!(service.client().starts_recovery("two@example.com").await.is_code_sent());
    second.mail(1).await;
    service.relay.comes_back().await;
    service.until("the probe's finding", async || up(0).await).await;
    service.client().starts_recovery("three@example.com").await;
    service.relay.mail(2).await;
    assert_eq!((service.relay.mails().len(), second.mails().len()), (2, 1));
    service.stops().await;
}

/// A relay that greets the probe and refuses every email is up. The clock does not move, so no
/// email is retried.
#[sqlx::test]
async fn an_email_that_one_relay_defers_is_sent_by_the_next_at_once(pool: PgPool) {
    let second = Relay::start().await;
    let setup = Setup { further_relays: vec![second.url()], ..Setup::default() };
    let service = Service::start_with(&pool, setup).await;
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::RefusesMessage("452 4.3.1 disk full"));
    service.client().starts_recovery("trader@example.com").await;
    second.mail(1).await;
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), 0);
    assert!(service.metric("vos_auth_mails_total{outcome=\"next_relay\",stage=\"message\"}").await > 0.5);
    service.stops().await;
}

/// Sixteen stalls of 200 ms take 3.2 s. The lease allows conversations that begin within 2.2 s.
#[sqlx::test]
async fn stalled_relays_delay_an_email_no_longer_than_its_lease(pool: PgPool) {
    let relay = Relay::start().await;
    let setup = Setup {
        settings: vec!["--smtp-deadline=200ms".to_owned()],
        further_relays: vec![relay.url(); 15],
        relay: Some(relay),
        ..Setup::default()
    };
    let service = Service::start_with(&pool, setup).await;
    let up = async || service.client().get("/readyz").await.body["parts"]["relays"] == json!(vec!["ok"; 16]);
    service.until("all relays are up", up).await;
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::StallsAtRecipient);
    service.client().starts_recovery("trader@example.com").await;
    service
        .until("the retry is noted", async || {
            service.count("outbox WHERE last_error = 'deadline' AND lease_until IS NULL").await == 1
        })
        .await;
    let passed_on = "vos_auth_mails_total{outcome=\"next_relay\",stage=\"deadline\"}";
    let passed_on = service.metric(passed_on).await;
    assert!((0.5..11.5).contains(&passed_on), "{passed_on}");
    service.stops().await;
}

/// Emails above the preferred relay's limit of connections do not wait for it.
#[sqlx::test]
async fn a_relay_has_no_more_connections_than_its_limit_and_the_next_takes_the_rest(pool: PgPool) {
    let (narrow, wide) = (Relay::start().await, Relay::start().await);
    let further_relays = vec![format!("{}&connections=2", narrow.url()), wide.url()];
    let setup = Setup { further_relays, ..Setup::default() };
    let service = Service::start_with(&pool, setup).await;
    service.relay.goes_down().await;
    let first_is_up = "vos_auth_relay_up{relay=\"0\"}";
    service.until("the probe's finding", async || service.metric(first_is_up).await < 0.5).await;
    narrow.is_in_mood(Mood::HoldsAtRecipient);
    for n in 0..5 {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        service.client().starts_recovery(&email).await;
    }
    wide.mail(3).await;
    narrow.until_asked(2).await;
    service.until_outbox_has(2).await;
    narrow.is_in_mood(Mood::Takes);
    narrow.mail(2).await;
    service.until_outbox_has(0).await;
    assert_eq!(wide.mails().len(), 3);
    service.stops().await;
}

/// Four emails at 10 a second take at least 300 ms, however fast the relay is.
#[sqlx::test]
async fn a_relay_gets_no_more_emails_a_second_than_its_limit(pool: PgPool) {
    let slow = Relay::start().await;
    let further_relays = vec![format!("{}&per_second=10", slow.url())];
    let setup = Setup { further_relays, ..Setup::default() };
    let service = Service::start_with(&pool, setup).await;
    service.relay.goes_down().await;
    let first_is_up = "vos_auth_relay_up{relay=\"0\"}";
    service.until("the probe's finding", async || service.metric(first_is_up).await < 0.5).await;
    for n in 0..4 {
        service.has_account(&format!("trader{n}@example.com")).await;
    }
    let began = Instant::now();
    for n in 0..4 {
        service.client().starts_recovery(&format!("trader{n}@example.com")).await;
    }
    slow.mail(4).await;
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    service.until_outbox_has(0).await;
    service.stops().await;
}

/// An email that would wait for the rate longer than a conversation may take is deferred.
#[sqlx::test]
async fn the_wait_for_a_rate_is_bounded(pool: PgPool) {
    let slow = Relay::start().await;
    let further_relays = vec![format!("{}&per_second=1", slow.url())];
    let settings = vec!["--smtp-deadline=200ms".to_owned()];
    let setup = Setup { settings, further_relays, ..Setup::default() };
    let service = Service::start_with(&pool, setup).await;
    service.relay.goes_down().await;
    let first_is_up = "vos_auth_relay_up{relay=\"0\"}";
    service.until("the probe's finding", async || service.metric(first_is_up).await < 0.5).await;
    for n in 0..2 {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        service.client().starts_recovery(&email).await;
    }
    slow.mail(1).await;
    service
        .until("the wait is noted", async || service.count("outbox WHERE last_error = 'rate'").await == 1)
        .await;
    service.stops().await;
}

/// An email is not sent if its code became too old while the relay's rate delayed it.
#[sqlx::test]
async fn an_email_whose_code_expires_while_it_waits_for_a_rate_is_not_sent(pool: PgPool) {
    let slow = Relay::start().await;
    let further_relays = vec![format!("{}&per_second=1", slow.url())];
    let service = Service::start_with(&pool, Setup { further_relays, ..Setup::default() }).await;
    service.relay.goes_down().await;
    let first_is_up = "vos_auth_relay_up{relay=\"0\"}";
    service.until("the probe's finding", async || service.metric(first_is_up).await < 0.5).await;
    service.has_account("trader@example.com").await;
    slow.is_in_mood(Mood::RefusesRecipient("450 later"));
    service.client().starts_recovery("trader@example.com").await;
    let deferred = "outbox WHERE last_error = 'rcpt 450'";
    service.until("the email is deferred", async || service.count(deferred).await == 1).await;
    slow.is_in_mood(Mood::Takes);
    // The relay's rate delays the next attempt by up to a second. The code may be sent for 50 ms
    // more.
    service.clock.advance(Duration::from_mins(9) - Duration::from_millis(50));
    service.until_outbox_has(0).await;
    assert_eq!(slow.mails().len(), 0);
    let given_up = "vos_auth_mails_total{outcome=\"given_up\",stage=\"rate\"}";
    assert!(service.metric(given_up).await > 0.5);
    service.stops().await;
}

/// A connection that a load balancer dropped says nothing about the relay.
#[sqlx::test]
async fn a_relay_with_a_silent_idle_connection_stays_usable(pool: PgPool) {
    let service = Service::start(&pool).await;
    let connected = service.relay.connected();
    service.relay.loses_its_connections();
    service
        .until("the service connects again", async || {
            assert!(service.metric("vos_auth_relay_up{relay=\"0\"}").await > 0.5);
            service.relay.connected() > connected
        })
        .await;
    service.stops().await;
}

/// A relay's failure is logged when its reason changes, not at every probe.
#[sqlx::test]
async fn a_relays_failure_is_logged_again_when_the_reason_changes(pool: PgPool) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("smtp://{}?tls=none", listener.local_addr().unwrap());
    let greeting = Arc::new(Mutex::new("554 5.3.2 not today"));
    let probed = Arc::<AtomicUsize>::default();
    let (greets, counts) = (Arc::clone(&greeting), Arc::clone(&probed));
    std::thread::spawn(move || {
        for mut probe in listener.incoming().map_while(Result::ok) {
            let words = *greets.lock().unwrap();
            let _ = probe.write_all(format!("{words}\r\n").as_bytes());
            counts.fetch_add(1, Ordering::Relaxed);
        }
    });
    let database = database::url(&pool);
    let environment = serve_environment(&database, &url, &[("SMTP_PROBE_INTERVAL", "1s")]);
    let mut program = Program::start(&["serve"], &environment);
    let client = Client::new(program.address());
    program.line_with("greeting 554");
    let ready = client.get("/readyz").await;
    assert_eq!((ready.status, &ready.body["parts"]["mail"]), (200, &json!("unavailable")));
    assert_eq!(ready.body["parts"]["relays"], json!(["greeting"]));
    let before = probed.load(Ordering::Relaxed);
    while probed.load(Ordering::Relaxed) < before + 2 {
        std::thread::yield_now();
    }
    *greeting.lock().unwrap() = "220 go on\r\n421 4.3.2 too many of you";
    program.line_with("ehlo 421");
    program.signal("-TERM");
    let (log, _) = program.ends();
    let warnings: Vec<_> = log.iter().filter(|line| line.contains("relay is not usable")).collect();
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    assert!(!log.iter().any(|line| line.contains("not today")), "{log:#?}");
}
