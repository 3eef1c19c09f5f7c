//! The courier and a real Postfix, with SASL and a certificate of its own authority.

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

/// The built program before a relay.
pub struct Host {
    pub program: Program,
    pub client: Client,
    pub metrics: std::net::SocketAddr,
}

impl Host {
    /// `relay` is its URL.
    pub async fn start(pool: &PgPool, relay: &str, settings: &[(&str, &str)]) -> Self {
        let email = EmailAddress::parse(TRADER).unwrap();
        let new = NewAccount { email, locale: None, traits: serde_json::Map::new(), password: None };
        match account::create(&mut pool.acquire().await.unwrap(), now(), new).await {
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

    /// Ends it, and gives what it has logged.
    pub fn log(self) -> String {
        self.program.signal("-TERM");
        self.program.ends().0.join("\n")
    }
}

/// `vos-auth mail test`: its two outputs, and whether it ended well.
pub fn mail_test(relay: &str, settings: &[(&str, &str)]) -> (String, bool) {
    let environment = [&[("SMTP_RELAYS", relay)], settings].concat();
    let ended = run(&["mail", "test", "--to", TRADER], &environment);
    let said = [ended.stdout, ended.stderr].concat();
    (String::from_utf8(said).unwrap(), ended.status.success())
}

/// STARTTLS or TLS from the first byte, a private CA, AUTH PLAIN or LOGIN: whatever the relay offers.
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
        let (said, well) = mail_test(&relay, &[("SMTP_CA_FILE", &ca)]);
        assert!(well, "{mechanisms} {implicit}: {said}");
        postfix.mails(2);
        assert!(host.retried().await < 0.5);
    }
}

#[sqlx::test]
async fn a_wrong_password_is_said_and_shown_to_nobody(pool: PgPool) {
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
    let (said, well) = mail_test(&relay, &[("SMTP_CA_FILE", &ca)]);
    assert!(!well && said.contains("auth 535"), "{said}");
    // A relay may shut out clients that try a wrong password often: the probe does so every 10 s, not every second.
    while began.elapsed() < Duration::from_secs(4) {
        host.until_mail_is("unavailable").await;
    }
    let refused =
        postfix.log().lines().filter(|line| line.contains("]: > ") && line.contains("]: 535 ")).count();
    assert!((2..4).contains(&refused) || began.elapsed() > Duration::from_secs(10), "{refused}");
    let log = host.log();
    assert!(log.contains("auth 535"), "{log}");
    for text in [said, log] {
        assert!(!text.contains("not the password") && !text.contains("not%20the"), "{text}");
    }
}

/// A certificate by nobody we know, one for another host, and none at all: an error that says so, and not a word in the
/// clear after STARTTLS.
#[sqlx::test]
async fn a_refused_certificate_and_nothing_in_the_clear(pool: PgPool) {
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
        // It tries to send, whatever the probe has found.
        let (said, well) = mail_test(&relay, settings);
        assert!(!well && said.contains(why), "{said}");
        if !implicit {
            postfix.until_it_logs("< localhost[127.0.0.1]: EHLO");
        }
        let log = postfix.log();
        for word in ["MAIL FROM", "RCPT TO", "AUTH ", "DATA", TRADER] {
            let heard = log.lines().find(|line| line.contains("]: < ") && line.contains(word));
            assert_eq!(heard, None, "{name} {why}");
        }
        drop(host.log());
    }
}

/// RFC 6647: what is put off with a 450 is sent again, and arrives once.
#[sqlx::test]
async fn greylisting_delays_a_mail_and_loses_none(pool: PgPool) {
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

/// Speaks Postfix's policy protocol, with each of its processes: puts off the first recipient, and lets all others pass.
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

/// A relay closes an idle connection and says nothing to us; the next mail costs no attempt.
#[sqlx::test]
async fn a_kept_connection_that_the_relay_closes_costs_nothing(pool: PgPool) {
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

/// RFC 5321 §4.1.1.10: the probe, a mail that was taken and one that was put off, a connection that idled, and `mail test` end
/// their conversations with QUIT.
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
        let (said, well) = mail_test(&relay, &settings);
        assert!(well, "{said}");
        let lines = |log: &str, part: &str| -> Vec<_> {
            log.lines().filter(|line| line.contains(part)).map(str::to_owned).collect()
        };
        postfix.until_log("all have ended", |log| {
            lines(log, ": connect from ").len() == lines(log, ": disconnect from ").len()
        });
        let ended = lines(&postfix.log(), ": disconnect from ");
        let (quit, other): (Vec<_>, Vec<_>) = ended.into_iter().partition(|line| line.contains(" quit=1 "));
        // The harness looks whether it is up, and says nothing.
        assert!(other.len() == 1 && other[0].ends_with("commands=0/0"), "{other:#?}");
        assert!(quit.len() >= 2 + starts, "{quit:#?}");
    }
}

/// What was accepted while nobody had noticed that the relay was gone goes out when it is back.
#[sqlx::test]
async fn a_mail_waits_until_the_relay_is_back(pool: PgPool) {
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
    tokio::time::timeout(PATIENCE, tried).await.expect("it is tried");
    postfix.starts_again();
    assert!(postfix.mails(1)[0].contains(&format!("X-Original-To: {TRADER}")));
    assert!(!host.log().contains(PASSWORD));
}
