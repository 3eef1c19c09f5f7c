//! The built program: settings, secrets, commands.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Command, CommandFactory as _};
use serde_json::Value;
use sqlx::{PgPool, Row as _};
use vos_auth::cli::Cli;

use crate::harness::PATIENCE;
use crate::harness::client::Client;
use crate::harness::database;
use crate::harness::program::{Program, SECRET, run, run_with_input, serve_environment};
use crate::harness::relay::Relay;

#[test]
fn e8_serve_refuses_to_start_in_one_sentence_that_names_the_variable() {
    let local = "postgres://nobody@localhost/none";
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let weak = "test:c2hvcnQ=";
    let repeated = "test:BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    for (variable, value) in [
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "mysql:hunter2"),
        ("DATABASE_URL", "postgres://u:hunter2@db.example/x"),
        ("DATABASE_URL", "postgres://u:hunter2@db.example/x?sslmode=prefer"),
        ("DATABASE_URL", "postgres://u:hunter2@db1.example,db2.example/x?sslmode=verify-full"),
        ("DATABASE_URL", "postgres://u@db.example/x?sslmode=verify-full&pasword=hunter2"),
        ("RECOVERY_SECRETS", ""),
        ("RECOVERY_SECRETS", weak),
        ("RECOVERY_SECRETS", repeated),
        ("RECOVERY_SECRETS", "hunter2"),
        ("DEVICE_SECRETS", ""),
        ("DEVICE_SECRETS", weak),
        ("JWT_KEYS", ""),
        ("JWT_KEYS", "/nowhere"),
        ("JWT_KEYS", env!("CARGO_MANIFEST_DIR")),
        ("PASSWORD_MIN_CHARS", "7"),
        ("SIGN_IN_URL", ""),
        ("SIGN_IN_URL", "javascript:alert(1)"),
        ("RECOVERY_PAGE", "maybe"),
        ("LOGIN_FAILURE_TIME", "0s"),
        ("SMTP_RELAYS", ""),
        ("SMTP_RELAYS", "smtp://u:hunter2@mx.example?tls=none"),
        ("SMTP_RELAYS", "hunter2"),
        ("SMTP_RELAYS", "smtps://u:hunter2%@mx.example"),
        ("SMTP_CA_FILE", "/nowhere/ca.pem"),
        ("PUBLIC_ORIGIN", ""),
        ("PUBLIC_ORIGIN", "http://platform.verolabs.co"),
        ("DEV_NO_LIMITS", "1"),
        ("EVENT_HOOKS", "rest http://api.example/hunter2 whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw all"),
        ("EVENT_HOOKS", "rest https://10.1.2.3/hunter2 whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw all"),
        ("EVENT_HOOKS", "rest https://api.example/ whsec_hunter2 all"),
        ("EVENT_HOOK_NETWORKS", "10.0.0.0/99"),
        ("EVENT_HOOK_POLL_INTERVAL", "0s"),
        ("MAIL_FROM", "nobody"),
        ("MAIL_FROM", "Tiger, Sons <a@x.vn>"),
        ("MAIL_FROM", "nguyễn@x.vn"),
        ("MAIL_BOUNCES", "nobody"),
        ("MAIL_BOUNCES", "nguyễn@x.vn"),
        ("SMTP_EHLO_NAME", "a b"),
        ("MAIL_BOUNCES", "@no where"),
        ("MAIL_BRAND", "a\nb"),
        ("MAIL_SUPPORT", "the help desk"),
        ("SUPPORT_PHONE", "call us"),
        ("RECOVERY_URL", "/recovery"),
        ("RECOVERY_URL", "https://platform.verolabs.co/recovery#t=hunter2"),
        ("MAIL_TIME_ZONE", "Mars/Olympus"),
        ("DRAIN_DELAY", "soon"),
        ("OUTBOX_POLL_INTERVAL", "0s"),
        ("SMTP_DEADLINE", "1day"),
        ("AUDIT_RETENTION", "100000years"),
        ("RECOVERY_RETENTION", "59min"),
        ("SESSION_RETENTION", "91days"),
        ("NOTICE_RETENTION", "0s"),
        ("ADDRESS_BURST", "4"),
        ("ADDRESS_PER_DAY", "11"),
        ("NETWORK_BURST", "0"),
        ("TRUSTED_PROXIES", "10.0.0.0/99"),
        ("LOG_LEVEL", "info,=,"),
        ("LOG_FORMAT", "xml"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://otlp.example/?key=1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://u:hunter2@otlp.example"),
        ("PUBLIC_ORIGIN", "https://u:hunter2@platform.verolabs.co"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("HTTP_ADDR", taken.as_str()),
        ("METRICS_ADDR", "9090"),
    ] {
        let environment = serve_environment(local, "smtp://127.0.0.1:9?tls=none", &[(variable, value)]);
        let ended = run(&["serve"], &environment);
        let output = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success(), "{variable}={value:?} was accepted");
        assert!(
            output.starts_with("vos-auth: ") && output.contains(variable),
            "{variable}={value:?}: {output}"
        );
        assert_eq!(output.trim_end().lines().count(), 1, "{output}");
        assert!(!output.contains("hunter2") || variable == "LOG_LEVEL", "{output}");
        assert!(!output.contains(weak) && !output.contains(repeated), "{output}");
    }
    let expensive = [("ARGON2_MEMORY_KIB", "1048576"), ("ARGON2_PASSES", "5")];
    let expensive = serve_environment(local, "smtp://127.0.0.1:9?tls=none", &expensive);
    let output = String::from_utf8(run(&["serve"], &expensive).stderr).unwrap();
    assert!(
        output.starts_with("vos-auth: ARGON2_PASSES times ARGON2_MEMORY_KIB is over 4194304"),
        "{output}"
    );
    let twice =
        serve_environment(local, "smtp://127.0.0.1:9?tls=none", &[("DATABASE_URL_FILE", "/etc/hostname")]);
    let output = String::from_utf8(run(&["serve"], &twice).stderr).unwrap();
    assert!(output.contains("DATABASE_URL is given twice"), "{output}");
}

