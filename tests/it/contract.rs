//! Every answer is as the published documents describe it: schema, headers and the whole example,
//! in both languages.

use std::time::Duration;

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::address_change::two_operators_agree;
use crate::blocklist::{LISTED, filter};
use crate::described::Walk;
use crate::harness::client::{Answer, Client};
use crate::harness::database::{Proxy, Way};
use crate::harness::raw::Raw;
use crate::harness::{Service, Setup};
use crate::openapi::examples;

const RECOVERY: &str = "/api/auth/recovery";
const START: &str = "/api/auth/recovery/start";
const VERIFY: &str = "/api/auth/recovery/verify";
const RESET: &str = "/api/auth/recovery/reset-password";
const LOGIN: &str = "/api/auth/login";
const LOGOUT: &str = "/api/auth/logout";
const PASSWORD_PATH: &str = "/api/auth/password";
const STOP: &str = "/api/auth/address-change/stop";
const SESSION: &str = "/api/auth/session";
const SESSIONS: &str = "/api/auth/sessions";
const ONE_SESSION: &str = "/api/auth/sessions/{id}";
const JWKS: &str = "/.well-known/jwks.json";
const TRADER: &str = "trader.en@example.com";
const PASSWORD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";
/// Passwords that are too short, easy to guess, known from a breach, and too long.
const REFUSED: [&str; 4] = ["short", "passwordpassword", LISTED, LONG];
const LONG: &str = match str::from_utf8(&[b'x'; 300]) {
    Ok(long) => long,
    Err(_) => unreachable!(),
};

impl Walk {
    /// Checks all requests that need a session token, one after the other.
    async fn by_token(&mut self, client: &Client, one: &str) {
        self.check("get", SESSION, &client.refreshes().await);
        self.check("get", SESSIONS, &client.get(SESSIONS).await);
        self.check("delete", SESSIONS, &client.delete(SESSIONS).await);
        self.check("delete", ONE_SESSION, &client.delete(one).await);
    }
}

/// The answers to each way in which a body can be malformed, and to a request of a foreign page.
async fn malformed(service: &Service, client: &Client, path: &str, body: Value) -> Vec<Answer> {
    let members = body.as_object().unwrap();
    let (field, value) = members.iter().next().unwrap();
    let with = |name: &str, value: Value| {
        let mut members = members.clone();
        members.insert(name.to_owned(), value);
        Value::Object(members).to_string()
    };
    let others = members.iter().filter(|(name, _)| *name != field);
    let others = Value::Object(others.map(|(name, value)| (name.clone(), value.clone())).collect());
    let bodies = [
        "{".to_owned(),
        "[]".to_owned(),
        with("unknown", json!("")),
        others.to_string(),
        with(field, json!(1)),
        format!("{{\"{field}\":{value},{}", &body.to_string()[1..]),
        with(field, json!("a".repeat(17 * 1024))),
    ];
    let mut answers = Vec::new();
    for body in &bodies {
        answers.push(client.post_json(path, body).await);
    }
    answers.push(foreign(client).post_json(path, &body.to_string()).await);
    let plain = client.request(Method::POST, path).header("content-type", "text/plain");
    answers.push(Client::answer(plain.body(body.to_string())).await);
    answers.push(cut_off(service, client, path).await);
    answers
}

/// The client, with the `Origin` of a foreign site.
fn foreign(client: &Client) -> Client {
    client.clone().with("origin", "https://evil.example")
}

/// The answer to a body that never arrives in full.
async fn cut_off(service: &Service, client: &Client, path: &str) -> Answer {
    let language = client.headers["accept-language"].to_str().unwrap();
    let cookie = client.cookie.as_deref().unwrap_or_default();
    let token = client.token.as_deref().unwrap_or_default();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\naccept-language: {language}\r\ncookie: {cookie}\r\n\
         x-session-token: {token}\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{{"
    );
    let answer = Raw::says(service.address, request).await.hears_all().await;
    let (head, text) = answer.split_once("\r\n\r\n").expect("head and body");
    let mut headers = HeaderMap::new();
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, headers, text: text.to_owned(), body: serde_json::from_str(text).unwrap() }
}

#[sqlx::test]
async fn every_documented_answer_is_given_as_documented(pool: PgPool) {
    every_answer_is_given(&pool, "en").await;
}

#[sqlx::test]
async fn every_documented_answer_is_given_as_documented_in_vietnamese(pool: PgPool) {
    every_answer_is_given(&pool, "vi").await;
}

