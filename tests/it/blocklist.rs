//! Passwords known from breaches: the filter that the built program makes of a list, and its
//! refusals by the API, the page and the commands.

use std::fs;
use std::io::Write as _;
use std::time::Instant;

use data_encoding::HEXUPPER;
use serde_json::json;
use sha1::{Digest as _, Sha1};
use sqlx::PgPool;

use crate::harness::browser::Browser;
use crate::harness::place::temporary;
use crate::harness::program::{Program, run, run_with_input, serve_environment};
use crate::harness::{PATIENCE, Service, database};
use crate::page;

const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "morning boat on a green river";
/// A password that is not guessable, but is in the list.
pub const LISTED: &str = "lavender anchor sidewalk mug";
const NEW: &str = "night train in autumn rain";
const MESSAGES: [(&str, &str, &str); 2] = [
    (
        "vi",
        "Mật khẩu này có trong danh sách mật khẩu đã bị lộ.",
        "Nếu mật khẩu này đang được dùng ở nơi khác",
    ),
    (
        "en",
        "This password is on a list of passwords exposed",
        "If you use this password elsewhere, change it",
    ),
];

/// The output of `vos-auth passwords …`, or its error message.
fn passwords(arguments: &[&str], input: &str) -> Result<String, String> {
    let ended = run_with_input(&[&["passwords"], arguments].concat(), &[], input);
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    if ended.status.success() { Ok(text(ended.stdout)) } else { Err(text(ended.stderr)) }
}

/// A list as Have I Been Pwned publishes it, sorted.
fn list(passwords: &[&str]) -> String {
    let sum = |password: &&str| HEXUPPER.encode(&Sha1::digest(password.as_bytes()));
    let mut sums: Vec<_> = passwords.iter().map(sum).collect();
    sums.sort();
    sums.join(":7\r\n") + ":7\r\n"
}

/// A filter of these passwords, in a file that only this test uses.
pub fn filter(test: &str, listed: &[&str]) -> String {
    let file = temporary(&format!("blocklist-{test}"));
    passwords(&["build", "-", "--out", &file], &list(listed)).unwrap();
    file
}

/// A reset, a change while signed in and an operator's new account all refuse a listed password.
#[sqlx::test]
async fn r8_a_listed_password_is_refused_wherever_one_is_set(pool: PgPool) {
    let file = filter("refused", &[LISTED, "another password"]);
    let service = Service::start_with_settings(&pool, &[&format!("--password-blocklist={file}")]).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.verified(TRADER).await;
    for (language, message, advice) in MESSAGES {
        let answer = client.clone().with("accept-language", language).resets(LISTED).await;
        assert_eq!(answer.error(), (400, "password_breached"));
        assert_eq!(answer.body["field"], json!("password"));
        assert!(answer.body["message"].as_str().unwrap().starts_with(message), "{}", answer.text);
        assert!(answer.body["advice"][1].as_str().unwrap().starts_with(advice), "{}", answer.text);
    }
    let answer = client.resets("passwordpassword").await;
    assert_eq!(answer.error(), (400, "password_guessable"), "the policy comes first");
    assert!(client.resets(NEW).await.is_signed_in(), "a refusal costs nothing");

    let answer = client.changes_password(NEW, LISTED).await;
    assert_eq!(answer.error(), (400, "password_breached"));
    assert_eq!(answer.body["field"], json!("newPassword"));
    assert!(client.changes_password(NEW, PASSWORD).await.is_signed_in());

    let url = database::operator_url(&pool);
    let creates = |email: &str, password: &str| {
        let environment = [("DATABASE_URL", url.as_str()), ("PASSWORD_BLOCKLIST", file.as_str())];
        let ended = run_with_input(&["account", "create", email, "--password-stdin"], &environment, password);
        (ended.status.success(), String::from_utf8(ended.stderr).unwrap())
    };
    let (created, why) = creates("listed@example.com", &format!("{LISTED}\n"));
    assert!(!created && why.contains(MESSAGES[1].1), "{why}");
    assert_eq!(service.count("account WHERE email = 'listed@example.com'").await, 0);
    assert_eq!(creates("new@example.com", NEW), (true, String::new()));
    service.stops().await;
}

