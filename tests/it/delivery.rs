//! The courier: who gets an email, what it retries, and when it gives up.

use std::time::Duration;

use sqlx::PgPool;

use crate::harness::database::until_left;
use crate::harness::relay::{Mood, Relay};
use crate::harness::{PATIENCE, Service, Setup};

#[sqlx::test]
async fn only_an_active_account_gets_an_email(pool: PgPool) {
    let service = Service::start(&pool).await;
    for email in ["active@example.com", "disabled@example.com", "later@example.com"] {
        service.has_account(email).await;
    }
    sqlx::query("UPDATE account SET state = 'disabled' WHERE email LIKE 'disabled%'")
        .execute(&pool)
        .await
        .unwrap();
    for email in ["disabled@example.com", "nobody@example.com", "active@example.com"] {
        service.client().starts_recovery(email).await;
    }
    service.until_outbox_has(0).await;
    let recipients: Vec<_> = service.relay.mails().into_iter().flat_map(|mail| mail.recipients).collect();
    assert_eq!(recipients, ["active@example.com"]);
    assert!((service.metric("vos_auth_mails_total{outcome=\"no_recipient\"").await - 2.0).abs() < 0.1);

    // The courier looks the account up when it sends the email, not when the client asks.
    service.relay.goes_down().await;
    service.until_mail_is("unavailable").await;
    service.relay.comes_back().await;
    service.until_mail_is("ok").await;
    service.relay.is_in_mood(Mood::RefusesRecipient("450 later"));
    service.client().starts_recovery("later@example.com").await;
    service.relay.until_asked(2).await;
    sqlx::query("UPDATE account SET state = 'disabled'").execute(&pool).await.unwrap();
    service.relay.is_in_mood(Mood::Takes);
    service.clock.advance(Duration::from_mins(2));
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), 1);
    service.stops().await;
}

#[sqlx::test]
async fn a_deferred_email_is_retried_with_the_same_message_id_and_code(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    for (n, mood) in [
        Mood::RefusesRecipient("450 4.2.0 greylisted"),
        Mood::RefusesMessage("451 4.3.0 disk full"),
        // A permanent refusal that is not about the recipient may be the fault of the relay or the
        // service.
        Mood::RefusesMessage("554 5.7.1 spam"),
    ]
    .into_iter()
    .enumerate()
    {
        service.relay.is_in_mood(mood);
        service.client().starts_recovery("trader@example.com").await;
        service.relay.until_asked(2 * n + 1).await;
        service
            .until("the retry is noted", async || {
                service.count("outbox WHERE last_error IS NOT NULL AND lease_until IS NULL").await == 1
            })
            .await;
        let noted: String =
            sqlx::query_scalar("SELECT last_error FROM outbox").fetch_one(&pool).await.unwrap();
        assert_eq!(noted, ["rcpt 450 4.2.0", "message 451 4.3.0", "message 554 5.7.1"][n]);
        service.relay.is_in_mood(Mood::Takes);
        service.clock.advance(Duration::from_secs(2));
        service.relay.mail(n + 1).await;
        service.until_outbox_has(0).await;
        service.clock.advance(Duration::from_hours(24));
    }
    service.stops().await;
}

#[sqlx::test]
async fn a_permanently_refused_recipient_is_given_up(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("gone@example.com").await;
    service.relay.is_in_mood(Mood::RefusesRecipient("550 5.1.1 no such user gone@example.com"));
    let answer = service.client().starts_recovery("gone@example.com").await;
    assert!(answer.is_code_sent());
    service.until_outbox_has(0).await;
    assert!(
        (service.metric("vos_auth_mails_total{outcome=\"given_up\",stage=\"rcpt\"}").await - 1.0).abs() < 0.1
    );
    // A failed send changes nothing that `start` can see.
    assert!(service.client().starts_recovery("other@example.com").await.is_code_sent());
    service.stops().await;
}

#[sqlx::test]
async fn an_email_whose_answer_was_lost_is_sent_again_with_the_same_message_id(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::DropsAfterData);
    service.client().starts_recovery("trader@example.com").await;
    let first = service.relay.mail(1).await;
    service.relay.is_in_mood(Mood::Takes);
    service
        .until("the retry is noted", async || service.count("outbox WHERE last_error IS NOT NULL").await == 1)
        .await;
    service.clock.advance(Duration::from_secs(2));
    let second = service.relay.mail(2).await;
    assert_eq!(first.message_id(), second.message_id());
    assert_eq!(first.code(), second.code());
    service.until_outbox_has(0).await;
    service.stops().await;
}

