//! The courier and a real Postfix, with SASL and a certificate of a private CA.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use vos_auth::account::{self, CreateError, NewAccount};
use vos_auth::email_address::EmailAddress;

use crate::harness::client::Client;
use crate::harness::postfix::{PASSWORD, Postfix, Setup, can_run};
use crate::harness::program::{Program, run, serve_environment};
use crate::harness::{PATIENCE, database, metric, now};

pub const TRADER: &str = "trader@example.com";

/// The built program, and a client of it.
pub struct Host {
    pub program: Program,
    pub client: Client,
    pub metrics: std::net::SocketAddr,
}

impl Host {
    /// Starts the program with the relay at the URL `relay`.
    pub async fn start(pool: &PgPool, relay: &str, settings: &[(&str, &str)]) -> Self {
        let email = EmailAddress::parse(TRADER).unwrap();
        let new = NewAccount { email, locale: None, traits: serde_json::Map::new(), password_hash: None };
        match account::create(&mut pool.acquire().await.unwrap(), now(), new, None).await {
            Ok(_) | Err(CreateError::EmailTaken) => {}
            Err(error) => panic!("{error}"),
        }
        let url = database::service_url(pool);
        let mut program = Program::start(&["serve"], &serve_environment(&url, relay, settings));
        let (address, metrics) = (program.address(), program.metrics_address());
        Self { program, client: Client::new(address), metrics }
    }

    pub async fn until_mail_is(&self, state: &str) {
        let found = async { while self.client.get("/readyz").await.body["parts"]["mail"] != state {} };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("mail was never {state}"));
    }

    pub async fn starts(&mut self) {
        assert!(self.client.starts_recovery(TRADER).await.is_code_sent());
    }

    pub async fn retried(&self) -> f64 {
        metric(self.metrics, "vos_auth_mails_total{outcome=\"retried\"").await
    }

    /// Stops the program, and gives its log.
    pub fn log(self) -> String {
        self.program.signal("-TERM");
        self.program.ends().0.join("\n")
    }
}

/// The output of `vos-auth mail test`, and whether it succeeded.
pub fn mail_test(relay: &str, settings: &[(&str, &str)]) -> (String, bool) {
    let environment = [&[("SMTP_RELAYS", relay)], settings].concat();
    let ended = run(&["mail", "test", "--to", TRADER], &environment);
    let output = [ended.stdout, ended.stderr].concat();
    (String::from_utf8(output).unwrap(), ended.status.success())
}

/// STARTTLS or TLS from the first byte, a private CA, AUTH PLAIN or LOGIN: whatever Postfix offers.
#[sqlx::test]
async fn tls_and_auth_of_every_kind(pool: PgPool) {
    if !can_run() {
        return;
    }
    for (mechanisms, implicit) in [("PLAIN", false), ("LOGIN", false), ("PLAIN LOGIN", true)] {
        let postfix = Postfix::start(Setup { mechanisms, implicit, ..Setup::default() });
        let (ca, relay) = (postfix.ca(), postfix.url());
        let mut host = Host::start(&pool, &relay, &[("SMTP_CA_FILE", &ca)]).await;
        host.until_mail_is("ok").await;
        host.starts().await;
        let mail = postfix.mails(1).remove(0);
        assert!(mail.contains("Authenticated sender: courier"), "{mechanisms} {implicit}: {mail}");
        assert!(mail.contains("(using TLSv1.3"), "{mechanisms} {implicit}: {mail}");
        assert!(mail.contains(&format!("X-Original-To: {TRADER}")));
        let (output, ok) = mail_test(&relay, &[("SMTP_CA_FILE", &ca)]);
        assert!(ok, "{mechanisms} {implicit}: {output}");
        postfix.mails(2);
        assert!(host.retried().await < 0.5);
    }
}

