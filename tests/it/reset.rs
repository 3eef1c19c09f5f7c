//! `reset-password` over HTTP. The ids are those of docs/catalogue.md.

use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;
use unicode_normalization::UnicodeNormalization as _;

use crate::harness::Service;
use crate::harness::client::Client;
use crate::harness::relay::Mood;
use crate::verify::wrong;

const TRADER: &str = "trader@example.com";
const OLD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";

#[sqlx::test]
async fn a_reset_signs_in_and_clears_the_cookie(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, OLD).await;
    let mut client = service.verified(TRADER).await.with("user-agent", "curl/8.5.0");
    let answer = client.resets(NEW).await;
    assert!(answer.is_signed_in(), "{}", answer.text);
    let cleared = answer.set_cookie().unwrap();
    assert!(cleared.starts_with("__Host-vos_recovery=; ") && cleared.contains("Max-Age=0"), "{cleared}");
    assert!(client.device.is_some() && client.cookie.is_none());
    let body = &answer.body;
    assert_eq!(body["session"], body["tokenizedSession"]);
    assert_eq!(body["session"]["tokenized"], body["jwt"]);
    assert_eq!(body["session"]["identity"], body["identity"]);
    assert_eq!(body["identity"]["traits"]["email"], TRADER);
    let device = json!([{ "ip_address": "127.0.0.1", "location": "", "user_agent": "curl/8.5.0" }]);
    assert_eq!(body["session"]["devices"], device);
    assert!(client.refreshes().await.is_signed_in());
    assert!(service.client().logs_in(TRADER, NEW).await.is_signed_in());
    assert_eq!(service.client().logs_in(TRADER, OLD).await.error(), (401, "credentials_invalid"));
    service.stops().await;
}

/// The server keeps the state: no step can be skipped.
#[sqlx::test]
async fn r1_no_reset_without_a_verified_session(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, OLD).await;
    let mut client = service.client();
    assert_eq!(client.resets(NEW).await.error(), (401, "recovery_session_missing"));
    let code = service.mails_code_to(&mut client, TRADER).await;
    assert_eq!(client.resets(NEW).await.error(), (401, "recovery_session_unverified"));
    client.verifies(&wrong(&code)).await;
    assert_eq!(client.resets(NEW).await.error(), (401, "recovery_session_unverified"));
    for _ in 0..4 {
        client.verifies(&wrong(&code)).await;
    }
    assert_eq!(client.resets(NEW).await.error(), (401, "recovery_session_spent"));
    let mut late = service.verified(TRADER).await;
    service.clock.advance(Duration::from_secs(901));
    assert_eq!(late.resets(NEW).await.error(), (401, "recovery_session_expired"));
    assert!(service.client().logs_in(TRADER, OLD).await.is_signed_in(), "the password is unchanged");
    service.stops().await;
}

/// A reset ends all other access: sessions, and recoveries in any state.
#[sqlx::test]
async fn r2_a_reset_ends_every_other_session_and_recovery(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, OLD).await;
    let (mut one, mut two) = (service.client(), service.client());
    assert!(one.logs_in(TRADER, OLD).await.is_signed_in());
    assert!(two.logs_in(TRADER, OLD).await.is_signed_in());
    let (mut pending, mut verified) = (service.client(), service.client());
    let code = service.mails_code_to(&mut pending, TRADER).await;
    service.verifies_from(&mut verified, TRADER).await;
    let mut client = service.verified(TRADER).await;
    assert!(client.resets(NEW).await.is_signed_in());
    for session in [&one, &two] {
        assert_eq!(session.refreshes().await.error(), (401, "session_invalid"));
    }
    assert_eq!(pending.verifies(&code).await.attempts_left(), 4);
    assert_eq!(verified.resets("another phrase of some words").await.error(), (401, "recovery_session_used"));
    assert!(client.refreshes().await.is_signed_in());
    assert_eq!(client.get("/api/auth/sessions").await.body["sessions"].as_array().unwrap().len(), 1);
    service.stops().await;
}

/// One of several parallel resets on two replicas sets the password; only that password works.
#[sqlx::test]
async fn r3_parallel_resets_set_one_password(pool: PgPool) {
    let one = Service::start_with_settings(&pool, &["--network-burst=10000"]).await;
    let two = one.replica(&["--network-burst=10000"]).await;
    one.has_trader(TRADER, OLD).await;
    // From two recoveries: the reset of one also ends the other.
    let verified = [one.verified(TRADER).await, one.verified(TRADER).await];
    let mut resets = tokio::task::JoinSet::new();
    for n in 0..20 {
        let mut client = verified[n / 2 % 2].at(if n % 2 == 0 { one.address } else { two.address });
        resets.spawn(async move {
            let password = format!("night train number {n} in autumn rain");
            (client.resets(&password).await.status, password)
        });
    }
    let answers = resets.join_all().await;
    let won: Vec<_> = answers.iter().filter(|(status, _)| *status == 200).collect();
    assert_eq!(won.len(), 1, "{answers:?}");
    one.until_outbox_has(0).await;
    for (status, password) in &answers {
        let mut client = one.client();
        // Advancing the clock refills the address's bucket after each wrong password.
        client.device = None;
        one.clock.advance(Duration::from_mins(5));
        assert_eq!(client.logs_in(TRADER, password).await.is_signed_in(), *status == 200, "{password}");
    }
    one.until_outbox_has(0).await;
    assert_eq!(one.relay.mails().len(), 3, "two codes, one notice");
    two.stops().await;
    one.stops().await;
}

