//! `vos-auth dev` as a newcomer uses it: the commands of the README, as written.

use std::process::Command;

use serde_json::Value;
use sqlx::PgPool;

use crate::harness::browser::{Browser, DESKTOP};
use crate::harness::client::Client;
use crate::harness::database;
use crate::harness::place::free_address;
use crate::harness::program::Program;
use crate::harness::{PATIENCE, metric};
use crate::openapi::document;

/// The block of curl lines in the README that follows `heading`.
fn readme_block(heading: &str) -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let section = readme.split(&format!("## {heading}\n")).nth(1).expect("the heading is in the README");
    let section = section.split("\n## ").next().unwrap();
    let curl =
        section.split("```sh\n").find(|block| block.contains("\ncurl ")).expect("a block of curl lines");
    curl.split("```").next().unwrap().to_owned()
}

/// A newcomer's first minutes: a whole recovery with curl. Only the port differs from the README,
/// so that the test can run while `make run` is running.
#[sqlx::test(migrations = false)]
async fn the_readmes_curl_lines_work_as_written_against_dev(pool: PgPool) {
    let url = database::url(&pool);
    let port = free_port();
    let mut program =
        Program::start(&["dev"], &[("DATABASE_URL", &url), ("PORT", &port), ("LOG_FORMAT", "json")]);
    program.line_with("Ctrl-C stops it");
    program.line_with("relay is usable");
    let client = Client::new(format!("127.0.0.1:{port}").parse().unwrap());
    let block = readme_block("First five minutes").replace("localhost:8080", &format!("localhost:{port}"));
    let folder = format!("{}/readme-{port}", env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&folder).unwrap();
    let whole_way = move || {
        // The block loops until the mail arrives, so a missing mail needs a timeout.
        let patience = PATIENCE.as_secs().to_string();
        let mut bash = Command::new("timeout");
        let output = bash.args([&patience, "bash", "-c", &block]).current_dir(&folder).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let signed_in = said.strip_prefix(r#"{"status":"code_sent"}{"status":"verified"}"#);
        let signed_in = signed_in.unwrap_or_else(|| panic!("{said}"));
        serde_json::from_str::<Value>(signed_in).unwrap()
    };
    // A lock on the table of accounts delays the first mail, until the block has looked for it in
    // vain.
    let mut held = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE account IN ACCESS EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    let first = tokio::task::spawn_blocking(whole_way.clone());
    let looks = "vos_auth_http_answers_total{route=\"/dev/mailbox.json\",status=\"200\"}";
    let metrics = program.line_with("Metrics: ");
    let metrics =
        metrics.split(['/', ' ']).find_map(|part| part.parse().ok()).expect("the address of the metrics");
    let looked = async { while metric(metrics, looks).await < 1.5 {} };
    tokio::time::timeout(PATIENCE, looked)
        .await
        .expect("the mailbox is looked into before and after the start");
    held.rollback().await.unwrap();
    first.await.unwrap();
    // Run the block again, with the first code in the mailbox.
    let signed_in = tokio::task::spawn_blocking(whole_way).await.unwrap();
    assert_eq!(signed_in["identity"]["traits"]["email"], "trader.vi@example.com");
    assert_eq!(signed_in["jwt"].as_str().unwrap().split('.').count(), 3);
    let mut owner = client.clone();
    owner.token = Some(signed_in["sessionToken"].as_str().unwrap().to_owned());
    assert!(owner.refreshes().await.is_signed_in());
    let mails = mailbox_has(&client, 4).await;
    assert_eq!(mails[0]["subject"], "Mật khẩu Vero OMS của bạn đã được thay đổi");

    let mail = mails[0].as_object().unwrap();
    let mut members: Vec<_> = mail.keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, ["from", "html", "received_at", "subject", "text", "to"]);
    assert_eq!(mail["to"], serde_json::json!(["trader.vi@example.com"]));
    // The other account gets emails in its own language. The newest email is the first in the list.
    Client::clone(&client).starts_recovery("trader.en@example.com").await;
    let mails = mailbox_has(&client, 5).await;
    assert_eq!(mails[0]["subject"], "Your Vero OMS recovery code");
    for (path, content_type) in [
        ("/dev/mailbox", "text/html; charset=utf-8"),
        ("/dev/mailbox.js", "text/javascript; charset=utf-8"),
        ("/dev/mailbox.css", "text/css; charset=utf-8"),
    ] {
        let answer = client.get(path).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(content_type)));
    }
    assert_eq!(client.get("/").await.text, client.get("/dev/mailbox").await.text, "it leads there");
    program.signal("-TERM");
    assert!(program.ends().1);
}