#[sqlx::test]
async fn a_stalled_conversation_ends_at_its_deadline_and_its_connection_is_not_used_again(pool: PgPool) {
    let service =
        Service::start_with_settings(&pool, &["--smtp-deadline=200ms", "--smtp-connections=1"]).await;
    for email in ["first@example.com", "second@example.com"] {
        service.has_account(email).await;
    }
    service.relay.is_in_mood(Mood::StallsAtRecipient);
    service.client().starts_recovery("first@example.com").await;
    service.relay.until_asked(1).await;
    service.relay.is_in_mood(Mood::Takes);
    service.client().starts_recovery("second@example.com").await;
    let mail = service.relay.mail(1).await;
    assert_eq!(mail.recipients, ["second@example.com"]);
    // The slot is free before the failure is stored.
    service
        .until("the deadline is noted", async || {
            service.count("outbox WHERE last_error = 'deadline'").await == 1
        })
        .await;
    service.clock.advance(Duration::from_secs(2));
    assert_eq!(service.relay.mail(2).await.recipients, ["first@example.com"]);
    service.stops().await;
}

#[sqlx::test]
async fn s9_no_email_is_sent_with_an_expired_code(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::RefusesRecipient("450 later"));
    service.client().starts_recovery("trader@example.com").await;
    service.relay.until_asked(1).await;
    // A code with less than a minute left counts as expired.
    service.relay.is_in_mood(Mood::Takes);
    service.clock.advance(Duration::from_secs(9 * 60 + 1));
    service.until_outbox_has(0).await;
    service
        .until("the expired email is counted", async || {
            service.metric("vos_auth_mails_total{outcome=\"expired\"").await > 0.9
        })
        .await;
    assert_eq!(service.relay.mails().len(), 0);
    service.stops().await;
}

/// Five wrong attempts make a code useless, as its expiry does.
#[sqlx::test]
async fn s9_no_email_is_sent_for_a_session_without_attempts(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::RefusesRecipient("450 later"));
    let mut client = service.client();
    client.starts_recovery("trader@example.com").await;
    let deferred = "outbox WHERE last_error = 'rcpt 450'";
    service.until("the email is deferred", async || service.count(deferred).await == 1).await;
    for left in (0..5).rev() {
        assert_eq!(client.verifies("00000000").await.attempts_left(), left);
    }
    service.relay.is_in_mood(Mood::Takes);
    service.clock.advance(Duration::from_secs(31));
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), 0);
    service.stops().await;
}

#[sqlx::test]
async fn emails_claimed_by_a_dead_process_are_sent_by_another_when_the_lease_ends(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--smtp-connections=1"]).await;
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::StallsAtRecipient);
    service.client().starts_recovery("trader@example.com").await;
    service.relay.until_asked(1).await;
    // A second replica with its own relay. The first replica's courier still has the row.
    let other = Setup {
        relay: Some(Relay::start().await),
        keys: Some(service.keys.clone()),
        clock: Some(service.clock.clone()),
        ..Setup::default()
    };
    let other = Service::start_with(&pool, other).await;
    other.client().starts_recovery("nobody@example.com").await;
    other.until_outbox_has(1).await;
    assert_eq!(other.relay.mails().len(), 0, "leased");
    service.clock.advance(Duration::from_secs(61));
    other.relay.mail(1).await;
    other.until_outbox_has(0).await;
    // The first replica's attempt ends late, and must not change the second one's result.
    service.relay.goes_down().await;
    other.stops().await;
    service.stops().await;
}

