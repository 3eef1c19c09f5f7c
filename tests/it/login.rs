//! Login, sessions, logout, known browsers. The ids are those of docs/catalogue.md.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use sqlx::PgPool;
use vos_auth::password::{Cost, Password};
use vos_auth::secret::{Key, Token};

use crate::harness::client::Answer;
use crate::harness::{Service, now};

const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";
const BUSY: &[&str] = &["--network-burst=1000000", "--network-per-minute=1000000", "--hashing-queue=1000"];

fn new_token() -> String {
    Token::issue(&Key::random("test"), "test/1", now()).expose()
}

/// What an attacker can compare: everything but the request id and the date.
fn comparable(answer: &Answer) -> (u16, String, Vec<(String, String)>) {
    let kept = answer.headers.iter().filter(|(name, _)| !["x-request-id", "date"].contains(&name.as_str()));
    let headers = kept.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
    (answer.status, answer.text.clone(), headers)
}

/// Whatever the cause, a failed login gets the same answer after a fixed time, and 429 after the
/// same number of attempts.
#[sqlx::test]
async fn l1_one_failure_for_every_cause(pool: PgPool) {
    let mut settings = BUSY.to_vec();
    settings.push("--login-failure-time=500ms");
    let service = Service::start_with_settings(&pool, &settings).await;
    for email in ["wrong@example.com", "disabled@example.com"] {
        service.has_trader(email, PASSWORD).await;
    }
    service.has_account("passwordless@example.com").await;
    // The time of a slow foreign hash must not show either.
    service.has_trader("foreign@example.com", PASSWORD).await;
    service.has_hash("foreign@example.com", &bcrypt::hash(PASSWORD, 8).unwrap()).await;
    sqlx::query("UPDATE account SET state = 'disabled' WHERE email LIKE 'disabled%'")
        .execute(&pool)
        .await
        .unwrap();
    let mut attempts = tokio::task::JoinSet::new();
    for name in ["unknown", "wrong", "disabled", "passwordless", "foreign"] {
        let email = format!("{name}@example.com");
        let password = if name == "disabled" { PASSWORD } else { "some other phrase of words" };
        let mut client = service.client();
        attempts.spawn(async move {
            let mut transcript = Vec::new();
            for n in 0..12 {
                let began = Instant::now();
                let answer = client.logs_in(&email, password).await;
                if n < 10 {
                    assert_eq!(answer.error(), (401, "credentials_invalid"), "{email}");
                    assert!(
                        began.elapsed() >= Duration::from_millis(500),
                        "{email}: the failure time is fixed"
                    );
                }
                transcript.push(comparable(&answer));
            }
            assert_eq!((transcript[9].0, transcript[10].0), (401, 429), "{email}");
            transcript
        });
    }
    let transcripts = attempts.join_all().await;
    let late = service.metric("vos_auth_late_login_failures_total").await;
    assert!(late < 0.5, "{late} failures took longer than the fixed time");
    for transcript in &transcripts {
        assert_eq!(transcript, &transcripts[0]);
    }
    service.stops().await;
}

