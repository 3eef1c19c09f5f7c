//! The email itself: both languages, both parts, every header.

use std::sync::Arc;
use std::time::Duration;

use mail_parser::{Address, MimeHeaders as _, PartType};
use sqlx::PgPool;
use time::macros::datetime;
use uuid::Uuid;
use vos_auth::address_change::AddressChanges;
use vos_auth::admin::{self, EmailSet, Help};
use vos_auth::clock::ManualClock;
use vos_auth::email_address::EmailAddress;
use vos_auth::locale::Locale;

use crate::address_change::two_operators_agree;
use crate::harness::mail::Mail;
use crate::harness::{Service, Setup};

const CHROME: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36";

const NEW: &str = "sao hom tren doi thong gio";

async fn at_a_known_time(pool: &PgPool) -> Service {
    let clock = ManualClock::at(datetime!(2026-11-23 18:05:07 UTC));
    Service::start_with(pool, Setup { clock: Some(clock), ..Setup::default() }).await
}

/// An email as its reader sees it, without its random parts.
fn readable(mail: &Mail) -> String {
    let parsed = mail.parsed();
    let header = |name| parsed.header_raw(name).unwrap_or_default().trim().to_owned();
    let address = |address: Option<&Address<'_>>| {
        let address = address.unwrap().first().unwrap();
        format!("{} <{}>", address.name().unwrap_or_default(), address.address().unwrap())
    };
    let message_id = mail.message_id();
    let (_, domain) = message_id.split_once('@').unwrap();
    [
        format!("MAIL FROM: {}", mail.sender),
        format!("RCPT TO: {}", mail.recipients.join(", ")),
        format!("From: {}", address(parsed.from())),
        format!("To: {}", address(parsed.to())),
        format!("Date: {}", parsed.date().unwrap().to_rfc3339()),
        format!("Message-ID: […]@{domain}"),
        format!("Subject: {}", parsed.subject().unwrap()),
        format!("Auto-Submitted: {}", header("Auto-Submitted")),
        format!("X-Auto-Response-Suppress: {}", header("X-Auto-Response-Suppress")),
        format!("Content-Language: {}", header("Content-Language")),
        String::new(),
        mail.text().replace('\r', ""),
        String::new(),
        mail.html().replace('\r', ""),
    ]
    .join("\n")
}

/// The notices of an operator's help: of a ticket, and of another address.
async fn helped(service: &Service) -> (Mail, Mail) {
    let id: Uuid = sqlx::query_scalar("SELECT id FROM account").fetch_one(&service.pool).await.unwrap();
    let mut connection = service.pool.acquire().await.unwrap();
    let (now, keys) = (service.app.clock.now(), service.keys.clone().into());
    let help = Help::by_command(Duration::from_hours(24));
    let _ = admin::give_ticket(&mut connection, now, id, &keys, help).await.unwrap();
    let ticket = service.relay.mail(3).await;
    let moved = EmailAddress::parse("moved@example.com").unwrap();
    assert_eq!(admin::set_email(&mut connection, now, id, &moved, help).await.unwrap(), EmailSet::Set);
    (ticket, service.relay.mail(4).await)
}

/// All kinds of email in one language: the code, and the notices.
async fn emails_are_as_in_their_snapshots(pool: &PgPool, language: Locale) {
    let service = at_a_known_time(pool).await;
    service.has_account_in("trader@example.com", Some(language)).await;
    let other = if language == Locale::Vi { "en" } else { "vi" };
    let mut client = service.client().with("user-agent", CHROME).with("accept-language", other);
    let code = service.mails_code_to(&mut client, "trader@example.com").await;
    assert_eq!(client.verifies(&code).await.status, 200);
    assert!(client.resets(NEW).await.is_signed_in());

    let (sent, notice) = (service.relay.mail(1).await, service.relay.mail(2).await);
    let (ticket, moved) = helped(&service).await;
    let tag: &str = language.into();
    insta::with_settings!({ filters => [(r"\b\d{8}\b", "[code]")] }, {
        insta::assert_snapshot!(format!("recovery_code_{tag}"), readable(&sent));
        insta::assert_snapshot!(format!("password_changed_{tag}"), readable(&notice));
        insta::assert_snapshot!(format!("ticket_given_{tag}"), readable(&ticket));
        insta::assert_snapshot!(format!("email_changed_{tag}"), readable(&moved));
    });
    service.stops().await;
}

