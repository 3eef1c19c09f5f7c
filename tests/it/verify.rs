//! `verify` over HTTP, with the code from the email. The ids are those of docs/catalogue.md.

use std::time::Duration;

use sqlx::PgPool;

use crate::harness::Service;

const TRADER: &str = "trader@example.com";

/// A code that is not `code`.
pub fn wrong(code: &str) -> String {
    let last = if code.ends_with('1') { '2' } else { '1' };
    format!("{}{last}", &code[..7])
}

#[sqlx::test]
async fn a_right_code_verifies_and_rotates_the_cookie(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut client = service.client();
    let code = service.mails_code_to(&mut client, TRADER).await;
    let before = client.clone();
    service.clock.advance(Duration::from_mins(9));
    let answer = client.verifies(&code).await;
    assert!(answer.is_verified(), "{}", answer.text);
    assert_eq!(answer.cookie_life(), 900, "15 minutes to choose a password");
    assert_ne!(client.cookie, before.cookie);
    // L3: each step gives a new token, and the old one is invalid.
    let mut old = before;
    assert_eq!(old.verifies(&code).await.error(), (401, "recovery_session_missing"));
    assert_eq!(old.resets("night train in autumn rain").await.error(), (401, "recovery_session_missing"));
    service.stops().await;
}

#[sqlx::test]
async fn a_code_is_accepted_in_every_spelling(pool: PgPool) {
    let service = Service::start(&pool).await;
    for (n, write) in [
        |left: &str, right: &str| format!("{left} {right}"),
        |left: &str, right: &str| format!("{left}-{right}"),
        |left: &str, right: &str| format!("  {left}\u{a0}{right}\n"),
        |left: &str, right: &str| {
            let wide = |c: char| char::from_u32(u32::from(c) - 0x30 + 0xff10).unwrap();
            left.chars().chain(right.chars()).map(wide).collect()
        },
    ]
    .iter()
    .enumerate()
    {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        let mut client = service.client();
        let code = service.mails_code_to(&mut client, &email).await;
        let typed = write(&code[..4], &code[4..]);
        assert!(client.verifies(&typed).await.is_verified(), "{typed:?}");
    }
    service.stops().await;
}

#[sqlx::test]
async fn anything_but_8_digits_spends_no_attempt(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut client = service.client();
    let code = service.mails_code_to(&mut client, TRADER).await;
    for typed in ["", "1234567", "123456789", "abcdefgh", "01:05: 1234 5678", "12345678\u{0}"] {
        let answer = client.verifies(typed).await;
        assert_eq!(answer.error(), (400, "code_malformed"), "{typed:?}");
        assert_eq!(answer.body["field"], "code");
    }
    // V6: a JSON number would lose leading zeros.
    for body in [r#"{"code":12345678}"#, r#"{"code":null}"#, "{}", "[", r#"{"code":"12345678","x":"y"}"#] {
        assert_eq!(client.post_json("/api/auth/recovery/verify", body).await.status, 400, "{body}");
    }
    assert_eq!(client.verifies(&wrong(&code)).await.attempts_left(), 4);
    assert!(client.verifies(&code).await.is_verified());
    service.stops().await;
}

/// The session is checked first: without a usable one, every body gets 401.
#[sqlx::test]
async fn without_a_session_the_answer_is_401_whatever_the_body_says(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut client = service.client();
    for body in ["", "{", "{}", r#"{"code":1}"#, r#"{"code":"x"}"#, r#"{"code":"12345678"}"#] {
        for path in ["/api/auth/recovery/verify", "/api/auth/recovery/reset-password"] {
            let answer = client.post_json(path, body).await;
            assert_eq!(answer.error(), (401, "recovery_session_missing"), "{path} {body}");
            assert_eq!(answer.set_cookie(), None);
        }
    }
    client.starts_recovery("nobody@example.com").await;
    service.clock.advance(Duration::from_secs(601));
    for body in ["{", r#"{"code":"12345678"}"#] {
        let answer = client.post_json("/api/auth/recovery/verify", body).await;
        assert_eq!(answer.error(), (401, "recovery_session_expired"));
    }
    service.stops().await;
}

