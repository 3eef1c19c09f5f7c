//! The courier under load: it uses free slots at once, and deletes delivered emails in batches.

use std::time::Duration;

use sqlx::PgPool;
use vos_auth::outbox;

use crate::harness::Service;
use crate::harness::relay::Mood;

/// More emails than slots: a free slot takes the next email at once, not at the next poll.
#[sqlx::test]
async fn a_free_slot_takes_the_next_email_at_once(pool: PgPool) {
    let settings = ["--smtp-connections=2", "--outbox-poll-interval=1m"];
    let service = Service::start_with_settings(&pool, &settings).await;
    let now = vos_auth::clock::Clock::Manual(service.clock.clone()).now();
    for n in 0..20 {
        service.has_account(&format!("trader{n}@example.com")).await;
    }
    let accounts: Vec<uuid::Uuid> =
        sqlx::query_scalar("SELECT id FROM account").fetch_all(&pool).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    for account in accounts {
        let week = Duration::from_hours(7 * 24);
        outbox::enqueue_notice(&mut transaction, now, account, None, "", week).await.unwrap();
    }
    transaction.commit().await.unwrap();
    assert!(service.client().starts_recovery("trader0@example.com").await.is_code_sent());
    service.relay.mail(21).await;
    service.until_outbox_has(0).await;
    service.stops().await;
}

/// A row that cannot be deleted must not block the others of its batch: they would be sent twice.
#[sqlx::test]
async fn an_email_that_cannot_be_deleted_blocks_no_other(pool: PgPool) {
    let service = Service::start(&pool).await;
    let run = async |sql: &'static str| sqlx::raw_sql(sql).execute(&pool).await.unwrap();
    service.relay.is_in_mood(Mood::RefusesRecipient("450 later"));
    for name in ["one", "bad", "two", "three"] {
        let email = format!("{name}@example.com");
        service.has_account(&email).await;
        assert!(service.client().starts_recovery(&email).await.is_code_sent());
    }
    service
        .until("the retries are noted", async || {
            service.count("outbox WHERE last_error = 'rcpt 450' AND lease_until IS NULL").await == 4
        })
        .await;
    run("ALTER TABLE recovery_session DROP CONSTRAINT recovery_session_user_agent_check").await;
    run("UPDATE recovery_session SET user_agent = repeat('x', 201) WHERE email = 'bad@example.com'").await;
    service.relay.is_in_mood(Mood::HoldsAtRecipient);
    service.clock.advance(Duration::from_secs(2));
    service.relay.until_asked(8).await;
    // These locks delay the deletion of the first delivered email. The other delivered emails wait
    // until it ends.
    let mut lock = pool.begin().await.unwrap();
    sqlx::raw_sql("SELECT FROM outbox FOR UPDATE").execute(&mut *lock).await.unwrap();
    service.relay.is_in_mood(Mood::Takes);
    service.relay.mail(4).await;
    lock.rollback().await.unwrap();
    service.until_outbox_has(1).await;
    assert_eq!(service.count("audit_event WHERE what = 'recovery_sent'").await, 3);
    run("ALTER TABLE audit_event DROP CONSTRAINT audit_event_user_agent_check").await;
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), 4);
    service.stops().await;
}
