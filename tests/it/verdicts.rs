//! Who is at fault for a relay's answer, and what the courier does:
//! `docs/operate/mail-verdicts.md`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::postfix::{self, Postfix};
use crate::harness::program::{Program, has_relay, serve_environment};
use crate::harness::relay::{Mood, Relay};
use crate::harness::{PATIENCE, Service, Setup, database};

/// The built program with relays, and its database.
struct Host {
    program: Program,
    client: Client,
    pool: PgPool,
}

impl Host {
    async fn start(pool: &PgPool, relays: &str, settings: &[(&str, &str)]) -> Self {
        let url = database::service_url(pool);
        let settings = [settings, &[("NETWORK_BURST", "1000")]].concat();
        let mut program = Program::start(&["serve"], &serve_environment(&url, relays, &settings));
        let client = Client::new(program.address());
        has_relay(&client).await;
        Self { program, client, pool: pool.clone() }
    }

    /// Requests a code for a new account.
    async fn starts(&mut self, email: &str) {
        Service::has_account_at(&self.pool, email).await;
        self.client.cookie = None;
        assert!(self.client.starts_recovery(email).await.is_code_sent());
    }

    /// Requests a code for a new account. The relay refuses the email with `why`. The email is
    /// given up if the recipient is at fault, else retried, as the outbox and the log show.
    async fn is_refused(&mut self, email: &str, why: &str, verdict: &str) {
        self.starts(email).await;
        let outcome = if verdict == "recipient" { "given_up" } else { "retried" };
        self.until_noted((outcome == "retried").then_some(why)).await;
        let line = self.program.line_with(&format!("\"why\":\"{why}\""));
        let line: Value = serde_json::from_str(&line).unwrap();
        let found = (&line["verdict"], &line["outcome"], &line["relay"]);
        assert_eq!(found, (&json!(verdict), &json!(outcome), &json!(0)), "{line}");
    }

    /// Waits until the outbox has one email with this error, or none, and empties it.
    async fn until_noted(&self, why: Option<&str>) {
        let rows = "SELECT coalesce(last_error, ''), lease_until IS NULL FROM outbox";
        let expected: Vec<_> = why.map(|why| (why.to_owned(), true)).into_iter().collect();
        let noted = async {
            while sqlx::query_as::<_, (String, bool)>(rows).fetch_all(&self.pool).await.unwrap() != expected {
            }
        };
        tokio::time::timeout(PATIENCE, noted).await.unwrap_or_else(|_| panic!("waited in vain: {why:?}"));
        sqlx::query("DELETE FROM outbox").execute(&self.pool).await.unwrap();
    }

    /// Stops the program, and gives its log.
    fn log(self) -> String {
        self.program.signal("-TERM");
        self.program.ends().0.join("\n")
    }
}

/// The rows of the table of reply codes in the document: each `why`, with its verdict.
fn rows() -> Vec<(String, String)> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operate/mail-verdicts.md"))
        .unwrap();
    let (_, table) = page.split_once("## By code").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let mut rows = Vec::new();
    for line in table.lines().filter(|line| line.starts_with("| `") && line.contains(char::is_numeric)) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let whys = cells[0].split(", ").map(|why| why.trim_matches('`').to_owned());
        rows.extend(whys.map(|why| (why, cells[2].to_owned())));
    }
    rows
}

/// Makes the relay answer with `why`, in two lines and with words that must not be kept.
fn mood(why: &str) -> Mood {
    let (stage, codes) = why.split_once(' ').unwrap();
    let (code, enhanced) = codes.split_once(' ').unwrap_or((codes, ""));
    let words = "trader@example.com hears-this".to_owned();
    let text = format!("{enhanced} {words}").trim_start().to_owned();
    let answer: &'static str = format!("{code}-{text}\r\n{code} {text}").leak();
    match stage {
        "mail" => Mood::RefusesSender(answer),
        "rcpt" => Mood::RefusesRecipient(answer),
        "data" => Mood::RefusesData(answer),
        "message" => Mood::RefusesMessage(answer),
        other => panic!("{other} is no stage with an answer"),
    }
}

#[sqlx::test]
async fn each_answer_of_the_table_has_its_verdict_and_its_text_is_not_kept(pool: PgPool) {
    let relay = Relay::start().await;
    let mut host = Host::start(&pool, &relay.url(), &[]).await;
    let rows = rows();
    assert!(rows.len() > 40, "{rows:?}");
    for (n, (why, verdict)) in rows.iter().enumerate() {
        relay.is_in_mood(mood(why));
        host.is_refused(&format!("trader{n}@example.com"), why, verdict).await;
    }
    // What only looks like a code is not shown, and blames no party.
    for (n, text) in ["4.1.1", "#5.1.1", "5.1.1:", "192.0.2.1"].into_iter().enumerate() {
        relay.is_in_mood(Mood::RefusesRecipient(format!("553 {text} hears-this").leak()));
        host.starts(&format!("odd{n}@example.com")).await;
        host.until_noted(Some("rcpt 553")).await;
    }
    let log = host.log();
    for word in ["example.com", "hears-this", "192.0.2.1", "#5"] {
        assert!(!log.contains(word), "{word}");
    }
    for what in ["MAIL_FROM", "MAIL_BOUNCES"] {
        assert!(log.lines().any(|line| line.contains("refuses our sender") && line.contains(what)), "{what}");
    }
}