/// The emails of an address change in one language: to the stored address, and to the new one.
async fn emails_of_an_address_change_are_as_in_their_snapshots(pool: &PgPool, language: Locale) {
    let clock = ManualClock::at(datetime!(2026-11-23 18:05:07 UTC));
    let settings = ["--admin-addr=127.0.0.1:0", "--recovery-url=https://platform.verolabs.co/recovery"];
    let settings = settings.map(str::to_owned).into();
    let service = Service::start_with(pool, Setup { clock: Some(clock), settings, ..Setup::default() }).await;
    service.has_account_in("trader@example.com", Some(language)).await;
    let account = sqlx::query_scalar("SELECT id FROM account").fetch_one(pool).await.unwrap();
    two_operators_agree(pool, service.app.clock.now(), account, "new@example.com").await;
    let tag: &str = language.into();
    let told = service.relay.mail_to("trader@example.com", 1).await;
    service.until_outbox_has(0).await;
    service.clock.advance(Duration::from_hours(1));
    AddressChanges::new(Arc::clone(&service.app)).round().await;
    let new = service.relay.mail_to("new@example.com", 1).await;
    insta::assert_snapshot!(format!("address_change_{tag}"), readable(&told));
    insta::assert_snapshot!(format!("new_address_{tag}"), readable(&new));
    service.stops().await;
}

#[sqlx::test]
async fn the_vietnamese_emails_of_an_address_change_are_complete(pool: PgPool) {
    emails_of_an_address_change_are_as_in_their_snapshots(&pool, Locale::Vi).await;
}

#[sqlx::test]
async fn the_english_emails_of_an_address_change_are_complete(pool: PgPool) {
    emails_of_an_address_change_are_as_in_their_snapshots(&pool, Locale::En).await;
}

#[sqlx::test]
async fn a_vietnamese_email_is_complete(pool: PgPool) {
    emails_are_as_in_their_snapshots(&pool, Locale::Vi).await;
}

#[sqlx::test]
async fn an_english_email_is_complete(pool: PgPool) {
    emails_are_as_in_their_snapshots(&pool, Locale::En).await;
}

#[sqlx::test]
async fn the_language_is_the_accounts_else_the_requests(pool: PgPool) {
    let service = Service::start(&pool).await;
    for (n, (account, request, expected)) in [
        (Some(Locale::En), "vi", "Your Vero OMS recovery code"),
        (None, "en-US", "Your Vero OMS recovery code"),
        (None, "vi", "Mã khôi phục mật khẩu Vero OMS"),
        (None, "fr", "Mã khôi phục mật khẩu Vero OMS"),
    ]
    .into_iter()
    .enumerate()
    {
        let email = format!("trader{n}@example.com");
        service.has_account_in(&email, account).await;
        service.client().with("accept-language", request).starts_recovery(&email).await;
        assert_eq!(service.relay.mail(n + 1).await.parsed().subject(), Some(expected));
    }
    service.stops().await;
}

#[sqlx::test]
async fn the_code_is_once_in_each_part_and_never_in_the_subject(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account("trader@example.com").await;
    service.client().starts_recovery("trader@example.com").await;
    let mail = service.relay.mail(1).await;
    let code = mail.code();
    for part in [mail.text(), mail.html()] {
        assert_eq!(part.matches(&code).count(), 1);
        // Nothing before the code may look like 8 digits: phones offer the first match.
        let digits: String = part[..part.find(&code).unwrap()]
            .chars()
            .map(|c| if c.is_ascii_digit() { '9' } else { c })
            .collect();
        assert!(!digits.contains("9999 9999") && !digits.contains("99999999"), "{digits}");
    }
    let headers = mail.raw.split("\r\n\r\n").next().unwrap();
    assert!(!headers.contains(&code));
    assert!(!mail.parsed().subject().unwrap().bytes().any(|byte| byte.is_ascii_digit()));
    service.stops().await;
}