/// Guesses count per address, over sessions, networks and resends; a new code refunds none.
#[sqlx::test]
async fn v1_guesses_are_bounded_per_address(pool: PgPool) {
    let settings =
        ["--network-burst=1000000", "--network-per-minute=1000000", "--trusted-proxies=127.0.0.1/32"];
    let service = Service::start_with_settings(&pool, &settings).await;
    service.has_account(TRADER).await;
    let (mut evaluated, mut sessions) = (0, 0);
    for step in 0..24 * 60 / 5 {
        for attacker in 0..3 {
            let network = format!("10.{}.{}.{attacker}", step / 256, step % 256);
            let mut client = service.client().with("x-forwarded-for", &network);
            if !client.starts_recovery(TRADER).await.is_code_sent() {
                continue;
            }
            sessions += 1;
            for guess in 0..8 {
                if guess == 3 {
                    client.starts_recovery(TRADER).await;
                }
                evaluated += usize::from(client.verifies("00000001").await.status == 400);
            }
        }
        service.clock.advance(Duration::from_mins(5));
    }
    assert!(sessions <= 19 && evaluated <= 95, "{sessions} sessions, {evaluated} guesses");
    assert!(evaluated >= 50, "the attack used its guesses: {evaluated}");
    service.stops().await;
}

/// Of 100 parallel wrong codes, 5 are compared. Of 50 parallel right ones, one verifies.
#[sqlx::test]
async fn v2_parallel_codes_are_counted_and_used_once(pool: PgPool) {
    let one = Service::start_with_settings(&pool, &["--network-burst=10000"]).await;
    let two = one.replica(&["--network-burst=10000"]).await;
    one.has_account(TRADER).await;
    let enter = async |client: &crate::harness::client::Client, code: &str, count: usize| {
        let mut entering = tokio::task::JoinSet::new();
        for n in 0..count {
            let mut client = client.at(if n % 2 == 0 { one.address } else { two.address });
            let code = code.to_owned();
            entering.spawn(async move {
                let answer = client.verifies(&code).await;
                (answer.status, answer.body["error"].as_str().unwrap_or_default().to_owned())
            });
        }
        entering.join_all().await
    };
    let mut client = one.client();
    let code = one.mails_code_to(&mut client, TRADER).await;
    let answers = enter(&client, &wrong(&code), 100).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 400).count(), 5, "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, error)| error == "recovery_session_spent").count(), 95);
    assert_eq!(client.clone().verifies(&code).await.error(), (401, "recovery_session_spent"));

    let mut client = one.client();
    let code = one.mails_code_to(&mut client, TRADER).await;
    let answers = enter(&client, &code, 50).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|(status, _)| [200, 401].contains(status)), "{answers:?}");
    two.stops().await;
    one.stops().await;
}

/// A code works only with the cookie of its start.
#[sqlx::test]
async fn v3_a_code_is_bound_to_its_session(pool: PgPool) {
    let service = Service::start(&pool).await;
    for email in [TRADER, "other@example.com"] {
        service.has_account(email).await;
    }
    let (mut a, mut b, mut c) = (service.client(), service.client(), service.client());
    let code_a = service.mails_code_to(&mut a, TRADER).await;
    let code_b = service.mails_code_to(&mut b, TRADER).await;
    service.mails_code_to(&mut c, "other@example.com").await;
    assert_eq!(b.verifies(&code_a).await.attempts_left(), 4);
    assert_eq!(c.verifies(&code_a).await.attempts_left(), 4);
    assert_eq!(service.client().verifies(&code_a).await.error(), (401, "recovery_session_missing"));
    assert!(a.verifies(&code_a).await.is_verified());
    assert!(b.verifies(&code_b).await.is_verified());
    service.stops().await;
}

