//! The published documents: valid for every answer that they describe, and alike in both languages.

use std::collections::BTreeSet;
use std::time::Duration;

use jsonschema::{Draft, Validator};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::client::Answer;
use crate::harness::database::{Proxy, Way};
use crate::harness::{Service, Setup};
use crate::verify::wrong;

const RECOVERY: &str = "/api/auth/recovery";
const START: &str = "/api/auth/recovery/start";
const VERIFY: &str = "/api/auth/recovery/verify";
const RESET: &str = "/api/auth/recovery/reset-password";
const LOGIN: &str = "/api/auth/login";
const PASSWORD_PATH: &str = "/api/auth/password";
const JWKS: &str = "/.well-known/jwks.json";
const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";

fn document(language: &str) -> Value {
    let path = format!("{}/openapi/openapi.oms.{language}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Follows a `$ref` inside the document.
fn resolved<'a>(document: &'a Value, node: &'a Value) -> &'a Value {
    match node["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).expect("the reference leads somewhere"),
        None => node,
    }
}

fn validator(document: &Value, schema: &Value) -> Validator {
    let mut root = json!({ "components": document["components"] });
    root["allOf"] = json!([schema]);
    jsonschema::options().with_draft(Draft::Draft4).build(&root).unwrap()
}

/// Checks an answer against what the document says of it, headers included.
fn check(document: &Value, method: &str, path: &str, answer: &Answer) {
    let described = &document["paths"][path][method]["responses"][answer.status.to_string()];
    assert!(described.is_object(), "{method} {path} {} is not described", answer.status);
    let described = resolved(document, described);
    let schema = &described["content"]["application/json"]["schema"];
    let errors: Vec<_> =
        validator(document, schema).iter_errors(&answer.body).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{method} {path}: {errors:?} in {}", answer.text);
    let headers = described["headers"].as_object().expect("headers are described");
    for (name, header) in headers {
        assert!(
            resolved(document, header)["required"] == false || answer.header(&name.to_lowercase()).is_some(),
            "{method} {path} {} lacks {name}",
            answer.status
        );
    }
}

#[sqlx::test]
async fn every_documented_answer_is_given_as_documented(pool: PgPool) {
    let document = document("en");
    let mut driven = BTreeSet::new();
    let mut check = |method: &'static str, path: &'static str, answer: &Answer| {
        check(&document, method, path, answer);
        driven.insert((method.to_owned(), path.to_owned(), answer.status.to_string()));
    };
    let way = Proxy::before(&pool).await;
    let settings = ["--network-burst=1000", "--hashing-threads=1", "--hashing-queue=1"].map(str::to_owned);
    let setup = Setup { settings: settings.into(), database_url: Some(way.url(&pool)), ..Setup::default() };
    let service = Service::start_with(&pool, setup).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();

    for path in ["/healthz", "/readyz"] {
        check("get", path, &client.get(path).await);
    }
    for _ in 0..4 {
        check("post", START, &client.starts_recovery("other@example.com").await);
    }
    for body in ["{", "{}", r#"{"email":"x"}"#, r#"{"email":"a@example.com","email":"a@example.com"}"#] {
        check("post", START, &client.post_json(START, body).await);
    }
    // verify
    let mut client = service.client();
    check("post", VERIFY, &client.verifies("12345678").await);
    check("get", RECOVERY, &client.get(RECOVERY).await);
    check("get", RECOVERY, &client.clone().with("origin", "https://evil.example").get(RECOVERY).await);
    let code = service.mails_code_to(&mut client, TRADER).await;
    check("get", RECOVERY, &client.get(RECOVERY).await);
    check("post", VERIFY, &client.clone().with("x-recovery-id", "another").verifies(&code).await);
    for typed in [wrong(&code).as_str(), "x", &code] {
        check("post", VERIFY, &client.verifies(typed).await);
    }
    // reset-password
    check("get", RECOVERY, &client.get(RECOVERY).await);
    check("post", RESET, &client.clone().with("x-recovery-id", "another").resets(NEW).await);
    for password in ["short", "passwordpassword", &"x".repeat(300)] {
        check("post", RESET, &client.resets(password).await);
    }
    let places = [service.app.hasher.place().unwrap(), service.app.hasher.place().unwrap()];
    check("post", RESET, &client.resets(NEW).await);
    check("post", LOGIN, &client.logs_in(TRADER, NEW).await);
    drop(places);
    check("post", RESET, &client.resets(NEW).await);
    check("post", RESET, &client.resets(NEW).await);
    // login
    check("post", LOGIN, &client.logs_in(TRADER, NEW).await);
    check("post", LOGIN, &client.logs_in("x", NEW).await);
    let mut stranger = service.client();
    for _ in 0..11 {
        check("post", LOGIN, &stranger.logs_in("nobody@example.com", NEW).await);
    }
    // sessions
    let mut elsewhere = client.clone();
    elsewhere.logs_in(TRADER, NEW).await;
    check("get", "/api/auth/session", &client.refreshes().await);
    let listed = client.get("/api/auth/sessions").await;
    check("get", "/api/auth/sessions", &listed);
    let sessions = listed.body["sessions"].as_array().unwrap();
    let other = sessions.iter().find(|session| session["current"] == false).unwrap();
    let id = other["id"].as_str().unwrap();
    let one = "/api/auth/sessions/{id}";
    for _ in 0..2 {
        check("delete", one, &client.delete(&format!("/api/auth/sessions/{id}")).await);
    }
    check("delete", "/api/auth/sessions", &client.delete("/api/auth/sessions").await);
    // password
    let places = [service.app.hasher.place().unwrap(), service.app.hasher.place().unwrap()];
    check("post", PASSWORD_PATH, &client.changes_password(NEW, PASSWORD).await);
    drop(places);
    for _ in 0..11 {
        check("post", PASSWORD_PATH, &client.changes_password("not the password", PASSWORD).await);
    }
    service.clock.advance(Duration::from_mins(5));
    check("post", PASSWORD_PATH, &client.changes_password(NEW, PASSWORD).await);
    check("post", "/api/auth/logout", &client.logs_out().await);
    check("post", "/api/auth/logout", &client.logs_out().await);
    check("post", PASSWORD_PATH, &client.changes_password(NEW, PASSWORD).await);
    check("get", "/api/auth/session", &client.refreshes().await);
    check("get", "/api/auth/sessions", &client.get("/api/auth/sessions").await);
    check("delete", "/api/auth/sessions", &client.delete("/api/auth/sessions").await);
    check("delete", one, &client.delete(&format!("/api/auth/sessions/{id}")).await);

    check("get", JWKS, &client.get(JWKS).await);
    check("get", "/openapi.json", &client.get("/openapi.json?lang=vi").await);
    check("get", "/openapi.json", &client.get("/openapi.json?lang=fr").await);

    // Without a relay, and without PostgreSQL.
    service.relay.goes_down().await;
    service.until_mail_is("unavailable").await;
    check("post", START, &client.starts_recovery("trader@example.com").await);
    way.is(Way::Cut);
    client.cookie = Some(format!("__Host-vos_recovery={}", "A".repeat(43)));
    client.token = Some("A".repeat(43));
    check("get", RECOVERY, &client.get(RECOVERY).await);
    check("post", VERIFY, &client.verifies("12345678").await);
    check("post", RESET, &client.resets(NEW).await);
    check("post", LOGIN, &client.logs_in(TRADER, NEW).await);
    check("post", PASSWORD_PATH, &client.changes_password(NEW, PASSWORD).await);
    check("post", "/api/auth/logout", &client.logs_out().await);
    check("get", "/api/auth/session", &client.refreshes().await);
    check("get", "/api/auth/sessions", &client.get("/api/auth/sessions").await);
    check("delete", "/api/auth/sessions", &client.delete("/api/auth/sessions").await);
    check("delete", one, &client.delete(&format!("/api/auth/sessions/{id}")).await);
    check("get", "/readyz", &client.get("/readyz").await);
    way.is(Way::Open);
    service.stops().await;

    // A network that sends too much.
    let service = Service::start_with_settings(&pool, &["--network-burst=1"]).await;
    let mut client = service.client();
    client.verifies("12345678").await;
    check("get", RECOVERY, &client.get(RECOVERY).await);
    check("post", VERIFY, &client.verifies("12345678").await);
    check("post", RESET, &client.resets(NEW).await);
    client.token = Some("A".repeat(43));
    client.refreshes().await;
    check("post", "/api/auth/logout", &client.logs_out().await);
    check("get", "/api/auth/session", &client.refreshes().await);
    check("get", "/api/auth/sessions", &client.get("/api/auth/sessions").await);
    check("delete", "/api/auth/sessions", &client.delete("/api/auth/sessions").await);
    check("delete", one, &client.delete(&format!("/api/auth/sessions/{id}")).await);
    service.stops().await;

    let mut described = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            for status in operation["responses"].as_object().unwrap().keys() {
                described.insert((method.clone(), path.clone(), status.clone()));
            }
        }
    }
    assert_eq!(described, driven);
}