/// Failures count per address, from any network; successes do not.
#[sqlx::test]
async fn l2_failures_are_throttled_and_a_known_browser_can_sign_in(pool: PgPool) {
    let mut settings = BUSY.to_vec();
    settings.push("--trusted-proxies=127.0.0.1/32");
    let service = Service::start_with_settings(&pool, &settings).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut known = service.client();
    for _ in 0..30 {
        assert!(known.logs_in(TRADER, PASSWORD).await.is_signed_in(), "successes are not counted");
    }
    let mut guesses = tokio::task::JoinSet::new();
    for n in 0..60 {
        let mut attacker = service.client().with("x-forwarded-for", &format!("203.0.113.{n}"));
        guesses.spawn(
            async move { attacker.logs_in(TRADER, &format!("guess number {n} of many")).await.status },
        );
    }
    let statuses = guesses.join_all().await;
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    assert!(count(401) <= 10 && count(401) + count(429) == 60, "{statuses:?}");
    // Logins that got no turn are not counted as failures.
    let mut evaluated = count(401);
    while service.client().logs_in(TRADER, "one more guess of many").await.status == 401 {
        evaluated += 1;
    }
    assert_eq!(evaluated, 10);
    // From an unknown browser, now even the right password is refused.
    let refused = service.client().logs_in(TRADER, PASSWORD).await;
    assert_eq!(refused.error(), (429, "login_throttled"));
    assert_eq!(refused.retry_after(), 300);
    assert!(known.logs_in(TRADER, PASSWORD).await.is_signed_in(), "the owner is not locked out");
    // The known browser has a bucket too, for that address only.
    for _ in 0..10 {
        assert_eq!(known.logs_in(TRADER, "not the password at all").await.status, 401);
    }
    assert_eq!(known.logs_in(TRADER, PASSWORD).await.status, 429);
    service.clock.advance(Duration::from_mins(5));
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    // Password spraying: 100 failures a day in the long run, and a burst of at most twice that.
    let mut evaluated = 0;
    for _ in 0..24 * 12 {
        for _ in 0..2 {
            evaluated +=
                usize::from(service.client().logs_in(TRADER, "not the password at all").await.status == 401);
        }
        service.clock.advance(Duration::from_mins(5));
    }
    assert!((100..=200).contains(&evaluated), "{evaluated}");
    service.stops().await;
}

/// A known browser can start a recovery while the buckets of address and network are empty.
#[sqlx::test]
async fn l2_a_known_browser_recovers_while_the_buckets_are_empty(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=8"]).await;
    for email in [TRADER, "other@example.com"] {
        service.has_trader(email, PASSWORD).await;
    }
    let mut known = service.client();
    assert!(known.logs_in(TRADER, PASSWORD).await.is_signed_in());
    for _ in 0..3 {
        assert!(service.client().starts_recovery(TRADER).await.is_code_sent());
    }
    assert_eq!(service.client().starts_recovery(TRADER).await.error(), (429, "address_throttled"));
    while service.client().starts_recovery("nobody@example.com").await.status != 429 {}
    assert_eq!(
        service.client().starts_recovery("nobody@example.com").await.error(),
        (429, "network_throttled")
    );
    service.until_outbox_has(0).await;
    let code = service.mails_code_to(&mut known, TRADER).await;
    assert!(known.verifies(&code).await.is_verified());
    assert!(known.resets(NEW).await.is_signed_in());
    // For another address, the cookie gives only a network bucket of its own.
    let mut stranger = service.client();
    stranger.device.clone_from(&known.device);
    for _ in 0..3 {
        assert!(stranger.starts_recovery("other@example.com").await.is_code_sent());
    }
    assert_eq!(stranger.starts_recovery("other@example.com").await.error(), (429, "address_throttled"));
    service.clock.advance(Duration::from_secs(10));
    let without = service.client().starts_recovery("other@example.com").await;
    assert_eq!(without.error(), (429, "address_throttled"), "the address's bucket was empty");
    service.clock.advance(Duration::from_secs(1));
    while service.client().starts_recovery("nobody@example.com").await.error().1 != "network_throttled" {}
    let mut forged = service.client();
    forged.device = Some(format!("__Host-vos_device={}", "A".repeat(64)));
    assert_eq!(forged.starts_recovery(TRADER).await.error(), (429, "network_throttled"));
    service.stops().await;
}

/// Each sign-in gives a new token. A planted one is never adopted, and the old one ends.
#[sqlx::test]
async fn l3_every_sign_in_has_a_new_token(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let planted = new_token();
    let mut client = service.client();
    client.token = Some(planted.clone());
    let first = client.logs_in(TRADER, PASSWORD).await.body["sessionToken"].clone();
    let second = client.logs_in(TRADER, PASSWORD).await.body["sessionToken"].clone();
    assert!(first != second && first != json!(planted));
    let before = client.clone();
    assert!(client.changes_password(PASSWORD, NEW).await.is_signed_in());
    assert_ne!(client.token, before.token);
    assert_eq!(before.refreshes().await.error(), (401, "session_invalid"));
    let mut planted_client = service.client();
    planted_client.token = Some(planted);
    assert_eq!(planted_client.refreshes().await.status, 401);
    service.stops().await;
}

