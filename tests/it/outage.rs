//! Relay and PostgreSQL fail and recover; the service needs no restart.

use std::time::{Duration, Instant};

use sqlx::PgPool;
use vos_auth::database::{Endpoint, KeptConnection};

use crate::harness::database::{self, Proxy, Way};
use crate::harness::raw::Raw;
use crate::harness::relay::Relay;
use crate::harness::{Service, Setup};

#[sqlx::test]
async fn s9_without_a_relay_any_address_gets_502_until_it_returns(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    service.relay.goes_down().await;
    service.until_mail_is("unavailable").await;
    for email in ["trader@example.com", "nobody@example.com"] {
        let answer = service.client().starts_recovery(email).await;
        assert_eq!(answer.error(), (502, "mail_unavailable"));
        assert_eq!(answer.retry_after(), 10);
        assert_eq!(answer.set_cookie(), None);
    }
    assert_eq!(service.count("recovery_session").await, 0);
    assert_eq!(service.count("throttle").await, 0, "a refusal draws on no rate limit");
    service.relay.comes_back().await;
    service.until_mail_is("ok").await;
    assert!(service.client().starts_recovery("trader@example.com").await.is_code_sent());
    service.relay.mail(1).await;
    service.stops().await;
}

async fn behind_a_proxy(pool: &PgPool) -> (Service, Proxy) {
    let proxy = Proxy::before(pool).await;
    let setup = Setup { database_url: Some(proxy.url(pool)), ..Setup::default() };
    (Service::start_with(pool, setup).await, proxy)
}

#[sqlx::test]
async fn without_postgresql_starts_get_502_at_once_until_it_returns(pool: PgPool) {
    let (service, proxy) = behind_a_proxy(&pool).await;
    service.has_account("trader@example.com").await;
    assert!(service.client().starts_recovery("first@example.com").await.is_code_sent());
    proxy.is(Way::Cut);
    let answer = service.client().starts_recovery("trader@example.com").await;
    assert_eq!(answer.error(), (502, "storage_unavailable"));
    assert_eq!(answer.retry_after(), 10);
    let ready = service.client().get("/readyz").await;
    assert_eq!(ready.error(), (503, "not_ready"));
    assert_eq!(ready.body["parts"]["database"], "unreachable");
    assert_eq!(service.client().get("/healthz").await.status, 200);
    proxy.is(Way::Open);
    assert!(service.client().starts_recovery("trader@example.com").await.is_code_sent());
    service.relay.mail(1).await;
    assert_eq!(service.client().get("/readyz").await.status, 200);
    service.stops().await;
}

/// PostgreSQL accepts packets and stays silent, as behind a failed network. The client gets an
/// answer within 2.5 s.
#[sqlx::test]
async fn with_a_silent_postgresql_starts_get_502_within_two_and_a_half_seconds(pool: PgPool) {
    let (service, proxy) = behind_a_proxy(&pool).await;
    assert!(service.client().starts_recovery("first@example.com").await.is_code_sent());
    proxy.is(Way::Stalled);
    let asked = Instant::now();
    let answer = service.client().starts_recovery("trader@example.com").await;
    assert_eq!(answer.error(), (502, "storage_unavailable"));
    assert!(asked.elapsed() < Duration::from_millis(2500), "{:?}", asked.elapsed());
    proxy.is(Way::Open);
    service
        .until("PostgreSQL answers again", async || {
            service.client().starts_recovery("later@example.com").await.status != 502
        })
        .await;
    service.stops().await;
}

/// PostgreSQL's machine disappears during statements, and another replaces it. The pools replace
/// every connection, no row stays locked, and the courier resumes sending.
#[sqlx::test]
async fn connections_to_a_lost_postgresql_are_replaced(pool: PgPool) {
    let proxy = Proxy::before(&pool).await;
    let setup = Setup {
        database_url: Some(proxy.url(&pool)),
        settings: vec!["--network-burst=1000".to_owned()],
        ..Setup::default()
    };
    let service = Service::start_with(&pool, setup).await;
    // One account for each login: an interrupted login counts as a failure of its address.
    for n in 0..5 {
        service.has_trader(&format!("trader{n}@example.com"), "morning boat on a green river").await;
    }
    let at_once = || {
        let mut logins = tokio::task::JoinSet::new();
        for n in 0..5 {
            let (mut client, email) = (service.client(), format!("trader{n}@example.com"));
            logins.spawn(async move { client.logs_in(&email, "morning boat on a green river").await.status });
        }
        logins
    };
    let mut holding = pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM account FOR UPDATE").execute(&mut *holding).await.unwrap();
    sqlx::query("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE").execute(&mut *holding).await.unwrap();
    let logins = at_once();
    // The five logins and the courier's claim wait for the locks.
    let waiting = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    service.until("all wait", async || service.count(waiting).await >= 6).await;
    proxy.is(Way::Lost);
    assert_eq!(logins.join_all().await, [502; 5]);
    holding.rollback().await.unwrap();
    service.until("they log in", async || at_once().join_all().await == [200; 5]).await;
    assert!(service.client().starts_recovery("trader0@example.com").await.is_code_sent());
    service.relay.mail(1).await;
    proxy.is(Way::Open);
    service.stops().await;
}

