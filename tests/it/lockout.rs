//! An attacker can exhaust the rate limits of an address, but not lock out the owner of its
//! account. Tests what the owner and an operator can still do.

use std::collections::VecDeque;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::PgPool;
use vos_auth::email_address::EmailAddress;
use vos_auth::known_device::{DeviceId, TICKET, issue};
use vos_auth::secret::Keys;
use vos_auth::throttle;

use crate::harness::program::{SECRET, run};
use crate::harness::{Service, Setup, database, now};

const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "morning boat on a green river";

/// A service with the secrets that [`operator`] gives to the program.
async fn service(pool: &PgPool, settings: &[&str]) -> Service {
    let keys: Keys = SECRET.parse().unwrap();
    let settings = settings.iter().map(ToString::to_string).collect();
    let service =
        Service::start_with(pool, Setup { settings, keys: Some(keys.newest().clone()), ..Setup::default() });
    let service = service.await;
    service.has_trader(TRADER, PASSWORD).await;
    service
}

/// The output of the operator's `vos-auth account COMMAND EMAIL`.
fn operator(pool: &PgPool, command: &str, email: &str) -> Result<String, String> {
    let url = database::operator_url(pool);
    let ended = run(&["account", command, email], &[("DATABASE_URL", &url), ("DEVICE_SECRETS", SECRET)]);
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if ended.status.success() { Ok(text(ended.stdout)) } else { Err(text(ended.stderr)) }
}

async fn exhaust_address_limit(service: &Service) {
    while service.client().starts_recovery(TRADER).await.is_code_sent() {}
    service.until_outbox_has(0).await;
}

#[sqlx::test]
async fn l2_an_operators_ticket_allows_one_recovery(pool: PgPool) {
    let service = service(&pool, &[]).await;
    let ticket = operator(&pool, "recover", TRADER).unwrap();
    // The command enqueues the notice at the real time, which the service's clock must reach.
    service.clock.advance(Duration::from_mins(1));
    assert_eq!(service.count("audit_event WHERE what = 'recovery_ticket_issued'").await, 1);
    let mut victim = service.client().with("x-recovery-ticket", &ticket);
    // While the address's bucket is not empty, the ticket is kept.
    assert!(victim.starts_recovery(TRADER).await.is_code_sent());
    victim.cookie = None;
    exhaust_address_limit(&service).await;
    while service.client().starts_recovery("other@example.com").await.is_code_sent() {}
    let other =
        service.client().with("x-recovery-ticket", &ticket).starts_recovery("other@example.com").await;
    assert_eq!(other.error(), (429, "address_throttled"), "a ticket is for one address");

    service.verifies_from(&mut victim, TRADER).await;
    assert!(victim.resets(PASSWORD).await.is_signed_in());
    let again = service.client().with("x-recovery-ticket", &ticket).starts_recovery(TRADER).await;
    assert_eq!(again.error(), (429, "address_throttled"), "a ticket works once");
    assert!((1..=300).contains(&again.retry_after()), "until the address's bucket has a unit again");

    let second = operator(&pool, "recover", TRADER).unwrap();
    service.clock.advance(Duration::from_mins(1));
    let forged = format!("{}AAAA", &second[..second.len() - 4]);
    for bad in [forged.as_str(), "x", ""] {
        let answer = service.client().with("x-recovery-ticket", bad).starts_recovery(TRADER).await;
        assert_eq!(answer.error(), (429, "address_throttled"), "{bad:?}");
    }
    service.clock.advance(Duration::from_mins(16));
    exhaust_address_limit(&service).await;
    let late = service.client().with("x-recovery-ticket", &second).starts_recovery(TRADER).await;
    assert_eq!(late.error(), (429, "address_throttled"), "a ticket expires after 15 minutes");
    let why = operator(&pool, "recover", "nobody@example.com").unwrap_err();
    assert!(why.contains("there is no active account"), "{why}");
    service.stops().await;
}