pub async fn mailbox_has(client: &Client, count: usize) -> Vec<Value> {
    let waiting = async {
        loop {
            let mails = client.get("/dev/mailbox.json").await.body;
            if mails.as_array().is_some_and(|mails| mails.len() >= count) {
                return mails.as_array().unwrap().clone();
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the mail arrives")
}

/// Runs `dev` once and returns the statuses of `starts` requests to `start` for one address.
async fn starts_against_dev(url: &str, no_limits: &str, starts: usize) -> Vec<u16> {
    let port = free_port();
    let environment = [("DATABASE_URL", url), ("PORT", port.as_str()), ("DEV_NO_LIMITS", no_limits)];
    let mut program = Program::start(&["dev"], &environment);
    program.line_with("relay is usable");
    let client = Client::new(format!("127.0.0.1:{port}").parse().unwrap());
    let mut statuses = Vec::new();
    for _ in 0..starts {
        statuses.push(Client::clone(&client).starts_recovery("trader.vi@example.com").await.status);
    }
    statuses
}

#[sqlx::test]
async fn dev_lifts_rate_limits_on_request_and_starts_again_on_the_same_database(pool: PgPool) {
    let url = database::url(&pool);
    for limits in ["1", "0"] {
        let statuses = starts_against_dev(&url, limits, 50).await;
        assert_eq!(statuses.contains(&429), limits == "0", "{statuses:?}");
    }
}

/// The API reference of `dev` shows every operation, sends a request, and loads nothing from other
/// hosts.
#[sqlx::test]
async fn the_reference_of_the_api_shows_every_operation_and_calls_it(pool: PgPool) {
    let (url, port) = (database::url(&pool), free_port());
    let mut program = Program::start(&["dev"], &[("DATABASE_URL", &url), ("PORT", &port)]);
    program.line_with("relay is usable");
    let browser = Browser::open("en").await;
    browser.is_sized(DESKTOP).await;
    browser.goes_to(&format!("http://localhost:{port}/docs#?route=get-/readyz")).await;
    let shown = "document.querySelector('openapi-explorer')?.shadowRoot";
    browser.until(&format!("{shown}?.querySelector('.nav-bar-path')")).await;
    let listed = browser.value(&format!("{shown}.querySelectorAll('.nav-bar-path').length")).await;
    let document = document("en");
    let paths = document["paths"].as_object().unwrap().values();
    let operations: usize = paths.map(|operations| operations.as_object().unwrap().len()).sum();
    assert_eq!(listed, operations.to_string());

    let execute = format!("{shown}.querySelector('.btn-execute')");
    browser.until(&execute).await;
    browser.script(&format!("{execute}.click()")).await;
    browser.until(&format!("{shown}.textContent.includes('(200)')")).await;
    let loaded = "return performance.getEntriesByType('resource').map(({ name }) => new URL(name)).map(({ host, pathname }) => host + pathname)";
    let loaded = browser.script(loaded).await;
    let from_here = ["/docs/openapi-explorer.js", "/openapi.json", "/readyz"]
        .map(|path| format!("localhost:{port}{path}"));
    assert_eq!(loaded, serde_json::json!(from_here));
    // The reference is also available in Vietnamese.
    browser.clicks("openapi-explorer a[hreflang]").await;
    browser.until("document.documentElement.lang === 'vi'").await;
    browser.until(&format!("{shown}?.textContent.includes('Đăng xuất')")).await;
    browser.closes().await;
}

pub fn free_port() -> String {
    free_address().port().to_string()
}

/// An earlier run with limits may have used up the buckets of the demo accounts for hours.
#[sqlx::test]
async fn dev_without_limits_lifts_those_that_were_used_up_before(pool: PgPool) {
    let url = database::url(&pool);
    for limits in ["0", "1"] {
        let statuses = starts_against_dev(&url, limits, 20).await;
        assert_eq!(statuses.contains(&429), limits == "0", "DEV_NO_LIMITS={limits}: {statuses:?}");
    }
}
