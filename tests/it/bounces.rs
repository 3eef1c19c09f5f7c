//! Bounces: signed return paths, `vos-auth bounce`, and who sees the mark that it sets. One test
//! uses a bounce of a real Postfix; the others use messages in its format.

use std::fs;
use std::time::Duration;

use serde_json::Value;
use sqlx::PgPool;
use time::OffsetDateTime;
use uuid::Uuid;
use vos_auth::census::Census;
use vos_auth::mail::bounce;
use vos_auth::secret::{Key, Keys};

use crate::harness::client::Client;
use crate::harness::database::{OPERATOR, Proxy, SERVE, Way};
use crate::harness::postfix::{Postfix, Setup as PostfixSetup, can_run};
use crate::harness::program::{
    Program, SECRET, built, has_relay, run, run_under, run_with_input, serve_environment,
};
use crate::harness::relay::{Mail, Mood, Relay};
use crate::harness::{PATIENCE, Service, Setup, database, now};
use crate::verify::wrong;

const TRADER: &str = "trader@example.com";
const OTHER: &str = "other@example.com";

fn keys() -> Keys {
    SECRET.parse().unwrap()
}

/// A service that signs with the key of [`SECRET`], with accounts for [`TRADER`] and [`OTHER`].
async fn service(pool: &PgPool) -> Service {
    let settings = vec!["--mail-bounces=@bounces.example.com".to_owned()];
    let setup = Setup { settings, keys: Some(keys().newest().clone()), ..Setup::default() };
    let service = Service::start_with(pool, setup).await;
    for email in [TRADER, OTHER] {
        service.has_account(email).await;
    }
    service
}

async fn mail_to(service: &Service, client: &mut Client, email: &str) -> (Mail, String) {
    let code = service.mails_code_to(client, email).await;
    (service.relay.mails().pop().unwrap(), code)
}

/// The bounce of an email, in Postfix's format.
fn bounce_of(sender: &str, action: &str) -> String {
    format!(
        "Return-Path: <>\nReceived: by relay.example.com (Postfix)\n\tid 4Q; Mon, 23 Nov 2026 18:05:09 +0000 (UTC)\n\
         Date: Mon, 23 Nov 2026 18:05:09 +0000 (UTC)\nFrom: MAILER-DAEMON@relay.example.com (Mail Delivery System)\n\
         Subject: Undelivered Mail Returned to Sender\nTo: {sender}\nAuto-Submitted: auto-replied\nMIME-Version: 1.0\n\
         Content-Type: multipart/report; report-type=delivery-status;\n\tboundary=\"4Q.1/relay.example.com\"\n\n\
         --4Q.1/relay.example.com\nContent-Type: text/plain; charset=us-ascii\n\nI'm sorry to have to inform you.\n\n\
         --4Q.1/relay.example.com\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; relay.example.com\n\n\
         Final-Recipient: rfc822; trader@example.com\nAction: {action}\nStatus: 5.1.1\n\n\
         --4Q.1/relay.example.com\nContent-Type: message/rfc822\n\nSubject: Your code\n\n12345678\n\n\
         --4Q.1/relay.example.com--\n"
    )
}

/// The exit code and output of `vos-auth bounce` for a message.
fn report_by(url: &str, arguments: &[&str], message: &str) -> (i32, String) {
    let environment = [("DATABASE_URL", url), ("DEVICE_SECRETS", SECRET)];
    let ended = run_with_input(&[&["bounce"], arguments].concat(), &environment, message);
    let output = [ended.stdout, ended.stderr].concat();
    (ended.status.code().unwrap(), String::from_utf8(output).unwrap())
}

/// Runs `vos-auth bounce` in the operator's role.
fn report(pool: &PgPool, arguments: &[&str], message: &str) -> String {
    let (code, output) = report_by(&database::operator_url(pool), arguments, message);
    assert_eq!((code, output.lines().count()), (0, 1), "{output}");
    output
}

async fn bouncing_since(pool: &PgPool, email: &str) -> Option<OffsetDateTime> {
    let since = sqlx::query_scalar("SELECT bouncing_since FROM account WHERE email = $1").bind(email);
    since.fetch_one(pool).await.unwrap()
}

