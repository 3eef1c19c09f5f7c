//! Relays that are signed in to by an access token (RFC 6749, XOAUTH2): ours, which hears every octet, and aiosmtpd.

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

/// A relay that wants tokens of that endpoint.
async fn relay(endpoint: &TokenEndpoint) -> Relay {
    let (relay, endpoint) = (Relay::start().await, endpoint.clone());
    relay.wants_tokens(move |token| endpoint.is_good(token));
    relay
}

fn url(relay: &Relay) -> String {
    relay.url().replace("smtp://", "smtp://courier%40example.com@") + "&auth=xoauth2"
}

/// As the client itself, and with one more setting.
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

/// RFC 6749 §4.4. One token serves every relay, the probes and the mails, also while the endpoint is away.
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

/// RFC 6749 §6, ahead of a token's end and without any mail; a new refresh token replaces the one before.
#[sqlx::test]
async fn a_token_is_renewed_by_itself(pool: PgPool) {
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
        // A client without a secret says who it is in the body (RFC 6749 §3.2.1).
        assert_eq!((asked.client, asked.form["client_id"].as_str()), (None, CLIENT));
    }
    host.starts().await;
    relay.mail(1).await;
    let (_, token) = relay.signed_in().pop().unwrap();
    assert_ne!(token, "token-1-");
    assert!(!host.log().contains("refresh-"));
}

/// The mail that meets a revoked token goes with a new one at once; a relay that refuses that one, too, is asked no more.
#[sqlx::test]
async fn a_token_that_is_refused_is_renewed_once(pool: PgPool) {
    let endpoint = TokenEndpoint::start(Mood::Issues(3600));
    let (relay, token_url) = (relay(&endpoint).await, endpoint.url());
    let settings = [&settings(&token_url, RARELY)[..], &[("SMTP_IDLE", "0s")]].concat();
    let mut host = Host::start(&pool, &url(&relay), &settings).await;
    host.until_mail_is("ok").await;
    endpoint.revokes_every_token();
    // Such a token does not fit into the line of the command.
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
    tokio::time::timeout(PATIENCE, refused).await.expect("it is tried again");
    assert_eq!(endpoint.asked().len(), 2);
    assert_eq!(relay.mails().len(), 1);
}

/// The probe shows a refused token again at its interval only, but another one at once.
#[sqlx::test]
async fn a_relay_that_refused_a_token_is_shown_the_next_one_at_once(pool: PgPool) {
    let (endpoint, relay) = (TokenEndpoint::start(Mood::Issues(2)), Relay::start().await);
    relay.wants_tokens(|token| token.starts_with("token-3-"));
    let token_url = endpoint.url();
    let host = Host::start(&pool, &url(&relay), &settings(&token_url, RARELY)).await;
    host.until_mail_is("ok").await;
    assert_eq!(relay.connected(), 3);
    assert_eq!(endpoint.asked().len(), 3);
}

/// Of what the endpoint says, only a code of RFC 6749 §5.2 is repeated.
#[sqlx::test]
async fn an_endpoint_that_issues_no_token_is_said_and_quoted_nowhere(pool: PgPool) {
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
    let healed = async { while is_failing(&host).await {} };
    tokio::time::timeout(PATIENCE, healed).await.expect("the metric follows");
    // A pause between requests, however often the relay is probed.
    assert!(endpoint.asked().len() < 5, "{}", endpoint.asked().len());
    let log = host.log();
    assert!(!log.contains("hunter2"), "{log}");
}

/// On two threads: the program is waited for, and the relay answers it meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_test_says_why_there_is_no_token() {
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
        let (said, well) = mail_test(&url(&relay), &settings(&token_url, OFTEN));
        assert!(!well && said.contains(why) && !said.contains("hunter2"), "{answer}: {said}");
    }
    let (said, well) = mail_test(&url(&relay), &settings("http://127.0.0.1:1/token", OFTEN));
    assert!(!well && said.contains("auth (the token endpoint did not answer: "), "{said}");
    assert_eq!(relay.connected(), 0);
    // Without an end: some endpoints name none.
    let forever = r#"{"access_token":"ours","token_type":"Bearer"}"#;
    endpoint.is_in_mood(Mood::Answers(200, forever));
    relay.wants_tokens(|token| token == "ours");
    let (said, well) = mail_test(&url(&relay), &settings(&token_url, OFTEN));
    assert!(well, "{said}");
    let (said, well) = mail_test(&url(&Relay::start().await), &settings(&token_url, OFTEN));
    assert!(!well && said.contains("auth (the relay does not offer XOAUTH2)"), "{said}");
}

/// A server that we did not write, over STARTTLS, with tokens that fit into a command and tokens that do not.
#[sqlx::test]
async fn aiosmtpd_takes_mails_by_token(pool: PgPool) {
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
        let (said, well) = mail_test(&relay.url(), &settings);
        assert!(well, "{said}");
        let mail = relay.mail();
        assert_eq!((&mail["user"], &mail["to"][0]), (&USER.into(), &TRADER.into()), "{count}");
    }
    // The running service held a token of before all that, which is revoked.
    host.starts().await;
    assert_eq!(relay.mail()["user"], USER);
    assert!(host.retried().await < 0.5);
    // Issued, and good nowhere.
    endpoint.is_in_mood(Mood::Answers(200, r#"{"access_token":"hunter2","token_type":"bearer"}"#));
    let (said, well) = mail_test(&relay.url(), &settings);
    assert!(!well && said.contains("auth 535") && !said.contains("hunter2"), "{said}");
}

#[test]
fn settings_that_do_not_go_together_stop_the_start_in_one_sentence() {
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
        let said = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        assert!(!ended.status.success() && said.starts_with(&format!("vos-auth: {variable} ")), "{said}");
        assert!(said.lines().count() == 1 && !said.contains("hunter2"), "{said}");
    }
}
