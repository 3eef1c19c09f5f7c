//! Settings that are missing or wrong are named all at once, by `serve` and by `config check`.

use serde_json::Value;

use crate::harness::program::{SECRET, run, serve_environment};

const DATABASE: &str = "postgres://serve:hunter2@db.example:6432/vos?sslmode=verify-full";
const RELAYS: &str = "smtps://user:hunter2@mx.example,smtp://127.0.0.1:25?tls=none";

/// Settings that are wrong in every way: refused by clap or when the parts are read, or missing.
const WRONG: [(&str, &str); 15] = [
    ("PUBLIC_ORIGIN", ""),
    ("SIGN_IN_URL", "javascript:alert(1)"),
    ("PASSWORD_MIN_CHARS", "7"),
    ("RECOVERY_PAGE", "maybe"),
    ("BRAND_DIR", "/nowhere"),
    ("LOG_LEVEL", "info,=,"),
    ("JWT_KEYS", "/nowhere"),
    ("MAIL_FROM", "nobody"),
    ("MAIL_BOUNCES", "no address"),
    ("MAIL_TIME_ZONE", "Mars/Olympus"),
    ("MAIL_SUPPORT", "the help desk"),
    ("SMTP_EHLO_NAME", "a b"),
    ("SMTP_CA_FILE", "/nowhere/ca.pem"),
    ("DKIM_SELECTOR", "2026-11"),
    ("SMTP_OAUTH_CLIENT_ID", "us"),
];

/// The other variables that the output names. The last two are named because variables of [`WRONG`]
/// need them.
const ALSO_NAMED: [&str; 6] = [
    "DATABASE_URL",
    "RECOVERY_SECRETS",
    "DEVICE_SECRETS",
    "SMTP_RELAYS",
    "DKIM_KEY_FILE",
    "SMTP_OAUTH_TOKEN_URL",
];

/// The variables that the lines of the output name, sorted.
fn named(output: &[u8]) -> Vec<String> {
    let output = String::from_utf8(output.to_vec()).unwrap();
    assert!(!output.contains("hunter2"), "{output}");
    let variable = |line: &str| {
        let sentence = line.strip_prefix("vos-auth: ").unwrap_or_else(|| panic!("{output}"));
        sentence.split(' ').next().unwrap().to_owned()
    };
    let mut named: Vec<_> = output.lines().map(variable).collect();
    named.sort();
    named
}

#[test]
fn everything_missing_or_wrong_is_named_once_and_at_once() {
    let secrets = [("RECOVERY_SECRETS", "test:hunter2"), ("DEVICE_SECRETS", "")];
    let changes = [&WRONG[..], &secrets].concat();
    let environment = serve_environment("mysql:hunter2", "", &changes);
    let own = WRONG.iter().map(|(variable, _)| *variable);
    let own = own.filter(|variable| !["DKIM_SELECTOR", "SMTP_OAUTH_CLIENT_ID"].contains(variable));
    let mut expected: Vec<_> = own.chain(ALSO_NAMED).map(str::to_owned).collect();
    expected.sort();
    let served = run(&["serve"], &environment);
    assert_eq!(named(&served.stderr), expected);
    assert_eq!(served.status.code(), Some(2));
    let checked = run(&["config", "check"], &environment);
    assert_eq!(named(&checked.stderr), expected);
    assert_eq!(checked.status.code(), Some(1));

    // A wrong flag is found before a wrong variable of the same setting.
    let flags = ["serve", "--http-addr", "here", "--max-header=1", "--password-min-chars", "6"];
    let flagged = run(&flags, &environment);
    let more = [expected, vec!["HTTP_ADDR".to_owned(), "MAX_HEADER".to_owned()]].concat();
    let mut more = more;
    more.sort();
    assert_eq!(named(&flagged.stderr), more);
    let lines = String::from_utf8(flagged.stderr).unwrap();
    assert!(lines.contains("PASSWORD_MIN_CHARS cannot be \"6\""), "{lines}");
}

