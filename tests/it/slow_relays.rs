//! Slow relays, and relays that come back. The tests wait in real time, as network timeouts do.

use std::time::{Duration, Instant};

use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::program::{Program, has_relay, run, serve_environment};
use crate::harness::relay::{Mood, Relay};
use crate::harness::{PATIENCE, Service, Setup, database};

const TRADER: &str = "trader@example.com";

/// Postscreen and tarpits greet after 5 to 20 s. The courier, `mail test` and the probe all wait.
#[sqlx::test]
async fn a_relay_that_greets_late_is_waited_for(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    service.relay.is_in_mood(Mood::GreetsLate(Duration::from_secs(15)));
    let began = Instant::now();
    assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    let relay = service.relay.url();
    let test = tokio::task::spawn_blocking(move || {
        run(&["mail", "test", "--to", "another@example.com"], &[("SMTP_RELAYS", relay.as_str())])
    });
    // 6 s is too long for a relay that was usable, but not for a first probe.
    let slow = Relay::start().await;
    slow.is_in_mood(Mood::GreetsLate(Duration::from_secs(6)));
    let other = Setup { relay: Some(slow), clock: Some(service.clock.clone()), ..Setup::default() };
    let other = Service::start_with(&pool, other).await;
    let found_after = began.elapsed();
    let tested = test.await.unwrap();
    assert!(tested.status.success(), "{tested:?}");
    service.relay.mail_to("another@example.com", 1).await;
    service.relay.mail_to(TRADER, 1).await;
    service.until_outbox_has(0).await;
    let sent_after = began.elapsed();
    assert!(service.metric("vos_auth_mails_total{outcome=\"retried\"").await < 0.5);
    assert!(sent_after > Duration::from_secs(15), "{sent_after:?}");
    eprintln!(
        "greeting after 6 s: usable after {found_after:?}; greeting after 15 s: sent after {sent_after:?}"
    );
    other.stops().await;
    service.stops().await;
}

/// Retries until a start is accepted. Gives the time and the number of refusals.
async fn refused_until_accepted(client: &mut Client) -> (Duration, usize) {
    let (began, mut refused) = (Instant::now(), 0);
    loop {
        client.cookie = None;
        if client.starts_recovery(TRADER).await.is_code_sent() {
            return (began.elapsed(), refused);
        }
        refused += 1;
        assert!(began.elapsed() < PATIENCE);
    }
}

/// A program whose relay is down when it starts, without limits of networks, and with `changes`.
async fn without_relay(pool: &PgPool, relay: &Relay, changes: &[(&str, &str)]) -> (Program, Client) {
    let (url, relay) = (database::service_url(pool), relay.url());
    let changes = [&[("NETWORK_BURST", "1000000"), ("NETWORK_PER_MINUTE", "1000000")], changes].concat();
    let environment: Vec<_> = serve_environment(&url, &relay, &changes)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let program = tokio::task::spawn_blocking(move || {
        let environment: Vec<_> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
        let mut program = Program::start(&["serve"], &environment);
        program.address();
        program
    });
    let mut program = program.await.unwrap();
    let mut client = Client::new(program.address());
    assert_eq!(client.starts_recovery(TRADER).await.error(), (502, "mail_unavailable"));
    (program, client)
}

/// With default settings: the probe's interval is 10 s, but shorter during an outage.
#[sqlx::test]
async fn a_relay_that_comes_back_is_used_at_once(pool: PgPool) {
    let relay = Relay::start().await;
    relay.goes_down().await;
    let (_program, mut client) = without_relay(&pool, &relay, &[]).await;
    let (began, mut refused) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(2500) {
        assert_eq!(client.starts_recovery(TRADER).await.status, 502);
        refused += 1;
    }
    relay.comes_back().await;
    let (after, late) = refused_until_accepted(&mut client).await;
    eprintln!("refused {refused} during the outage and {late} after it, the last {after:?} after it");
    assert!(after < Duration::from_millis(1500), "{after:?}");
}

/// S9: a relay that was usable gets only a short wait, however late others may greet.
#[sqlx::test]
async fn a_relay_that_died_is_noticed_soon(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.relay.is_in_mood(Mood::GreetsNobody);
    service.relay.loses_its_connections();
    let began = Instant::now();
    service.until_mail_is("unavailable").await;
    let after = began.elapsed();
    eprintln!("noticed after {after:?}");
    assert!(after < Duration::from_secs(8), "{after:?}");
    service.stops().await;
}

/// Connections are accepted and never answered, as by a load balancer without its relay. A probe
/// begins every second meanwhile, up to the configured number, and the first answer counts.
#[sqlx::test]
async fn unanswered_probes_do_not_delay_others(pool: PgPool) {
    let relay = Relay::start().await;
    relay.is_in_mood(Mood::GreetsNobody);
    let settings = [("SMTP_DEADLINE", "3s"), ("SMTP_PROBES_WHILE_DOWN", "2")];
    let (_program, mut client) = without_relay(&pool, &relay, &settings).await;
    let began = Instant::now();
    relay.until_connected(relay.connected() + 4).await;
    assert!(began.elapsed() < Duration::from_millis(5500), "{:?}", began.elapsed());
    relay.is_in_mood(Mood::Takes);
    let (after, late) = refused_until_accepted(&mut client).await;
    eprintln!("refused {late} after the outage, the last {after:?} after it");
    // One second, and what a busy machine adds.
    assert!(after < Duration::from_secs(2), "{after:?}");
    assert_eq!(relay.most_open(), 2);
    has_relay(&client).await;
}

/// `SMTP_PROBES_WHILE_DOWN=1` is for a provider that allows no parallel probes.
#[sqlx::test]
async fn a_relay_that_is_down_gets_one_probe_at_a_time_if_so_configured(pool: PgPool) {
    let relay = Relay::start().await;
    relay.is_in_mood(Mood::GreetsNobody);
    let settings = [("SMTP_DEADLINE", "1500ms"), ("SMTP_PROBES_WHILE_DOWN", "1")];
    let _program = without_relay(&pool, &relay, &settings).await;
    relay.until_connected(3).await;
    assert_eq!(relay.most_open(), 1);
}