#[sqlx::test]
async fn v4_a_code_works_once_and_for_ten_minutes(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut client = service.client();
    let code = service.mails_code_to(&mut client, TRADER).await;
    let replay = client.clone();
    assert!(client.verifies(&code).await.is_verified());
    assert_eq!(client.clone().verifies(&code).await.error(), (401, "recovery_session_used"));
    assert_eq!(replay.clone().verifies(&code).await.error(), (401, "recovery_session_missing"));

    let mut late = service.client();
    let code = service.mails_code_to(&mut late, TRADER).await;
    service.clock.advance(Duration::from_secs(599));
    assert_eq!(late.verifies(&wrong(&code)).await.attempts_left(), 4);
    service.clock.advance(Duration::from_secs(2));
    assert_eq!(late.verifies(&code).await.error(), (401, "recovery_session_expired"));
    service.stops().await;
}

#[sqlx::test]
async fn v5_a_resend_sends_the_same_code_and_refunds_no_attempt(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut client = service.client();
    let code = service.mails_code_to(&mut client, TRADER).await;
    assert_eq!(client.verifies(&wrong(&code)).await.attempts_left(), 4);
    let cookie = client.cookie.clone();
    service.clock.advance(Duration::from_mins(2));
    assert_eq!(service.mails_code_to(&mut client, TRADER).await, code);
    assert_eq!(client.cookie, cookie);
    // The session ends 10 minutes after the first start, not after the resend.
    service.clock.advance(Duration::from_secs(479));
    assert_eq!(client.verifies(&wrong(&code)).await.attempts_left(), 3);
    service.clock.advance(Duration::from_secs(2));
    assert_eq!(client.verifies(&code).await.error(), (401, "recovery_session_expired"));
    service.stops().await;
}

/// The digits of 10,000 derived codes are uniform in every place. The emails of 300 starts show
/// that the courier derives codes in the same way.
#[sqlx::test]
async fn v6_codes_are_uniform_and_keep_their_zeros(pool: PgPool) {
    let settings = ["--network-burst=1000000", "--smtp-connections=64"];
    let service = Service::start_with_settings(&pool, &settings).await;
    let mut starts = tokio::task::JoinSet::new();
    for n in 0..300 {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        let mut client = service.client();
        starts.spawn(async move { client.starts_recovery(&email).await.status });
    }
    assert!(starts.join_all().await.iter().all(|status| *status == 200));
    service.relay.mail(300).await;
    let mailed: std::collections::BTreeSet<_> =
        service.relay.mails().iter().map(crate::harness::relay::Mail::code).collect();
    let ids: Vec<uuid::Uuid> =
        sqlx::query_scalar("SELECT id FROM recovery_session").fetch_all(&pool).await.unwrap();
    let derive = |id: uuid::Uuid| service.keys.code(id).expose();
    assert_eq!(ids.iter().map(|id| derive(*id)).collect::<std::collections::BTreeSet<_>>(), mailed);
    let mut counts = [[0_u32; 10]; 8];
    for n in 0..10_000_u128 {
        let code = derive(uuid::Uuid::from_u128(n));
        assert_eq!(code.len(), 8);
        for (place, digit) in code.bytes().enumerate() {
            counts[place][usize::from(digit - b'0')] += 1;
        }
    }
    // Chi-square with 9 degrees of freedom: over 40 has a chance of under one in 100,000.
    for place in counts {
        let chi: f64 = place.iter().map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 40.0, "{place:?}");
    }
    service.stops().await;
}

