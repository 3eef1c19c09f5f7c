//! `start`: its answer, stored rows and email; resends; rate limits.

use std::sync::Arc;
use std::time::Duration;

use sqlx::{PgPool, Row as _};

use crate::harness::Service;
use vos_auth::sweeper::Sweeper;

use crate::harness::relay::Mood;

#[sqlx::test]
async fn a_start_answers_sets_the_cookie_and_sends_a_code(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;

    let answer = service.client().starts_recovery("trader@example.com").await;

    assert!(answer.is_code_sent(), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let mail = service.relay.mail(1).await;
    assert_eq!(mail.recipients, ["trader@example.com"]);
    assert_eq!(mail.code().len(), 8);
    service.until_outbox_has(0).await;
    assert_eq!(service.count("audit_event WHERE what = 'recovery_sent'").await, 1);
    service.stops().await;
}

/// L9 of docs/catalogue.md, for the cookies of `start`.
#[sqlx::test]
async fn l9_the_cookie_has_every_attribute_and_a_new_token(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut tokens = std::collections::HashSet::new();
    for n in 0..20 {
        let answer = service.client().starts_recovery(&format!("nobody{n}@example.com")).await;
        let cookie = answer.set_cookie().unwrap();
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        let token = pair.strip_prefix("__Host-vos_recovery=").unwrap();
        assert_eq!(token.len(), 43);
        assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        assert!(tokens.insert(token.to_owned()));
        let mut attributes: Vec<_> = attributes.split("; ").collect();
        attributes.sort_unstable();
        assert_eq!(attributes, ["HttpOnly", "Max-Age=600", "Path=/", "SameSite=Strict", "Secure"]);
    }
    service.stops().await;
}

#[sqlx::test]
async fn s1_known_unknown_disabled_and_passwordless_look_alike(pool: PgPool) {
    let service = Service::start(&pool).await;
    for email in ["known@example.com", "disabled@example.com", "secret@example.com"] {
        service.has_account(email).await;
    }
    sqlx::query("UPDATE account SET state = 'disabled' WHERE email LIKE 'disabled%'")
        .execute(&pool)
        .await
        .unwrap();
    sqlx::query("UPDATE account SET password_hash = 'x' WHERE email LIKE 'secret%'")
        .execute(&pool)
        .await
        .unwrap();
    service.relay.is_in_mood(Mood::StallsAtRecipient);
    let addresses =
        ["known@example.com", "disabled@example.com", "secret@example.com", "unknown@example.com"];

    let mut transcripts = Vec::new();
    for email in addresses {
        let mut client = service.client();
        let mut transcript = Vec::new();
        for _ in 0..5 {
            let answer = client.starts_recovery(email).await;
            let mut headers: Vec<_> = answer
                .headers
                .iter()
                .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
                .map(|(name, value)| {
                    let value = value.to_str().unwrap().to_owned();
                    let masked = value.split_once("vos_recovery=").map(|(before, after)| {
                        let (token, after) = after.split_once(';').unwrap();
                        format!("{before}{}{after}", token.len())
                    });
                    let value = if name == "x-recovery-id" { value.len().to_string() } else { value };
                    (name.to_string(), masked.unwrap_or(value))
                })
                .collect();
            headers.sort();
            transcript.push((answer.status, headers, answer.text.clone()));
        }
        transcripts.push(transcript);
    }

    let statuses: Vec<_> = transcripts[0].iter().map(|(status, ..)| *status).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    for (address, transcript) in addresses.iter().zip(&transcripts) {
        assert_eq!(transcript, &transcripts[0], "{address}");
    }
    service.stops().await;
}

#[sqlx::test]
async fn s1_the_same_rows_are_written_for_any_address(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("known@example.com").await;
    let mut shapes = Vec::new();
    for email in ["known@example.com", "other@example.com"] {
        // With `account` locked, the courier can finish nothing.
        let mut courier_waits = pool.begin().await.unwrap();
        sqlx::query("LOCK TABLE account IN ACCESS EXCLUSIVE MODE")
            .execute(&mut *courier_waits)
            .await
            .unwrap();
        assert!(service.client().starts_recovery(email).await.is_code_sent());
        let session = "SELECT state, attempts_left, key_id, locale, verified_at IS NULL AS fresh, expires_at - created_at AS life, octet_length(token_hash) AS hash, user_agent FROM recovery_session WHERE email = $1";
        let session = sqlx::query(session).bind(email).fetch_all(&mut *courier_waits).await.unwrap();
        let pending = "SELECT kind, o.attempts, last_error, lease_until, o.next_attempt_at = o.created_at AS due, o.expires_at = s.expires_at AS together FROM outbox o JOIN recovery_session s ON s.id = o.recovery_session_id WHERE s.email = $1";
        let pending = sqlx::query(pending).bind(email).fetch_all(&mut *courier_waits).await.unwrap();
        assert_eq!((session.len(), pending.len()), (1, 1), "{email}");
        let shape = (
            session[0].get::<String, _>("state"),
            session[0].get::<i16, _>("attempts_left"),
            session[0].get::<i32, _>("hash"),
            session[0].get::<bool, _>("fresh"),
            pending[0].get::<String, _>("kind"),
            pending[0].get::<i32, _>("attempts"),
            pending[0].get::<bool, _>("due"),
            pending[0].get::<bool, _>("together"),
        );
        shapes.push(shape);
        courier_waits.rollback().await.unwrap();
    }
    assert_eq!(shapes[0], shapes[1]);
    assert_eq!(shapes[0].0, "code_sent");
    service.stops().await;
}

/// Invariant 1 of `src/lib.rs`: `start` reads nothing of `account`.
#[sqlx::test]
async fn s2_start_answers_while_account_is_locked(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE account IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    for email in ["trader@example.com", "nobody@example.com"] {
        let answer = service.client().starts_recovery(email).await;
        assert!(answer.is_code_sent(), "{answer:?}");
    }
    assert_eq!(service.relay.mails().len(), 0);
    lock.rollback().await.unwrap();
    assert_eq!(service.relay.mail(1).await.recipients, ["trader@example.com"]);
    service.stops().await;
}

#[sqlx::test]
async fn a_resend_keeps_session_code_and_lifetime(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    let mut client = service.client();
    client.starts_recovery("trader@example.com").await;
    let (cookie, first) = (client.cookie.clone(), service.relay.mail(1).await);
    service.until_outbox_has(0).await;

    service.clock.advance(Duration::from_mins(2));
    let again = client.starts_recovery("trader@example.com").await;

    assert!(again.is_code_sent());
    assert_eq!(client.cookie, cookie);
    assert_eq!(again.cookie_life(), 480);
    let second = service.relay.mail(2).await;
    assert_eq!(second.code(), first.code());
    assert_ne!(second.message_id(), first.message_id());
    assert_eq!(service.count("recovery_session").await, 1);
    service.stops().await;
}

#[sqlx::test]
async fn a_start_with_an_unusable_cookie_opens_a_new_session(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    let mut client = service.client();
    client.starts_recovery("trader@example.com").await;
    let first = client.cookie.clone();
    let code = service.relay.mail(1).await.code();
    service.until_outbox_has(0).await;

    // For another address, a start begins a new recovery.
    client.starts_recovery("other@example.com").await;
    assert_ne!(client.cookie, first);

    // With less than 3 minutes to live, the recovery is replaced by a new one.
    client.cookie.clone_from(&first);
    service.clock.advance(Duration::from_mins(7));
    client.starts_recovery("trader@example.com").await;
    assert_eq!(client.cookie, first, "3 minutes to live are enough");
    service.relay.mail(2).await;
    service.until_outbox_has(0).await;
    service.clock.advance(Duration::from_secs(1));
    let late = client.starts_recovery("trader@example.com").await;
    assert_ne!(client.cookie, first);
    assert_eq!(late.cookie_life(), 600);
    assert_ne!(service.relay.mail(3).await.code(), code);

    // Without attempts left, the recovery is replaced by a new one.
    let second = client.cookie.clone();
    sqlx::query("UPDATE recovery_session SET attempts_left = 0").execute(&pool).await.unwrap();
    client.starts_recovery("trader@example.com").await;
    assert_ne!(client.cookie, second);

    // A verified recovery is not continued by a start.
    sqlx::query("UPDATE recovery_session SET state = 'verified'").execute(&pool).await.unwrap();
    let third = client.cookie.clone();
    client.starts_recovery("other@example.com").await;
    assert_ne!(client.cookie, third);

    // A token that was never issued is not adopted.
    client.cookie = Some(format!("__Host-vos_recovery={}", "A".repeat(43)));
    client.starts_recovery("third@example.com").await;
    assert_ne!(client.cookie, Some(format!("__Host-vos_recovery={}", "A".repeat(43))));
    service.stops().await;
}

/// V7 of docs/catalogue.md, for `start`: a session that another reset revoked is a decoy.
#[sqlx::test]
async fn v7_a_revoked_session_resends_like_a_live_one_and_mails_nothing(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    let mut client = service.client();
    client.starts_recovery("trader@example.com").await;
    service.relay.mail(1).await;
    service.until_outbox_has(0).await;
    let cookie = client.cookie.clone();
    let mut other = service.verified("trader@example.com").await;
    assert!(other.resets("night train in autumn rain").await.is_signed_in());
    service.until_outbox_has(0).await;
    let mails = service.relay.mails().len();

    assert!(client.starts_recovery("trader@example.com").await.is_code_sent());

    assert_eq!(client.cookie, cookie);
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), mails);
    service.stops().await;
}