/// E9: automated email is marked as such, in the form that every relay accepts.
#[sqlx::test]
async fn e9_the_email_is_plain_ascii_multipart_with_encoded_headers(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account_in("trader@example.com", Some(Locale::Vi)).await;
    service.client().starts_recovery("trader@example.com").await;
    let mail = service.relay.mail(1).await;
    assert!(mail.raw.is_ascii());
    assert!(mail.raw.lines().all(|line| line.len() <= 998));
    let parsed = mail.parsed();
    let content_type = parsed.content_type().unwrap();
    assert_eq!((content_type.ctype(), content_type.subtype()), ("multipart", Some("alternative")));
    let parts: Vec<_> = parsed
        .parts
        .iter()
        .filter_map(|part| match &part.body {
            PartType::Text(_) => Some("text"),
            PartType::Html(_) => Some("html"),
            _ => None,
        })
        .collect();
    assert_eq!(parts, ["text", "html"], "the richest part comes last");
    service.stops().await;
}

#[sqlx::test]
async fn settings_appear_escaped_in_the_email(pool: PgPool) {
    let settings = [
        "--mail-brand=Tiger & <Sons>",
        "--mail-from=\"Tiger, Sons\" <codes@tiger.example>",
        "--mail-bounces=bounces@tiger.example",
        "--mail-support=help@tiger.example",
        "--mail-time-zone=Asia/Kolkata",
    ];
    let clock = ManualClock::at(datetime!(2026-11-23 18:05:07 UTC));
    let settings = settings.map(str::to_owned).to_vec();
    let service =
        Service::start_with(&pool, Setup { clock: Some(clock), settings, ..Setup::default() }).await;
    service.has_account_in("trader@example.com", Some(Locale::En)).await;
    service.client().starts_recovery("trader@example.com").await;
    let mail = service.relay.mail(1).await;
    assert_eq!(mail.sender, "bounces@tiger.example");
    assert_eq!(mail.parsed().subject(), Some("Your Tiger & <Sons> recovery code"));
    assert!(mail.text().contains("Tiger & <Sons>"));
    assert!(mail.html().contains("Tiger &#38; &#60;Sons&#62;"), "{}", mail.html());
    assert!(!mail.html().contains("<Sons>"));
    assert!(mail.text().contains("23:35, 23 Nov 2026 (Asia/Kolkata, UTC+5:30)"), "{}", mail.text());
    assert!(mail.message_id().ends_with("@tiger.example"));
    service.stops().await;
}

/// A relay need not support more than ASCII (RFC 6531 §3.2), in the envelope or in headers.
#[sqlx::test]
async fn a_sender_with_an_internationalised_domain_is_ascii_on_the_wire(pool: PgPool) {
    let settings = [
        "--mail-brand=Cửa hàng",
        "--mail-from=\"Cửa hàng, Sài Gòn\" <ma@bücher.example>",
        "--mail-bounces=bounces@trả-lại.example",
    ];
    let service = Service::start_with_settings(&pool, &settings).await;
    service.has_account_in("trader@example.com", Some(Locale::En)).await;
    service.client().starts_recovery("trader@example.com").await;
    let mail = service.relay.mail(1).await;
    assert_eq!(mail.sender, "bounces@xn--tr-li-m11bl.example");
    assert!(mail.raw.is_ascii(), "{}", mail.raw);
    let parsed = mail.parsed();
    let from = parsed.from().unwrap().first().unwrap();
    assert_eq!((from.name(), from.address()), (Some("Cửa hàng, Sài Gòn"), Some("ma@xn--bcher-kva.example")));
    assert_eq!(parsed.subject(), Some("Your Cửa hàng recovery code"));
    assert!(mail.message_id().ends_with("@xn--bcher-kva.example"));
    service.stops().await;
}

/// V6 for emails: each session has its own code, which always has 8 digits.
#[sqlx::test]
async fn v6_codes_differ_between_sessions_and_keep_leading_zeros(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000"]).await;
    let mut codes = std::collections::HashSet::new();
    for n in 0..60 {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        service.client().starts_recovery(&email).await;
        service.clock.advance(Duration::from_millis(10));
    }
    service.relay.mail(60).await;
    for mail in service.relay.mails() {
        codes.insert(mail.code());
    }
    assert_eq!(codes.len(), 60);
    assert!(codes.iter().all(|code| code.len() == 8));
    service.stops().await;
}

/// Without a domain for bounces, the sender is the configured address.
#[sqlx::test]
async fn bounces_go_to_the_configured_address(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--mail-bounces=bounces@example.com"]).await;
    service.has_account("trader@example.com").await;
    assert!(service.client().starts_recovery("trader@example.com").await.is_code_sent());
    assert_eq!(service.relay.mail(1).await.sender, "bounces@example.com");
    service.stops().await;
}