/// Decoys of all kinds count down, resend, run out of attempts and expire as live sessions do.
#[sqlx::test]
async fn v7_decoys_behave_like_live_sessions(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    let kinds = ["live", "unknown", "disabled", "revoked", "passwordless"];
    let mut transcripts = Vec::new();
    for kind in kinds {
        let email = format!("{kind}@example.com");
        match kind {
            "unknown" => {}
            "passwordless" => service.has_account(&email).await,
            _ => service.has_trader(&email, "morning boat on a green river").await,
        }
        let mut client = service.client();
        let mut transcript = Vec::new();
        let mut step = |answer: crate::harness::client::Answer| {
            let mut names: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
            names.sort();
            let cookie = answer
                .set_cookie()
                .map(|cookie| (cookie.len(), cookie.split_once(';').unwrap().1.to_owned()));
            transcript.push((answer.status, answer.text.clone(), names, cookie));
        };
        let mut code = "00000000".to_owned();
        if kind == "live" || kind == "passwordless" || kind == "revoked" {
            code = service.mails_code_to(&mut client, &email).await;
        } else {
            if kind == "disabled" {
                sqlx::query("UPDATE account SET state = 'disabled' WHERE email = $1")
                    .bind(&email)
                    .execute(&pool)
                    .await
                    .unwrap();
            }
            assert!(client.starts_recovery(&email).await.is_code_sent());
        }
        if kind == "revoked" {
            let mut other = service.verified(&email).await;
            assert!(other.resets("night train in autumn rain").await.is_signed_in());
            service.until_outbox_has(0).await;
        } else {
            // Draws on the rate limit as the other recovery does in the `revoked` case.
            service.client().starts_recovery(&email).await;
        }
        service.until_outbox_has(0).await;
        step(client.verifies(&wrong(&code)).await);
        step(client.verifies("1").await);
        step(client.resets("night train in autumn rain").await);
        step(client.starts_recovery(&email).await);
        for _ in 0..5 {
            step(client.verifies(&wrong(&code)).await);
        }
        step(client.starts_recovery(&email).await);
        step(client.resets("night train in autumn rain").await);
        let mut other = service.client();
        other.cookie.clone_from(&client.cookie);
        service.until_outbox_has(0).await;
        service.clock.advance(Duration::from_secs(601));
        step(other.verifies(&wrong(&code)).await);
        transcripts.push(transcript);
    }
    for (kind, transcript) in kinds.iter().zip(&transcripts) {
        assert_eq!(transcript, &transcripts[0], "{kind}");
    }
    // Even the code derived from the session's id does not verify for an unknown address.
    let mut unknown = service.client();
    assert!(unknown.starts_recovery("nobody@example.com").await.is_code_sent());
    let id = sqlx::query_scalar("SELECT id FROM recovery_session WHERE email = 'nobody@example.com'");
    let code = service.keys.code(id.fetch_one(&pool).await.unwrap()).expose();
    assert_eq!(unknown.verifies(&code).await.attempts_left(), 4);
    // A code that was mailed before another reset does not verify.
    let email = "late@example.com";
    service.has_account(email).await;
    let mut revoked = service.client();
    let code = service.mails_code_to(&mut revoked, email).await;
    let mut other = service.verified(email).await;
    assert!(other.resets("night train in autumn rain").await.is_signed_in());
    assert_eq!(revoked.verifies(&code).await.attempts_left(), 4);
    service.stops().await;
}

/// Each step checks the account again: a disabled one has no right code and no reset.
#[sqlx::test]
async fn v7_an_account_that_is_disabled_after_its_email_cannot_continue(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut client = service.client();
    let code = service.mails_code_to(&mut client, TRADER).await;
    let set_state = async |state: &str| {
        sqlx::query("UPDATE account SET state = $1").bind(state).execute(&pool).await.unwrap();
    };
    set_state("disabled").await;
    assert_eq!(client.verifies(&code).await.attempts_left(), 4);
    set_state("active").await;
    assert!(client.verifies(&code).await.is_verified());
    set_state("disabled").await;
    assert_eq!(client.resets("night train in autumn rain").await.error(), (401, "recovery_session_used"));
    set_state("active").await;
    assert!(client.resets("night train in autumn rain").await.is_signed_in());
    service.stops().await;
}
