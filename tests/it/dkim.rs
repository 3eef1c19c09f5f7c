//! DKIM signatures as sent over the wire, checked by an independent verifier: dkimpy.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use sqlx::PgPool;
use vos_auth::locale::Locale;

use crate::harness::program::{run, serve_environment};
use crate::harness::{Service, Setup, needs, now};

/// The keys that the documented commands make: RSA, then Ed25519.
fn documented_keys(test: &str) -> [PathBuf; 2] {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operate/install.md")).unwrap();
    let folder = format!("{}/dkim-{test}-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    std::fs::create_dir_all(&folder).unwrap();
    let mut commands = page.lines().filter(|line| line.contains("openssl genpkey"));
    ["rsa.pem", "ed25519.pem"].map(|name| {
        let file = PathBuf::from(format!("{folder}/{name}"));
        let command = commands.next().expect("a command for each kind");
        let command = command.replace("/etc/vos-auth/secrets/dkim.pem", &file.display().to_string());
        let ended = Command::new("bash").args(["-c", &command]).output().unwrap();
        assert!(ended.status.success(), "{command}: {}", String::from_utf8_lossy(&ended.stderr));
        file
    })
}

fn openssl(arguments: &str) {
    let ended = Command::new("openssl").args(arguments.split(' ')).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
}

/// The output of `mail dkim-record`: the name, and the joined strings.
fn record(key: &str) -> (String, String) {
    let environment = [("DKIM_KEY_FILE", key), ("DKIM_SELECTOR", "2026-11"), ("DKIM_DOMAIN", "verolabs.co")];
    let ended = run(&["mail", "dkim-record"], &environment);
    let line = String::from_utf8(ended.stdout).unwrap();
    let (name, rest) = line.split_once(" IN TXT ( ").unwrap();
    let strings: Vec<_> = rest.split('"').skip(1).step_by(2).collect();
    assert!(strings.iter().all(|string| string.len() <= 255), "RFC 1035: {line}");
    (name.to_owned(), strings.concat())
}

/// For each message, whether dkimpy accepts its signature with the key of the record.
fn verified((name, value): &(String, String), messages: &[String]) -> Vec<bool> {
    let script = "
import dkim, json, sys
record, messages = json.load(sys.stdin)
txt = lambda name, timeout=5: record[1].encode() if name.decode() == record[0] else None
print(json.dumps([dkim.verify(message.encode(), dnsfunc=txt) for message in messages]))
";
    // Debian's own Python has the package of dkimpy.
    let mut python = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = serde_json::json!([[name, value], messages]).to_string();
    python.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).expect("a verdict for each message")
}

#[sqlx::test]
async fn an_independent_verifier_accepts_our_signatures_and_refuses_changed_emails(pool: PgPool) {
    if !needs::has_program("/usr/lib/python3/dist-packages/dkim") {
        return;
    }
    for (key, algorithm) in documented_keys("verified").iter().zip(["rsa-sha256", "ed25519-sha256"]) {
        let key = key.display().to_string();
        // A line that begins with a dot, which SMTP doubles.
        let settings = ["--mail-brand=.dot", "--dkim-selector=2026-11", &format!("--dkim-key-file={key}")];
        let settings = settings.map(str::to_owned).to_vec();
        let clock = vos_auth::clock::ManualClock::at(now() + Duration::from_secs(7));
        let setup = Setup { settings, clock: Some(clock.clone()), ..Setup::default() };
        let service = Service::start_with(&pool, setup).await;
        let email = format!("{algorithm}@example.com");
        // The English text needs no encoding, so that the line begins with the dot.
        service.has_account_in(&email, Some(Locale::En)).await;
        service.client().starts_recovery(&email).await;
        let good = service.relay.mail_to(&email, 1).await.raw;
        let signed_at = vos_auth::clock::Clock::Manual(clock).now().unix_timestamp();
        let begin = format!("DKIM-Signature: v=1; a={algorithm}; c=relaxed/relaxed; t={signed_at};");
        assert!(good.starts_with(&begin), "{begin} {good}");
        assert!(good.contains("\r\n.dot\r\n") && !good.contains("; x="), "{good}");
        let header = good.split("\r\nFrom:").next().unwrap();
        assert!(header.lines().all(|line| line.len() <= 78), "{header}");

        let mut messages = vec![good.clone(), good.replace("Subject: ", "subject:  ") + "\r\n\r\n"];
        let untouched = messages.len();
        for name in
            ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type", "Auto-Submitted"]
        {
            let changed = good.replacen(&format!("\r\n{name}: "), &format!("\r\n{name}: x"), 1);
            assert_ne!(changed, good, "{name}");
            messages.push(changed);
        }
        for name in
            ["From", "To", "Subject", "Date", "Reply-To", "Cc", "Content-Type", "Content-Transfer-Encoding"]
        {
            messages.push(format!("{name}: a@example.net\r\n{good}"));
            messages.push(good.replacen("\r\n\r\n", &format!("\r\n{name}: a@example.net\r\n\r\n"), 1));
        }
        messages.push(good.replacen("\r\n.dot\r\n", "\r\n.dat\r\n", 1));
        messages.push(good.replace("t=", "t=1"));
        let record = record(&key);
        let verdicts = verified(&record, &messages);
        for (place, verdict) in verdicts.iter().enumerate() {
            assert_eq!(*verdict, place < untouched, "{algorithm}: {}", messages[place]);
        }
        service.stops().await;
    }
}

