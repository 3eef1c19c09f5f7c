//! Compares the strict body parser with serde_json: it accepts a subset, with the same values.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde::Deserialize;
use serde_json::{Value, json};
use vos_auth::error::Problem;
use vos_auth::http::extract::parse;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    identifier: String,
    password: String,
}

fuzz_target!(|body: &[u8]| {
    let lax = serde_json::from_slice::<Value>(body);
    let problem = match parse::<Login>(&Bytes::copy_from_slice(body)) {
        Ok(Login { identifier, password }) => {
            assert_eq!(lax.ok(), Some(json!({ "identifier": identifier, "password": password })));
            return;
        }
        Err(error) => error.problem,
    };
    match lax {
        Err(_) => assert!(matches!(problem, Problem::JsonMalformed | Problem::JsonNotObject)),
        Ok(Value::Object(members)) => {
            let is_text = |name| members.get(name).is_some_and(Value::is_string);
            let looks_right = members.len() == 2 && is_text("identifier") && is_text("password");
            // serde_json keeps only the last value of a duplicate member.
            let names_are_right = members.keys().all(|name| name == "identifier" || name == "password");
            match problem {
                Problem::FieldUnknown => assert!(!names_are_right),
                Problem::FieldMissing => assert!(members.len() < 2 || !names_are_right),
                Problem::FieldTypeInvalid => assert!(!looks_right),
                problem => assert_eq!(problem, Problem::FieldDuplicate),
            }
        }
        Ok(_) => assert_eq!(problem, Problem::JsonNotObject),
    }
});
