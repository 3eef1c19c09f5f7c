//! An operator looks at the outbox and the relays, with the built program.

use std::time::Duration;

use mail_parser::MessageParser;
use sqlx::PgPool;
use uuid::Uuid;
use vos_auth::outbox;

use crate::harness::program::run;
use crate::harness::relay::{Mood, Relay};
use crate::harness::{Service, database, now};

/// The program's stdout and stderr, and whether it succeeded.
fn vos_auth(arguments: &[&str], environment: &[(&str, &str)]) -> (String, String, bool) {
    let ended = run(arguments, environment);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(ended.stdout), text(ended.stderr), ended.status.success())
}

async fn enqueue_notice(service: &Service, email: &str) -> Uuid {
    let account: Uuid = sqlx::query_scalar("SELECT id FROM account WHERE email = $1")
        .bind(email)
        .fetch_one(&service.pool)
        .await
        .unwrap();
    let mut connection = service.pool.acquire().await.unwrap();
    outbox::enqueue_notice(&mut connection, now(), account, None, "curl", Duration::from_hours(24))
        .await
        .unwrap();
    let newest = "SELECT id FROM outbox ORDER BY id DESC LIMIT 1";
    sqlx::query_scalar(newest).fetch_one(&mut *connection).await.unwrap()
}

#[sqlx::test]
async fn a_notice_that_was_given_up_is_listed_and_can_be_retried(pool: PgPool) {
    let service = Service::start(&pool).await;
    let url = database::operator_url(&pool);
    let environment = [("DATABASE_URL", url.as_str())];
    let list = || vos_auth(&["outbox", "list"], &environment).0;
    assert_eq!(list().trim(), "no email is pending");
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::RefusesRecipient("550 5.1.1 no such user"));
    let id = enqueue_notice(&service, "trader@example.com").await;
    service.clock.advance(Duration::from_mins(1));
    service
        .until("the notice is given up", async || {
            service.count("outbox WHERE last_error = 'rcpt 550 5.1.1'").await == 1
        })
        .await;

    let listed = list();
    let row = listed.lines().find(|line| line.starts_with(&id.to_string())).unwrap();
    for part in ["password_changed", "given up", "rcpt 550 5.1.1"] {
        assert!(row.contains(part), "{row}");
    }
    assert!(!listed.contains("example.com"), "a list may be shared, so it has no address: {listed}");
    let shown = vos_auth(&["outbox", "show", &id.to_string()], &environment).0;
    for part in ["trader@example.com", "given up", "rcpt 550 5.1.1"] {
        assert!(shown.contains(part), "{shown}");
    }
    let given_up = "vos_auth_outbox_given_up{kind=\"password_changed\"}";
    service.until("the metric", async || service.metric(given_up).await > 0.5).await;

    service.relay.is_in_mood(Mood::Takes);
    let (said, _, ok) = vos_auth(&["outbox", "retry", "--given-up"], &environment);
    assert!(ok && said.starts_with("1 email is sent again"), "{said}");
    service.clock.advance(Duration::from_mins(1));
    service.relay.mail(1).await;
    service.until_outbox_has(0).await;
    let (said, _, _) = vos_auth(&["outbox", "retry", "--given-up"], &environment);
    assert!(said.starts_with("0 emails"), "{said}");
    let (_, why, ok) = vos_auth(&["outbox", "retry", &id.to_string()], &environment);
    assert!(!ok && why.contains("was sent"), "{why}");
    service.stops().await;
}

