//! Other couriers send the emails that a dead courier had claimed, within seconds.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use uuid::Uuid;
use vos_auth::outbox::{self, Delivered, Round};

use crate::harness::client::Client;
use crate::harness::database::{self, Server};
use crate::harness::pooler;
use crate::harness::program::{Program, has_relay, serve_environment};
use crate::harness::relay::{Mail, Mood, Relay};
use crate::harness::{PATIENCE, Service, Setup, metric};

/// The default number of parallel emails of a replica.
const SLOTS: usize = 8;
/// The time until all accepted emails have arrived, after a kill or restart: 3 to 4 s, plus noise
/// of a busy machine. A lease lasts a minute.
const BOUND: Duration = Duration::from_secs(10);
const UNBOUNDED: [(&str, &str); 2] = [("NETWORK_BURST", "1000000"), ("NETWORK_PER_MINUTE", "1000000")];
const LOCKS: &str =
    "pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND classid::int = x'766f7361'::int
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

async fn serves(pool: &PgPool, relay_url: &str) -> (Program, Client) {
    let url = database::service_url(pool);
    let mut program = Program::start(&["serve"], &serve_environment(&url, relay_url, &UNBOUNDED));
    let client = Client::new(program.address());
    has_relay(&client).await;
    until(pool, "the replica has its lock", &format!("SELECT count(*) > 0 FROM {LOCKS}")).await;
    (program, client)
}

async fn has_accounts(pool: &PgPool, accounts: i32) {
    let make = "INSERT INTO account (id, email, created_at, updated_at)
        SELECT gen_random_uuid(), 'trader' || n || '@example.com', now(), now() FROM generate_series(1, $1) AS n";
    sqlx::query(make).bind(accounts).execute(pool).await.unwrap();
}

/// Starts a recovery for each account, alternating between the replicas. Every start is accepted.
async fn start(clients: &[&Client], accounts: std::ops::RangeInclusive<i32>) {
    let mut starts = tokio::task::JoinSet::new();
    for (n, client) in accounts.zip(clients.iter().cycle()) {
        let mut client = (*client).clone();
        starts.spawn(async move { client.starts_recovery(&format!("trader{n}@example.com")).await.status });
    }
    assert!(starts.join_all().await.iter().all(|status| *status == 200));
}

async fn until(pool: &PgPool, what: &str, question: &str) {
    let holds = async {
        while !sqlx::query_scalar::<_, bool>(AssertSqlSafe(question)).fetch_one(pool).await.unwrap() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, holds).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

fn distinct(mails: &[Mail]) -> usize {
    mails.iter().map(Mail::message_id).collect::<HashSet<_>>().len()
}

#[sqlx::test]
async fn emails_claimed_by_a_killed_courier_arrive_within_seconds(pool: PgPool) {
    const STARTS: i32 = 64;
    has_accounts(&pool, STARTS).await;
    let relay = Relay::start().await;
    relay.is_in_mood(Mood::HoldsAtRecipient);
    let (mut one, first) = serves(&pool, &relay.url()).await;
    let (_other, second) = serves(&pool, &relay.url()).await;
    until(&pool, "two locks", &format!("SELECT count(*) = 2 FROM {LOCKS}")).await;
    start(&[&first, &second], 1..=STARTS).await;
    relay.until_asked(2 * SLOTS).await;
    one.is_killed();
    let killed = Instant::now();
    relay.is_in_mood(Mood::Takes);
    relay.mail(STARTS as usize).await;
    let took = killed.elapsed();
    assert!(took < BOUND, "the last email arrived after {took:?}");
    until(&pool, "every mail is deleted", "SELECT count(*) = 0 FROM outbox").await;
    assert_eq!((relay.mails().len(), distinct(&relay.mails())), (STARTS as usize, STARTS as usize));
}

/// After its restart, a single replica sends the emails that it had claimed before it was killed.
#[sqlx::test]
async fn emails_claimed_by_a_killed_courier_arrive_within_seconds_of_its_restart(pool: PgPool) {
    has_accounts(&pool, 16).await;
    let relay = Relay::start().await;
    relay.is_in_mood(Mood::HoldsAtRecipient);
    let (mut replica, client) = serves(&pool, &relay.url()).await;
    start(&[&client], 1..=16).await;
    relay.until_asked(SLOTS).await;
    replica.is_killed();
    relay.is_in_mood(Mood::Takes);
    let (_replica, _) = serves(&pool, &relay.url()).await;
    let restarted = Instant::now();
    relay.mail(16).await;
    let took = restarted.elapsed();
    assert!(took < BOUND, "the last email arrived after {took:?}");
    assert_eq!(distinct(&relay.mails()), 16);
}

/// Only the lock's connection is lost: the courier takes the lock again before others act.
#[sqlx::test]
async fn a_lock_that_was_lost_is_taken_again_within_a_second(pool: PgPool) {
    let relay = Relay::start().await;
    let (_replica, _) = serves(&pool, &relay.url()).await;
    let lock = format!("SELECT objid::bigint, pid FROM {LOCKS}");
    let (id, pid): (i64, i32) = sqlx::query_as(AssertSqlSafe(&*lock)).fetch_one(&pool).await.unwrap();
    sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&pool).await.unwrap();
    let lost = Instant::now();
    let another = format!("SELECT count(*) > 0 FROM {LOCKS} AND pid <> {pid}");
    until(&pool, "the lock is taken again", &another).await;
    assert!(lost.elapsed() < Duration::from_secs(1), "{:?}", lost.elapsed());
    let (again, _): (i64, i32) = sqlx::query_as(AssertSqlSafe(&*lock)).fetch_one(&pool).await.unwrap();
    assert_eq!(again, id);
}