/// Without `PASSWORD_BLOCKLIST`, a listed password is accepted.
#[sqlx::test]
async fn without_a_list_no_password_is_called_breached(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_account(TRADER).await;
    assert!(service.verified(TRADER).await.resets(LISTED).await.is_signed_in());
    service.stops().await;
}

async fn page_refuses(pool: &PgPool, language: &str, (_, message, advice): (&str, &str, &str)) {
    let file = filter(&format!("page-{language}"), &[LISTED]);
    let (service, page) = page::page_of(pool, &[&format!("--password-blocklist={file}")]).await;
    let browser = Browser::open(language).await;
    page::asks_for_a_code(&browser, &page).await;
    browser.types("#digits", &service.relay.mail(1).await.code()).await;
    browser.sees("#password").await;
    browser.types("#secret", LISTED).await;
    browser.clicks("#reset button").await;
    assert!(browser.reads("#reset-error p").await.starts_with(message));
    browser.sees("#reset-error li + li").await;
    assert!(browser.reads("#reset-error li + li").await.starts_with(advice));
    assert_eq!(browser.focus().await, "secret", "another one can be typed at once");
    browser.types("#secret", NEW).await;
    browser.clicks("#reset button").await;
    browser.sees("#done").await;
    browser.closes().await;
    service.stops().await;
}

#[sqlx::test]
async fn the_page_refuses_a_listed_password_in_vietnamese(pool: PgPool) {
    page_refuses(&pool, "vi-VN", MESSAGES[0]).await;
}

#[sqlx::test]
async fn the_page_refuses_a_listed_password_in_english(pool: PgPool) {
    page_refuses(&pool, "en-US", MESSAGES[1]).await;
}

/// `serve` does not start with an incomplete or changed filter, and the error names the variable.
#[test]
fn serve_starts_with_no_filter_that_is_incomplete_or_changed() {
    let good = filter("serve", &[LISTED, NEW]);
    let octets = fs::read(&good).unwrap();
    let file = temporary("blocklist-changed");
    let starts = |why: &str| {
        let settings = [("PASSWORD_BLOCKLIST", file.as_str())];
        let environment =
            serve_environment("postgres://nobody@localhost/none", "smtp://127.0.0.1:9?tls=none", &settings);
        let ended = run(&["serve"], &environment);
        let said = String::from_utf8(ended.stderr).unwrap();
        let sentence = format!("vos-auth: PASSWORD_BLOCKLIST ({file}) {why}");
        assert!(!ended.status.success() && said.contains(&sentence), "{sentence}: {said}");
        let checked = passwords(&["check", &file], "").unwrap_err();
        assert!(checked.contains(&format!("vos-auth: {file} {why}")), "{checked}");
    };
    let _ = fs::remove_file(&file);
    starts("cannot be read: No such file");
    fs::write(&file, &octets[..octets.len() - 1]).unwrap();
    starts("is incomplete: copy or build it again");
    let mut flipped = octets.clone();
    flipped[octets.len() / 2] ^= 1;
    fs::write(&file, flipped).unwrap();
    starts("is damaged: copy or build it again");
    fs::write(&file, list(&[LISTED, NEW])).unwrap();
    starts("is not a filter that `vos-auth passwords build` wrote");
    let mut later = octets;
    later[8] = 2;
    fs::write(&file, later).unwrap();
    starts("has version 2, which this release cannot read");
}