#[expect(clippy::too_many_lines, reason = "one walk, in which each step needs the ones before")]
async fn every_answer_is_given(pool: &PgPool, language: &'static str) {
    let mut walk = Walk::new(language);
    // The User-Agents in the examples of the document, so that the answers match the examples.
    let listed = &walk.document["paths"][SESSIONS]["get"]["responses"]["200"];
    let listed = examples(&walk.document, listed)[0]["sessions"].clone();
    let [here, elsewhere] = [0, 1].map(|index| listed[index]["devices"][0]["user_agent"].as_str().unwrap());
    let way = Proxy::before(pool).await;
    let blocklist = format!("--password-blocklist={}", filter(&format!("contract-{language}"), &[LISTED]));
    let settings = ["--network-burst=1000", "--hashing-threads=1", "--hashing-queue=1", "--body-timeout=1s"];
    let settings = settings.into_iter().chain([blocklist.as_str()]).map(str::to_owned);
    let setup = Setup { settings: settings.collect(), database_url: Some(way.url(pool)), ..Setup::default() };
    let service = Service::start_with(pool, setup).await;
    service.has_trader(TRADER, PASSWORD).await;
    let visitor =
        |browser: &str| service.client().with("accept-language", language).with("user-agent", browser);
    for path in ["/healthz", "/readyz"] {
        walk.check("get", path, &visitor(here).get(path).await);
    }

    // Answers of `start`.
    let mut client = visitor(here);
    for _ in 0..4 {
        walk.check("post", START, &client.starts_recovery("other@example.com").await);
    }
    walk.check("post", START, &client.starts_recovery("x").await);
    for answer in malformed(&service, &client, START, json!({ "email": TRADER })).await {
        walk.check("post", START, &answer);
    }
    // Clients with no recovery, with an expired one, and with one that has no attempts left.
    let mut expired = visitor(here);
    expired.starts_recovery("expired@example.com").await;
    service.clock.advance(Duration::from_mins(10));
    let mut spent = visitor(here);
    spent.starts_recovery("spent@example.com").await;
    for _ in 0..5 {
        walk.check("post", VERIFY, &spent.verifies("12345678").await);
    }
    for mut client in [visitor(here), expired, spent] {
        walk.check("get", RECOVERY, &client.get(RECOVERY).await);
        walk.check("post", VERIFY, &client.verifies("12345678").await);
        walk.check("post", RESET, &client.resets(NEW).await);
    }
    // Answers of `verify`.
    let code = service.mails_code_to(&mut client, TRADER).await;
    walk.check("get", RECOVERY, &client.get(RECOVERY).await);
    walk.check("get", RECOVERY, &foreign(&client).get(RECOVERY).await);
    walk.check("get", RECOVERY, &client.get("/api/auth/recovery?required=maybe").await);
    walk.check("get", RECOVERY, &visitor(here).get("/api/auth/recovery?required=false").await);
    walk.check("post", VERIFY, &client.clone().with("x-recovery-id", "another").verifies(&code).await);
    walk.check("post", VERIFY, &client.clone().with("idempotency-key", "short").verifies(&code).await);
    for answer in malformed(&service, &client, VERIFY, json!({ "code": code })).await {
        walk.check("post", VERIFY, &answer);
    }
    walk.check("post", RESET, &client.resets(NEW).await);
    for typed in ["x", &code, &code] {
        walk.check("post", VERIFY, &client.verifies(typed).await);
    }
    // Answers of `reset-password`.
    walk.check("post", RESET, &client.clone().with("x-recovery-id", "another").resets(NEW).await);
    walk.check("post", RESET, &client.clone().with("idempotency-key", "short").resets(NEW).await);
    for answer in malformed(&service, &client, RESET, json!({ "password": NEW })).await {
        walk.check("post", RESET, &answer);
    }
    for password in REFUSED {
        walk.check("post", RESET, &client.resets(password).await);
    }
    let places = [service.app.hasher.place().unwrap(), service.app.hasher.place().unwrap()];
    walk.check("post", RESET, &client.resets(NEW).await);
    walk.check("post", LOGIN, &client.logs_in(TRADER, NEW).await);
    drop(places);
    let mut used = client.clone();
    walk.check("post", RESET, &client.resets(NEW).await);
    walk.check("post", RESET, &used.resets(NEW).await);
    walk.check("get", RECOVERY, &used.get(RECOVERY).await);
    // Answers of `login`.
    walk.check("post", LOGIN, &client.logs_in(TRADER, NEW).await);
    walk.check("post", LOGIN, &client.logs_in("x", NEW).await);
    for answer in malformed(&service, &client, LOGIN, json!({ "identifier": TRADER, "password": NEW })).await
    {
        walk.check("post", LOGIN, &answer);
    }
    let mut stranger = visitor(here);
    for _ in 0..11 {
        walk.check("post", LOGIN, &stranger.logs_in("nobody@example.com", NEW).await);
    }
    // Answers about sessions.
    client.delete(SESSIONS).await;
    visitor(elsewhere).logs_in(TRADER, NEW).await;
    service.clock.advance(Duration::from_secs(1));
    let mut newest = visitor(here);
    newest.logs_in(TRADER, NEW).await;
    client.logs_out().await;
    let client = &mut newest;
    walk.check("get", SESSION, &client.refreshes().await);
    let listed = client.get(SESSIONS).await;
    walk.check("get", SESSIONS, &listed);
    let sessions = listed.body["sessions"].as_array().unwrap();
    let other = sessions.iter().find(|session| session["current"] == false).unwrap();
    let other = format!("{SESSIONS}/{}", other["id"].as_str().unwrap());
    for _ in 0..2 {
        walk.check("delete", ONE_SESSION, &client.delete(&other).await);
    }
    walk.check("delete", SESSIONS, &client.delete(SESSIONS).await);
    // Answers to a change of the password.
    let places = [service.app.hasher.place().unwrap(), service.app.hasher.place().unwrap()];
    walk.check("post", PASSWORD_PATH, &client.changes_password(NEW, PASSWORD).await);
    drop(places);
    let body = json!({ "currentPassword": NEW, "newPassword": PASSWORD });
    for answer in malformed(&service, client, PASSWORD_PATH, body).await {
        walk.check("post", PASSWORD_PATH, &answer);
    }
    for password in REFUSED {
        walk.check("post", PASSWORD_PATH, &client.changes_password(NEW, password).await);
    }
    // Answers of `address-change/stop`.
    let places = [service.app.hasher.place().unwrap(), service.app.hasher.place().unwrap()];
    walk.check("post", STOP, &client.stops_address_change(NEW).await);
    drop(places);
    for answer in malformed(&service, client, STOP, json!({ "password": NEW })).await {
        walk.check("post", STOP, &answer);
    }
    let account = client.refreshes().await.body["identity"]["id"].as_str().unwrap().parse().unwrap();
    two_operators_agree(pool, service.app.clock.now(), account, "new@example.com").await;
    for password in ["not the password", NEW, NEW] {
        walk.check("post", STOP, &client.stops_address_change(password).await);
    }
    for _ in 0..11 {
        walk.check("post", PASSWORD_PATH, &client.changes_password("not the password", PASSWORD).await);
    }
    walk.check("post", STOP, &client.stops_address_change(NEW).await);
    service.clock.advance(Duration::from_mins(5));
    walk.check("post", PASSWORD_PATH, &client.changes_password(NEW, PASSWORD).await);
    for _ in 0..2 {
        walk.check("post", LOGOUT, &client.logs_out().await);
    }
    walk.check("post", PASSWORD_PATH, &client.changes_password(NEW, PASSWORD).await);
    walk.check("post", STOP, &client.stops_address_change(NEW).await);
    walk.by_token(client, &other).await;
    walk.check("get", JWKS, &client.get(JWKS).await);
    walk.check("get", "/openapi.json", &client.get(&format!("/openapi.json?lang={language}")).await);
    walk.check("get", "/openapi.json", &client.get("/openapi.json?lang=fr").await);

    // Answers without PostgreSQL, and without a relay.
    way.is(Way::Cut);
    client.cookie = Some(format!("__Host-vos_recovery={}", "A".repeat(43)));
    client.token = Some("A".repeat(43));
    walk.check("get", RECOVERY, &client.get(RECOVERY).await);
    walk.check("post", START, &client.starts_recovery(TRADER).await);
    walk.check("post", VERIFY, &client.verifies("12345678").await);
    walk.check("post", RESET, &client.resets(NEW).await);
    walk.check("post", LOGIN, &client.logs_in(TRADER, NEW).await);
    walk.check("post", PASSWORD_PATH, &client.changes_password(NEW, PASSWORD).await);
    walk.check("post", STOP, &client.stops_address_change(NEW).await);
    walk.check("post", LOGOUT, &client.logs_out().await);
    walk.by_token(client, &other).await;
    walk.check("get", "/readyz", &client.get("/readyz").await);
    service.relay.goes_down().await;
    service.until_mail_is("unavailable").await;
    walk.check("post", START, &client.starts_recovery(TRADER).await);
    way.is(Way::Open);
    service.stops().await;

    // Answers to a network that exceeds its rate limit.
    let service = Service::start_with_settings(pool, &["--network-burst=1"]).await;
    let mut client = service.client().with("accept-language", language);
    client.verifies("12345678").await;
    walk.check("get", RECOVERY, &client.get(RECOVERY).await);
    walk.check("post", VERIFY, &client.verifies("12345678").await);
    walk.check("post", RESET, &client.resets(NEW).await);
    client.starts_recovery("x").await;
    walk.check("post", START, &client.starts_recovery(TRADER).await);
    client.logs_in("x", NEW).await;
    walk.check("post", LOGIN, &client.logs_in(TRADER, NEW).await);
    walk.check("post", PASSWORD_PATH, &client.changes_password(NEW, PASSWORD).await);
    walk.check("post", STOP, &client.stops_address_change(NEW).await);
    client.token = Some("A".repeat(43));
    client.refreshes().await;
    walk.check("post", LOGOUT, &client.logs_out().await);
    walk.by_token(&client, &other).await;
    service.stops().await;
    walk.ends_complete();
}