#[sqlx::test]
async fn two_replicas_send_each_email_once(pool: PgPool) {
    let settings = vec!["--network-burst=1000".to_owned()];
    let one = Service::start_with(&pool, Setup { settings: settings.clone(), ..Setup::default() }).await;
    let two = Service::start_with(
        &pool,
        Setup {
            settings,
            relay: Some(one.relay.clone()),
            keys: Some(one.keys.clone()),
            clock: Some(one.clock.clone()),
            ..Setup::default()
        },
    )
    .await;
    let mut starts = tokio::task::JoinSet::new();
    for n in 0..100 {
        let email = format!("trader{n}@example.com");
        one.has_account(&email).await;
        let mut client = if n % 2 == 0 { one.client() } else { two.client() };
        starts.spawn(async move { client.starts_recovery(&email).await.status });
    }
    assert!(starts.join_all().await.iter().all(|status| *status == 200));
    one.relay.mail(100).await;
    one.until_outbox_has(0).await;
    let mut ids: Vec<_> = one.relay.mails().iter().map(crate::harness::relay::Mail::message_id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!((one.relay.mails().len(), ids.len()), (100, 100));
    two.stops().await;
    one.stops().await;
}

/// A commit wakes the courier at once, so that the email does not wait for the next poll.
#[sqlx::test]
async fn a_committed_email_waits_for_no_poll(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--outbox-poll-interval=1min"]).await;
    let email = "trader@example.com";
    service.has_trader(email, "a first password of hers").await;
    let sent = async {
        let mut client = service.verified(email).await;
        assert!(client.resets("a second password of hers").await.is_signed_in());
        service.relay.mail(2).await;
        assert!(
            client
                .changes_password("a second password of hers", "a third password of hers")
                .await
                .is_signed_in()
        );
        service.relay.mail(3).await;
        service.mails_code_to(&mut service.client(), email).await;
    };
    tokio::time::timeout(PATIENCE / 2, sent).await.expect("all were sent before the next poll");
    service.stops().await;
}

/// SIGTERM while one email is in progress and another waits for a slot: both are sent first.
#[sqlx::test]
async fn stopping_sends_the_accepted_emails(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--smtp-connections=1"]).await;
    let relay = service.relay.clone();
    relay.is_in_mood(Mood::HoldsAtRecipient);
    for (asked, email) in [(1, "first@example.com"), (1, "second@example.com")] {
        service.has_account(email).await;
        service.client().starts_recovery(email).await;
        relay.until_asked(asked).await;
    }
    service.is_told_to_stop();
    relay.is_in_mood(Mood::Takes);
    service.stops().await;
    assert_eq!(relay.mails().len(), 2);
}

/// A stalled relay cannot delay the stop beyond its limit, and the email stays pending.
#[sqlx::test]
async fn stopping_ends_at_its_timeout_and_keeps_the_email(pool: PgPool) {
    let service =
        Service::start_with_settings(&pool, &["--stop-timeout=100ms", "--smtp-deadline=1min"]).await;
    service.has_account("trader@example.com").await;
    let relay = service.relay.clone();
    relay.is_in_mood(Mood::StallsAtRecipient);
    service.client().starts_recovery("trader@example.com").await;
    relay.until_asked(1).await;
    let count =
        async || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox").fetch_one(&pool).await.unwrap();
    service.stops().await;
    until_left(&pool).await;
    assert_eq!((count().await, relay.mails().len()), (1, 0));
}

/// As many emails are in progress at once as there are connections.
#[sqlx::test]
async fn emails_do_not_wait_for_each_other(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--smtp-connections=8", "--network-burst=100"]).await;
    service.relay.is_in_mood(Mood::HoldsAtRecipient);
    for n in 0..20 {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        service.client().starts_recovery(&email).await;
    }
    service.relay.until_asked(8).await;
    assert_eq!(service.relay.mails().len(), 0);
    service.relay.is_in_mood(Mood::Takes);
    service.relay.mail(20).await;
    service.until_outbox_has(0).await;
    service.stops().await;
}

/// Only 250 after the final dot means sent.
#[sqlx::test]
async fn any_answer_but_250_means_not_sent(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::SaysMoreAfterData);
    service.client().starts_recovery("trader@example.com").await;
    service
        .until("the retry is noted", async || {
            service.count("outbox WHERE last_error = 'message 354'").await == 1
        })
        .await;
    assert_eq!(service.count("audit_event WHERE what = 'recovery_sent'").await, 0);
    service.relay.is_in_mood(Mood::Takes);
    service.clock.advance(Duration::from_secs(2));
    service.relay.mail(1).await;
    service.stops().await;
}

/// During a rotation another replica may know the missing secret, so the email stays pending.
#[sqlx::test]
async fn an_email_with_an_unknown_secret_is_left_for_another_replica(pool: PgPool) {
    let one = Service::start(&pool).await;
    one.has_account("trader@example.com").await;
    one.relay.is_in_mood(Mood::RefusesRecipient("450 later"));
    one.client().starts_recovery("trader@example.com").await;
    one.relay.until_asked(1).await;
    one.until("the retry is noted", async || one.count("outbox WHERE last_error = 'rcpt 450'").await == 1)
        .await;
    let (clock, keys, relay) = (one.clock.clone(), one.keys.clone(), one.relay.clone());
    one.stops().await;
    relay.is_in_mood(Mood::Takes);
    clock.advance(Duration::from_secs(2));
    let other_keys = Some(vos_auth::secret::Key::random("another"));
    let setup = Setup { clock: Some(clock.clone()), keys: other_keys, ..Setup::default() };
    let other = Service::start_with(&pool, setup).await;
    other
        .until("the retry is noted", async || other.count("outbox WHERE last_error = 'compose'").await == 1)
        .await;
    other.stops().await;
    clock.advance(Duration::from_secs(31));
    let setup =
        Setup { clock: Some(clock), keys: Some(keys), relay: Some(relay.clone()), ..Setup::default() };
    let knowing = Service::start_with(&pool, setup).await;
    relay.mail(1).await;
    knowing.until_outbox_has(0).await;
    knowing.stops().await;
}