/// `mail preview` signs the email if the DKIM settings are set.
#[test]
fn a_preview_is_signed_if_emails_are() {
    let [_, key] = documented_keys("preview").map(|key| key.display().to_string());
    let preview = |environment: &[(&str, &str)]| {
        String::from_utf8(run(&["mail", "preview"], environment).stdout).unwrap()
    };
    let on =
        [("DKIM_KEY_FILE", key.as_str()), ("DKIM_SELECTOR", "a"), ("MAIL_FROM", "A <a@mail.example.com>")];
    let signed = preview(&on);
    assert!(
        signed.starts_with("DKIM-Signature: v=1;") && signed.contains("\td=mail.example.com; s=a;"),
        "{signed}"
    );
    assert!(!preview(&[]).contains("DKIM"));
}

#[test]
fn a_key_that_cannot_sign_stops_the_start_in_one_sentence() {
    let [rsa, _] = documented_keys("refused").map(|key| key.display().to_string());
    let folder = PathBuf::from(&rsa).parent().unwrap().display().to_string();
    let file = |name: &str| format!("{folder}/{name}.pem");
    openssl(&format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out {}", file("short")));
    openssl(&format!("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {}", file("ec")));
    openssl(&format!("pkey -in {rsa} -pubout -out {}", file("public")));
    openssl(&format!("pkcs8 -topk8 -passout pass:x -in {rsa} -out {}", file("locked")));
    openssl(&format!("rsa -traditional -in {rsa} -out {}", file("pkcs1")));
    let (short, ec, public, locked, pkcs1) =
        (file("short"), file("ec"), file("public"), file("locked"), file("pkcs1"));
    let selector = ("DKIM_SELECTOR", "2026-11");
    for (settings, variable) in [
        (vec![selector], "DKIM_KEY_FILE"),
        (vec![("DKIM_DOMAIN", "verolabs.co")], "DKIM_KEY_FILE"),
        (vec![("DKIM_KEY_FILE", &*rsa)], "DKIM_SELECTOR"),
        (vec![("DKIM_KEY_FILE", &*rsa), ("DKIM_SELECTOR", "a b")], "DKIM_SELECTOR"),
        (vec![("DKIM_KEY_FILE", &*rsa), selector, ("DKIM_DOMAIN", "-")], "DKIM_DOMAIN"),
        (vec![("DKIM_KEY_FILE", "/nowhere"), selector], "DKIM_KEY_FILE"),
        (vec![("DKIM_KEY_FILE", "/dev/null"), selector], "DKIM_KEY_FILE"),
        (vec![("DKIM_KEY_FILE", &*short), selector], "DKIM_KEY_FILE"),
        (vec![("DKIM_KEY_FILE", &*ec), selector], "DKIM_KEY_FILE"),
        (vec![("DKIM_KEY_FILE", &*public), selector], "DKIM_KEY_FILE"),
        (vec![("DKIM_KEY_FILE", &*locked), selector], "DKIM_KEY_FILE"),
    ] {
        let relay = "smtps://mx.example";
        let ended = run(&["serve"], &serve_environment("postgres://nobody@localhost/none", relay, &settings));
        let said = String::from_utf8([ended.stdout, ended.stderr].concat()).unwrap();
        assert!(!ended.status.success() && said.starts_with(&format!("vos-auth: {variable} ")), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // Older tools write the same key in another format (PKCS #1).
    assert_eq!(record(&pkcs1), record(&rsa));
}