#[sqlx::test]
async fn a_resend_while_an_email_is_pending_sends_no_second_one_and_writes_the_same_rows(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::RefusesRecipient("450 later"));
    let (mut client, mut nobody) = (service.client(), service.client());
    client.starts_recovery("trader@example.com").await;
    nobody.starts_recovery("nobody@example.com").await;
    service.until_outbox_has(1).await;
    // The rows of a resend stay while the courier cannot read accounts.
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE account IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    assert!(client.starts_recovery("trader@example.com").await.is_code_sent());
    assert_eq!(service.count("outbox").await, 2);
    assert!(nobody.starts_recovery("nobody@example.com").await.is_code_sent());
    assert_eq!(service.count("outbox").await, 3);
    lock.rollback().await.unwrap();
    assert!(client.starts_recovery("trader@example.com").await.is_code_sent());
    service.until_outbox_has(1).await;
    service.relay.is_in_mood(Mood::Takes);
    service.clock.advance(Duration::from_secs(31));
    service.relay.mail(1).await;
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), 1);
    service.stops().await;
}

#[sqlx::test]
async fn the_bucket_of_an_address_empties_and_refills_with_or_without_an_account(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("known@example.com").await;
    for email in ["known@example.com", "unknown@example.com"] {
        // Spelling, cookie and network do not matter.
        for spelling in [email.to_owned(), email.to_uppercase(), format!(" {email} ")] {
            assert!(service.client().starts_recovery(&spelling).await.is_code_sent());
        }
        let refused = service.client().starts_recovery(email).await;
        assert_eq!(refused.error(), (429, "address_throttled"));
        assert_eq!(refused.retry_after(), 300);
        assert_eq!(refused.set_cookie(), None);
    }
    service.clock.advance(Duration::from_secs(299));
    for email in ["known@example.com", "unknown@example.com"] {
        assert_eq!(service.client().starts_recovery(email).await.retry_after(), 1);
    }
    service.clock.advance(Duration::from_secs(1));
    for email in ["known@example.com", "unknown@example.com"] {
        assert!(service.client().starts_recovery(email).await.is_code_sent());
        assert_eq!(service.client().starts_recovery(email).await.error(), (429, "address_throttled"));
    }
    service.stops().await;
}

