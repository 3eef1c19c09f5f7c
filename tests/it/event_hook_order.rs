//! Webhooks when receivers and replicas fail: every event is delivered, in order for each account.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use sqlx::PgPool;
use tokio::net::TcpStream;
use uuid::Uuid;
use vos_auth::audit::{self, Event};
use vos_auth::event_hook::queue::{self, Horizon};

use crate::event_hooks::{account_id, happens, start, start_with};
use crate::harness::program::{Program, run, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::webhook::{Call, Mood, Webhook};
use crate::harness::{PATIENCE, Service, Setup, database, now};

const DAY: Duration = Duration::from_hours(24);
const LEASE: Duration = Duration::from_mins(1);

fn ids(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(Call::id).collect()
}

/// Moves the time, but not while a request runs: its lease would end.
async fn passes(service: &Service, by: Duration) {
    if service.count("event_delivery WHERE lease_until IS NOT NULL").await == 0 {
        service.clock.advance(by);
    }
}

/// Waits until no request runs, so that the next attempt is at most ten minutes away, and moves the
/// time there.
async fn until_next_attempt(service: &Service) {
    let running = "event_delivery WHERE lease_until IS NOT NULL";
    service.until("no request runs", async || service.count(running).await == 0).await;
    service.clock.advance(Duration::from_mins(10));
}

/// Waits until the horizon moves to newer events. Open transactions of other tests on the same
/// server delay that.
async fn settles(pool: &PgPool, horizon: &mut Horizon) {
    let before = horizon.settled();
    let settling = async {
        while horizon.settled() == before {
            horizon.advance(pool).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, settling).await.expect("it settles");
}

/// Claims all that is due, as a replica does.
async fn claims(pool: &PgPool, horizon: &Horizon) -> Vec<queue::Delivery> {
    let claim = queue::claim(pool, "rest", Uuid::nil(), horizon.settled(), now(), LEASE, 8);
    claim.await.unwrap().deliveries
}

fn kinds(deliveries: &[queue::Delivery]) -> Vec<&str> {
    deliveries.iter().map(|delivery| delivery.event.as_ref().unwrap().kind.as_str()).collect()
}

/// The older event is committed last. If the newer one were sent meanwhile, the receiver would get
/// them in the wrong order.
#[sqlx::test]
async fn an_event_waits_for_older_ones_that_are_not_committed_yet(pool: PgPool) {
    sqlx::query("INSERT INTO event_hook (name) VALUES ('rest')").execute(&pool).await.unwrap();
    let account = account_id();
    let mut older = pool.begin().await.unwrap();
    audit::record(&mut *older, now(), Event::PasswordReset, account, None).await.unwrap();
    audit::record(&pool, now(), Event::SignedIn, account, None).await.unwrap();
    let mut horizon = Horizon::default();
    for _ in 0..3 {
        assert!(horizon.advance(&pool).await.unwrap());
        assert_eq!(kinds(&claims(&pool, &horizon).await), [""; 0]);
    }
    // A transaction that begins later does not delay these events.
    let mut later = pool.begin().await.unwrap();
    audit::record(&mut *later, now(), Event::SignedOut, account, None).await.unwrap();
    older.commit().await.unwrap();
    settles(&pool, &mut horizon).await;
    for kind in ["password_reset", "signed_in"] {
        let claimed = claims(&pool, &horizon).await;
        assert_eq!(kinds(&claimed), [kind]);
        assert!(claims(&pool, &horizon).await.is_empty(), "the next one waits for it");
        queue::delivered(&pool, &claimed[0]).await.unwrap();
    }
    assert!(claims(&pool, &horizon).await.is_empty());
    later.commit().await.unwrap();
    settles(&pool, &mut horizon).await;
    assert_eq!(kinds(&claims(&pool, &horizon).await), ["signed_out"]);
}

/// The transaction with the newer event began first and has the lower id, so that neither
/// transaction ids alone nor that transaction's snapshot tell which numbers are open.
#[sqlx::test]
async fn an_older_transaction_with_a_newer_number_waits_as_well(pool: PgPool) {
    sqlx::query("INSERT INTO event_hook (name) VALUES ('rest')").execute(&pool).await.unwrap();
    let account = account_id();
    let (mut first, mut second) = (pool.begin().await.unwrap(), pool.begin().await.unwrap());
    sqlx::query("SELECT pg_current_xact_id()").execute(&mut *first).await.unwrap();
    audit::record(&mut *second, now(), Event::PasswordReset, account, None).await.unwrap();
    audit::record(&mut *first, now(), Event::SignedIn, account, None).await.unwrap();
    first.commit().await.unwrap();
    let mut horizon = Horizon::default();
    for _ in 0..3 {
        assert!(horizon.advance(&pool).await.unwrap());
        assert_eq!(kinds(&claims(&pool, &horizon).await), [""; 0]);
    }
    second.commit().await.unwrap();
    settles(&pool, &mut horizon).await;
    assert_eq!(kinds(&claims(&pool, &horizon).await), ["password_reset"]);
}

/// Claims that look at a limited number of accounts at a time reach all of them.
#[sqlx::test]
async fn a_backlog_of_many_accounts_is_claimed_in_parts(pool: PgPool) {
    sqlx::query("INSERT INTO event_hook (name) VALUES ('rest')").execute(&pool).await.unwrap();
    let many = "INSERT INTO audit_event (id, what, account_id, created_at)
        SELECT gen_random_uuid(), 'signed_in', CASE WHEN n % 2 = 0 THEN gen_random_uuid() END, $1
        FROM generate_series(1, 1500) AS n";
    sqlx::query(many).bind(now()).execute(&pool).await.unwrap();
    let mut horizon = Horizon::default();
    settles(&pool, &mut horizon).await;
    let (mut after, mut claimed, mut rounds) = (Uuid::nil(), BTreeSet::new(), 0);
    loop {
        let claim = queue::claim(&pool, "rest", after, horizon.settled(), now(), LEASE, 400).await.unwrap();
        claimed.extend(claim.deliveries.iter().map(|delivery| delivery.seq));
        (after, rounds) = (claim.after, rounds + 1);
        if !claim.more {
            break;
        }
    }
    // Events without an account are one stream, of which the oldest is claimed.
    assert_eq!((claimed.len(), rounds), (751, 2));
    assert_eq!(after, Uuid::nil());
}

/// Each event waits for the earlier events of its own account, and for no other account.
#[sqlx::test]
async fn an_event_that_is_refused_holds_up_its_account_alone(pool: PgPool) {
    let webhook = Webhook::start(Mood::Takes);
    let service = start(&pool, &webhook, "all").await;
    let [refused, other] = [account_id(), account_id()];
    webhook.is_in_mood(Mood::RefusesSubject(refused.to_string()));
    let held = happens(&service, Event::PasswordReset, Some(refused)).await;
    webhook.called(1).await;
    let next = happens(&service, Event::SignedIn, Some(refused)).await;
    let mut others = Vec::new();
    for _ in 0..5 {
        others.push(happens(&service, Event::SignedIn, Some(other)).await);
    }
    assert_eq!(ids(&webhook.has_taken(5).await), others);
    // The refused event is sent again, and the next event of its account is not sent.
    for attempts in 2..5 {
        until_next_attempt(&service).await;
        webhook.called(5 + attempts).await;
    }
    assert!(webhook.calls().iter().all(|call| call.id() != next));
    webhook.is_in_mood(Mood::Takes);
    until_next_attempt(&service).await;
    assert_eq!(ids(&webhook.has_taken(7).await)[5..], [held, next]);
    service.stops().await;
}

/// A receiver stalls, is killed and comes back. The other hook is not delayed.
#[sqlx::test]
async fn a_receiver_that_stalls_and_dies_gets_every_event_and_delays_no_other_hook(pool: PgPool) {
    let (mut bad, good) = (Webhook::start(Mood::Stalls), Webhook::start(Mood::Takes));
    let both = [&bad, &good].map(|webhook| std::fs::read(webhook.ca()).unwrap()).concat();
    let ca = bad.file("both.pem");
    std::fs::write(&ca, both).unwrap();
    let settings = [good.settings(), vec![format!("--event-hook-ca-file={ca}")]].concat();
    let hooks = [bad.entry("bad", "all"), good.entry("good", "all")];
    let service = start_with(&pool, settings, &hooks).await;
    let accounts: Vec<_> = (0..20).map(|_| account_id()).collect();
    let mut expected: HashMap<String, Vec<String>> = HashMap::new();
    for round in 0..60 {
        let account = accounts[round % accounts.len()];
        let id = happens(&service, Event::SignedIn, Some(account)).await;
        expected.entry(account.to_string()).or_default().push(id);
    }
    good.has_taken(60).await;
    bad.called(8).await;
    bad.goes_down();
    // While the receiver is down, connections to it are refused at once.
    let failed = "vos_auth_hook_deliveries_total{hook=\"bad\",outcome=\"retried\"}";
    service
        .until("it fails", async || {
            passes(&service, Duration::from_secs(1)).await;
            service.metric(failed).await > 10.0
        })
        .await;
    bad.is_in_mood(Mood::Takes);
    bad.is_back();
    service
        .until("it has every event", async || {
            passes(&service, Duration::from_secs(1)).await;
            service.count("event_delivery").await == 0
        })
        .await;
    for webhook in [&bad, &good] {
        let mut seen: HashMap<String, Vec<String>> = HashMap::new();
        for call in webhook.taken() {
            let events = seen.entry(call.subject().to_owned()).or_default();
            // An event whose answer was lost is sent again, before the next event.
            if events.last().is_none_or(|last| last != call.id()) {
                events.push(call.id().to_owned());
            }
            assert!(call.body.get("gap").is_none());
        }
        assert_eq!(seen, expected);
    }
    service.stops().await;
}

#[sqlx::test]
async fn an_event_is_a_dead_letter_after_a_day_and_the_next_one_marks_the_gap(pool: PgPool) {
    let webhook = Webhook::start(Mood::Answers(500));
    let service = start(&pool, &webhook, "all").await;
    let (account, url) = (account_id(), database::operator_url(&pool));
    let event = |arguments: &[&str]| {
        let ended = run(&[&["event"], arguments].concat(), &[("DATABASE_URL", &url)]);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(ended.stdout), text(ended.stderr))
    };
    assert_eq!(event(&["list"]).0, "no event is a dead letter\n");
    let mut dead = Vec::new();
    for count in 1..=2 {
        let calls = webhook.calls().len();
        dead.push(happens(&service, Event::PasswordReset, Some(account)).await);
        webhook.called(calls + 1).await;
        service.clock.advance(DAY);
        let letters = "event_delivery WHERE died_at IS NOT NULL";
        service.until("it is a dead letter", async || service.count(letters).await == count).await;
    }
    let gauge = "vos_auth_hook_dead_letters{hook=\"rest\"}";
    service.until("the metric", async || service.metric(gauge).await > 1.5).await;

    webhook.is_in_mood(Mood::Takes);
    let after = happens(&service, Event::SignedIn, Some(account)).await;
    let marked = webhook.has_taken(1).await;
    assert_eq!((ids(&marked), &marked[0].body["gap"]), (vec![after.as_str()], &serde_json::json!(2)));
    happens(&service, Event::SignedIn, Some(account)).await;
    assert_eq!(webhook.has_taken(2).await[1].body.get("gap"), None, "the gap was told");

    let (listed, _) = event(&["list"]);
    let lines: Vec<_> = listed.lines().skip(1).collect();
    assert!(lines.len() == 2 && lines[0].starts_with(&dead[0]) && lines[1].starts_with(&dead[1]), "{listed}");
    for part in ["rest", "password_reset", "the receiver answered 500", &account.to_string()] {
        assert!(lines[0].contains(part), "{part} in {listed}");
    }
    assert_eq!(event(&["list", "--hook", "other"]).0, "no event is a dead letter\n");
    let (_, why) = event(&["replay", &Uuid::nil().to_string()]);
    assert!(why.contains("no dead letter has the id"), "{why}");
    let (said, _) = event(&["replay", &dead[1]]);
    assert!(said.starts_with("1 event is sent again"), "{said}");
    // The commands use the system's clock, which the service's clock must reach.
    service.clock.advance(Duration::from_mins(1));
    assert_eq!(webhook.has_taken(3).await[2].id(), dead[1]);
    let (said, _) = event(&["replay", "--all"]);
    assert!(said.starts_with("1 event is sent again"), "{said}");
    assert_eq!(webhook.has_taken(4).await[3].id(), dead[0]);
    service.until("none is left", async || service.count("event_delivery").await == 0).await;
    service.stops().await;
}

/// `AUDIT_RETENTION` may be as short as a day, so an event can be deleted before it is delivered.
#[sqlx::test]
async fn an_event_that_was_swept_before_its_delivery_is_a_dead_letter(pool: PgPool) {
    let webhook = Webhook::start(Mood::Answers(503));
    let service = start(&pool, &webhook, "all").await;
    let account = Some(account_id());
    happens(&service, Event::SignedIn, account).await;
    webhook.called(1).await;
    sqlx::query("DELETE FROM audit_event").execute(&pool).await.unwrap();
    let next = happens(&service, Event::SignedOut, account).await;
    webhook.is_in_mood(Mood::Takes);
    until_next_attempt(&service).await;
    let taken = webhook.has_taken(1).await;
    assert_eq!((ids(&taken), &taken[0].body["gap"]), (vec![next.as_str()], &serde_json::json!(1)));
    let why = "event_delivery WHERE last_error = 'the event was deleted after AUDIT_RETENTION'";
    assert_eq!(service.count(why).await, 1);
    service.stops().await;
}

/// The replica is killed after the receiver got the event, and before it has the receiver's answer.
#[sqlx::test]
async fn what_a_killed_replica_had_claimed_is_delivered_by_another(pool: PgPool) {
    let webhook = Webhook::start(Mood::Stalls);
    let (relay, url, hook) = (Relay::start().await, database::service_url(&pool), webhook.environment());
    let (relay_url, changes) = (relay.url(), hook.each_ref().map(|(name, value)| (*name, value.as_str())));
    let mut program = Program::start(&["serve"], &serve_environment(&url, &relay_url, &changes));
    program.address();
    let registered = async {
        let count = "SELECT count(*) FROM event_hook";
        while sqlx::query_scalar::<_, i64>(count).fetch_one(&pool).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, registered).await.unwrap();
    let account = account_id();
    for event in [Event::PasswordReset, Event::SignedIn] {
        audit::record(&pool, now(), event, account, None).await.unwrap();
    }
    let first = webhook.called(1).await[0].id().to_owned();
    program.is_killed();
    webhook.is_in_mood(Mood::Takes);
    let service = start(&pool, &webhook, "all").await;
    service.clock.advance(LEASE + Duration::from_secs(5));
    let calls = webhook.called(3).await;
    assert_eq!(calls[1].id(), first);
    assert_ne!(calls[2].id(), first);
    service.stops().await;
}

/// A delivery that runs when the service is told to stop may finish.
#[sqlx::test]
async fn a_service_that_stops_finishes_the_deliveries_that_it_has_begun(pool: PgPool) {
    let webhook = Webhook::start(Mood::Stalls);
    let setup =
        Setup { settings: webhook.settings(), event_hooks: webhook.entry("rest", "all"), ..Setup::default() };
    let service = Service::start_with(&pool, setup).await;
    service.until("its hook is registered", async || service.count("event_hook").await == 1).await;
    happens(&service, Event::SignedIn, Some(account_id())).await;
    webhook.called(1).await;
    service.is_told_to_stop();
    service
        .until("it accepts nothing more", async || TcpStream::connect(service.address).await.is_err())
        .await;
    webhook.is_in_mood(Mood::Takes);
    service.stops().await;
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM event_delivery").fetch_one(&pool).await.unwrap();
    assert_eq!(left, 0);
}