async fn id_of(pool: &PgPool, email: &str) -> Uuid {
    sqlx::query_scalar("SELECT id FROM account WHERE email = $1").bind(email).fetch_one(pool).await.unwrap()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// Waits until no email is pending: while one is pending, a resend adds none.
async fn until_sent(pool: &PgPool) {
    let count =
        async || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox").fetch_one(pool).await.unwrap();
    until("no mail is pending", async || count().await == 0).await;
}

/// The number of bounces in the audit log, of all accounts.
async fn recorded(pool: &PgPool) -> i64 {
    let count = sqlx::query_scalar("SELECT count(*) FROM audit_event WHERE what = 'email_bounced'");
    count.fetch_one(pool).await.unwrap()
}

fn shown(pool: &PgPool) -> Value {
    let url = database::operator_url(pool);
    let ended = run(&["account", "show", TRADER, "--json"], &[("DATABASE_URL", &url)]);
    let mut shown: Value = serde_json::from_slice(&ended.stdout).unwrap();
    shown["account"].take()
}

/// The shell block of docs/operate/bounces.md, with a test folder and the user `nobody`.
fn document(folder: &str, program: &str) -> String {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operate/bounces.md")).unwrap();
    let block = page.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    let lines = block.lines().filter(|line| !line.starts_with("useradd "));
    let lines = lines.collect::<Vec<_>>().join("\n");
    assert!(lines.contains("/etc/vos-auth/bounce") && lines.contains("/usr/bin/vos-auth "));
    lines
        .replace("domain=bounces.verolabs.co", "domain=bounces.example.com")
        .replace("-g vos-auth-bounce", "-g nogroup")
        .replace("user=vos-auth-bounce", "user=nobody")
        .replace("/etc/vos-auth", folder)
        .replace("/usr/bin/vos-auth ", &format!("{program} "))
}

/// The owner's mail server refuses the email. Postfix passes the bounce to `vos-auth bounce`.
#[sqlx::test]
async fn an_email_that_postfix_cannot_deliver_marks_its_account_until_a_right_code(pool: PgPool) {
    if !can_run() {
        return;
    }
    let owners = Relay::start().await;
    owners.is_in_mood(Mood::RefusesRecipient("550 5.1.1 no such mailbox"));
    let next_hop =
        owners.url().replace("smtp://", "").replace("?tls=none", "").replace("127.0.0.1", "[127.0.0.1]");
    let settings = format!("virtual_transport = smtp:{next_hop}");
    let mut postfix = Postfix::start(PostfixSetup { settings: &settings, ..PostfixSetup::default() });
    let (folder, program) = (postfix.home().join("vos-auth"), postfix.home().join("program"));
    fs::create_dir_all(folder.join("secrets")).unwrap();
    fs::copy(built(), &program).unwrap();
    // A proxy, because the user `nobody` cannot open the socket of the test's PostgreSQL.
    database::operator_url(&pool);
    let proxy = Proxy::before(&pool).await;
    fs::write(folder.join("secrets/operator-database-url"), proxy.url(&pool).replace(SERVE, OPERATOR))
        .unwrap();
    fs::write(folder.join("secrets/device-secrets"), SECRET).unwrap();
    postfix.is_set_up_by(&document(&folder.display().to_string(), &program.display().to_string()));
    postfix.is_killed();
    postfix.starts_again();

    Service::has_account_at(&pool, TRADER).await;
    let (url, relay, ca) = (database::service_url(&pool), postfix.url(), postfix.ca());
    let settings = [("SMTP_CA_FILE", ca.as_str()), ("MAIL_BOUNCES", "@bounces.example.com")];
    let mut serve = Program::start(&["serve"], &serve_environment(&url, &relay, &settings));
    let mut client = Client::new(serve.address());
    has_relay(&client).await;
    let until_logged = async |part: String| until(&part, async || postfix.log().contains(&part)).await;

    let id = id_of(&pool, TRADER).await;
    assert!(client.starts_recovery(TRADER).await.is_code_sent());
    until_logged(format!("the address of account {id} is marked as bouncing")).await;
    let since = bouncing_since(&pool, TRADER).await.expect("the account is marked");
    assert_eq!(shown(&pool)["bouncing_since"].as_str().unwrap()[..10], since.date().to_string());

    until_sent(&pool).await;
    assert!(client.starts_recovery(TRADER).await.is_code_sent(), "a marked account still gets emails");
    until_logged(format!("the address of account {id} was already marked as bouncing")).await;
    assert_eq!((bouncing_since(&pool, TRADER).await, recorded(&pool).await), (Some(since), 1));

    until_sent(&pool).await;
    owners.is_in_mood(Mood::Takes);
    assert!(client.starts_recovery(TRADER).await.is_code_sent());
    let mail = owners.mail(1).await;
    assert!(client.verifies(&mail.code()).await.is_verified());
    assert_eq!((shown(&pool)["bouncing_since"].clone(), recorded(&pool).await), (Value::Null, 1));
}

#[sqlx::test]
async fn operators_see_the_mark_and_only_a_right_code_clears_it(pool: PgPool) {
    let service = service(&pool).await;
    let mut client = service.client();
    let (mail, code) = mail_to(&service, &mut client, TRADER).await;
    assert!(mail.sender.ends_with("@bounces.example.com") && mail.sender.len() == 52 + 20, "{}", mail.sender);
    let census = async || {
        Census::new(service.app.clone()).round(Duration::ZERO).await;
        service.metric("vos_auth_bouncing_accounts").await
    };
    assert!(census().await < 0.5);
    let output = report(&pool, &[], &bounce_of(&mail.sender, "failed"));
    assert!(output.starts_with("the address of account ") && !output.contains('@'), "{output}");
    assert!((census().await - 1.0).abs() < 0.5);
    assert!(bouncing_since(&pool, TRADER).await.is_some() && bouncing_since(&pool, OTHER).await.is_none());
    let url = database::operator_url(&pool);
    let lines = run(&["account", "show", TRADER], &[("DATABASE_URL", &url)]).stdout;
    assert!(String::from_utf8(lines).unwrap().contains("\nbouncing  20"));

    assert_eq!(client.verifies(&wrong(&code)).await.attempts_left(), 4);
    assert!(bouncing_since(&pool, TRADER).await.is_some(), "a wrong code does not clear the mark");
    // Another owner's code does not clear the mark either.
    service.verified(OTHER).await;
    assert!(bouncing_since(&pool, TRADER).await.is_some());
    assert!(client.verifies(&code).await.is_verified());
    assert_eq!(bouncing_since(&pool, TRADER).await, None);
    assert!(census().await < 0.5);
    assert_eq!(recorded(&pool).await, 1);
    // A later bounce is recorded again.
    report(&pool, &[], &bounce_of(&mail.sender, "failed"));
    assert_eq!(recorded(&pool).await, 2);
    service.stops().await;
}

/// Anything but a failure report to a valid signed address of the account changes nothing.
#[sqlx::test]
async fn only_a_failure_at_an_address_signed_by_the_service_counts(pool: PgPool) {
    let service = service(&pool).await;
    let (mail, _) = mail_to(&service, &mut service.client(), TRADER).await;
    let (id, local) = (id_of(&pool, TRADER).await, mail.sender.split_once('@').unwrap().0);
    let sign = |key: &Key, email, days_ago: u64| {
        let at = now() - Duration::from_hours(24 * days_ago);
        format!("{}@bounces.example.com", bounce::sign(key, id, email, at))
    };
    let (keys, stranger) = (keys(), Key::random("test"));
    for sender in [
        "bounces@bounces.example.com",
        "",
        "no-address",
        &sign(&stranger, TRADER, 0),
        &sign(keys.newest(), TRADER, 9),
        &sign(keys.newest(), "moved@example.com", 0),
        &format!("{}@bounces.example.com", &local[1..]),
        // With the MAC of another account's address.
        &format!(
            "{}{}",
            &bounce::sign(keys.newest(), id_of(&pool, OTHER).await, OTHER, now())[..30],
            &mail.sender[30..]
        ),
    ] {
        let bounce = bounce_of(sender, "failed");
        for arguments in [&[][..], &["--recipient", sender]] {
            assert!(report(&pool, arguments, &bounce).starts_with("ignored: "), "{sender}");
        }
    }
    for action in ["delayed", "relayed", "delivered", "expanded"] {
        let output = report(&pool, &[], &bounce_of(&mail.sender, action));
        assert!(output.contains("does not report a failed delivery"), "{output}");
    }
    let signed = bounce_of(&mail.sender, "failed");
    for message in [
        signed.replace("multipart/report", "multipart/mixed"),
        format!(
            "To: {}\nSubject: Re: Your code\nAuto-Submitted: auto-replied\n\nAction: failed\n",
            mail.sender
        ),
        // The signed address is in the report only.
        signed
            .replace(&format!("To: {}", mail.sender), "To: postmaster@example.com")
            .replace(TRADER, &mail.sender),
        "\u{1b}]0;title\u{7}".repeat(1000),
        String::new(),
    ] {
        assert!(report(&pool, &[], &message).starts_with("ignored: "), "{message}");
    }
    // The recipient that the mail server names decides; the message's headers are ignored.
    assert!(report(&pool, &["--recipient", "x@y.example"], &signed).starts_with("ignored: "));
    assert_eq!((bouncing_since(&pool, TRADER).await, bouncing_since(&pool, OTHER).await), (None, None));
    assert_eq!(recorded(&pool).await, 0);
    service.stops().await;
}

#[sqlx::test]
async fn a_bounce_is_accepted_in_every_form_of_delivery(pool: PgPool) {
    let service = service(&pool).await;
    let (mail, _) = mail_to(&service, &mut service.client(), TRADER).await;
    let signed = bounce_of(&mail.sender, "failed");
    let elsewhere = bounce_of("postmaster@example.com", "failed");
    let [delivered, original, envelope] = ["Delivered-To", "X-Original-To", "Envelope-To"]
        .map(|name| format!("{name}: {}\n{elsewhere}", mail.sender.to_uppercase()));
    for (arguments, message) in [
        (&["--recipient", &mail.sender][..], &elsewhere),
        (&["--recipient", "-f@example.com", &mail.sender.to_uppercase()], &elsewhere),
        (&[], &delivered),
        (&[], &original),
        (&[], &envelope),
        (&[], &signed.replace('\n', "\r\n")),
    ] {
        let output = report(&pool, arguments, message);
        assert!(output.starts_with("the address of account "), "{arguments:?} {output}");
        sqlx::query("UPDATE account SET bouncing_since = NULL").execute(&pool).await.unwrap();
    }
    // The command reads past the megabyte that it parses: to Postfix, a closed pipe is a failure.
    let file = format!("{}/large-bounce.eml", env!("CARGO_TARGET_TMPDIR"));
    fs::write(&file, format!("{signed}{}", "12345678\n".repeat(400_000))).unwrap();
    let script = "set -o pipefail; cat \"$FILE\" | \"$0\" bounce";
    let url = database::operator_url(&pool);
    let settings = [("DATABASE_URL", url.as_str()), ("DEVICE_SECRETS", SECRET), ("FILE", &file)];
    let ended = run_under(&["bash", "-c", script], &[], &settings);
    assert!(ended.status.success() && bouncing_since(&pool, TRADER).await.is_some(), "{ended:?}");
    service.stops().await;
}

/// Exit codes tell Postfix which messages to keep and which to drop.
#[sqlx::test]
async fn the_mail_server_is_told_to_retry_while_postgresql_is_unavailable(pool: PgPool) {
    let service = service(&pool).await;
    let (mail, _) = mail_to(&service, &mut service.client(), TRADER).await;
    let signed = bounce_of(&mail.sender, "failed");
    database::operator_url(&pool);
    let proxy = Proxy::before(&pool).await;
    let url = proxy.url(&pool).replace(SERVE, OPERATOR);
    proxy.is(Way::Cut);
    let url_of_proxy = url.clone();
    let [bounce, forged] = [signed.clone(), bounce_of("bounces@bounces.example.com", "failed")];
    let (bounce, forged) = tokio::task::spawn_blocking(move || {
        (report_by(&url_of_proxy, &[], &bounce), report_by(&url_of_proxy, &[], &forged))
    })
    .await
    .unwrap();
    assert_eq!(bounce.0, 75, "{}", bounce.1);
    assert!(
        bounce.1.starts_with("vos-auth: PostgreSQL cannot store the bounce now: ") && !bounce.1.contains('@'),
        "{}",
        bounce.1
    );
    assert_eq!(forged.0, 0, "a forged bounce needs no database: {}", forged.1);
    for (name, value) in [
        ("DEVICE_SECRETS", ""),
        ("DEVICE_SECRETS", "weak"),
        ("DATABASE_URL", "mysql:x"),
        ("DATABASE_URL", ""),
    ] {
        let settings = [("DATABASE_URL", url.as_str()), ("DEVICE_SECRETS", SECRET), (name, value)];
        let ended = run_with_input(&["bounce"], &settings, &signed);
        let output = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(75), "{output}");
        assert!(output.starts_with(&format!("vos-auth: {name} ")), "{output}");
    }
    proxy.is(Way::Open);
    let retried = tokio::task::spawn_blocking(move || report_by(&url, &[], &signed)).await.unwrap();
    assert_eq!(retried.0, 0, "{}", retried.1);
    assert!(bouncing_since(&pool, TRADER).await.is_some());
    service.stops().await;
}