/// Invariant 3 of `src/lib.rs`, and E7: the code is never stored, and no log has it, the cookie or
/// the address.
#[sqlx::test]
async fn e7_code_cookie_and_address_reach_neither_tables_nor_the_log(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relay_url) = (database::service_url(&pool), relay.url());
    let operator_url = database::operator_url(&pool);
    let secrets = tempfile("secrets", SECRET);
    let changes =
        [("LOG_LEVEL", "trace"), ("RECOVERY_SECRETS", ""), ("RECOVERY_SECRETS_FILE", secrets.as_str())];
    let created = run_with_input(
        &["account", "create", "trader.secret@example.com", "--password-stdin"],
        &[("DATABASE_URL", &operator_url)],
        "a password of one's own\n",
    );
    assert!(created.status.success());
    let mut program = Program::start(&["serve"], &serve_environment(&url, &relay_url, &changes));
    let mut client = Client::new(program.address()).with("user-agent", "one\tagent");
    assert!(client.starts_recovery("trader.secret@example.com").await.is_code_sent());
    let code = relay.mail(1).await.code();
    assert!(client.starts_recovery("not an address").await.status == 400);
    let journey = whole_journey(program.address(), &operator_url, &relay).await;
    let outbox =
        async || sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outbox").fetch_one(&pool).await.unwrap();
    let deleted = async {
        while outbox().await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, deleted).await.expect("the delivered email is deleted");
    // A stalled email keeps its row while the tables are searched.
    relay.is_in_mood(crate::harness::relay::Mood::StallsAtRecipient);
    assert!(client.starts_recovery("trader.secret@example.com").await.is_code_sent());
    relay.until_asked(relay.mails().len() + 1).await;

    let cookie = client.cookie.clone().unwrap();
    let token = cookie.split_once('=').unwrap().1;
    let grouped = format!("{} {}", &code[..4], &code[4..]);
    let mut dump = String::new();
    for table in ["account", "recovery_session", "outbox", "throttle", "session", "audit_event"] {
        let sql = sqlx::AssertSqlSafe(format!("SELECT to_jsonb(t)::text FROM {table} t"));
        for row in sqlx::query(sql).fetch_all(&pool).await.unwrap() {
            dump.push_str(&row.get::<String, _>(0));
        }
    }
    assert!(dump.contains("code_sent") && dump.contains("recovery_code") && dump.contains("$argon2id$"));
    // The dump has bytea in hexadecimal.
    let bytes = URL_SAFE_NO_PAD.decode(token).unwrap();
    let raw = bytes.iter().fold(String::new(), |hex, byte| hex + format!("{byte:02x}").as_str());
    for secret in [code.as_str(), grouped.as_str(), token, raw.as_str(), "a password of one's own"] {
        assert!(!dump.contains(secret), "a secret is stored");
    }
    for secret in &journey {
        assert!(!dump.contains(secret), "stored: {secret}");
    }
    relay.goes_down().await;
    program.signal("-TERM");
    let (log, clean) = program.ends();
    assert!(clean);
    let log = log.join("\n");
    assert!(log.contains("\"TRACE\"") && log.contains("\"answered\""), "the log was at trace level");
    let own = [code.as_str(), grouped.as_str(), token, ".secret@", "trader.secret", "AAECAwQFBgcICQ"];
    for secret in own.into_iter().chain(journey.iter().map(String::as_str)) {
        assert!(!log.contains(secret), "logged: {}", log.lines().find(|line| line.contains(secret)).unwrap());
    }
}

