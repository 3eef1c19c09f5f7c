//! Webhooks: what a receiver gets, and where requests may go. Order and failures are in
//! `event_hook_order.rs`.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use sqlx::PgPool;
use strum::VariantArray as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;
use uuid::Uuid;
use vos_auth::audit::{self, By, ClientInfo, Event};
use vos_auth::clock::new_id;
use vos_auth::secret::WebhookSecrets;
use vos_auth::sweeper::Sweeper;

use crate::harness::client::Client;
use crate::harness::program::{Program, has_relay, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::webhook::{Mood, SECRET, Webhook};
use crate::harness::{PATIENCE, Service, Setup, database, needs, now, place};

const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "morning boat on a green river";

/// A service with one hook, which is registered.
pub async fn start(pool: &PgPool, webhook: &Webhook, kinds: &str) -> Service {
    start_with(pool, webhook.settings(), &[webhook.entry("rest", kinds)]).await
}

pub async fn start_with(pool: &PgPool, settings: Vec<String>, hooks: &[String]) -> Service {
    let event_hooks = hooks.join(";");
    let service = Service::start_with(pool, Setup { settings, event_hooks, ..Setup::default() }).await;
    let names: Vec<_> = hooks.iter().map(|hook| hook.split(' ').next().unwrap().to_owned()).collect();
    service
        .until("its hooks are registered", async || {
            let found = sqlx::query_scalar("SELECT count(*) FROM event_hook WHERE name = ANY ($1)");
            let found: i64 = found.bind(&names).fetch_one(&service.pool).await.unwrap();
            usize::try_from(found).unwrap() == names.len()
        })
        .await;
    service
}

/// The id of an account that need not exist.
pub fn account_id() -> Uuid {
    new_id(now())
}

/// Appends an event as the service does, a millisecond after the one before, and returns its id.
pub async fn happens(service: &Service, event: Event, account: Option<Uuid>) -> String {
    service.clock.advance(Duration::from_millis(1));
    let client = ClientInfo { client_ip: [198, 51, 100, 7].into(), user_agent: "a browser of their own" };
    audit::record(&service.pool, service.app.clock.now(), event, account, Some(By::Client(client)))
        .await
        .unwrap();
    let newest = "SELECT id FROM audit_event ORDER BY id DESC LIMIT 1";
    sqlx::query_scalar::<_, Uuid>(newest).fetch_one(&service.pool).await.unwrap().to_string()
}

#[sqlx::test]
async fn every_kind_is_delivered_as_a_signed_cloud_event_without_personal_data(pool: PgPool) {
    let webhook = Webhook::start(Mood::Takes);
    let service = start(&pool, &webhook, "all").await;
    let (account, document) = (account_id(), place::text("docs/operate/webhooks.md"));
    let mut expected = Vec::new();
    for &event in Event::VARIANTS {
        assert!(document.contains(&format!("`{}`", <&str>::from(event))), "{event:?} is in the document");
        let about_many = matches!(
            event,
            Event::AccountsImported
                | Event::AccountsExported
                | Event::OperatorCreated
                | Event::OperatorRevoked
        );
        let account = (!about_many).then_some(account);
        let id = happens(&service, event, account).await;
        expected.push((id, <&str>::from(event), account, service.app.clock.now()));
    }
    let calls = webhook.has_taken(expected.len()).await;
    assert_eq!(calls.len(), expected.len());
    for (id, kind, account, at) in &expected {
        let call = calls.iter().find(|call| call.id() == id).unwrap();
        let mut body = call.body.clone();
        let sequence = body.as_object_mut().unwrap().remove("sequence").unwrap();
        assert!(sequence.as_str().unwrap().len() == 19, "{sequence}");
        let time = body.as_object_mut().unwrap().remove("time").unwrap();
        assert_eq!(OffsetDateTime::parse(time.as_str().unwrap(), &Rfc3339).unwrap(), *at);
        let mut wanted = json!({ "specversion": "1.0", "id": id, "source": "https://platform.verolabs.co",
                                 "type": format!("co.verolabs.vos-auth.{kind}") });
        if let Some(account) = account {
            wanted["subject"] = json!(account);
        }
        assert_eq!(body, wanted);
        assert_eq!(call.path, "/events");
        assert_eq!(call.header("content-type"), "application/cloudevents+json; charset=utf-8");
        assert_eq!(call.header("webhook-id"), id);
        let timestamp: i64 = call.header("webhook-timestamp").parse().unwrap();
        let signature = SECRET.parse::<WebhookSecrets>().unwrap().sign(id, timestamp, &call.raw);
        assert_eq!(call.header("webhook-signature"), signature);
        assert!((service.app.clock.now().unix_timestamp() - timestamp).abs() < 60, "{timestamp}");
    }
    let of_account: Vec<_> = calls.iter().filter(|call| !call.subject().is_empty()).collect();
    assert!(of_account.is_sorted_by_key(|call| call.body["sequence"].as_str().unwrap()));
    service.until("they are deleted", async || service.count("event_delivery").await == 0).await;
    let delivered = "vos_auth_hook_deliveries_total{hook=\"rest\",outcome=\"delivered\"}";
    assert!((service.metric(delivered).await - f64::from(u32::try_from(calls.len()).unwrap())).abs() < 0.5);
    service.stops().await;
}

/// The events of a recovery come from a request, from the courier's statement, and from a command.
#[sqlx::test]
async fn a_recovery_and_an_operators_command_are_told_to_the_hooks_that_want_them(pool: PgPool) {
    let (all, some) = (Webhook::start(Mood::Takes), Webhook::start(Mood::Takes));
    let settings = [all.settings(), vec![format!("--event-hook-ca-file={}", both(&all, &some))]].concat();
    let hooks = [all.entry("all", "all"), some.entry("some", "password_reset,account_disabled")];
    let service = start_with(&pool, settings, &hooks).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.verified(TRADER).await;
    assert_eq!(client.resets("night train in autumn rain").await.status, 200);
    let url = database::operator_url(&pool);
    let disable = tokio::task::spawn_blocking(move || {
        crate::harness::program::run(&["account", "disable", TRADER, "--yes"], &[("DATABASE_URL", &url)])
    });
    assert!(disable.await.unwrap().status.success());
    // The events of the command and of the account's creation have the system's time, which the
    // service's clock must reach.
    service.clock.advance(Duration::from_mins(1));
    let kinds = |calls: Vec<crate::harness::webhook::Call>| -> Vec<String> {
        let kind = |kind: &str| kind.strip_prefix("co.verolabs.vos-auth.").unwrap().to_owned();
        calls.iter().map(|call| kind(call.body["type"].as_str().unwrap())).collect()
    };
    assert_eq!(kinds(some.has_taken(2).await), ["password_reset", "account_disabled"]);
    let seen = kinds(all.has_taken(6).await);
    for kind in
        ["account_created", "recovery_sent", "recovery_verified", "password_reset", "account_disabled"]
    {
        assert!(seen.iter().any(|seen| seen == kind), "{kind} in {seen:?}");
    }
    let id: Uuid = sqlx::query_scalar("SELECT id FROM account").fetch_one(&pool).await.unwrap();
    assert!(all.calls().iter().all(|call| call.subject() == id.to_string()));
    service.stops().await;
}

/// A file with the certificate authorities of both webhooks.
fn both(one: &Webhook, other: &Webhook) -> String {
    let path = format!("{}.both", one.ca());
    std::fs::write(&path, [one, other].map(|one| std::fs::read(one.ca()).unwrap()).concat()).unwrap();
    path
}

/// Whether no delivery is pending. The courier's events are a little ahead of the manual clock.
async fn delivers_all(service: &Service) -> bool {
    service.clock.advance(Duration::from_millis(1));
    service.count("event_delivery").await == 0
}

/// The Python receiver of docs/operate/webhooks.md, as written there.
struct Receiver(Child);

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[sqlx::test]
async fn the_documented_receiver_in_python_ends_the_sessions_of_who_changed_the_password(pool: PgPool) {
    if !needs::has_program("/usr/bin/python3") {
        return;
    }
    let document = place::text("docs/operate/webhooks.md");
    let (_, code) = document.split_once("```python\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    assert!(code.lines().filter(|line| !line.is_empty()).count() <= 30, "it is short");
    // The script uses the certificate and the address of a receiver that is down.
    let mut webhook = Webhook::start(Mood::Takes);
    webhook.goes_down();
    let (script, printed) = (webhook.file("receiver.py"), webhook.file("printed"));
    std::fs::write(&script, code).unwrap();
    let receiver = Command::new("/usr/bin/python3")
        .arg(&script)
        .env("EVENT_SECRET", SECRET)
        .env("TLS_CERT", webhook.file("cert.pem"))
        .env("TLS_KEY", webhook.file("key.pem"))
        .env("PORT", webhook.address.port().to_string())
        .stdout(std::fs::File::create(&printed).unwrap())
        .stderr(Stdio::null())
        .spawn();
    let _receiver = Receiver(receiver.unwrap());
    let service = start(&pool, &webhook, "all").await;
    service.until("it listens", async || TcpStream::connect(webhook.address).await.is_ok()).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.verified(TRADER).await;
    assert_eq!(client.resets("night train in autumn rain").await.status, 200);
    // The event of the account's creation has the system's time, which the service's clock must
    // reach.
    service.clock.advance(Duration::from_mins(1));
    service.until("everything is delivered", async || delivers_all(&service).await).await;
    let id: Uuid = sqlx::query_scalar("SELECT id FROM account").fetch_one(&pool).await.unwrap();
    let said = std::fs::read_to_string(&printed).unwrap();
    assert_eq!(said, format!("end the sessions of {id}\n"));

    // A request with a forged signature.
    let url = format!("https://localhost:{}/events", webhook.address.port());
    let forged = [
        "webhook-id: 1".to_owned(),
        format!("webhook-timestamp: {}", now().unix_timestamp()),
        "webhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned(),
    ];
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--cacert", &webhook.ca(), "-w", "%{http_code}", "-o", "/dev/null", "-d", "{}", &url]);
    curl.args(forged.iter().flat_map(|header| ["-H", header]));
    let answered = tokio::task::spawn_blocking(move || curl.output().unwrap()).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answered.stdout), "401");
    service.stops().await;
}