/// Tokens have 128 random bits, are opaque, never repeat, and only their hashes are stored.
#[sqlx::test]
async fn l8_tokens_are_random_and_stored_hashed(pool: PgPool) {
    let tokens: HashSet<_> = (0..100_000).map(|_| new_token()).collect();
    assert_eq!(tokens.len(), 100_000);
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    client.logs_in(TRADER, PASSWORD).await;
    let token = client.token.clone().unwrap();
    assert_eq!(token.len(), 43);
    let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
    let stored = sqlx::query_scalar::<_, bool>(
        "SELECT bool_or(position($1 IN s::text) > 0 OR position(encode($2, 'hex') IN s::text) > 0) FROM session s",
    );
    assert!(!stored.bind(&token).bind(bytes).fetch_one(&pool).await.unwrap());
    service.stops().await;
}

/// Checks every Set-Cookie of the flow, including deletions.
#[sqlx::test]
async fn l9_every_cookie_has_every_attribute(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    let code = service.mails_code_to(&mut client, TRADER).await;
    let verified = client.verifies(&code).await;
    let reset = client.resets(NEW).await;
    let login = service.client().logs_in(TRADER, NEW).await;
    let changed = client.changes_password(NEW, PASSWORD).await;
    let lines = [&verified, &reset, &login, &changed].map(|answer| answer.headers.get_all("set-cookie"));
    let lines: Vec<_> = lines.iter().flatten().map(|line| line.to_str().unwrap().to_owned()).collect();
    assert_eq!(lines.len(), 5);
    for line in lines {
        let attributes: HashSet<_> =
            line.split("; ").skip(1).map(|part| part.split('=').next().unwrap()).collect();
        assert!(line.starts_with("__Host-vos_"), "{line}");
        assert_eq!(
            attributes,
            HashSet::from(["HttpOnly", "Secure", "SameSite", "Path", "Max-Age"]),
            "{line}"
        );
        assert!(line.contains("SameSite=Strict") && line.contains("Path=/;"), "{line}");
    }
    let year = reset.device_cookie().unwrap();
    assert!(year.ends_with("Max-Age=31536000"), "{year}");
    service.stops().await;
}

/// A foreign hash is verified, then rehashed on use.
#[sqlx::test]
async fn foreign_hashes_are_rehashed_on_use(pool: PgPool) {
    let service = Service::start(&pool).await;
    let hashes = [
        bcrypt::hash(PASSWORD, 4).unwrap(),
        // Hashes of `con meo treo cay cau` by Python's hashlib, in Kratos's formats.
        "$pbkdf2-sha256$i=1000,l=32$AAECAwQFBgcICQoLDA0ODw$1ais+Zz5CUXaRLw2+GrgweO3OApy5eAfNTy6HdYbqYA"
            .to_owned(),
        "$scrypt$ln=1024,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$cPsJpRNXzsFVdD6TOvXUn8kwnoJjd5+ZO9B5w3HALG4"
            .to_owned(),
    ];
    for (n, (hash, password)) in
        hashes.iter().zip([PASSWORD, "con meo treo cay cau", "con meo treo cay cau"]).enumerate()
    {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        service.has_hash(&email, hash).await;
        assert_eq!(service.client().logs_in(&email, "another one entirely").await.status, 401);
        let stored = async || {
            sqlx::query_scalar::<_, String>("SELECT password_hash FROM account WHERE email = $1")
                .bind(&email)
                .fetch_one(&pool)
                .await
                .unwrap()
        };
        assert_eq!(&stored().await, hash, "a failure changes nothing");
        assert!(service.client().logs_in(&email, password).await.is_signed_in());
        assert!(stored().await.starts_with("$argon2id$v=19$m=7168,t=1,p=1$"));
        assert!(service.client().logs_in(&email, password).await.is_signed_in());
    }
    service.stops().await;
}

