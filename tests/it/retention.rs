//! How long expired rows are kept, and that they are deleted then.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use vos_auth::sweeper::Sweeper;

use crate::address_change::two_operators_agree;
use crate::harness::relay::Mood;
use crate::harness::webhook::{self, Webhook};
use crate::harness::{Service, Setup};

const TRADER: &str = "trader@example.com";
const OLD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";

/// Asserts that rows just written stay for `age`, and are deleted a second later.
async fn are_kept_for(service: &Service, rows: &str, age: Duration) {
    let mut sweeper = Sweeper::new(Arc::clone(&service.app));
    let before = service.count(rows).await;
    assert!(before > 0, "{rows}");
    service.clock.advance(age);
    sweeper.sweep().await;
    assert_eq!(service.count(rows).await, before, "{rows} after {age:?}");
    service.clock.advance(Duration::from_secs(1));
    sweeper.sweep().await;
    assert_eq!(service.count(rows).await, 0, "{rows} after {age:?} and a second");
}

#[sqlx::test]
async fn a_recovery_is_kept_for_its_retention(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--recovery-retention=3h"]).await;
    assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    // The life of a code, then the time to choose a password.
    are_kept_for(&service, "recovery_session", Duration::from_mins(3 * 60 + 10 + 15)).await;
    service.stops().await;
}

/// An ended request has addresses, so it is deleted. A request that still has to take effect stays.
#[sqlx::test]
async fn a_request_of_an_operator_is_kept_for_its_retention(pool: PgPool) {
    let settings = ["--recovery-retention=3h", "--address-change-delay=2h"];
    let service = Service::start_with_settings(&pool, &settings).await;
    for (email, new) in [(TRADER, "new@example.com"), ("second@example.com", "third@example.com")] {
        service.has_account(email).await;
        let account = "SELECT id FROM account WHERE email = $1";
        let account = sqlx::query_scalar(account).bind(email).fetch_one(&pool).await.unwrap();
        two_operators_agree(&pool, service.app.clock.now(), account, new).await;
    }
    let end = "UPDATE operator_request SET state = 'cancelled', ended_at = asked_at WHERE new_email = 'new@example.com'";
    sqlx::query(end).execute(&pool).await.unwrap();
    // The time for an approval, the longest wait, and the retention.
    let ended = "operator_request WHERE state = 'cancelled'";
    are_kept_for(&service, ended, Duration::from_mins(10 + 2 * 60 + 3 * 60)).await;
    assert_eq!(service.count("operator_request WHERE state = 'approved'").await, 1);
    // A request that waited for longer is kept for the retention, too.
    let end = "UPDATE operator_request SET state = 'cancelled', ended_at = $1";
    sqlx::query(end).bind(service.app.clock.now()).execute(&pool).await.unwrap();
    are_kept_for(&service, ended, Duration::from_hours(3)).await;
    service.stops().await;
}

#[sqlx::test]
async fn a_session_is_kept_for_its_retention(pool: PgPool) {
    let settings = ["--session-retention=2h", "--session-lifetime=50min"];
    let service = Service::start_with_settings(&pool, &settings).await;
    service.has_trader(TRADER, OLD).await;
    assert!(service.client().logs_in(TRADER, OLD).await.is_signed_in());
    are_kept_for(&service, "session", Duration::from_mins(2 * 60 + 50)).await;
    service.stops().await;
}

#[sqlx::test]
async fn an_event_is_kept_for_its_retention(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--audit-retention=400days"]).await;
    service.has_trader(TRADER, OLD).await;
    assert!(service.client().logs_in(TRADER, OLD).await.is_signed_in());
    are_kept_for(&service, "audit_event WHERE what = 'signed_in'", Duration::from_hours(400 * 24)).await;
    service.stops().await;
}

