//! Traces of the built program, as a receiver decodes them: what they contain, what they never
//! contain, who may request them, and that an unavailable receiver has no effect.

use sqlx::PgPool;

use crate::harness::client::{Answer, Client};
use crate::harness::program::{Program, has_relay, run_with_input, serve_environment};
use crate::harness::receiver::{Mood, Receiver, Traced};
use crate::harness::relay::{self, Relay};
use crate::harness::{PATIENCE, database, metric};

const EMAIL: &str = "trader.traced@example.com";
const PASSWORD: &str = "night train in autumn rain";
/// The client's address in a trusted proxy's X-Forwarded-For. It is from a network for
/// documentation (RFC 5737).
const CLIENT: &str = "203.0.113.77";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

/// `serve` with its own database and relay.
async fn serve(pool: &PgPool, relay: &Relay, changes: &[(&str, &str)]) -> (Program, Client) {
    let (url, relay) = (database::service_url(pool), relay.url());
    let mut program = Program::start(&["serve"], &serve_environment(&url, &relay, changes));
    let client = Client::new(program.address());
    has_relay(&client).await;
    (program, client)
}

/// Stops a program, which must succeed. Gives its log lines.
fn stop(program: Program) -> Vec<String> {
    program.signal("-TERM");
    let (lines, clean) = program.ends();
    assert!(clean, "{}", lines.join("\n"));
    lines
}

/// Whether the program has the thread that sends spans.
fn sends_traces(program: &Program) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap();
    let mut names =
        threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap());
    names.any(|name| name.starts_with("OpenTelemetry"))
}

/// A recovery with one wrong code, a login, and an unknown path.
async fn journey(pool: &PgPool, relay: &Relay, client: &mut Client) -> (String, Vec<Answer>) {
    let environment = [("DATABASE_URL", &*database::operator_url(pool))];
    let created = run_with_input(&["account", "create", EMAIL], &environment, "");
    assert!(created.status.success());
    let mut answers = vec![client.starts_recovery(EMAIL).await];
    let code = relay.mail(1).await.code();
    answers.push(client.verifies(&crate::verify::wrong(&code)).await);
    answers.push(client.verifies(&code).await);
    answers.push(client.resets(PASSWORD).await);
    answers.push(client.logs_in(EMAIL, PASSWORD).await);
    answers.push(client.get(&format!("/api/{EMAIL}")).await);
    relay.mail(2).await;
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200, 400, 200, 200, 200, 404]);
    (code, answers)
}