/// Holds the row of the account until `call` waits for it, runs `meanwhile`, and commits.
async fn while_waiting(
    service: &Service,
    call: impl Future<Output = Answer> + Send + 'static,
    meanwhile: &'static str,
) -> Answer {
    let mut holding = service.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM account FOR UPDATE").execute(&mut *holding).await.unwrap();
    let calling = tokio::spawn(call);
    service
        .until("the request waits for the row", async || {
            let waiting = "pg_locks WHERE NOT granted AND pid IN
                (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
            service.count(waiting).await > 0
        })
        .await;
    sqlx::query(meanwhile).execute(&mut *holding).await.unwrap();
    holding.commit().await.unwrap();
    calling.await.unwrap()
}

/// The password is changed after the login has verified it, so the login fails.
#[sqlx::test]
async fn a_login_that_was_verified_before_a_reset_fails_after_it(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    let cheap = bcrypt::hash(PASSWORD, 4).unwrap();
    for stored in [Password::new(PASSWORD).hash(Cost { memory_kib: 7168, passes: 1, lanes: 1 }), cheap] {
        service.has_hash(TRADER, &stored).await;
        let mut client = service.client();
        let login = async move { client.logs_in(TRADER, PASSWORD).await };
        let answer = while_waiting(&service, login, "UPDATE account SET password_hash = 'another'").await;
        assert_eq!(answer.error(), (401, "credentials_invalid"));
        assert_eq!(service.count("account WHERE password_hash = 'another'").await, 1);
        assert_eq!(service.count("session").await, 0);
    }
    service.stops().await;
}

/// Parallel right logins on a hash that is rehashed: the later ones find another hash, and succeed.
#[sqlx::test]
async fn parallel_logins_on_a_foreign_hash_all_succeed(pool: PgPool) {
    let mut settings = BUSY.to_vec();
    // The logins wait for each other up to the failure time.
    settings.push("--login-failure-time=10s");
    let service = Service::start_with_settings(&pool, &settings).await;
    service.has_account(TRADER).await;
    for _ in 0..3 {
        service.has_hash(TRADER, &bcrypt::hash(PASSWORD, 6).unwrap()).await;
        let mut logins = tokio::task::JoinSet::new();
        for _ in 0..6 {
            let mut client = service.client();
            logins.spawn(async move { client.logs_in(TRADER, PASSWORD).await.status });
        }
        assert_eq!(logins.join_all().await, [200; 6]);
    }
    service.stops().await;
}

/// A device cookie expires after a year, and is renewed while it is used.
#[sqlx::test]
async fn a_known_browser_stays_known_while_it_is_used(pool: PgPool) {
    let service = Service::start_with_settings(&pool, BUSY).await;
    service.has_trader(TRADER, PASSWORD).await;
    let (mut used, mut unused) = (service.client(), service.client());
    for client in [&mut used, &mut unused] {
        assert!(client.logs_in(TRADER, PASSWORD).await.is_signed_in());
    }
    for month in 0..14 {
        service.clock.advance(Duration::from_hours(30 * 24));
        // Under constant attack an unknown browser could not sign in.
        for _ in 0..10 {
            assert_eq!(service.client().logs_in(TRADER, "not the password at all").await.status, 401);
        }
        assert!(used.logs_in(TRADER, PASSWORD).await.is_signed_in(), "month {month}");
    }
    assert_eq!(unused.logs_in(TRADER, PASSWORD).await.error(), (429, "login_throttled"));
    service.stops().await;
}

/// If a session ends while it changes the password, the change is refused.
#[sqlx::test]
async fn a_session_that_ended_meanwhile_changes_no_password(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    client.logs_in(TRADER, PASSWORD).await;
    let change = async move { client.changes_password(PASSWORD, NEW).await };
    let ended = "UPDATE session SET revoked_at = last_seen_at";
    let answer = while_waiting(&service, change, ended).await;
    assert_eq!(answer.error(), (401, "session_invalid"));
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in(), "the password is unchanged");
    service.stops().await;
}

/// A device cookie is valid only for the address that signed in with it.
#[sqlx::test]
async fn l2_a_cookie_of_another_address_gives_no_bucket_of_its_own(pool: PgPool) {
    let service = Service::start_with_settings(&pool, BUSY).await;
    for email in [TRADER, "other@example.com"] {
        service.has_trader(email, PASSWORD).await;
    }
    let mut client = service.client();
    client.logs_in("other@example.com", PASSWORD).await;
    for _ in 0..10 {
        assert_eq!(service.client().logs_in(TRADER, "not the password at all").await.status, 401);
    }
    assert_eq!(client.logs_in(TRADER, PASSWORD).await.error(), (429, "login_throttled"));
    service.stops().await;
}