/// At each connection the service checks the address to which the name resolves at that time.
#[sqlx::test]
async fn a_name_that_leads_to_a_private_address_is_not_connected_to(pool: PgPool) {
    let webhook = Webhook::start(Mood::Takes);
    let ca = format!("--event-hook-ca-file={}", webhook.ca());
    let settings = vec![ca, "--event-hook-poll-interval=20ms".into()];
    let service = start_with(&pool, settings, &[webhook.entry("rest", "all")]).await;
    happens(&service, Event::SignedIn, Some(account_id())).await;
    let why = "event_delivery WHERE last_error LIKE '%its address is not public%'";
    service.until("it is refused", async || service.count(why).await == 1).await;
    assert!(webhook.calls().is_empty());
    service.stops().await;
}

/// A receiver cannot lead a request elsewhere.
#[sqlx::test]
async fn a_redirect_is_a_failure(pool: PgPool) {
    let webhook = Webhook::start(Mood::Answers(307));
    let service = start(&pool, &webhook, "all").await;
    happens(&service, Event::SignedIn, Some(account_id())).await;
    let why = "event_delivery WHERE last_error = 'the receiver answered 307'";
    service.until("it has failed", async || service.count(why).await == 1).await;
    service.stops().await;
}

#[sqlx::test]
async fn with_no_hook_nothing_is_written(pool: PgPool) {
    let service = Service::start(&pool).await;
    happens(&service, Event::SignedIn, Some(account_id())).await;
    assert_eq!(service.count("event_delivery").await, 0);
    service.stops().await;
}