#[sqlx::test]
async fn a_wrong_password_is_reported_and_never_shown(pool: PgPool) {
    if !can_run() {
        return;
    }
    let postfix = Postfix::start(Setup::default());
    let (ca, relay) = (postfix.ca(), postfix.url_with("not the password"));
    let began = Instant::now();
    let mut host = Host::start(&pool, &relay, &[("SMTP_CA_FILE", &ca)]).await;
    host.program.line_with("relay is not usable");
    host.until_mail_is("unavailable").await;
    assert_eq!(host.client.starts_recovery(TRADER).await.error(), (502, "mail_unavailable"));
    let (output, ok) = mail_test(&relay, &[("SMTP_CA_FILE", &ca)]);
    assert!(!ok && output.contains("auth 535"), "{output}");
    // A relay may block clients after many wrong passwords: the probe tries every 10 s only.
    while began.elapsed() < Duration::from_secs(4) {
        host.until_mail_is("unavailable").await;
    }
    let refused =
        postfix.log().lines().filter(|line| line.contains("]: > ") && line.contains("]: 535 ")).count();
    assert!((2..4).contains(&refused) || began.elapsed() > Duration::from_secs(10), "{refused}");
    let log = host.log();
    assert!(log.contains("auth 535"), "{log}");
    for text in [output, log] {
        assert!(!text.contains("not the password") && !text.contains("not%20the"), "{text}");
    }
}

/// A certificate of an unknown CA, one for another host, and no TLS: the error names the cause, and
/// nothing is sent unencrypted after STARTTLS.
#[sqlx::test]
async fn a_refused_certificate_is_named_and_nothing_is_sent_unencrypted(pool: PgPool) {
    if !can_run() {
        return;
    }
    let cases = [
        ("localhost", false, "", false, "UnknownIssuer"),
        ("relay.example.net", true, "", false, "not valid for name"),
        ("localhost", true, "smtpd_tls_security_level = none", false, "tls"),
        ("localhost", false, "", true, "tls (invalid peer certificate: UnknownIssuer"),
        ("relay.example.net", true, "", true, "not valid for name"),
    ];
    for (name, trusted, settings, implicit, why) in cases {
        let postfix = Postfix::start(Setup { implicit, name, settings, ..Setup::default() });
        let (ca, relay) = (postfix.ca(), postfix.url());
        let settings: &[_] = if trusted { &[("SMTP_CA_FILE", ca.as_str())] } else { &[] };
        let mut host = Host::start(&pool, &relay, settings).await;
        let line = host.program.line_with(why);
        assert!(line.contains("relay is not usable"), "{line}");
        assert_eq!(host.client.starts_recovery(TRADER).await.error(), (502, "mail_unavailable"));
        // `mail test` tries to send, whatever the probe's result.
        let (output, ok) = mail_test(&relay, settings);
        assert!(!ok && output.contains(why), "{output}");
        if !implicit {
            postfix.until_it_logs("< localhost[127.0.0.1]: EHLO");
        }
        let log = postfix.log();
        for word in ["MAIL FROM", "RCPT TO", "AUTH ", "DATA", TRADER] {
            let received = log.lines().find(|line| line.contains("]: < ") && line.contains(word));
            assert_eq!(received, None, "{name} {why}");
        }
        drop(host.log());
    }
}

/// RFC 6647: an email deferred with 450 is retried, and arrives once.
#[sqlx::test]
async fn greylisting_delays_an_email_and_loses_none(pool: PgPool) {
    if !can_run() {
        return;
    }
    let policy = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings =
        format!("smtpd_recipient_restrictions = check_policy_service inet:{}", policy.local_addr().unwrap());
    std::thread::spawn(move || greylist(&policy));
    let postfix = Postfix::start(Setup { settings: &settings, ..Setup::default() });
    let ca = postfix.ca();
    let mut host = Host::start(&pool, &postfix.url(), &[("SMTP_CA_FILE", &ca)]).await;
    host.until_mail_is("ok").await;
    host.starts().await;
    assert_eq!(postfix.mails(1).len(), 1);
    let retried = metric(host.metrics, "vos_auth_mails_total{outcome=\"retried\",stage=\"rcpt\"").await;
    assert!((retried - 1.0).abs() < 0.5, "{retried}");
}