/// A list of 200,000 sums from a pipe, and the commands of docs/operate/password-blocklist.md.
#[test]
fn a_filter_is_built_checked_and_asked() {
    let file = temporary("blocklist-built");
    let mut numbers: Vec<_> = (0..200_000_u64).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect();
    numbers.sort_unstable();
    let mut sums: Vec<_> =
        numbers.iter().map(|n| format!("{n:016x}{n:016x}{:08x}:{}", n >> 32, n % 5 + 1)).collect();
    sums.push(sums[199_999].clone());
    let built = passwords(&["build", "-", "--out", &file, "--bits", "8"], &sums.join("\n")).unwrap();
    assert!(built.starts_with("200001 lines: 200000 sums in the filter, 1 repeated, 0 counted"), "{built}");
    assert!(built.ends_with("it refuses one in 256"), "{built}");
    let octets = fs::metadata(&file).unwrap().len();
    assert!(built.contains(&format!("{file} has {octets} octets")) && octets < 240_000, "{built}");
    let checked = passwords(&["check", &file, "--password-stdin"], "hunter2\n").unwrap();
    assert!(checked.starts_with("200000 sums of 8 bits, "), "{checked}");

    let few = ["build", "-", "--out", &file, "--min-count", "4"];
    let built = passwords(&few, &sums.join("\n")).unwrap();
    assert!(built.contains(" counted less often than 4") && !built.contains(" 0 counted"), "{built}");
    assert!(passwords(&["check", &file], "").unwrap().contains(" sums of 16 bits, "));

    let file = filter("asked", &[LISTED]);
    let asked = |password: &str| passwords(&["check", &file, "--password-stdin"], password).unwrap();
    assert!(asked(LISTED).ends_with("the password is listed"));
    assert!(asked(NEW).ends_with("the password is not listed"));
    let json = passwords(&["check", &file, "--password-stdin", "--json"], LISTED).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["sums"], &json["bits"], &json["listed"]), (&json!(1), &json!(16), &json!(true)));
}

/// A build that fails or is stopped leaves the earlier filter, and nothing else.
#[test]
fn an_unfinished_build_leaves_the_filter_as_it_was() {
    let file = filter("kept", &[LISTED]);
    let before = fs::read(&file).unwrap();
    let is_kept = || {
        assert_eq!(fs::read(&file).unwrap(), before);
        assert!(!fs::exists(format!("{file}.part")).unwrap());
    };
    let sorted = list(&[LISTED, NEW]);
    let unsorted = sorted.lines().rev().collect::<Vec<_>>().join("\n");
    let why = passwords(&["build", "-", "--out", &file], &unsorted).unwrap_err();
    assert_eq!(
        why,
        "vos-auth: line 2 of the list is out of order: sort the list, as by `LC_ALL=C sort LIST`"
    );
    is_kept();
    let why = passwords(&["build", "/nowhere/list", "--out", &file], "").unwrap_err();
    assert!(why.contains("/nowhere/list cannot be read"), "{why}");
    is_kept();

    // A build that reads an open pipe is interrupted.
    let pipe = temporary("blocklist-pipe");
    let _ = fs::remove_file(&pipe);
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let building = Program::start(&["passwords", "build", &pipe, "--out", &file], &[]);
    let mut writes = fs::File::options().write(true).open(&pipe).unwrap();
    writes.write_all(list(&[LISTED, NEW]).as_bytes()).unwrap();
    let began = Instant::now();
    while !fs::exists(format!("{file}.part")).unwrap() {
        assert!(began.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    building.signal("-INT");
    let (lines, well) = building.ends();
    assert!(
        !well && lines.iter().any(|line| line.ends_with(&format!("stopped; {file} is as it was"))),
        "{lines:?}"
    );
    is_kept();
}

/// A second build of the same filter is refused: both would write to the same `.part` file.
#[test]
fn two_builds_of_one_filter_do_not_mix() {
    let (file, pipe) = (temporary("blocklist-two"), temporary("blocklist-two-pipe"));
    let _ = fs::remove_file(&pipe);
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let building = Program::start(&["passwords", "build", &pipe, "--out", &file], &[]);
    let mut writes = fs::File::options().write(true).open(&pipe).unwrap();
    let began = Instant::now();
    // The first build has the lock soon after it has opened its list.
    let why = loop {
        assert!(began.elapsed() < PATIENCE);
        if fs::exists(format!("{file}.part")).unwrap()
            && let Err(why) = passwords(&["build", "-", "--out", &file], &list(&[NEW]))
        {
            break why;
        }
    };
    assert_eq!(why, format!("vos-auth: another build is writing {file}.part"));
    writes.write_all(list(&[LISTED, NEW]).as_bytes()).unwrap();
    drop(writes);
    let (lines, well) = building.ends();
    assert!(well && lines.iter().any(|line| line.starts_with("2 lines: 2 sums")), "{lines:?}");
}