/// PostgreSQL restarted while there were no requests: the next start must not fail.
#[sqlx::test]
async fn a_restart_of_postgresql_between_two_starts_fails_neither(pool: PgPool) {
    let service = Service::start(&pool).await;
    assert!(service.client().starts_recovery("first@example.com").await.is_code_sent());
    // Waits for the end of each backend: one that is still ending could answer a check.
    let ended = "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    sqlx::query(ended).execute(&pool).await.unwrap();
    // A connection is trusted for 20 ms after its last use; after that it is checked first.
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(20)).await;
    tokio::time::resume();
    assert!(service.client().starts_recovery("second@example.com").await.is_code_sent());
    service.stops().await;
}

#[sqlx::test(migrations = false)]
async fn readyz_names_missing_migrations(pool: PgPool) {
    // Uses the owner's URL: before any migration there are no tables to grant rights on.
    let database_url = Some(database::url(&pool));
    let service = Service::start_with(&pool, Setup { database_url, ..Setup::default() }).await;
    let ready = service.client().get("/readyz").await;
    assert_eq!(ready.error(), (503, "not_ready"));
    assert_eq!(ready.body["parts"]["database"], "migrations_missing");
    // A start fails with the contract's error.
    assert_eq!(service.client().starts_recovery("a@example.com").await.error(), (502, "storage_unavailable"));
    service.stops().await;
}

#[sqlx::test]
async fn readyz_names_a_wrong_clock(pool: PgPool) {
    let service = Service::start(&pool).await;
    assert_eq!(service.client().get("/readyz").await.body["status"], "ready");
    service.clock.advance(Duration::from_secs(3));
    let ready = service.client().get("/readyz").await;
    assert_eq!(ready.error(), (503, "not_ready"));
    assert_eq!(ready.body["parts"]["database"], "clock_skewed");
    assert!((service.metric("vos_auth_clock_skewed").await - 1.0).abs() < 0.1);
    service.stops().await;
}

/// PostgreSQL refuses one row of a batch; the other rows must not be affected.
#[sqlx::test]
async fn one_bad_row_fails_no_other_start_of_its_batch(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    let poison = "ALTER TABLE recovery_session ADD CHECK (email <> 'poison@example.com')";
    sqlx::query(poison).execute(&pool).await.unwrap();
    // The lock makes the starts wait, so that they are committed together.
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE throttle IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    let mut starts = tokio::task::JoinSet::new();
    for n in 0..20 {
        let mut client = service.client();
        let email = if n == 7 { "poison@example.com".to_owned() } else { format!("trader{n}@example.com") };
        starts.spawn(async move { (n, client.starts_recovery(&email).await.status) });
    }
    let batch_waits = async || {
        let waiting = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        service.count(waiting).await >= 1
    };
    service.until("the statement waits for the lock", batch_waits).await;
    lock.rollback().await.unwrap();
    for (n, status) in starts.join_all().await {
        assert_eq!(status, if n == 7 { 502 } else { 200 }, "{n}");
    }
    assert_eq!(service.count("recovery_session").await, 19);
    service.stops().await;
}

/// If the queue is full, further starts get 502 at once, so the queue stays bounded. When there is
/// room again, a start is still refused if the last batch was so slow that the start could not be
/// committed within 100 ms.
#[sqlx::test]
async fn a_full_or_slow_queue_refuses_starts_at_once(pool: PgPool) {
    let settings = ["--network-burst=1000", "--start-queue=4", "--start-batch=1"];
    let service = Service::start_with_settings(&pool, &settings).await;
    // The first start prepares the statement, because preparing would also wait for the lock.
    assert!(service.client().starts_recovery("first@example.com").await.is_code_sent());
    let locks = "LOCK TABLE throttle IN ACCESS EXCLUSIVE MODE";
    let mut lock = pool.begin().await.unwrap();
    sqlx::query(locks).execute(&mut *lock).await.unwrap();
    let mut starts = tokio::task::JoinSet::new();
    for n in 0..40 {
        let mut client = service.client();
        starts.spawn(async move { client.starts_recovery(&format!("trader{n}@example.com")).await });
    }
    let mut refused = 0;
    while refused < 35 {
        let answer = starts.join_next().await.unwrap().unwrap();
        assert_eq!(answer.error(), (502, "storage_unavailable"));
        refused += 1;
    }
    let mut next = pool.begin().await.unwrap();
    let next = tokio::spawn(async move { sqlx::query(locks).execute(&mut *next).await.map(|_| next) });
    let waiting = |since: &str| {
        let what = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        format!(
            "{what} AND query ~ 'INTO throttle|^LOCK' AND clock_timestamp() - query_start > interval '{since}'"
        )
    };
    service.until("both have waited", async || service.count(&waiting("100 ms")).await == 2).await;
    lock.rollback().await.unwrap();
    let lock = next.await.unwrap().unwrap();
    service.until("the next start waits", async || service.count(&waiting("0")).await == 1).await;
    assert_eq!(
        service.client().starts_recovery("late@example.com").await.error(),
        (502, "storage_unavailable")
    );
    lock.rollback().await.unwrap();
    for answer in starts.join_all().await {
        assert!(answer.is_code_sent());
    }
    service.stops().await;
}