/// The recovery flow of another user, with right and wrong inputs. Returns every secret in the
/// requests and answers.
async fn whole_journey(address: std::net::SocketAddr, operator_url: &str, relay: &Relay) -> Vec<String> {
    let email = "second.secret@example.com";
    let passwords =
        ["morning boat on a green river", "night train in autumn rain", "not the password at all"];
    let [old, new, wrong] = passwords;
    let input = format!("{old}\n");
    let created = run_with_input(
        &["account", "create", email, "--password-stdin"],
        &[("DATABASE_URL", operator_url)],
        &input,
    );
    assert!(created.status.success());
    let mut client = Client::new(address);
    let mut answers = vec![client.logs_in(email, wrong).await, client.starts_recovery(email).await];
    let code = relay.mail_to(email, 1).await.code();
    answers.push(client.verifies(&crate::verify::wrong(&code)).await);
    answers.push(client.verifies(&code).await);
    answers.push(client.resets("short").await);
    answers.push(client.resets(new).await);
    answers.push(client.refreshes().await);
    answers.push(client.changes_password(wrong, old).await);
    answers.push(client.changes_password(new, old).await);
    answers.push(client.logs_in(email, old).await);
    answers.push(client.logs_out().await);
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [401, 200, 400, 200, 400, 200, 200, 400, 200, 200, 200]);
    let mut secrets = vec![code.clone(), format!("{} {}", &code[..4], &code[4..])];
    secrets.extend(passwords.map(str::to_owned));
    for answer in &answers {
        let cookies = [answer.set_cookie(), answer.device_cookie()].into_iter().flatten();
        let values = cookies.map(|cookie| cookie.split(['=', ';']).nth(1).unwrap());
        let tokens = ["sessionToken", "jwt"].map(|name| answer.body[name].as_str().unwrap_or_default());
        secrets.extend(values.chain(tokens).filter(|value| !value.is_empty()).map(str::to_owned));
    }
    assert!(secrets.len() > 15, "{}", secrets.len());
    secrets
}

fn tempfile(name: &str, content: &str) -> String {
    let path = std::env::temp_dir().join(format!("vos-auth-test-{}-{name}", std::process::id()));
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

#[sqlx::test]
async fn serve_has_no_dev_routes_and_ends_on_sigterm_and_sigint(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relay_url) = (database::service_url(&pool), relay.url());
    for signal in ["-TERM", "-INT"] {
        let mut program = Program::start(&["serve"], &serve_environment(&url, &relay_url, &[]));
        let address = program.address();
        let client = Client::new(address);
        for path in ["/", "/dev/mailbox", "/dev/mailbox.json", "/metrics"] {
            assert_eq!(client.get(path).await.error(), (404, "not_found"));
        }
        let listening = address.to_string();
        let environment = [("HTTP_ADDR", listening.as_str())];
        assert!(run(&["healthcheck"], &environment).status.success());
        program.signal(signal);
        assert!(program.ends().1);
        let dead = run(&["healthcheck"], &environment);
        assert!(!dead.status.success() && !dead.stderr.is_empty());
    }
}

