//! The served documents are generated: `openapi/openapi.json` describes the API in English,
//! `openapi/overlay.vi.json` has the Vietnamese texts by JSON pointer, and the service's own
//! messages fill the examples of errors. `UPDATE_DOCS=1 cargo test --test it -- openapi` writes
//! them.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sqlx::PgPool;
use strum::VariantArray as _;
use vos_auth::error::{Detail, Problem};
use vos_auth::http::error::status;
use vos_auth::locale::{self, Locale};
use vos_auth::password::Password;

use crate::harness::Service;

/// The problems that only the admin API has.
pub const OF_OPERATORS: [Problem; 16] = [
    Problem::OperatorUnknown,
    Problem::RoleInsufficient,
    Problem::ReasonInvalid,
    Problem::FieldInvalid,
    Problem::AccountNotFound,
    Problem::AccountDisabled,
    Problem::EmailTaken,
    Problem::OperatorThrottled,
    Problem::RequestNotFound,
    Problem::RequestPending,
    Problem::RequestEnded,
    Problem::SecondOperatorRequired,
    Problem::AccountChanged,
    Problem::AccountProtected,
    Problem::EmailUnchanged,
    Problem::LiftThrottled,
];

/// The document that the service serves in a language.
pub fn document(language: &str) -> Value {
    read(&format!("openapi.oms.{language}.json"))
}

/// Follows a `$ref` inside the document.
pub fn resolved<'a>(document: &'a Value, node: &'a Value) -> &'a Value {
    match node["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).expect("the reference leads somewhere"),
        None => node,
    }
}

/// The examples of a response's body, shared ones included.
pub fn examples<'a>(document: &'a Value, response: &'a Value) -> Vec<&'a Value> {
    let content = &resolved(document, response)["content"]["application/json"];
    let named = content["examples"].as_object().into_iter().flat_map(Map::values);
    named.map(|example| &resolved(document, example)["value"]).chain(content.get("example")).collect()
}

/// Every response of the document: method, path, status, response.
pub fn responses(document: &Value) -> impl Iterator<Item = (&str, &str, &str, &Value)> {
    let operations = document["paths"].as_object().unwrap().iter().flat_map(|(path, operations)| {
        operations.as_object().unwrap().iter().map(move |(method, operation)| (method, path, operation))
    });
    operations.flat_map(|(method, path, operation)| {
        let responses = operation["responses"].as_object().unwrap().iter();
        responses.map(move |(status, response)| (method.as_str(), path.as_str(), status.as_str(), response))
    })
}

fn path(name: &str) -> String {
    format!("{}/openapi/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path(name)).unwrap()).unwrap()
}

#[test]
fn the_served_documents_are_generated_from_one_source() {
    for locale in [Locale::En, Locale::Vi] {
        let name = format!("openapi.oms.{}.json", <&str>::from(locale));
        let generated = serde_json::to_string_pretty(&generated(locale)).unwrap() + "\n";
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(path(&name), &generated).unwrap();
        }
        let served = std::fs::read_to_string(path(&name)).unwrap_or_default();
        let differs = generated.lines().zip(served.lines()).find(|(new, old)| new != old);
        assert!(
            generated == served,
            "openapi/{name} is stale: UPDATE_DOCS=1 cargo test --test it -- openapi writes it. {differs:?}"
        );
    }
}

fn generated(locale: Locale) -> Value {
    let mut document = read("openapi.json");
    if locale == Locale::Vi {
        let overlay = read("overlay.vi.json");
        for (pointer, text) in overlay.as_object().unwrap() {
            *document.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} is not in the source")) =
                text.clone();
        }
    }
    let codes = Problem::VARIANTS.iter().filter(|problem| !OF_OPERATORS.contains(problem));
    let codes: Vec<_> = codes.map(|problem| problem.code()).collect();
    document["components"]["schemas"]["AuthError"]["properties"]["error"]["x-extensible-enum"] = json!(codes);
    let mut shared = BTreeSet::new();
    fill(&mut document, locale, &mut shared);
    for problem in Problem::VARIANTS.iter().copied().filter(|problem| shared.contains(problem.code())) {
        document["components"]["examples"][problem.code()] =
            json!({ "value": body(problem, &Value::Null, locale) });
    }
    document
}