/// A stopping service takes no new connections, and waits until the current request is answered.
#[sqlx::test]
async fn stopping_finishes_requests_in_progress(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (address, body) = (service.address, r#"{"email":"trader@example.com"}"#);
    let head = format!(
        "POST /api/auth/recovery/start HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut start = Raw::says(address, head).await;
    start.hears("100 Continue").await;
    service.is_told_to_stop();
    let stopped = tokio::spawn(service.stops());
    let refused = async {
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, refused).await.expect("no new connections");
    // Lets a second pass for timers, with real round trips to PostgreSQL. That is long enough for a
    // stop.
    for _ in 0..200 {
        tokio::time::pause();
        tokio::time::advance(Duration::from_millis(5)).await;
        tokio::time::resume();
        sqlx::query("SELECT 1").execute(&pool).await.unwrap();
    }
    assert!(!stopped.is_finished(), "the service waits for the request");
    assert!(start.sends(body).await);
    let answer = start.hears_all().await;
    assert!(answer.contains("200 OK") && answer.contains("code_sent"), "{answer}");
    stopped.await.unwrap();
}

/// During the drain delay everything still works, and readiness reports the coming stop.
#[sqlx::test]
async fn readyz_fails_while_draining(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--drain-delay=1s"]).await;
    assert_eq!(service.client().get("/readyz").await.body["parts"]["server"], "ok");
    service.is_told_to_stop();
    service
        .until("readiness fails", async || {
            let ready = service.client().get("/readyz").await;
            ready.status == 503 && ready.body["parts"]["server"] == "stopping"
        })
        .await;
    assert!(service.client().starts_recovery("trader@example.com").await.is_code_sent());
    service.stops().await;
}

/// PostgreSQL is a former primary or a standby: it answers, but accepts no writes.
#[sqlx::test]
async fn with_a_read_only_postgresql_starts_get_502_until_it_accepts_writes(pool: PgPool) {
    let service = Service::start(&pool).await;
    assert!(service.client().starts_recovery("first@example.com").await.is_code_sent());
    let database = pool.connect_options().get_database().unwrap().to_owned();
    let set_read_only = async |value: &str| {
        let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let sql = format!("ALTER DATABASE \"{database}\" SET default_transaction_read_only = {value}");
        let mut connection = pool.acquire().await.unwrap();
        sqlx::query("SET default_transaction_read_only = off").execute(&mut *connection).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *connection).await.unwrap();
        // Older connections can still write, so the test ends them. The service must end read-only
        // ones itself.
        if value == "on" {
            sqlx::query(others).execute(&mut *connection).await.unwrap();
        }
    };
    set_read_only("on").await;
    let reads = async || service.client().get("/readyz").await.body["parts"]["database"] == "read_only";
    service.until("readiness reports read_only", reads).await;
    let answer = service.client().starts_recovery("second@example.com").await;
    assert_eq!(answer.error(), (502, "storage_unavailable"));
    set_read_only("off").await;
    service
        .until("a start is accepted", async || {
            service.client().starts_recovery("third@example.com").await.is_code_sent()
        })
        .await;
    // The service does not wait until its connections expire: it keeps none to a read-only server.
    service
        .until("the service is ready again", async || service.client().get("/readyz").await.status == 200)
        .await;
    service.stops().await;
}

/// STARTTLS is required: a relay without it gets no email, and counts as unavailable.
#[sqlx::test]
async fn a_relay_without_starttls_is_not_usable(pool: PgPool) {
    let plain = Relay::start().await;
    let url = plain.url().replace("?tls=none", "");
    let service = Service::start_with(&pool, Setup { further_relays: vec![url], ..Setup::default() }).await;
    service.has_account("trader@example.com").await;
    service.relay.goes_down().await;
    service.until_mail_is("unavailable").await;
    assert_eq!(
        service.client().starts_recovery("trader@example.com").await.error(),
        (502, "mail_unavailable")
    );
    assert_eq!(plain.mails().len(), 0);
    service.stops().await;
}

/// One connection stores all starts while the service runs. It is renewed, so that it also uses a
/// new certificate of PostgreSQL.
#[sqlx::test]
async fn the_connection_of_starts_is_renewed_by_age(pool: PgPool) {
    let mut kept =
        KeptConnection::new(&Endpoint::new((*pool.connect_options()).clone()), Duration::from_mins(10));
    let mut backends = Vec::new();
    for age in [Duration::ZERO, Duration::from_mins(9), Duration::from_mins(2)] {
        tokio::time::pause();
        tokio::time::advance(age).await;
        tokio::time::resume();
        let mut connection = kept.take().await.unwrap();
        let backend: i32 =
            sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
        kept.put(connection);
        backends.push(backend);
    }
    assert!(backends[0] == backends[1] && backends[1] != backends[2], "{backends:?}");
}