/// Settings with which a real Postfix refuses unknown mailboxes, other domains, and emails by its
/// operator's rules.
const RULES: &str = "virtual_mailbox_maps = inline:{ {policy@example.com = a/} {quota@example.com = a/} {busy@example.com = a/} {ours@example.com = a/} }
smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access inline:{ {policy@example.com = REJECT} {quota@example.com = 550 5.4.5 too many today} {busy@example.com = DEFER} {ours@example.com = sender} }
smtpd_restriction_classes = sender
sender = check_sender_access inline:{ {no-reply@verolabs.co = 550 5.1.8 no such domain} }";

#[sqlx::test]
async fn postfix_refuses_by_policy_and_a_second_relay_accepts_all(pool: PgPool) {
    if !postfix::can_run() {
        return;
    }
    let postfix = Postfix::start(postfix::Setup { settings: RULES, ..postfix::Setup::default() });
    let ca = postfix.ca();
    let settings = [("SMTP_CA_FILE", ca.as_str())];
    let cases = [
        ("policy@example.com", "rcpt 554 5.7.1", "relay"),
        ("quota@example.com", "rcpt 550 5.4.5", "relay"),
        ("busy@example.com", "rcpt 450 4.7.1", "relay"),
        ("ours@example.com", "rcpt 550 5.1.8", "ours"),
        ("gone@example.com", "rcpt 550 5.1.1", "recipient"),
    ];
    let mut host = Host::start(&pool, &postfix.url(), &settings).await;
    for (email, why, verdict) in cases {
        host.is_refused(email, why, verdict).await;
    }
    // For a recipient of another domain, Postfix answers with the code of a refusal by policy.
    host.starts("trader@example.net").await;
    host.until_noted(Some("rcpt 554 5.7.1")).await;
    assert!(postfix.log().contains("Relay access denied"));
    drop(host);
    let second = Relay::start().await;
    let relays = format!("{},{}", postfix.url(), second.url());
    let mut host = Host::start(&pool, &relays, &settings).await;
    while host.client.get("/readyz").await.body["parts"]["relays"] != json!(["ok", "ok"]) {}
    for (email, ..) in cases {
        host.client.cookie = None;
        assert!(host.client.starts_recovery(email).await.is_code_sent());
        second.mail_to(email, 1).await;
    }
    let log = host.log();
    assert!(!log.contains("retried") && !log.contains("given_up"), "{log}");
}

/// A service with two usable relays.
async fn start_with_two(pool: &PgPool) -> (Service, Relay) {
    let second = Relay::start().await;
    let settings = vec!["--network-burst=1000".to_owned()];
    let setup = Setup { settings, further_relays: vec![second.url()], ..Setup::default() };
    let service = Service::start_with(pool, setup).await;
    until_relays_are(&service, ["ok", "ok"]).await;
    (service, second)
}

async fn until_relays_are(service: &Service, states: [&str; 2]) {
    let up = async || service.client().get("/readyz").await.body["parts"]["relays"] == json!(states);
    service.until("the probe's finding", up).await;
}

/// The service's clock does not move, so no email is retried.
#[sqlx::test]
async fn if_the_first_relay_refuses_all_by_policy_200_of_200_codes_arrive_through_the_second(pool: PgPool) {
    let (service, second) = start_with_two(&pool).await;
    service.relay.is_in_mood(Mood::RefusesRecipient("554 5.7.1 Relay access denied"));
    let emails: Vec<_> = (0..200).map(|n| format!("trader{n}@example{}.com", n % 7)).collect();
    for email in &emails {
        service.has_account(email).await;
    }
    let began = Instant::now();
    let mut starts = tokio::task::JoinSet::new();
    for email in emails.clone() {
        let mut client = service.client();
        starts.spawn(async move { client.starts_recovery(&email).await.is_code_sent() });
    }
    assert!(starts.join_all().await.into_iter().all(|sent| sent));
    let (accepted, began) = (began.elapsed(), Instant::now());
    second.mail(200).await;
    let (arrived, asked) = (began.elapsed(), service.relay.asked());
    println!(
        "200 starts were accepted in {accepted:?}, and all emails had arrived {arrived:?} later; {asked} were refused"
    );
    // A busy machine also accepts slowly.
    assert!(arrived < Duration::from_secs(5).max(5 * accepted), "{arrived:?} after {accepted:?}");
    let mut recipients: Vec<_> = second.mails().into_iter().flat_map(|mail| mail.recipients).collect();
    recipients.sort();
    let mut emails = emails;
    emails.sort();
    assert_eq!(recipients, emails, "each email once");
    service.until_outbox_has(0).await;
    // After refusing three domains the first relay is tried last. It has refused emails in progress
    // as well.
    assert!(service.relay.asked() <= 3 + 8 * 3, "{}", service.relay.asked());
    service.stops().await;
}

