//! Relays with access tokens (RFC 6749, XOAUTH2): the test relay, and aiosmtpd.

use sqlx::PgPool;

use crate::harness::aiosmtpd::{self, Aiosmtpd};
use crate::harness::program::{run, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::tokens::{CLIENT, Mood, SECRET, TokenEndpoint};
use crate::harness::{PATIENCE, metric};
use crate::postfix::{Host, TRADER, mail_test};

const USER: &str = "courier@example.com";
const OFTEN: (&str, &str) = ("SMTP_PROBE_INTERVAL", "20ms");
const RARELY: (&str, &str) = ("SMTP_PROBE_INTERVAL", "1m");

/// A relay that accepts the tokens of `endpoint`.
async fn relay(endpoint: &TokenEndpoint) -> Relay {
    let (relay, endpoint) = (Relay::start().await, endpoint.clone());
    relay.wants_tokens(move |token| endpoint.is_good(token));
    relay
}

fn url(relay: &Relay) -> String {
    relay.url().replace("smtp://", "smtp://courier%40example.com@") + "&auth=xoauth2"
}

/// The settings for client credentials, and one more setting.
fn settings<'a>(token_url: &'a str, more: (&'a str, &'a str)) -> [(&'a str, &'a str); 5] {
    [
        ("SMTP_OAUTH_TOKEN_URL", token_url),
        ("SMTP_OAUTH_CLIENT_ID", CLIENT),
        ("SMTP_OAUTH_CLIENT_SECRET", SECRET),
        ("SMTP_OAUTH_SCOPE", "https://outlook.office365.com/.default"),
        more,
    ]
}

async fn is_failing(host: &Host) -> bool {
    metric(host.metrics, "vos_auth_relay_token_failing").await > 0.5
}

/// RFC 6749 §4.4: one token serves all relays, probes and emails, even while the endpoint is down.
#[sqlx::test]
async fn one_token_serves_every_relay_and_mail(pool: PgPool) {
    let endpoint = TokenEndpoint::start(Mood::Holds);
    let relays = [relay(&endpoint).await, relay(&endpoint).await, relay(&endpoint).await];
    let urls = relays.each_ref().map(url).join(",");
    let token_url = endpoint.url();
    let mut host = Host::start(&pool, &urls, &settings(&token_url, RARELY)).await;
    let asked = endpoint.asked_for(1).await;
    assert_eq!(asked.client, Some((CLIENT.to_owned(), SECRET.to_owned())));
    assert_eq!(asked.form["grant_type"], "client_credentials");
    assert_eq!(asked.form["scope"], "https://outlook.office365.com/.default");
    endpoint.is_in_mood(Mood::Issues(3600));
    host.until_mail_is("ok").await;
    endpoint.is_in_mood(Mood::Answers(503, "away"));
    for count in 1..4 {
        host.client.cookie = None;
        host.starts().await;
        relays[0].mail(count).await;
    }
    let signed_in: Vec<_> = relays.iter().flat_map(Relay::signed_in).collect();
    assert!(signed_in.len() >= 4, "{signed_in:?}");
    assert!(signed_in.iter().all(|one| *one == (USER.to_owned(), "token-1-".to_owned())), "{signed_in:?}");
    assert_eq!(endpoint.asked().len(), 1);
    assert!(!is_failing(&host).await);
    assert!(host.retried().await < 0.5);
    let log = host.log();
    for secret in ["token-1-", "client's secret", "client%27s"] {
        assert!(!log.contains(secret), "{log}");
    }
}

/// RFC 6749 §6: renewal before expiry, without any email. A new refresh token replaces the old one.
#[sqlx::test]
async fn a_token_is_renewed_before_it_expires(pool: PgPool) {
    let endpoint = TokenEndpoint::start(Mood::Issues(1));
    let (relay, token_url) = (relay(&endpoint).await, endpoint.url());
    let settings = [
        ("SMTP_OAUTH_TOKEN_URL", token_url.as_str()),
        ("SMTP_OAUTH_CLIENT_ID", CLIENT),
        ("SMTP_OAUTH_REFRESH_TOKEN", "refresh-0"),
        ("SMTP_IDLE", "0s"),
        RARELY,
    ];
    let mut host = Host::start(&pool, &url(&relay), &settings).await;
    for (count, refresh_token) in [(1, "refresh-0"), (2, "refresh-1"), (3, "refresh-2")] {
        let asked = endpoint.asked_for(count).await;
        assert_eq!(asked.form["grant_type"], "refresh_token");
        assert_eq!(asked.form["refresh_token"], refresh_token);
        // A client without a secret sends its id in the body (RFC 6749 §3.2.1).
        assert_eq!((asked.client, asked.form["client_id"].as_str()), (None, CLIENT));
    }
    host.starts().await;
    relay.mail(1).await;
    let (_, token) = relay.signed_in().pop().unwrap();
    assert_ne!(token, "token-1-");
    assert!(!host.log().contains("refresh-"));
}