#[sqlx::test]
async fn a_journey_is_part_of_the_trace_of_the_proxy_and_does_not_name_the_account(pool: PgPool) {
    let (receiver, relay) = (Receiver::start(Mood::Takes), Relay::start().await);
    let endpoint = receiver.url();
    let on = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("TRUSTED_PROXIES", "127.0.0.0/8")];
    let (program, client) = serve(&pool, &relay, &on).await;
    assert!(sends_traces(&program));
    let mut untraced = client.clone();
    let mut client = client.with("traceparent", &traceparent("01")).with("x-forwarded-for", CLIENT);

    let (code, answers) = journey(&pool, &relay, &mut client).await;
    // One more email, which is refused and logged.
    relay.is_in_mood(relay::Mood::RefusesRecipient("550 5.1.1 reqwest is not here"));
    assert!(untraced.starts_recovery(EMAIL).await.is_code_sent());
    let given_up = async {
        let pending = || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox").fetch_one(&pool);
        while pending().await.unwrap() > 0 {}
    };
    tokio::time::timeout(PATIENCE, given_up).await.expect("the email is given up");

    let lines = stop(program);
    assert!(lines.iter().any(|line| line.contains("email was not accepted")));
    let spans = receiver.spans();
    let below = |parent: &Traced| {
        let id = parent.id();
        spans.iter().filter(move |span| span.parent() == id).collect::<Vec<_>>()
    };
    let names = |spans: &[&Traced]| spans.iter().map(|span| span.name().to_owned()).collect::<Vec<_>>();
    let requests: Vec<_> = spans.iter().filter(|span| span.parent() == PARENT).collect();
    let expected = [
        ("POST /api/auth/recovery/start", &["wait for commit"][..]),
        ("POST /api/auth/recovery/verify", &["spend attempt"]),
        ("POST /api/auth/recovery/verify", &["spend attempt", "mark verified"]),
        (
            "POST /api/auth/recovery/reset-password",
            &["find recovery", "find account", "password", "set password"],
        ),
        ("POST /api/auth/login", &["draw on rate limit", "find account", "password", "open session"]),
        ("GET", &[]),
    ];
    assert_eq!(names(&requests), expected.map(|(name, _)| name));
    for ((request, answer), (name, parts)) in requests.iter().zip(&answers).zip(expected) {
        assert_eq!(request.trace(), TRACE);
        assert_eq!(request.0.kind, 2, "a server span");
        assert_eq!(request.attribute("http.request.method").as_deref(), name.split(' ').next());
        assert_eq!(request.attribute("http.route").as_deref(), name.split_once(' ').map(|(_, route)| route));
        assert_eq!(request.attribute("http.response.status_code"), Some(answer.status.to_string()));
        let request_id = request.attribute("request_id").unwrap();
        assert_eq!(Some(request_id.as_str()), answer.header("x-request-id"));
        assert_eq!(names(&below(request)), parts, "{name}");
        let line = lines.iter().find(|line| line.contains(&request_id)).expect("its log line");
        assert!(line.contains(&format!("\"trace_id\":\"{TRACE}\"")), "{line}");
    }
    assert_eq!(names(&below(below(requests[0])[0])), ["commit"]);
    assert_eq!(names(&below(below(requests[3])[2])), ["hashing"]);

    // Emails have their own traces, without links to requests.
    let mails: Vec<_> = spans.iter().filter(|span| span.name() == "send mail").collect();
    let kinds: Vec<_> = mails.iter().map(|mail| mail.attribute("mail.kind").unwrap()).collect();
    assert_eq!(kinds, ["recovery_code", "password_changed", "recovery_code"]);
    let sent = ("sent", &["smtp", "wait for commit"][..]);
    for (mail, (outcome, parts)) in mails.iter().zip([sent, sent, ("given_up", &["smtp"])]) {
        assert_eq!((mail.parent(), mail.links()), (String::new(), vec![]));
        assert_eq!(mail.attribute("mail.outcome").as_deref(), Some(outcome));
        assert_eq!(names(&below(mail)), parts);
    }
    let others = spans.iter().filter(|span| span.trace() == TRACE);
    assert!(others.clone().all(|span| span.links().is_empty() && !span.name().contains("mail")));
    assert!(spans.iter().all(|span| span.0.events.is_empty()), "no log line is in a trace");
    assert_eq!(receiver.resource("service.name"), "vos-auth");
    assert_no_secrets(&receiver.octets(), &code, &answers);
}

/// Asserts that `traces` contain nothing that only client, owner and service know.
fn assert_no_secrets(traces: &[u8], code: &str, answers: &[Answer]) {
    let grouped = format!("{} {}", &code[..4], &code[4..]);
    let known = ["traced@", EMAIL, code, &grouped, PASSWORD, CLIENT, "127.0.0.1", "user-agent", "reqwest"];
    let mut secrets: Vec<_> = known.map(str::to_owned).into();
    for answer in answers {
        let cookies = [answer.set_cookie(), answer.device_cookie()].into_iter().flatten();
        secrets.extend(cookies.map(|cookie| cookie.split(['=', ';']).nth(1).unwrap().to_owned()));
        secrets.extend(
            ["sessionToken", "jwt"].map(|name| answer.body[name].as_str().unwrap_or_default().to_owned()),
        );
        secrets.extend(
            ["session", "identity"]
                .map(|name| answer.body[name]["id"].as_str().unwrap_or_default().to_owned()),
        );
    }
    secrets.retain(|secret| !secret.is_empty());
    assert!(secrets.len() > 20, "{secrets:?}");
    let text = String::from_utf8_lossy(traces);
    assert!(text.contains("spend attempt"));
    for secret in secrets {
        assert!(!text.contains(&secret), "{secret}");
    }
}