/// The account comes from the session only.
#[sqlx::test]
async fn r4_nothing_in_the_body_names_another_account(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, OLD).await;
    let mut client = service.verified(TRADER).await;
    for extra in ["userId", "email", "identifier", "account_id", "token"] {
        let body = json!({ "password": NEW, extra: "victim@example.com" }).to_string();
        let answer = client.post_json("/api/auth/recovery/reset-password", &body).await;
        assert_eq!(answer.error(), (400, "field_unknown"));
    }
    assert!(client.resets(NEW).await.is_signed_in(), "the session stays valid");
    service.stops().await;
}

/// The owner gets an email at the stored address, in their language, with time, device and advice.
#[sqlx::test]
async fn r5_the_owner_is_notified_and_the_email_is_kept_until_it_is_accepted(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, OLD).await;
    let agent = "Mozilla/5.0 (Windows NT 10.0) Firefox/140.0";
    for (n, language) in ["vi-VN", "en"].into_iter().enumerate() {
        let mut client = service.client().with("user-agent", agent).with("accept-language", language);
        service.verifies_from(&mut client, TRADER).await;
        service.relay.is_in_mood(Mood::RefusesRecipient("450 later"));
        let asked = 3 * n + 2;
        assert!(client.resets(NEW).await.is_signed_in());
        service.relay.until_asked(asked).await;
        service
            .until("the retry is noted", async || {
                service.count("outbox WHERE last_error = 'rcpt 450'").await == 1
            })
            .await;
        service.relay.is_in_mood(Mood::Takes);
        service.clock.advance(Duration::from_secs(2));
        let mail = service.relay.mail(2 * n + 2).await;
        service.until_outbox_has(0).await;
        assert_eq!(mail.recipients, [TRADER]);
        assert!(!mail.raw.contains(NEW) && !mail.raw.contains(agent), "{}", mail.raw);
        let parsed = mail.parsed();
        let (subject, device, contact) = match language {
            "en" => (
                "Your Vero OMS password was changed",
                "Firefox on Windows",
                "Contact us at support@verolabs.co",
            ),
            _ => (
                "Mật khẩu Vero OMS của bạn đã được thay đổi",
                "Firefox trên Windows",
                "Liên hệ với chúng tôi qua support@verolabs.co",
            ),
        };
        assert_eq!(parsed.subject(), Some(subject));
        for part in [mail.text(), mail.html()] {
            assert!(part.contains(device) && part.contains(TRADER) && part.contains("UTC+7"), "{part}");
        }
        assert!(mail.text().contains(contact), "{}", mail.text());
        assert!(mail.raw.contains("Auto-Submitted: auto-generated"));
    }
    assert_eq!(service.count("audit_event WHERE what = 'password_reset'").await, 2);
    assert_eq!(service.count("audit_event WHERE what = 'password_notice_sent'").await, 2);
    service.stops().await;
}

/// The commit wakes the courier: a notice does not wait for the next poll.
#[sqlx::test]
async fn a_notice_is_sent_at_once(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--outbox-poll-interval=1min"]).await;
    service.has_trader(TRADER, OLD).await;
    let mut client = service.verified(TRADER).await;
    assert!(client.resets(NEW).await.is_signed_in());
    service.relay.mail(2).await;
    service.stops().await;
}

async fn refused(client: &mut Client, password: &str) -> Option<String> {
    let answer = client.resets(password).await;
    (answer.status != 200).then(|| {
        let (status, error) = answer.error();
        assert_eq!((status, &answer.body["field"]), (400, &json!("password")), "{password}");
        error.to_owned()
    })
}

#[sqlx::test]
async fn r6_length_is_counted_in_code_points_and_a_refusal_costs_nothing(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    for (n, unit) in ["q8Wx2fLz9KmT7RvB3nYcJ5dHs4PgUe6a", "ẩừễộửằịỵởỹđỡựặỉếọạồủ"].iter().enumerate()
    {
        let of = |chars: usize| unit.chars().cycle().take(chars).collect::<String>();
        for (m, chars) in [15, 64, 256].into_iter().enumerate() {
            let email = format!("trader{n}{m}@example.com");
            service.has_account(&email).await;
            let mut client = service.verified(&email).await;
            let short = client.resets(&of(14)).await;
            assert_eq!(short.error(), (400, "password_too_short"));
            assert_eq!(short.body["min_characters"], 15);
            assert_eq!(refused(&mut client, &of(257)).await.as_deref(), Some("password_too_long"));
            assert_eq!(refused(&mut client, &of(chars)).await, None, "{chars}");
            assert!(service.client().logs_in(&email, &of(chars)).await.is_signed_in());
        }
    }
    service.stops().await;
}