/// Fills the examples that are named like an error code. One without details of its own becomes a
/// shared example.
fn fill(node: &mut Value, locale: Locale, shared: &mut BTreeSet<&'static str>) {
    let examples = node.get_mut("examples").and_then(Value::as_object_mut);
    for (name, example) in examples.into_iter().flatten() {
        let Some(problem) = Problem::VARIANTS.iter().copied().find(|problem| problem.code() == name) else {
            continue;
        };
        if let Some(details) = example.get("value") {
            *example = json!({ "value": body(problem, details, locale) });
        } else {
            *example = json!({ "$ref": format!("#/components/examples/{name}") });
            shared.insert(problem.code());
        }
    }
    match node {
        Value::Object(members) => members.values_mut().for_each(|member| fill(member, locale, shared)),
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, locale, shared)),
        _ => {}
    }
}

/// The body of an error. In the details, `advice` is a password. It is replaced by the advice for
/// that password.
fn body(problem: Problem, details: &Value, locale: Locale) -> Value {
    let mut body = json!({
        "error": problem.code(),
        "message": locale::message(problem, locale),
        "status": status(problem).as_u16(),
    });
    for (name, value) in details.as_object().into_iter().flatten() {
        body[name] = match (name.as_str(), problem) {
            ("advice", Problem::PasswordBreached) => json!(locale::breach_advice(locale)),
            ("advice", _) => advice(value[0].as_str().unwrap(), locale),
            _ => value.clone(),
        };
    }
    body
}

fn advice(typed: &str, locale: Locale) -> Value {
    let Detail::Advice(warning, suggestions) = Password::new(typed).check(1, &[], None).unwrap_err().detail
    else {
        panic!("{typed} is not easy to guess");
    };
    let warning = warning.into_iter().map(|warning| locale::warning(warning, locale));
    warning.chain(suggestions.into_iter().map(|one| locale::suggestion(one, locale))).collect()
}

#[test]
fn the_overlay_has_every_text_that_people_read() {
    fn pointers(node: &Value, at: &str, found: &mut BTreeSet<String>) {
        match node {
            Value::Object(members) => {
                for (name, value) in members {
                    let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
                    if ["description", "summary"].contains(&name.as_str()) && value.is_string() {
                        found.insert(at);
                    } else {
                        pointers(value, &at, found);
                    }
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    pointers(item, &format!("{at}/{index}"), found);
                }
            }
            _ => {}
        }
    }
    let mut english = BTreeSet::new();
    pointers(&read("openapi.json"), "", &mut english);
    let overlay = read("overlay.vi.json");
    let vietnamese: BTreeSet<_> = overlay.as_object().unwrap().keys().cloned().collect();
    assert_eq!(english, vietnamese);
}

#[test]
fn every_route_of_the_api_is_described() {
    let document = document("en");
    let described: BTreeSet<_> = document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    // The router cannot be asked for its routes, so its source is read. The page's routes are in
    // another module and are no part of the API.
    let router = include_str!("../../src/http/mod.rs");
    let served = router.split(".route(").skip(1).map(|route| route.split('"').nth(1).unwrap()).collect();
    assert_eq!(described, served);
}