/// The account has a new address: bounces of the former one do not mark it.
#[sqlx::test]
async fn a_changed_address_has_no_mark(pool: PgPool) {
    let service = service(&pool).await;
    let (mail, _) = mail_to(&service, &mut service.client(), TRADER).await;
    let before: Value = shown(&pool)["updated_at"].clone();
    report(&pool, &[], &bounce_of(&mail.sender, "failed"));
    assert_eq!(shown(&pool)["updated_at"], before, "an import may still change the account");
    let url = database::operator_url(&pool);
    let moved = run(&["account", "set-email", TRADER, "moved@example.com"], &[("DATABASE_URL", &url)]);
    assert!(moved.status.success());
    assert_eq!(bouncing_since(&pool, "moved@example.com").await, None);
    let output = report(&pool, &[], &bounce_of(&mail.sender, "failed"));
    assert!(output.contains("has another address now"), "{output}");
    assert_eq!(bouncing_since(&pool, "moved@example.com").await, None);
    let erased = run(&["account", "erase", "moved@example.com", "--yes"], &[("DATABASE_URL", &url)]);
    assert!(erased.status.success());
    assert!(report(&pool, &[], &bounce_of(&mail.sender, "failed")).contains("the account was erased"));
    assert_eq!(recorded(&pool).await, 1);
    service.stops().await;
}

/// A marked address gets the same answers, cookies and emails as any other.
#[sqlx::test]
async fn the_mark_stops_no_email_and_no_client_sees_it(pool: PgPool) {
    let service = service(&pool).await;
    sqlx::query("UPDATE account SET bouncing_since = $1 WHERE email = $2")
        .bind(now())
        .bind(TRADER)
        .execute(&pool)
        .await
        .unwrap();
    let mut transcripts = Vec::new();
    for email in [TRADER, OTHER] {
        let mut client = service.client();
        let mut transcript = Vec::new();
        let mut step = |answer: crate::harness::client::Answer| {
            let mut names: Vec<_> = answer.headers.keys().map(ToString::to_string).collect();
            names.sort();
            transcript.push((answer.status, answer.text.clone(), names));
        };
        service.until_outbox_has(0).await;
        let before = service.relay.mails().len();
        step(client.starts_recovery(email).await);
        let mail = service.relay.mail(before + 1).await;
        step(client.verifies(&wrong(&mail.code())).await);
        step(client.verifies(&mail.code()).await);
        transcripts.push(transcript);
    }
    assert_eq!(transcripts[0], transcripts[1]);
    service.stops().await;
}