/// While a courier has no lock, others may take its claimed emails. So it sends none of them until
/// it has a lock again.
#[sqlx::test]
async fn a_courier_without_its_lock_starts_no_claimed_email(pool: PgPool) {
    has_accounts(&pool, 8).await;
    let relay = Relay::start().await;
    let (mut replica, client) = serves(&pool, &format!("{}&per_second=1", relay.url())).await;
    start(&[&client], 1..=8).await;
    relay.mail(1).await;
    let database = pool.connect_options().get_database().unwrap().to_owned();
    let mut server = PgConnection::connect(&std::env::var("DATABASE_URL").unwrap()).await.unwrap();
    let mut allow_connections = async |yes: bool| {
        let alter = format!("ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS {yes}");
        sqlx::raw_sql(AssertSqlSafe(alter)).execute(&mut server).await.unwrap();
    };
    allow_connections(false).await;
    let end = format!("SELECT bool_and(pg_terminate_backend(pid)) FROM {LOCKS}");
    sqlx::query(AssertSqlSafe(&*end)).execute(&pool).await.unwrap();
    let deferred = "vos_auth_mails_total{outcome=\"retried\",stage=\"rate\"}";
    let is_deferred = async { while metric(replica.metrics_address(), deferred).await < 1.0 {} };
    tokio::time::timeout(PATIENCE, is_deferred).await.expect("an email is deferred");
    let sent = relay.mails().len();
    assert!(sent <= 4, "{sent} were sent, one a second, without a lock for over 2 s");
    allow_connections(true).await;
    relay.mail(8).await;
    assert_eq!(distinct(&relay.mails()), 8);
}

/// A pooler may give the courier's server connection to another client, so the lock would prove
/// nothing.
#[sqlx::test]
async fn behind_a_pooler_only_the_lease_counts(pool: PgPool) {
    for pooled in [false, true] {
        let mut url: url::Url = database::service_url(&pool).parse().unwrap();
        if pooled {
            let address = pooler::drops_settings_before(Server::of(&pool)).await;
            url.set_query(Some("sslmode=disable"));
            url.set_host(Some("127.0.0.1")).unwrap();
            url.set_port(Some(address.port())).unwrap();
        }
        let service =
            Service::start_with(&pool, Setup { database_url: Some(url.into()), ..Setup::default() }).await;
        let email = format!("trader-{pooled}@example.com");
        service.has_account(&email).await;
        service.relay.is_in_mood(Mood::HoldsAtRecipient);
        assert!(service.client().starts_recovery(&email).await.is_code_sent());
        service.relay.until_asked(1).await;
        let named = service.count("outbox WHERE lease_until IS NOT NULL AND holder IS NOT NULL").await;
        assert_eq!(named, i64::from(!pooled));
        assert_eq!(service.count(LOCKS).await, i64::from(!pooled));
        service.relay.is_in_mood(Mood::Takes);
        service.relay.mail(1).await;
        service.until_outbox_has(0).await;
        service.stops().await;
        database::until_left(&pool).await;
    }
}

/// A courier that finishes after its lease has ended changes only its own claim.
#[sqlx::test]
async fn a_late_courier_changes_no_later_claim(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::StallsAtRecipient);
    service.client().starts_recovery("trader@example.com").await;
    service.relay.until_asked(1).await;
    let claim = async || {
        service.clock.advance(Duration::from_secs(61));
        let now = vos_auth::clock::Clock::Manual(service.clock.clone()).now();
        let claims = Round {
            from: Uuid::nil(),
            senders: 1,
            window: outbox::WINDOW,
            lease: Duration::from_mins(1),
            ..Round::delete_only(now, &[])
        };
        let mut claim = claims.run(&mut pool.acquire().await.unwrap()).await.unwrap();
        (now, Arc::new(claim.mails.pop().expect("the lease has ended")))
    };
    // The service's own courier must not take part from here on.
    service.relay.goes_down().await;
    service.until_mail_is("unavailable").await;
    let (_, first) = claim().await;
    let (now, second) = claim().await;
    assert_eq!((first.id, first.attempts + 1), (second.id, second.attempts));
    let sent = async |mail: &Arc<_>| {
        let delivered = [Delivered { mail: Arc::clone(mail), at: now }];
        Round::delete_only(now, &delivered).run(&mut pool.acquire().await.unwrap()).await.unwrap();
    };
    sent(&first).await;
    outbox::give_up(&pool, now, &first, "late").await.unwrap();
    outbox::retry_at(&pool, now, &first, "late").await.unwrap();
    assert_eq!(
        service.count("outbox WHERE last_error IS DISTINCT FROM 'late' AND lease_until IS NOT NULL").await,
        1
    );
    assert_eq!(service.count("audit_event WHERE what = 'recovery_sent'").await, 0);
    sent(&second).await;
    assert_eq!(service.count("outbox").await, 0);
    service.stops().await;
}