/// An email that meets a revoked token is retried at once, but only once, with a new token.
#[sqlx::test]
async fn a_token_that_is_refused_is_renewed_once(pool: PgPool) {
    let endpoint = TokenEndpoint::start(Mood::Issues(3600));
    let (relay, token_url) = (relay(&endpoint).await, endpoint.url());
    let settings = [&settings(&token_url, RARELY)[..], &[("SMTP_IDLE", "0s")]].concat();
    let mut host = Host::start(&pool, &url(&relay), &settings).await;
    host.until_mail_is("ok").await;
    endpoint.revokes_every_token();
    // A token of this size does not fit into the line of the AUTH command.
    endpoint.pads_tokens(3_000);
    host.starts().await;
    relay.mail(1).await;
    assert!(relay.signed_in().pop().unwrap().1.starts_with("token-2-xxx"));
    assert_eq!(endpoint.asked().len(), 2);
    assert!(host.retried().await < 0.5);

    endpoint.revokes_every_token();
    host.client.cookie = None;
    host.starts().await;
    let at_auth = "vos_auth_mails_total{outcome=\"retried\",stage=\"auth\"";
    let refused = async { while metric(host.metrics, at_auth).await < 0.5 {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("the email is retried later");
    assert_eq!(endpoint.asked().len(), 2);
    assert_eq!(relay.mails().len(), 1);
}

/// The probe retries a refused token only at its interval, but a new token at once.
#[sqlx::test]
async fn a_relay_that_refused_a_token_gets_the_next_one_at_once(pool: PgPool) {
    let (endpoint, relay) = (TokenEndpoint::start(Mood::Issues(2)), Relay::start().await);
    relay.wants_tokens(|token| token.starts_with("token-3-"));
    let token_url = endpoint.url();
    let host = Host::start(&pool, &url(&relay), &settings(&token_url, RARELY)).await;
    host.until_mail_is("ok").await;
    assert_eq!(relay.connected(), 3);
    assert_eq!(endpoint.asked().len(), 3);
}

/// Of the endpoint's answer, the service repeats only a code of RFC 6749 §5.2.
#[sqlx::test]
async fn an_endpoint_that_issues_no_token_is_reported_and_never_quoted(pool: PgPool) {
    const INVALID: &str = r#"{"error":"invalid_client","error_description":"hunter2 is wrong"}"#;
    let endpoint = TokenEndpoint::start(Mood::Answers(401, INVALID));
    let (relay, token_url) = (relay(&endpoint).await, endpoint.url());
    let mut host = Host::start(&pool, &url(&relay), &settings(&token_url, OFTEN)).await;
    let line = host.program.line_with("the access token for relays cannot be renewed");
    assert!(line.contains("the token endpoint answered invalid_client") && line.contains("WARN"), "{line}");
    host.until_mail_is("unavailable").await;
    assert_eq!(host.client.get("/readyz").await.body["parts"]["relays"][0], "auth");
    assert_eq!(host.client.starts_recovery(TRADER).await.error(), (502, "mail_unavailable"));
    assert!(is_failing(&host).await);
    assert_eq!(relay.connected(), 0);
    endpoint.is_in_mood(Mood::Issues(3600));
    host.until_mail_is("ok").await;
    host.program.line_with("the access token for relays is renewed again");
    let recovered = async { while is_failing(&host).await {} };
    tokio::time::timeout(PATIENCE, recovered).await.expect("the metric recovers");
    // The service pauses between requests, however often the relay is probed.
    assert!(endpoint.asked().len() < 5, "{}", endpoint.asked().len());
    let log = host.log();
    assert!(!log.contains("hunter2"), "{log}");
}

/// Two threads: while the test waits for the program, the relay answers the program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mail_test_prints_why_there_is_no_token() {
    let endpoint = TokenEndpoint::start(Mood::Holds);
    let (relay, token_url) = (relay(&endpoint).await, endpoint.url());
    let unreadable = "auth (the token endpoint's answer is not one of RFC 6749)";
    for (status, answer, why) in [
        (400, r#"{"error":"invalid_grant"}"#, "auth (the token endpoint answered invalid_grant)"),
        (400, r#"{"error":"invalid_scope"}"#, "auth (the token endpoint answered invalid_scope)"),
        (400, r#"{"error":"hunter2"}"#, unreadable),
        (400, "hunter2", unreadable),
        (400, "", unreadable),
        (200, "{}", unreadable),
        (200, r#"{"access_token":"hunter2","token_type":"mac"}"#, unreadable),
        (200, r#"{"access_token":"hunter2\u0001\r\n","token_type":"bearer"}"#, unreadable),
        (503, "hunter2", "auth (the token endpoint answered 503)"),
        (302, "hunter2", "auth (the token endpoint answered 302)"),
    ] {
        endpoint.is_in_mood(Mood::Answers(status, answer));
        let (output, ok) = mail_test(&url(&relay), &settings(&token_url, OFTEN));
        assert!(!ok && output.contains(why) && !output.contains("hunter2"), "{answer}: {output}");
    }
    let (output, ok) = mail_test(&url(&relay), &settings("http://127.0.0.1:1/token", OFTEN));
    assert!(!ok && output.contains("auth (the token endpoint did not answer: "), "{output}");
    assert_eq!(relay.connected(), 0);
    // Some endpoints give no expiry.
    let forever = r#"{"access_token":"ours","token_type":"Bearer"}"#;
    endpoint.is_in_mood(Mood::Answers(200, forever));
    relay.wants_tokens(|token| token == "ours");
    let (output, ok) = mail_test(&url(&relay), &settings(&token_url, OFTEN));
    assert!(ok, "{output}");
    let (output, ok) = mail_test(&url(&Relay::start().await), &settings(&token_url, OFTEN));
    assert!(!ok && output.contains("auth (the relay does not offer XOAUTH2)"), "{output}");
}

/// An independent server over STARTTLS, with tokens that fit into a command and tokens that do not.
#[sqlx::test]
async fn aiosmtpd_accepts_emails_with_a_token(pool: PgPool) {
    if !aiosmtpd::is_installed() {
        return;
    }
    let endpoint = TokenEndpoint::start(Mood::Issues(3600));
    let (relay, token_url) = (Aiosmtpd::start(&endpoint), endpoint.url());
    let ca = relay.ca();
    let settings =
        [&settings(&token_url, RARELY)[..], &[("SMTP_CA_FILE", &ca), ("SMTP_IDLE", "0s")]].concat();
    let mut host = Host::start(&pool, &relay.url(), &settings).await;
    host.until_mail_is("ok").await;
    for (count, padding) in [(1, 0), (2, 3_000)] {
        endpoint.pads_tokens(padding);
        endpoint.revokes_every_token();
        let (output, ok) = mail_test(&relay.url(), &settings);
        assert!(ok, "{output}");
        let mail = relay.mail();
        assert_eq!((&mail["user"], &mail["to"][0]), (&USER.into(), &TRADER.into()), "{count}");
    }
    // The running service still has an older token, which was revoked.
    host.starts().await;
    assert_eq!(relay.mail()["user"], USER);
    assert!(host.retried().await < 0.5);
    // The endpoint issues a token that the relay refuses.
    endpoint.is_in_mood(Mood::Answers(200, r#"{"access_token":"hunter2","token_type":"bearer"}"#));
    let (output, ok) = mail_test(&relay.url(), &settings);
    assert!(!ok && output.contains("auth 535") && !output.contains("hunter2"), "{output}");
}

#[test]
fn contradictory_settings_stop_the_start_in_one_sentence() {
    const URL: (&str, &str) = ("SMTP_OAUTH_TOKEN_URL", "https://login.example/token");
    const ID: (&str, &str) = ("SMTP_OAUTH_CLIENT_ID", "vos-auth");
    const HUNTER: (&str, &str) = ("SMTP_OAUTH_CLIENT_SECRET", "hunter2");
    let (by_token, by_password) = ("smtp://u@mx.example?auth=xoauth2", "smtp://u:p@mx.example");
    for (relay, settings, variable) in [
        (by_token, &[][..], "SMTP_RELAYS"),
        (by_token, &[ID, HUNTER], "SMTP_OAUTH_TOKEN_URL"),
        (by_token, &[URL, HUNTER], "SMTP_OAUTH_CLIENT_ID"),
        (by_token, &[URL, ID], "SMTP_OAUTH_CLIENT_SECRET"),
        (by_token, &[URL, ID, ("SMTP_OAUTH_CLIENT_SECRET_FILE", "/nowhere")], "SMTP_OAUTH_CLIENT_SECRET"),
        (by_token, &[URL, ID, HUNTER, ("SMTP_OAUTH_CLIENT_SECRET_FILE", "/x")], "SMTP_OAUTH_CLIENT_SECRET"),
        (by_token, &[ID, HUNTER, ("SMTP_OAUTH_TOKEN_URL", "http://login.example/")], "SMTP_OAUTH_TOKEN_URL"),
        (by_password, &[URL, ID, HUNTER], "SMTP_OAUTH_TOKEN_URL"),
        (by_password, &[HUNTER], "SMTP_OAUTH_TOKEN_URL"),
        ("smtp://u:hunter2@mx.example?auth=xoauth2", &[URL, ID, HUNTER], "SMTP_RELAYS"),
        ("smtp://mx.example?auth=xoauth2", &[URL, ID, HUNTER], "SMTP_RELAYS"),
        ("smtp://u@mx.example?auth=login", &[URL, ID, HUNTER], "SMTP_RELAYS"),
    ] {
        let environment = serve_environment("postgres://nobody@localhost/none", relay, settings);
        let ended = run(&["serve"], &environment);
        let output = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        assert!(!ended.status.success() && output.starts_with(&format!("vos-auth: {variable} ")), "{output}");
        assert!(output.lines().count() == 1 && !output.contains("hunter2"), "{output}");
    }
}