#[sqlx::test]
async fn e4_only_a_trusted_proxy_sets_the_trace_of_a_request(pool: PgPool) {
    let relay = Relay::start().await;
    let trusted = ("TRUSTED_PROXIES", "127.0.0.0/8");
    let (all, none) = (("OTEL_TRACES_SAMPLER_ARG", "1"), ("OTEL_TRACES_SAMPLER_ARG", "0"));
    // The proxy, the sampled share, the flags; whether the request is traced.
    for (proxy, share, flags, is_traced) in [
        (trusted, none, "01", true),
        (trusted, all, "00", false),
        (("TRUSTED_PROXIES", "10.0.0.0/8"), none, "01", false),
        (("TRUSTED_PROXIES", ""), all, "00", true),
    ] {
        let receiver = Receiver::start(Mood::Takes);
        let endpoint = receiver.url();
        let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), proxy, share];
        let (program, client) = serve(&pool, &relay, &settings).await;
        let asking = client.with("traceparent", &traceparent(flags));
        assert_eq!(asking.get("/.well-known/jwks.json").await.status, 200);
        stop(program);
        let spans = receiver.spans();
        let traced = spans.iter().find(|span| span.name() == "GET /.well-known/jwks.json");
        assert_eq!(traced.is_some(), is_traced, "{proxy:?} {share:?} {flags}");
        if let Some(traced) = traced {
            let theirs = (traced.trace() == TRACE, traced.parent() == PARENT);
            assert_eq!(theirs, (proxy == trusted, proxy == trusted));
        }
    }
}

#[sqlx::test]
async fn a_malformed_traceparent_is_ignored(pool: PgPool) {
    let (receiver, relay) = (Receiver::start(Mood::Takes), Relay::start().await);
    let endpoint = receiver.url();
    let on = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("TRUSTED_PROXIES", "127.0.0.0/8")];
    let (program, client) = serve(&pool, &relay, &on).await;
    let good = traceparent("01");
    let malformed = [
        String::new(),
        "\u{e9}".repeat(55),
        good.to_uppercase(),
        format!("{good}-more"),
        good.replace(TRACE, &"0".repeat(32)),
        good.replace(PARENT, &"0".repeat(16)),
        format!("00-{}-{PARENT}-01", "4".repeat(5000)),
    ];
    for traceparent in &malformed {
        let asking = client.clone().with("traceparent", traceparent);
        assert_eq!(asking.get("/.well-known/jwks.json").await.status, 200, "{traceparent}");
    }
    let twice = client.with("traceparent", &good).with("traceparent", &good);
    assert_eq!(twice.get("/.well-known/jwks.json").await.status, 200);
    stop(program);
    let spans = receiver.spans();
    let asked: Vec<_> = spans.iter().filter(|span| span.name().contains("jwks")).collect();
    assert_eq!(asked.len(), malformed.len() + 1);
    assert!(asked.iter().all(|span| span.parent().is_empty() && span.trace() != TRACE), "{asked:?}");
}