/// Compose files and manifests unset a variable by making it empty.
#[sqlx::test]
async fn an_empty_variable_counts_as_unset(pool: PgPool) {
    let relay = Relay::start().await;
    let (url, relay_url) = (database::service_url(&pool), relay.url());
    let mut environment = serve_environment(&url, &relay_url, &[]);
    for name in [
        "TRUSTED_PROXIES",
        "ALLOWED_ORIGINS",
        "MAIL_BOUNCES",
        "SMTP_CA_FILE",
        "NETWORK_BURST",
        "DATABASE_URL_FILE",
        "DEV_NO_LIMITS",
    ] {
        environment.push((name, ""));
    }
    let mut program = Program::start(&["serve"], &environment);
    assert_eq!(Client::new(program.address()).get("/healthz").await.status, 200);
}

#[sqlx::test]
async fn account_create_makes_an_account_once(pool: PgPool) {
    let url = database::operator_url(&pool);
    let environment = [("DATABASE_URL", url.as_str())];
    let arguments =
        ["account", "create", "Trader@Example.com", "--locale", "vi", "--traits", r#"{"name":"An"}"#];
    let made = run(&arguments, &environment);
    assert!(made.status.success());
    let row = sqlx::query("SELECT id::text, email, state, locale, traits, password_hash FROM account");
    let row = row.fetch_one(&pool).await.unwrap();
    assert_eq!(row.get::<String, _>("id"), String::from_utf8(made.stdout).unwrap().trim());
    assert_eq!(row.get::<String, _>("email"), "trader@example.com");
    assert_eq!(
        row.get::<Value, _>("traits"),
        serde_json::json!({ "name": "An", "email": "trader@example.com" })
    );
    assert_eq!(row.get::<Option<String>, _>("password_hash"), None);
    for (arguments, why) in [
        (vec!["account", "create", "trader@example.com"], "an account with this email already exists"),
        (vec!["account", "create", "trader"], "not an email address"),
        (vec!["account", "create", "b@example.com", "--traits", "[]"], "--traits"),
    ] {
        let refused = run(&arguments, &environment);
        let output = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && output.contains(why), "{output}");
    }
    // Passwords that a reset would refuse.
    for (password, why) in
        [("", "no password"), ("13 characters", "too short"), ("trader.b@example.com", "guess")]
    {
        let arguments = ["account", "create", "trader.b@example.com", "--password-stdin"];
        let refused = run_with_input(&arguments, &environment, &format!("{password}\n"));
        let output = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && output.contains(why), "{output}");
    }
}

#[test]
fn help_names_every_setting_with_its_variable_and_default() {
    let help = String::from_utf8(run(&["serve", "--help"], &[]).stdout).unwrap();
    let flags = help
        .lines()
        .filter(|line| line.trim_start().starts_with("--"))
        .filter(|line| !line.contains("--help"));
    let (mut settings, variables) = (0, help.matches("[env: ").count());
    for flag in flags {
        settings += 1;
        assert!(flag.contains('<'), "{flag}");
    }
    assert!(settings > 25, "{settings}");
    assert_eq!(settings, variables, "each setting has a variable");
    let version = String::from_utf8(run(&["--version"], &[]).stdout).unwrap();
    assert_eq!(version.trim(), concat!("vos-auth ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_command_has_the_help_of_its_snapshot() {
    let mut cli = Cli::command();
    cli.build();
    let mut help = String::new();
    append_help(&cli, &[], &mut help);
    insta::assert_snapshot!("help", help);
}

fn append_help(command: &Command, path: &[&str], help: &mut String) {
    let shown = run(&[path, &["--help"]].concat(), &[]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    writeln!(help, "$ vos-auth {}\n", [path, &["--help"]].concat().join(" ")).unwrap();
    // Without spaces at the ends of lines, which editors remove. Clap ends some lines with one.
    for line in shown.lines() {
        writeln!(help, "{}", line.trim_end()).unwrap();
    }
    help.push_str("\n\n");
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        append_help(command, &[path, &[command.get_name()]].concat(), help);
    }
}

/// Arguments may be names of files that another person chose.
#[test]
fn a_refused_argument_does_not_control_the_terminal() {
    for arguments in [
        &["account", "import", "a", "\u{1b}]0;title\u{7}"][..],
        &["\u{1b}[31m"],
        &["account", "show", "--\u{9b}"],
    ] {
        let ended = run(arguments, &[]);
        let output = String::from_utf8(ended.stderr).unwrap();
        assert!(!ended.status.success() && output.starts_with("error: "), "{output}");
        assert!(output.chars().all(|letter| letter == '\n' || !letter.is_control()), "{output:?}");
    }
}