#[sqlx::test]
async fn a_recipient_is_given_up_only_when_every_relay_says_so(pool: PgPool) {
    let (service, second) = start_with_two(&pool).await;
    let unknown = Mood::RefusesRecipient("550 5.1.1 no such user");
    let given_up = "vos_auth_mails_given_up_total{kind=\"recovery_code\",verdict=\"recipient\"}";

    // One relay has no such mailbox: the other accepts the email.
    service.relay.is_in_mood(unknown);
    service.has_account("one@example.com").await;
    service.client().starts_recovery("one@example.com").await;
    assert_eq!(second.mail(1).await.recipients, ["one@example.com"]);
    service.until_outbox_has(0).await;

    // One relay has no such mailbox, and the other defers the email: the outbox stores the reason
    // of the deferral.
    for (place, relay) in [&service.relay, &second].into_iter().enumerate() {
        service.relay.is_in_mood(unknown);
        second.is_in_mood(unknown);
        relay.is_in_mood(Mood::RefusesRecipient("450 4.2.0 later"));
        let email = format!("later{place}@example.com");
        service.has_account(&email).await;
        service.client().starts_recovery(&email).await;
        let noted = "outbox WHERE last_error = 'rcpt 450 4.2.0' AND lease_until IS NULL";
        service.until("the retry is noted", async || service.count(noted).await == 1).await;
        relay.is_in_mood(Mood::Takes);
        service.clock.advance(Duration::from_secs(2));
        relay.mail_to(&email, 1).await;
        service.until_outbox_has(0).await;
    }
    assert!(service.metric(given_up).await < 0.5);

    // Neither relay has such a mailbox: one round asks each relay once.
    for relay in [&service.relay, &second] {
        relay.is_in_mood(unknown);
    }
    let before = (service.relay.asked(), second.asked());
    service.has_account("gone@example.com").await;
    service.client().starts_recovery("gone@example.com").await;
    service.until_outbox_has(0).await;
    assert_eq!((service.relay.asked(), second.asked()), (before.0 + 1, before.1 + 1));
    assert!((service.metric(given_up).await - 1.0).abs() < 0.1);
    service.stops().await;
}

/// The demotion of a relay does not affect `start`, `/readyz` or the probe.
#[sqlx::test]
async fn a_relay_that_refuses_three_domains_by_policy_is_tried_last_and_stays_up(pool: PgPool) {
    let (service, second) = start_with_two(&pool).await;
    let last = "vos_auth_relay_last{relay=\"0\"}";
    service.relay.is_in_mood(Mood::RefusesRecipient("554 5.7.1 Relay access denied"));
    let starts = async |n: usize| {
        let email = format!("trader@example{n}.com");
        service.has_account(&email).await;
        assert!(service.client().starts_recovery(&email).await.is_code_sent());
    };
    for n in 0..5 {
        starts(n).await;
        second.mail(n + 1).await;
        service.until_outbox_has(0).await;
        assert_eq!(service.relay.asked(), (n + 1).min(3));
    }
    service.until("the metric", async || service.metric(last).await > 0.5).await;
    until_relays_are(&service, ["ok", "ok"]).await;
    assert!(service.metric("vos_auth_relay_up{relay=\"0\"}").await > 0.5);

    // When the preferred relay refuses an email, the last one still gets it.
    service.relay.is_in_mood(Mood::Takes);
    second.is_in_mood(Mood::RefusesMessage("451 4.3.0 disk full"));
    starts(5).await;
    service.relay.mail(1).await;
    service.until("the metric", async || service.metric(last).await < 0.5).await;
    // The first relay is preferred again.
    starts(6).await;
    service.relay.mail(2).await;
    assert_eq!(second.mails().len(), 5);

    // The first relay is demoted again, but still used when no other relay is up.
    service.relay.is_in_mood(Mood::RefusesRecipient("554 5.7.1 Relay access denied"));
    second.is_in_mood(Mood::Takes);
    for n in 7..10 {
        starts(n).await;
        second.mail(n - 1).await;
    }
    service.until("the metric", async || service.metric(last).await > 0.5).await;
    service.relay.is_in_mood(Mood::Takes);
    second.goes_down().await;
    until_relays_are(&service, ["ok", "connect"]).await;
    starts(10).await;
    service.relay.mail(3).await;
    service.until_outbox_has(0).await;
    service.stops().await;
}