#[test]
fn every_error_code_has_its_text_and_its_example() {
    for language in ["vi", "en"] {
        let document = document(language);
        let everywhere = document["info"]["description"].as_str().unwrap();
        for (method, path, status, response) in responses(&document) {
            let text = resolved(&document, response)["description"].as_str().unwrap();
            let shown: BTreeSet<_> = examples(&document, response)
                .iter()
                .filter_map(|example| example["error"].as_str())
                .collect();
            for code in &shown {
                let code = format!("`{code}`");
                let known = text.contains(&code) || everywhere.contains(&code);
                assert!(known, "{language} {method} {path} {status} does not explain {code}");
            }
            let explained = text.lines().filter_map(|line| line.strip_prefix("- `")?.split('`').next());
            for code in explained {
                assert!(shown.contains(code), "{language} {method} {path} {status} has no example of {code}");
            }
        }
    }
}

/// The properties of the document that generated clients depend on (the published contract).
#[test]
fn the_published_facts_stand() {
    for language in ["vi", "en"] {
        let document = document(language);
        assert_eq!(document["openapi"], "3.0.3");
        assert_eq!(document["info"]["title"], "VOS OMS Public API");
        assert_eq!(document["info"]["version"], "1.0.0");
        assert_eq!(document["servers"][0]["url"], "/", "the running host");
        assert_eq!(document["servers"][1]["url"], "https://platform.verolabs.co");
        for (path, id, request, response) in [
            (
                "recovery/start",
                "post_api_auth_recovery_start",
                "AuthRecoveryStartRequest",
                "AuthRecoveryStartResponse",
            ),
            (
                "recovery/verify",
                "post_api_auth_recovery_verify",
                "AuthRecoveryVerifyRequest",
                "AuthRecoveryVerifyResponse",
            ),
            (
                "recovery/reset-password",
                "post_api_auth_recovery_reset_password",
                "AuthRecoveryResetRequest",
                "AuthLoginResponse",
            ),
            ("login", "post_api_auth_login", "AuthLoginRequest", "AuthLoginResponse"),
        ] {
            let operation = &document["paths"][format!("/api/auth/{path}")]["post"];
            assert_eq!(operation["operationId"], id);
            assert_eq!(operation["tags"], json!(["Authentication"]));
            assert!(operation["security"].as_array().is_none_or(Vec::is_empty));
            assert_eq!(operation["requestBody"]["required"], true);
            let required = operation["parameters"].as_array().into_iter().flatten();
            assert_eq!(required.filter(|one| resolved(&document, one)["required"] == true).count(), 0);
            let schema = |node: &Value| {
                node["content"]["application/json"]["schema"]["$ref"].as_str().unwrap().to_owned()
            };
            assert_eq!(schema(&operation["requestBody"]), format!("#/components/schemas/{request}"));
            let responses = &operation["responses"];
            assert_eq!(schema(&responses["200"]), format!("#/components/schemas/{response}"));
            assert!(responses["200"]["headers"]["Set-Cookie"].is_object());
            for status in ["400", "429", "502"] {
                assert_eq!(schema(resolved(&document, &responses[status])), "#/components/schemas/AuthError");
            }
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
        for (name, member) in
            [("AuthRecoveryVerifyRequest", "code"), ("AuthRecoveryResetRequest", "password")]
        {
            let member = &schemas[name]["properties"][member];
            assert_eq!((&member["type"], &member["minLength"]), (&json!("string"), &json!(1)));
        }
        let response = &schemas["AuthRecoveryStartResponse"];
        assert_eq!(response["properties"]["status"]["enum"], json!(["code_sent"]));
        assert_eq!(response["additionalProperties"], false);
        let verified = &schemas["AuthRecoveryVerifyResponse"]["properties"]["status"]["enum"];
        assert_eq!(*verified, json!(["verified"]));
        let session = &schemas["AuthLoginResponse"]["properties"];
        assert_eq!(session["session"], session["tokenizedSession"]);
        let error = &schemas["AuthError"];
        let codes = &error["properties"]["error"];
        assert_eq!(codes["type"], "string");
        assert!(codes["enum"].is_null(), "a generated client has to live with new codes");
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
                    !(text || (within_example && ["message", "advice"].contains(&name.as_str())))
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