/// Invariant 4 of `src/lib.rs`: at most 19 sessions per address in any 24 hours, however many
/// requests.
#[sqlx::test]
async fn v1_at_most_19_codes_in_any_24_hours(pool: PgPool) {
    let service =
        Service::start_with_settings(&pool, &["--network-burst=1000000", "--network-per-minute=1000000"])
            .await;
    let step = Duration::from_mins(5);
    let mut accepted_at: Vec<u32> = Vec::new();
    for tick in 0..3 * 24 * 12 {
        while service.client().starts_recovery("victim@example.com").await.is_code_sent() {
            accepted_at.push(tick);
        }
        service.clock.advance(step);
    }
    let busiest = accepted_at
        .iter()
        .map(|from| accepted_at.iter().filter(|at| (*from..from + 24 * 12).contains(*at)).count());
    assert_eq!(busiest.max(), Some(19));
    service.stops().await;
}

#[sqlx::test]
async fn parallel_starts_for_an_address_are_admitted_up_to_its_limit(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    let other = Service::start_with(
        &pool,
        crate::harness::Setup {
            settings: vec!["--network-burst=1000".into()],
            clock: Some(service.clock.clone()),
            keys: Some(service.keys.clone()),
            ..Default::default()
        },
    )
    .await;
    let mut starts = tokio::task::JoinSet::new();
    for n in 0..120 {
        let mut client = if n % 2 == 0 { service.client() } else { other.client() };
        let email = format!("victim{}@example.com", n % 3);
        starts.spawn(async move { client.starts_recovery(&email).await.status });
    }
    let statuses = starts.join_all().await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 9, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 111);
    assert_eq!(service.count("recovery_session").await, 9);
    other.stops().await;
    service.stops().await;
}