/// A replica that lacks the hook, misconfigured or not restarted yet, does not remove the hook for
/// the other replicas.
#[sqlx::test]
async fn a_hook_is_removed_when_no_replica_has_had_it_for_an_hour(pool: PgPool) {
    let hour = Duration::from_hours(1);
    let webhook = Webhook::start(Mood::Takes);
    let (having, lacking) = (start(&pool, &webhook, "all").await, Service::start(&pool).await);
    let mut sweeper = Sweeper::new(Arc::clone(&lacking.app));
    having.clock.advance(2 * hour);
    let registered = having.app.clock.now();
    having
        .until("the hook is registered again", async || {
            let at = sqlx::query_scalar("SELECT registered_at FROM event_hook").fetch_one(&pool);
            let at: OffsetDateTime = at.await.unwrap();
            at >= registered
        })
        .await;
    // A replica whose clock is behind does not make the registration older.
    start(&pool, &webhook, "all").await.stops().await;
    having.stops().await;
    // First the two hours by which the other clock is ahead, then the hour without the hook.
    for (passed, kept) in [(2 * hour, 1), (Duration::from_mins(59), 1), (Duration::from_mins(2), 0)] {
        lacking.clock.advance(passed);
        sweeper.sweep().await;
        assert_eq!(lacking.count("event_hook").await, kept);
        let before = lacking.count("event_delivery").await;
        happens(&lacking, Event::SignedIn, Some(account_id())).await;
        assert_eq!(lacking.count("event_delivery").await, before + kept);
    }
    assert_eq!(lacking.count("event_delivery").await, 2, "what was recorded is kept");
    lacking.stops().await;
}