/// A password is the same string from any keyboard, and every character counts.
#[sqlx::test]
async fn r7_passwords_are_normalised_and_never_truncated(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut client = service.verified(TRADER).await;
    let password = "ngày mai trời lại sáng, và con mèo trèo lên cây cau hỏi thăm chú chuột đi đâu vắng nhà";
    assert!(password.len() > 73);
    assert!(client.resets(&password.nfc().collect::<String>()).await.is_signed_in());
    let decomposed: String = password.nfd().collect();
    assert_ne!(decomposed, password);
    assert!(service.client().logs_in(TRADER, &decomposed).await.is_signed_in());
    let after_72_octets = password.char_indices().position(|(at, _)| at >= 73).unwrap();
    for place in [after_72_octets, password.chars().count() - 1] {
        let changed: String =
            password.chars().enumerate().map(|(n, c)| if n == place { 'Q' } else { c }).collect();
        assert_eq!(service.client().logs_in(TRADER, &changed).await.error(), (401, "credentials_invalid"));
    }
    service.stops().await;
}

/// Common, guessable and contextual passwords are refused, with advice in the client's language.
#[sqlx::test]
async fn r8_guessable_passwords_are_refused_with_advice(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    service.has_account("long.trader.name@example.com").await;
    let mut client = service.client().with("accept-language", "vi");
    service.verifies_from(&mut client, "long.trader.name@example.com").await;
    for password in [
        "passwordpassword",
        "123456789012345678",
        "qwertyuiopasdfgh",
        "aaaaaaaaaaaaaaaaaaaa",
        "iloveyouiloveyou",
        "mật khẩu của tôi",
        "verolabsverolabs",
        "VeroLabs2026!!!",
        "Vero OMS Vero OMS",
        "long.trader.name@example.com",
        "long.trader.name1",
        "example example example",
    ] {
        assert_eq!(refused(&mut client, password).await.as_deref(), Some("password_guessable"), "{password}");
    }
    let answer = client.resets("aaaaaaaaaaaaaaaaaaaa").await;
    let advice = answer.body["advice"].as_array().unwrap();
    assert!(advice.contains(&json!("Tránh lặp lại từ và ký tự.")), "{advice:?}");
    client.headers.clear();
    let answer = client.resets("aaaaaaaaaaaaaaaaaaaa").await;
    assert!(
        answer.body["advice"].as_array().unwrap().contains(&json!("Avoid repeated words and characters."))
    );
    assert!(client.resets(NEW).await.is_signed_in());
    service.stops().await;
}

/// A phrase of small letters and spaces is accepted, and works for years.
#[sqlx::test]
async fn r9_no_composition_rules_and_no_expiry(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let mut client = service.verified(TRADER).await;
    assert!(client.resets(NEW).await.is_signed_in());
    service.clock.advance(Duration::from_hours(3 * 365 * 24));
    assert!(service.client().logs_in(TRADER, NEW).await.is_signed_in());
    service.stops().await;
}

/// A password of 1 MB is refused unread. With a full queue, further requests are told to retry and
/// cost nothing, and /healthz still answers.
#[sqlx::test]
async fn r10_hashing_is_bounded(pool: PgPool) {
    let settings = [
        "--network-burst=10000",
        "--hashing-threads=1",
        "--hashing-queue=4",
        // Hashing is slow enough that requests meet in the queue.
        "--argon2-memory-kib=65536",
        "--argon2-passes=8",
    ];
    let service = Service::start_with_settings(&pool, &settings).await;
    let big = json!({ "password": "x".repeat(1_000_000) }).to_string();
    service.has_account(TRADER).await;
    let client = service.verified(TRADER).await;
    let path = "/api/auth/recovery/reset-password";
    assert_eq!(client.post_json(path, &big).await.error(), (400, "body_too_large"));

    let mut clients = Vec::new();
    for n in 0..30 {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        clients.push(service.verified(&email).await);
    }
    let mut resets = tokio::task::JoinSet::new();
    for mut client in clients.clone() {
        resets.spawn(async move { client.resets(NEW).await });
    }
    for _ in 0..20 {
        assert_eq!(service.client().get("/healthz").await.status, 200);
    }
    let answers = resets.join_all().await;
    let busy: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(!busy.is_empty() && busy.len() < 30, "{} of 30", busy.len());
    for answer in &busy {
        assert_eq!(answer.error(), (503, "hashing_busy"));
        assert!(answer.retry_after() >= 1);
    }
    // Nothing was consumed: the same sessions can try again.
    let mut done = 0;
    for client in &mut clients {
        match client.resets(NEW).await {
            answer if answer.is_signed_in() => done += 1,
            answer => assert_eq!(answer.error(), (401, "recovery_session_used")),
        }
    }
    assert_eq!(done, busy.len());
    assert!(service.metric("vos_auth_hashing_refused_total").await >= 1.0);
    service.stops().await;
}
