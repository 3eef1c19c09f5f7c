//! Compares answers of the service with the published documents.

use std::collections::BTreeSet;

use jsonschema::{Draft, Validator};
use serde_json::{Value, json};

use crate::harness::client::Answer;
use crate::openapi::{document, examples, resolved, responses};

fn validator(document: &Value, schema: &Value) -> Validator {
    let mut root = json!({ "components": document["components"] });
    root["allOf"] = json!([schema]);
    jsonschema::options().with_draft(Draft::Draft4).build(&root).unwrap()
}

/// Members whose values change from run to run: ids, tokens, times, keys, and where the client is.
const VOLATILE: [&str; 15] = [
    "id",
    "sid",
    "sessionToken",
    "jwt",
    "tokenized",
    "authenticated_at",
    "expires_at",
    "last_seen_at",
    "resend_at",
    "now",
    "ip_address",
    "requestId",
    "kid",
    "x",
    "y",
];

/// An answer or an example without the values of its volatile members.
fn masked(node: &Value) -> Value {
    match node {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| {
                let volatile = VOLATILE.contains(&name.as_str()) && value.is_string();
                (name.clone(), if volatile { json!("…") } else { masked(value) })
            })
            .collect(),
        Value::Array(items) => items.iter().map(masked).collect(),
        other => other.clone(),
    }
}

/// Compares answers with the document, and keeps what was seen.
pub struct Walk {
    pub document: Value,
    language: &'static str,
    /// Of each answer: method, path, status, and the error code or an empty string.
    driven: BTreeSet<[String; 4]>,
    /// Answers that differ from their example.
    stale: Vec<String>,
}

impl Walk {
    pub fn new(language: &'static str) -> Self {
        Self { document: document(language), language, driven: BTreeSet::new(), stale: Vec::new() }
    }

    /// Checks an answer against its description: the schema, the headers, and the whole example.
    pub fn check(&mut self, method: &str, path: &str, answer: &Answer) {
        let document = &self.document;
        let described = &document["paths"][path][method]["responses"][answer.status.to_string()];
        assert!(described.is_object(), "{method} {path} {} is not described: {}", answer.status, answer.text);
        let described = resolved(document, described);
        let content = &described["content"]["application/json"];
        if content.is_null() {
            assert_eq!(answer.text, "", "{method} {path} {} has a body", answer.status);
        } else {
            let schema = validator(document, &content["schema"]);
            let errors: Vec<_> = schema.iter_errors(&answer.body).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{method} {path}: {errors:?} in {}", answer.text);
        }
        let headers = described["headers"].as_object().expect("headers are described");
        for (name, header) in headers {
            assert!(
                resolved(document, header)["required"] == false
                    || answer.header(&name.to_lowercase()).is_some(),
                "{method} {path} {} lacks {name}",
                answer.status
            );
        }
        let code = answer.body["error"].as_str().unwrap_or_default();
        let known = [method, path, &answer.status.to_string(), code].map(str::to_owned);
        // Answers with the same cause differ only in details, such as the attempts left. So only
        // the first one is compared.
        if path != "/openapi.json" && !content.is_null() && !self.driven.contains(&known) {
            let examples = examples(document, described);
            match examples.iter().find(|example| example["error"].as_str().unwrap_or_default() == code) {
                Some(example) if masked(example) == masked(&answer.body) => {}
                example => self.stale.push(format!("{known:?}: {} is not {example:?}", answer.text)),
            }
        }
        self.driven.insert(known);
    }

    /// Asserts that every answer matched its example, and that every example was received.
    pub fn ends_complete(&self) {
        assert!(self.stale.is_empty(), "{}: {:#?}", self.language, self.stale);
        let mut described = BTreeSet::new();
        for (method, path, status, response) in responses(&self.document) {
            if resolved(&self.document, response)["content"].is_null() {
                described.insert([method, path, status, ""].map(str::to_owned));
            }
            for example in examples(&self.document, response) {
                let code = example["error"].as_str().unwrap_or_default();
                described.insert([method, path, status, code].map(str::to_owned));
            }
        }
        // `/openapi.json` answers with the document itself, which has no example.
        described.insert(["get", "/openapi.json", "200", ""].map(str::to_owned));
        assert_eq!(described, self.driven);
    }
}