/// The facts that a generated client rests on (the published contract).
#[test]
fn the_published_facts_stand() {
    for language in ["vi", "en"] {
        let document = document(language);
        assert_eq!(document["openapi"], "3.0.3");
        assert_eq!(document["info"]["title"], "VOS OMS Public API");
        assert_eq!(document["info"]["version"], "1.0.0");
        assert_eq!(document["servers"][0]["url"], "https://platform.verolabs.co");
        for (path, id) in [
            (START, "post_api_auth_recovery_start"),
            (VERIFY, "post_api_auth_recovery_verify"),
            (RESET, "post_api_auth_recovery_reset_password"),
            (LOGIN, "post_api_auth_login"),
        ] {
            let operation = &document["paths"][path]["post"];
            assert_eq!(operation["operationId"], id);
            assert_eq!(operation["tags"], json!(["Authentication"]));
            assert!(operation["security"].as_array().is_none_or(Vec::is_empty));
        }
        for (name, members) in [
            ("AuthRecoveryStartRequest", json!(["email"])),
            ("AuthRecoveryVerifyRequest", json!(["code"])),
            ("AuthRecoveryResetRequest", json!(["password"])),
            ("AuthLoginRequest", json!(["identifier", "password"])),
            ("AuthLoginResponse", json!(["sessionToken", "jwt", "session", "tokenizedSession"])),
        ] {
            let schema = &document["components"]["schemas"][name];
            assert_eq!(schema["required"], members, "{name}");
            assert_eq!(schema["additionalProperties"] == false, name.ends_with("Request"), "{name}");
        }
        let schemas = &document["components"]["schemas"];
        let request = &schemas["AuthRecoveryStartRequest"];
        assert_eq!(request["properties"]["email"]["type"], "string");
        assert_eq!(request["properties"]["email"]["format"], "email");
        assert_eq!(request["required"], json!(["email"]));
        assert_eq!(request["additionalProperties"], false);
        let response = &schemas["AuthRecoveryStartResponse"];
        assert_eq!(response["properties"]["status"]["enum"], json!(["code_sent"]));
        assert_eq!(response["additionalProperties"], false);
        let error = &schemas["AuthError"];
        assert_eq!(error["required"], json!(["error", "message", "status"]));
        assert_eq!(error["properties"]["status"]["format"], "int32");
        assert_ne!(error["additionalProperties"], false);
    }
}