/// A flush serves many requests: the trace of each contains it, or links to it.
#[sqlx::test]
async fn every_start_of_a_batch_is_linked_to_its_flush(pool: PgPool) {
    const STARTS: usize = 20;
    let (receiver, relay) = (Receiver::start(Mood::Takes), Relay::start().await);
    let endpoint = receiver.url();
    let on = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
    let (mut program, client) = serve(&pool, &relay, &on).await;
    let metrics = program.metrics_address();
    // The first flush waits for the table; the other starts arrive meanwhile.
    let mut locked = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE throttle IN ACCESS EXCLUSIVE MODE").execute(&mut *locked).await.unwrap();
    let starts: Vec<_> = (0..STARTS)
        .map(|n| {
            let mut client = client.clone();
            tokio::spawn(async move { client.starts_recovery(&format!("nobody{n}@example.com")).await })
        })
        .collect();
    let all_arrived = async {
        #[expect(clippy::cast_precision_loss, reason = "twenty")]
        while metric(metrics, "vos_auth_connections{listener=\"api\"}").await < STARTS as f64 {}
    };
    tokio::time::timeout(PATIENCE, all_arrived).await.expect("every start has arrived");
    locked.rollback().await.unwrap();
    for start in starts {
        assert!(start.await.unwrap().is_code_sent());
    }
    stop(program);
    let spans = receiver.spans();
    let flushes: Vec<_> = spans.iter().filter(|span| span.name() == "commit").collect();
    let sizes: Vec<usize> =
        flushes.iter().map(|flush| flush.attribute("batch.size").unwrap().parse().unwrap()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), STARTS);
    assert!(sizes.iter().any(|size| *size > 1), "{sizes:?}");
    let waits: Vec<_> = spans.iter().filter(|span| span.name() == "wait for commit").collect();
    assert_eq!(waits.len(), STARTS);
    for wait in waits {
        let inside = flushes.iter().filter(|flush| flush.parent() == wait.id()).count();
        let linked = flushes.iter().filter(|flush| wait.links().contains(&flush.id())).count();
        assert_eq!(inside + linked, 1, "{wait:?}");
        assert_eq!(wait.links().len(), linked);
    }
}

#[sqlx::test]
async fn without_an_endpoint_nothing_is_traced(pool: PgPool) {
    let (receiver, relay) = (Receiver::start(Mood::Takes), Relay::start().await);
    let endpoint = format!("{}/v1/traces", receiver.url());
    // Only `OTEL_EXPORTER_OTLP_ENDPOINT` turns traces on, not the other variables of
    // OpenTelemetry's libraries.
    let off = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str()), ("TRUSTED_PROXIES", "127.0.0.0/8")];
    let (program, client) = serve(&pool, &relay, &off).await;
    let mut client = client.with("traceparent", &traceparent("01"));
    journey(&pool, &relay, &mut client).await;
    assert!(!sends_traces(&program));
    let lines = stop(program);
    assert!(!lines.iter().any(|line| line.contains("trace_id")));
    assert_eq!(receiver.asked(), 0);
}

#[sqlx::test]
async fn a_receiver_that_refuses_hangs_or_is_down_changes_no_answer(pool: PgPool) {
    let undelivered = "traces cannot be delivered";
    let refusing = Receiver::start(Mood::Refuses);
    let hanging = Receiver::start(Mood::Hangs);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for endpoint in [refusing.url(), hanging.url(), format!("http://{closed}")] {
        let relay = Relay::start().await;
        // The queue holds 8 spans, fewer than a journey makes. They are sent every 10 ms.
        let settings = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "10"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "8"),
        ];
        let (mut program, mut client) = serve(&pool, &relay, &settings).await;
        journey(&pool, &relay, &mut client).await;
        if endpoint == hanging.url() {
            assert!(hanging.asked() > 0);
        } else {
            program.line_with(undelivered);
            // A repeated failure is logged once, and so is its end.
            client.get("/healthz").await;
        }
        if endpoint == refusing.url() {
            refusing.is_in_mood(Mood::Takes);
            client.get("/healthz").await;
            program.line_with("traces are delivered again");
        }
        let lines = stop(program);
        let warnings = lines.iter().filter(|line| line.contains(undelivered)).count();
        assert!(warnings == usize::from(endpoint != hanging.url()), "{}", lines.join("\n"));
        sqlx::query("DELETE FROM account").execute(&pool).await.unwrap();
    }
}