/// The URL may contain a token. The log is at trace level, and the receiver refuses and goes down.
#[sqlx::test]
async fn e7_secret_and_url_of_a_hook_reach_neither_the_log_nor_the_database(pool: PgPool) {
    let mut webhook = Webhook::start(Mood::Answers(500));
    let (relay, url, mut hook) = (Relay::start().await, database::service_url(&pool), webhook.environment());
    hook[0].1 = hook[0].1.replace("/events", "/events/hunter2?token=hunter2");
    let relay_url = relay.url();
    let mut changes = hook.each_ref().map(|(name, value)| (*name, value.as_str())).to_vec();
    changes.push(("LOG_LEVEL", "trace"));
    let mut program = Program::start(&["serve"], &serve_environment(&url, &relay_url, &changes));
    has_relay(&Client::new(program.address())).await;
    let registered = async {
        let count = "SELECT count(*) FROM event_hook";
        while sqlx::query_scalar::<_, i64>(count).fetch_one(&pool).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, registered).await.unwrap();
    audit::record(&pool, now(), Event::SignedIn, account_id(), None).await.unwrap();
    let calls = webhook.called(2).await;
    assert_eq!(calls[0].path, "/events/hunter2?token=hunter2");
    webhook.goes_down();
    let failed = "SELECT count(*) FROM event_delivery WHERE last_error LIKE '%refused%'";
    let refused = async {
        while sqlx::query_scalar::<_, i64>(failed).fetch_one(&pool).await.unwrap() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    let rows =
        "SELECT string_agg(to_jsonb(d)::text || to_jsonb(h)::text, '') FROM event_delivery d, event_hook h";
    let rows: String = sqlx::query_scalar(rows).fetch_one(&pool).await.unwrap();
    relay.goes_down().await;
    program.signal("-TERM");
    let (log, clean) = program.ends();
    assert!(clean);
    let log = log.join("\n");
    assert!(log.contains("\"TRACE\""), "the log was at trace level");
    for secret in ["hunter2", SECRET, SECRET.trim_start_matches("whsec_")] {
        assert!(!rows.contains(secret), "stored: {rows}");
        assert!(!log.contains(secret), "logged: {}", log.lines().find(|line| line.contains(secret)).unwrap());
    }
}