/// Speaks Postfix's policy protocol: defers the first recipient, and accepts all later ones.
fn greylist(listener: &TcpListener) {
    let known = Arc::<AtomicBool>::default();
    for stream in listener.incoming() {
        let (mut stream, known) = (BufReader::new(stream.unwrap()), Arc::clone(&known));
        std::thread::spawn(move || {
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|read| read > 0) {
                if line == "\n" {
                    let pass = known.swap(true, Ordering::Relaxed);
                    let answer =
                        if pass { "action=DUNNO\n\n" } else { "action=DEFER_IF_PERMIT greylisted\n\n" };
                    stream.get_mut().write_all(answer.as_bytes()).unwrap();
                }
                line.clear();
            }
        });
    }
}

/// The relay closes an idle connection without a word; the next email costs no attempt.
#[sqlx::test]
async fn an_idle_connection_that_the_relay_closes_costs_no_attempt(pool: PgPool) {
    if !can_run() {
        return;
    }
    let postfix = Postfix::start(Setup { settings: "smtpd_timeout = 1s", ..Setup::default() });
    let ca = postfix.ca();
    let settings = [("SMTP_CA_FILE", ca.as_str()), ("SMTP_IDLE", "1h"), ("SMTP_PROBE_INTERVAL", "1m")];
    let mut host = Host::start(&pool, &postfix.url(), &settings).await;
    host.until_mail_is("ok").await;
    host.starts().await;
    postfix.mails(1);
    postfix.until_it_logs("timeout after END-OF-MESSAGE");
    host.client.cookie = None;
    host.starts().await;
    postfix.mails(2);
    assert!(host.retried().await < 0.5);
}

/// RFC 5321 §4.1.1.10: QUIT ends every conversation: of the probe, of a delivered and a deferred
/// email, of an idle connection, and of `mail test`.
#[sqlx::test]
async fn every_conversation_ends_with_quit(pool: PgPool) {
    if !can_run() {
        return;
    }
    let policy = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings =
        format!("smtpd_recipient_restrictions = check_policy_service inet:{}", policy.local_addr().unwrap());
    std::thread::spawn(move || greylist(&policy));
    for (implicit, starts) in [(false, 2), (true, 1)] {
        let postfix = Postfix::start(Setup { settings: &settings, implicit, ..Setup::default() });
        let (ca, relay) = (postfix.ca(), postfix.url());
        let settings = [("SMTP_CA_FILE", ca.as_str()), ("SMTP_IDLE", "100ms")];
        let mut host = Host::start(&pool, &relay, &settings).await;
        host.until_mail_is("ok").await;
        for mails in 1..=starts {
            host.client.cookie = None;
            host.starts().await;
            postfix.mails(mails);
        }
        drop(host.log());
        let (output, ok) = mail_test(&relay, &settings);
        assert!(ok, "{output}");
        let lines = |log: &str, part: &str| -> Vec<_> {
            log.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
        };
        postfix.until_log("all conversations have ended", |log| {
            lines(log, ": connect from ").len() == lines(log, ": disconnect from ").len()
        });
        let ended = lines(&postfix.log(), ": disconnect from ");
        let (quit, other): (Vec<_>, Vec<_>) = ended.into_iter().partition(|line| line.contains(" quit=1 "));
        // The harness connects once to check that Postfix is up, and sends no command.
        assert!(other.len() == 1 && other[0].ends_with("commands=0/0"), "{other:#?}");
        assert!(quit.len() >= 2 + starts, "{quit:#?}");
    }
}

/// An email that was accepted before the outage was noticed is sent when the relay is back.
#[sqlx::test]
async fn an_email_waits_until_the_relay_is_back(pool: PgPool) {
    if !can_run() {
        return;
    }
    let mut postfix = Postfix::start(Setup::default());
    let ca = postfix.ca();
    let settings = [("SMTP_CA_FILE", ca.as_str()), ("SMTP_PROBE_INTERVAL", "1m")];
    let mut host = Host::start(&pool, &postfix.url(), &settings).await;
    host.until_mail_is("ok").await;
    postfix.is_killed();
    host.starts().await;
    let tried = async { while host.retried().await < 0.5 {} };
    tokio::time::timeout(PATIENCE, tried).await.expect("the courier tries to send it");
    postfix.starts_again();
    assert!(postfix.mails(1)[0].contains(&format!("X-Original-To: {TRADER}")));
    assert!(!host.log().contains(PASSWORD));
}