#[test]
fn both_addresses_that_cannot_be_bound_are_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let ports = [("HTTP_ADDR", taken.as_str()), ("METRICS_ADDR", taken.as_str())];
    let ended = run(&["serve"], &serve_environment(DATABASE, RELAYS, &ports));
    assert_eq!(named(&ended.stderr), ["HTTP_ADDR", "METRICS_ADDR"]);
    assert_eq!(ended.status.code(), Some(1));
}

/// Other commands name all their wrong values, too, and run nothing.
#[test]
fn a_command_with_two_wrong_values_names_both() {
    let ended = run(&["outbox", "list", "--limit", "0"], &[]);
    assert_eq!(named(&ended.stderr), ["LIMIT"]);
    let environment = [("PASSWORD_MIN_CHARS", "7")];
    let ended = run(&["account", "create", "a@example.com", "--locale", "xx"], &environment);
    assert_eq!(named(&ended.stderr), ["LOCALE", "PASSWORD_MIN_CHARS"]);
    assert_eq!(ended.status.code(), Some(2));
    let ended = run(&["outbox", "show", "no-uuid"], &[]);
    assert_eq!(named(&ended.stderr), ["ID"]);
    assert_eq!(ended.status.code(), Some(2));
}

#[test]
fn config_check_lists_what_is_in_effect_and_no_secret() {
    let file = format!("{}/config-check-secrets-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::write(&file, SECRET).unwrap();
    let changes = [
        ("ALLOWED_ORIGINS", "https://a.example,https://b.example"),
        ("RECOVERY_SECRETS", ""),
        ("RECOVERY_SECRETS_FILE", file.as_str()),
    ];
    let environment = serve_environment(DATABASE, RELAYS, &changes);
    let checked = run(&["config", "check", "--json", "--http-addr", "127.0.0.1:8081"], &environment);
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.status.success(), "{said}{}", String::from_utf8_lossy(&checked.stderr));
    let found: Value = serde_json::from_str(&said).unwrap();
    let (key, usable) = (SECRET.split_once(':').unwrap().1, &found["usable"]);
    assert!(*usable == true && !said.contains("hunter2") && !said.contains(key), "{said}");
    let row = |list: &str, variable: &str| {
        let mut rows = found[list].as_array().unwrap().iter();
        let row =
            rows.find(|row| row["variable"] == variable).unwrap_or_else(|| panic!("{variable}: {said}"));
        let text = |name: &str| row[name].as_str().unwrap_or("-").to_owned();
        (text("value"), text("source"))
    };
    for (variable, value, source) in [
        ("HTTP_ADDR", "127.0.0.1:8081", "flag"),
        ("PUBLIC_ORIGIN", "https://platform.verolabs.co", "environment"),
        ("ALLOWED_ORIGINS", "https://a.example,https://b.example", "environment"),
        ("SESSION_IDLE", "30min", "default"),
        ("LOG_LEVEL", "info", "default"),
        ("OTEL_SERVICE_NAME", "vos-auth", "default"),
        ("BRAND_DIR", "-", "not set"),
    ] {
        assert_eq!(row("settings", variable), (value.to_owned(), source.to_owned()), "{variable}");
    }
    let from_file = format!("file {file}");
    for (variable, value, source) in [
        ("DATABASE_URL", "serve@db.example:6432/vos, sslmode VerifyFull", "environment"),
        ("RECOVERY_SECRETS", "keys test", from_file.as_str()),
        ("SMTP_RELAYS", "0 (mx.example:465), 1 (127.0.0.1:25)", "environment"),
        ("SMTP_OAUTH_CLIENT_SECRET", "-", "not set"),
    ] {
        assert_eq!(row("secrets", variable), (value.to_owned(), source.to_owned()), "{variable}");
    }
    let listed = String::from_utf8(run(&["config", "check"], &environment).stdout).unwrap();
    assert!(listed.starts_with("Listening:\n  HTTP_ADDR ") && listed.contains("\nSecrets:\n"), "{listed}");
    assert!(listed.ends_with("All settings can be used.\n") && !listed.contains("hunter2"), "{listed}");
    std::fs::remove_file(file).unwrap();
}