/// The tests of L2 show that an operator's ticket still works during such a flood.
#[sqlx::test]
async fn s6_a_flood_sends_no_more_emails_than_the_rate_limit(pool: PgPool) {
    let (victim, password) = ("victim@example.com", "morning boat on a green river");
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    service.has_trader(victim, password).await;
    let mut known = service.client();
    assert!(known.logs_in(victim, password).await.is_signed_in());
    for _ in 0..200 {
        service.client().starts_recovery(victim).await;
    }
    service.until_outbox_has(0).await;
    assert_eq!(service.relay.mails().len(), 3);
    assert!(known.refreshes().await.is_signed_in(), "an open session stays valid");
    assert!(service.client().logs_in(victim, password).await.is_signed_in(), "the password still works");
    service.verifies_from(&mut known, victim).await;
    assert!(known.resets("night train in autumn rain").await.is_signed_in(), "a known browser can recover");
    service.stops().await;
}

#[sqlx::test]
async fn expired_rows_are_deleted(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    service.client().starts_recovery("trader@example.com").await;
    service.relay.mail(1).await;
    service.until_outbox_has(0).await;
    let mut sweeper = Sweeper::new(Arc::clone(&service.app));

    service.clock.advance(Duration::from_hours(24));
    sweeper.sweep().await;
    assert_eq!(service.count("recovery_session").await, 1, "a session is kept for a day after its end");
    assert_eq!(service.count("throttle").await, 0, "a full bucket is deleted");
    service.clock.advance(Duration::from_mins(26));
    sweeper.sweep().await;
    assert_eq!(service.count("recovery_session").await, 0);
    assert_eq!(service.count("audit_event").await, 2);
    service.clock.advance(Duration::from_hours(365 * 24));
    sweeper.sweep().await;
    assert_eq!(service.count("audit_event").await, 0);
    service.stops().await;
}