/// A notice that was given up stays for the operator until it expires.
#[sqlx::test]
async fn a_notice_that_is_given_up_is_kept_for_its_retention(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--notice-retention=2days"]).await;
    service.has_trader(TRADER, OLD).await;
    let mut client = service.verified(TRADER).await;
    is_given_up(&service, async || assert!(client.resets(NEW).await.is_signed_in())).await;
    service.clock.advance(Duration::from_hours(2 * 24 - 1));
    // Without a new email, each round looks at all rows.
    let rounds = "vos_auth_courier_rounds_total";
    let before = service.metric(rounds).await;
    service.until("two rounds begin", async || service.metric(rounds).await > before + 1.5).await;
    assert_eq!(service.count("outbox").await, 1);
    service.clock.advance(Duration::from_hours(2));
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), 1);
    // The alert VosAuthMailsExpired pages people, and this notice already had its own alert.
    assert!(service.metric("vos_auth_mails_total{outcome=\"expired\",stage=\"none\"}").await < 0.5);
    service.stops().await;
}

/// The table has more pages than one statement reads. The sweeper does not wait for locked rows.
#[sqlx::test]
async fn rate_limits_are_swept_page_by_page(pool: PgPool) {
    let service = Service::start(&pool).await;
    let now = service.app.clock.now();
    // In every second row, both buckets are full again.
    let rows = "INSERT INTO throttle (key, short_at, long_at, admitted)
        SELECT sha256(n::text::bytea), $1, $1 + (n % 2) * interval '1 hour', 1 FROM generate_series(1, 20000) AS n";
    sqlx::query(rows).bind(now).execute(&pool).await.unwrap();
    let mut holding = pool.begin().await.unwrap();
    let locked = "SELECT 1 FROM throttle WHERE key = sha256('2') FOR UPDATE";
    sqlx::query(locked).execute(&mut *holding).await.unwrap();
    let mut sweeper = Sweeper::new(Arc::clone(&service.app));
    sweeper.sweep().await;
    assert_eq!(service.count("throttle").await, 10_001);
    assert_eq!(service.count("throttle WHERE key = sha256('2')").await, 1);
    holding.rollback().await.unwrap();
    sweeper.sweep().await;
    assert_eq!(service.count("throttle").await, 10_000);
    service.clock.advance(Duration::from_hours(1));
    sweeper.sweep().await;
    assert_eq!(service.count("throttle").await, 0);
    service.stops().await;
}

/// No table grows without bound. A new table that no sweeper deletes from fails this test.
#[sqlx::test]
async fn only_accounts_are_kept_without_end(pool: PgPool) {
    let webhook = Webhook::start(webhook::Mood::Answers(500));
    let (settings, event_hooks) = (webhook.settings(), webhook.entry("rest", "all"));
    let service = Service::start_with(&pool, Setup { settings, event_hooks, ..Setup::default() }).await;
    service.until("the hook is registered", async || service.count("event_hook").await == 1).await;
    service.has_trader(TRADER, OLD).await;
    service.client().starts_recovery("nobody@example.com").await;
    assert_eq!(service.client().logs_in(TRADER, "not the password").await.status, 401);
    let mut client = service.verified(TRADER).await;
    is_given_up(&service, async || assert!(client.resets(NEW).await.is_signed_in())).await;
    // hash_census has one row of counts; event_hook has the hooks of a setting; operator has the
    // people of a support desk. operator_request has a test of its own.
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
         AND relname NOT IN ('account', 'event_hook', 'hash_census', 'operator', 'operator_request', '_sqlx_migrations')",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(tables.len(), 6, "{tables:?}");
    for table in &tables {
        assert!(service.count(table).await > 0, "{table}");
    }
    service.clock.advance(Duration::from_hours(367 * 24));
    service.until_outbox_has(0).await;
    Sweeper::new(Arc::clone(&service.app)).sweep().await;
    for table in &tables {
        assert_eq!(service.count(table).await, 0, "{table}");
    }
    assert_eq!(service.count("account").await, 1);
    service.stops().await;
}

/// Refuses, permanently, the recipient of the notice that `change` enqueues.
async fn is_given_up(service: &Service, change: impl AsyncFnOnce()) {
    service.relay.is_in_mood(Mood::RefusesRecipient("550 no such user"));
    change().await;
    let given_up = "outbox WHERE last_error = 'rcpt 550' AND lease_until IS NULL";
    service.until("the notice is given up", async || service.count(given_up).await == 1).await;
    service.relay.is_in_mood(Mood::Takes);
}