/// The ticket's holder got no recovery, and can try again with the same ticket.
#[sqlx::test]
async fn a_ticket_whose_start_could_not_be_stored_stays_valid(pool: PgPool) {
    let service = service(&pool, &[]).await;
    exhaust_address_limit(&service).await;
    let (id, address) = (DeviceId::new(now()), EmailAddress::parse(TRADER).unwrap());
    let ticket = issue(&TICKET, &service.keys.clone().into(), id, &address);
    let mut victim = service.client().with("x-recovery-ticket", &ticket);
    // The ticket's bucket is locked for longer than a start waits.
    let mut holding = pool.begin().await.unwrap();
    let hold = "INSERT INTO throttle (key, short_at, long_at, admitted) VALUES ($1, $2, $2, 0)";
    let key = throttle::recovery_key(&address, Some(id));
    sqlx::query(hold).bind(&key[..]).bind(now()).execute(&mut *holding).await.unwrap();
    assert_eq!(victim.starts_recovery(TRADER).await.error(), (502, "storage_unavailable"));
    holding.rollback().await.unwrap();
    let ticket = throttle::ticket_key(id);
    service
        .until("the ticket is refunded", async || {
            let is_full = "SELECT short_at <= $2 FROM throttle WHERE key = $1";
            let is_full = sqlx::query_scalar(is_full).bind(&ticket[..]).bind(now());
            is_full.fetch_one(&pool).await.unwrap()
        })
        .await;
    assert!(victim.starts_recovery(TRADER).await.is_code_sent());
    service.stops().await;
}

/// A ticket has its own network bucket: the owner may share an attacker's network.
#[sqlx::test]
async fn l2_a_ticket_has_its_own_network_bucket(pool: PgPool) {
    let service = service(&pool, &["--network-burst=8"]).await;
    let ticket = operator(&pool, "recover", TRADER).unwrap();
    service.clock.advance(Duration::from_mins(1));
    exhaust_address_limit(&service).await;
    while service.client().starts_recovery("x@example.com").await.body["error"] != "network_throttled" {}
    let mut victim = service.client().with("x-recovery-ticket", &ticket);
    service.verifies_from(&mut victim, TRADER).await;
    service.stops().await;
}

#[sqlx::test]
async fn l2_an_operator_refills_the_buckets(pool: PgPool) {
    let service = service(&pool, &[]).await;
    exhaust_address_limit(&service).await;
    while service.client().logs_in(TRADER, "a guess").await.status != 429 {}
    let said = operator(&pool, "unblock", TRADER).unwrap();
    assert_eq!(said, "2 rate limits of this address are reset");
    assert_eq!(service.count("audit_event WHERE what = 'account_unblocked'").await, 1);
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    service.verified(TRADER).await;
    service.stops().await;
}

/// For 30 days, 1,000 networks take every recovery of one address and guess as often as they may.
/// docs/security.md has the results for unknown browsers.
#[sqlx::test]
async fn v1_thirty_days_of_attack_by_1000_networks(pool: PgPool) {
    const EVERY: Duration = Duration::from_mins(10);
    const DAY: u64 = 24 * 60 / 10;
    let service = service(&pool, &["--trusted-proxies=127.0.0.1/32"]).await;
    let mut known = service.client();
    assert!(known.logs_in(TRADER, PASSWORD).await.is_signed_in());
    let keys: Keys = SECRET.parse().unwrap();
    let mut random = SmallRng::seed_from_u64(6);
    let (mut evaluated, mut guesses, mut busiest) = (VecDeque::new(), 0, 0);
    let (mut tries, mut got_in) = (0, 0);
    for round in 0..30 * DAY {
        let network = format!("10.0.{}.{}", round % 1000 / 250, round % 250);
        loop {
            let mut attacker = service.client().with("x-forwarded-for", &network);
            if !attacker.starts_recovery(TRADER).await.is_code_sent() {
                break;
            }
            while attacker.verifies("00000000").await.error() == (400, "code_invalid") {
                evaluated.push_back(round);
                guesses += 1;
            }
        }
        service.until_outbox_has(0).await;
        while evaluated.front().is_some_and(|at| at + DAY <= round) {
            evaluated.pop_front();
        }
        busiest = busiest.max(evaluated.len());
        let moment = random.random();
        service.clock.advance(EVERY.mul_f64(moment));
        match round % DAY {
            20 => service.verifies_from(&mut known, TRADER).await,
            40 => {
                let address = EmailAddress::parse(TRADER).unwrap();
                let id = DeviceId::new(vos_auth::clock::Clock::Manual(service.clock.clone()).now());
                let ticket = issue(&TICKET, &keys, id, &address);
                let mut victim = service.client().with("x-recovery-ticket", &ticket);
                service.verifies_from(&mut victim, TRADER).await;
            }
            _ if random.random_bool(0.05) => {
                tries += 1;
                got_in += u32::from(service.client().starts_recovery(TRADER).await.is_code_sent());
                service.until_outbox_has(0).await;
            }
            _ => {}
        }
        service.clock.advance(EVERY.mul_f64(1.0 - moment));
    }
    println!("evaluated {guesses} in 30 days, {busiest} in the busiest 24 hours");
    println!("an unknown browser got in {got_in} of {tries} times");
    assert!(busiest <= 95, "{busiest}");
    assert!(guesses > 30 * 40, "the attack used its guesses: {guesses}");
    service.stops().await;
}