#[test]
fn both_languages_differ_in_what_people_read_alone() {
    fn facts(node: &Value, within_example: bool) -> Value {
        match node {
            Value::Object(members) => members
                .iter()
                .filter(|(name, value)| {
                    let text = ["description", "summary"].contains(&name.as_str()) && value.is_string();
                    !(text || (within_example && *name == "message"))
                })
                .map(|(name, value)| {
                    (name.clone(), facts(value, within_example || name.starts_with("example")))
                })
                .collect(),
            Value::Array(items) => items.iter().map(|item| facts(item, within_example)).collect(),
            other => other.clone(),
        }
    }
    let (vi, en) = (document("vi"), document("en"));
    assert_eq!(facts(&vi, false), facts(&en, false));
    assert_ne!(vi, en);
}

#[sqlx::test]
async fn the_documents_are_served_in_the_language_that_is_asked_for(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (vi, en) = (document("vi"), document("en"));
    let vietnamese = service.client().with("accept-language", "vi");
    assert_eq!(service.client().get("/openapi.json?lang=vi").await.body, vi);
    assert_eq!(vietnamese.get("/openapi.json?lang=en").await.body, en);
    assert_eq!(vietnamese.get("/openapi.json").await.body, vi);
    let answer = service.client().get("/openapi.json").await;
    assert_eq!(answer.body, en);
    assert!(answer.header("cache-control").unwrap().contains("public"));
    for query in ["?lang=fr", "?lang=vi&lang=en", "?x=1", "?lang"] {
        let answer = service.client().get(&format!("/openapi.json{query}")).await;
        assert_eq!(answer.error(), (400, "query_invalid"), "{query}");
    }
    service.stops().await;
}