/// The courier retries a code until it expires, so an operator could only send an expired code.
#[sqlx::test]
async fn a_code_is_listed_and_cannot_be_retried(pool: PgPool) {
    let service = Service::start(&pool).await;
    let url = database::operator_url(&pool);
    let environment = [("DATABASE_URL", url.as_str())];
    service.has_account("trader@example.com").await;
    service.relay.is_in_mood(Mood::RefusesRecipient("450 4.2.0 later"));
    service.client().starts_recovery("trader@example.com").await;
    service
        .until("the retry is noted", async || {
            service.count("outbox WHERE last_error = 'rcpt 450 4.2.0'").await == 1
        })
        .await;
    let pending = "vos_auth_outbox_pending{kind=\"recovery_code\"}";
    service.until("the metric", async || service.metric(pending).await > 0.5).await;
    let id: Uuid = sqlx::query_scalar("SELECT id FROM outbox").fetch_one(&pool).await.unwrap();
    let listed = vos_auth(&["outbox", "list"], &environment).0;
    assert!(listed.contains(&id.to_string()) && listed.contains("recovery_code"), "{listed}");
    let before: (i32, time::OffsetDateTime) =
        sqlx::query_as("SELECT attempts, next_attempt_at FROM outbox").fetch_one(&pool).await.unwrap();
    let (_, why, ok) = vos_auth(&["outbox", "retry", &id.to_string()], &environment);
    assert!(!ok && why.contains("this is a code"), "{why}");
    let after: (i32, time::OffsetDateTime) =
        sqlx::query_as("SELECT attempts, next_attempt_at FROM outbox").fetch_one(&pool).await.unwrap();
    assert_eq!(before, after);
    let to = || {
        let shown = vos_auth(&["outbox", "show", &id.to_string()], &environment).0;
        shown.lines().find(|line| line.starts_with("to ")).unwrap().to_owned()
    };
    assert!(to().contains("trader@example.com"), "{}", to());
    for command in [&["disable", "--yes"][..], &["enable"]] {
        assert!(vos_auth(&[&["account"], command, &["trader@example.com"]].concat(), &environment).2);
    }
    assert!(to().contains("no recipient"), "the recovery has ended: {}", to());
    service.stops().await;
}

#[tokio::test]
async fn mail_test_prints_which_relays_accepted_the_email() {
    let (good, bad) = (Relay::start().await, Relay::start().await);
    bad.is_in_mood(Mood::RefusesRecipient("550 5.7.1 trader@example.com may not"));
    let gone = Relay::start().await;
    let relays = format!("{},{},{}", good.url(), bad.url(), gone.url());
    gone.goes_down().await;
    let test = tokio::task::spawn_blocking(move || {
        vos_auth(
            &["mail", "test", "--to", "trader@example.com", "--locale", "en"],
            &[("SMTP_RELAYS", relays.as_str())],
        )
    });
    let (said, why, ok) = test.await.unwrap();
    let lines: Vec<_> = said.lines().collect();
    assert!(
        lines[0].starts_with("relay 0 (127.0.0.1:") && lines[0].ends_with("accepted the email"),
        "{said}"
    );
    assert!(lines[1].contains("did not accept it: rcpt 550 5.7.1"), "{said}");
    assert!(lines[2].contains("did not accept it: connect (") && lines[2].contains("refused"), "{said}");
    assert!(!ok && why.contains("2 of 3 relays"), "{why}");
    let mail = good.mail(1).await;
    assert_eq!(mail.recipients, ["trader@example.com"]);
    assert!(mail.text().contains("There is nothing to do"));
}

/// `mail preview` needs no database, relay or secret, and writes the email as a relay would get it.
#[test]
fn mail_preview_writes_the_exact_email() {
    for (kind, locale, words) in [
        ("recovery_code", "vi", "Mã khôi phục"),
        ("recovery_code", "en", "recovery code"),
        ("password_changed", "vi", "đã được thay đổi"),
        ("password_changed", "en", "was changed"),
        ("ticket_given", "vi", "hỗ trợ khôi phục"),
        ("ticket_given", "en", "helped with the recovery"),
        ("email_changed", "vi", "Địa chỉ email"),
        ("email_changed", "en", "email address"),
        ("address_change", "vi", "sẽ được thay đổi"),
        ("address_change", "en", "will be changed"),
        ("new_address", "vi", "bằng địa chỉ này"),
        ("new_address", "en", "with this address"),
        ("test", "vi", "Email kiểm tra"),
        ("test", "en", "Test email"),
    ] {
        let file = format!("{}/preview-{kind}-{locale}.eml", env!("CARGO_TARGET_TMPDIR"));
        let arguments = ["mail", "preview", "--kind", kind, "--locale", locale];
        let (said, why, ok) = vos_auth(&[&arguments[..], &["--out", &file]].concat(), &[]);
        assert!(ok && said.is_empty(), "{why}");
        let written = std::fs::read(&file).unwrap();
        let mail = MessageParser::default().parse(&written).unwrap();
        assert!(
            mail.subject().unwrap().to_lowercase().contains(&words.to_lowercase()),
            "{:?}",
            mail.subject()
        );
        assert!(
            mail.body_text(0).is_some() && mail.body_html(0).unwrap().contains(&format!("lang=\"{locale}\""))
        );
        let (printed, _, _) = vos_auth(&arguments, &[]);
        assert_eq!(printed.lines().count(), written.split(|byte| *byte == b'\n').count() - 1);
    }
}
