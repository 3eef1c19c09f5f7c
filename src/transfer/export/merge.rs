//! Merges changes made in this service into an identity as Kratos has it. Other traits and metadata
//! are copied as raw JSON, so that every octet of their values is kept.
//!
//! The result is for a PUT, because Kratos's PATCH refuses `credentials`. A PUT replaces the
//! identity, so it repeats the values that were read. Of the credentials it contains only a changed
//! password: Kratos keeps the kinds of credentials that a PUT omits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::email_address::EmailAddress;
use crate::transfer::import::identity::JsonPath;

/// The changes of an account in this service, each with its time. A value that was changed later in
/// Kratos is kept.
#[derive(Default)]
pub(super) struct Change<'a> {
    pub password_hash: Option<(&'a str, OffsetDateTime)>,
    pub email: Option<(&'a str, OffsetDateTime)>,
    pub active: Option<(bool, OffsetDateTime)>,
}

/// The result of a merge.
#[derive(Debug)]
pub(super) struct Merged {
    /// The body to PUT; `None` if Kratos already has all changes.
    pub put: Option<Vec<u8>>,
    /// Why a difference stays: the value was changed later in Kratos.
    pub newer_in_kratos: Option<&'static str>,
}

/// The fields of a Kratos identity that a PUT needs.
#[derive(Deserialize)]
struct KratosIdentity {
    schema_id: String,
    state: Option<String>,
    state_changed_at: Option<String>,
    traits: Box<RawValue>,
    metadata_public: Option<Box<RawValue>>,
    metadata_admin: Option<Box<RawValue>>,
    external_id: Option<String>,
    #[serde(default)]
    credentials: Credentials<KratosPassword>,
    updated_at: Option<String>,
}

#[derive(Default, Deserialize)]
struct KratosPassword {
    #[serde(default)]
    config: PasswordConfig,
    updated_at: Option<String>,
}

/// The body of a PUT. Kratos sets an absent member to null.
#[derive(Serialize)]
struct Put<'a> {
    schema_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    traits: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_public: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_admin: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials: Option<Credentials<PutPassword>>,
}

#[derive(Serialize)]
struct PutPassword {
    config: PasswordConfig,
}

#[derive(Default, Deserialize, Serialize)]
struct Credentials<P> {
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<P>,
}

#[derive(Default, Deserialize, Serialize)]
struct PasswordConfig {
    #[serde(default)]
    hashed_password: String,
}

/// Merges a change into an identity.
///
/// # Errors
///
/// The reason why the merge is impossible. It quotes nothing of the identity.
pub(super) fn merge(identity: &[u8], change: &Change<'_>, path: &JsonPath) -> Result<Merged, &'static str> {
    const UNREADABLE: &str = "the identity that Kratos returned cannot be read";
    let theirs: KratosIdentity = serde_json::from_slice(identity).map_err(|_| UNREADABLE)?;
    let all: Value = serde_json::from_slice(identity).map_err(|_| UNREADABLE)?;
    let there = theirs.credentials.password.unwrap_or_default();
    let mut newer_in_kratos = None;
    let mut is_newer_in_kratos = |what, changed_there: Option<&String>, here: OffsetDateTime| {
        let changed_there = changed_there.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let is_newer = changed_there.is_some_and(|there| there > here);
        newer_in_kratos = newer_in_kratos.or(is_newer.then_some(what));
        is_newer
    };

    let password = change.password_hash.filter(|(hash, at)| {
        *hash != there.config.hashed_password
            && !is_newer_in_kratos(
                "its password was changed in Kratos later than here",
                there.updated_at.as_ref(),
                *at,
            )
    });
    let state = change.active.map(|(active, at)| (if active { "active" } else { "inactive" }, at));
    let state = state.filter(|(state, at)| {
        Some(*state) != theirs.state.as_deref()
            && !is_newer_in_kratos(
                "its state was changed in Kratos later than here",
                theirs.state_changed_at.as_ref(),
                *at,
            )
    });
    let email = match change.email {
        Some((email, at)) => {
            let known = path.text(&all).ok_or("it has no email at IMPORT_EMAIL_PATH")?;
            let is_same = EmailAddress::parse(known).is_ok_and(|known| known.as_str() == email);
            let why = "its email differs, and it was changed in Kratos later than here";
            (!is_same && !is_newer_in_kratos(why, theirs.updated_at.as_ref(), at)).then_some(email)
        }
        None => None,
    };
    if password.is_none() && state.is_none() && email.is_none() {
        return Ok(Merged { put: None, newer_in_kratos });
    }

    let traits = match email {
        Some(email) => with_email(&theirs.traits, path, email)
            .ok_or("its email cannot be set, because IMPORT_EMAIL_PATH is not within its traits")?,
        None => theirs.traits,
    };
    let put = Put {
        schema_id: &theirs.schema_id,
        state: state.map(|(state, _)| state).or(theirs.state.as_deref()),
        traits: &traits,
        metadata_public: theirs.metadata_public.as_deref(),
        metadata_admin: theirs.metadata_admin.as_deref(),
        external_id: theirs.external_id.as_deref(),
        credentials: password.map(|(hash, _)| Credentials {
            password: Some(PutPassword { config: PasswordConfig { hashed_password: hash.to_owned() } }),
        }),
    };
    Ok(Merged { put: Some(serde_json::to_vec(&put).map_err(|_| UNREADABLE)?), newer_in_kratos })
}

fn with_email(traits: &RawValue, path: &JsonPath, email: &str) -> Option<Box<RawValue>> {
    match path.steps().split_first() {
        Some((first, rest)) if first == "traits" && !rest.is_empty() => replaced(traits, rest, email),
        _ => None,
    }
}

/// Replaces the text at a path. Raw values keep numbers as they are written: parsing would round a
/// number with 20 digits.
fn replaced(value: &RawValue, path: &[String], text: &str) -> Option<Box<RawValue>> {
    let Some((step, rest)) = path.split_first() else { return to_raw_value(text).ok() };
    if let Ok(mut object) = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(value.get()) {
        let member = object.get_mut(step)?;
        *member = replaced(member, rest, text)?;
        return to_raw_value(&object).ok();
    }
    let mut array: Vec<Box<RawValue>> = serde_json::from_str(value.get()).ok()?;
    let element = array.get_mut(step.parse::<usize>().ok()?)?;
    *element = replaced(element, rest, text)?;
    to_raw_value(&array).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    const HERE: OffsetDateTime = datetime!(2026-11-29 12:00 UTC);
    const HASH: &str = "$argon2id$new";

    fn theirs(changes: &[(&str, Value)]) -> String {
        let mut identity = json!({
            "id": "9f425a8d-7efc-4768-8f23-7647a74fdf13",
            "schema_id": "trader",
            "state": "active",
            "state_changed_at": "2024-01-31T12:00:00Z",
            "traits": { "desk": "BIG", "emails": ["Trader@Example.com"] },
            "metadata_public": { "limit": "BIG", "locale": "vi" },
            "metadata_admin": { "crm": 7 },
            "external_id": "crm-7",
            "credentials": { "password": {
                "config": { "hashed_password": "$2b$old" }, "updated_at": "2024-01-31T12:00:00.123456Z",
            }, "totp": { "type": "totp" } },
            "updated_at": "2024-01-31T12:00:00.123456Z",
        });
        for (pointer, value) in changes {
            *identity.pointer_mut(pointer).unwrap() = value.clone();
        }
        identity.to_string().replace("\"BIG\"", "12345678901234567890123.10")
    }

    fn merged(theirs: &str, change: &Change<'_>) -> Result<Merged, &'static str> {
        merge(theirs.as_bytes(), change, &"traits.emails.0".parse().unwrap())
    }

    #[test]
    fn only_changes_made_here_are_written_and_every_other_octet_is_kept() {
        let change = Change { password_hash: Some((HASH, HERE)), ..Change::default() };
        let put = String::from_utf8(merged(&theirs(&[]), &change).unwrap().put.unwrap()).unwrap();
        assert_eq!(
            put,
            "{\"schema_id\":\"trader\",\"state\":\"active\",\
             \"traits\":{\"desk\":12345678901234567890123.10,\"emails\":[\"Trader@Example.com\"]},\
             \"metadata_public\":{\"limit\":12345678901234567890123.10,\"locale\":\"vi\"},\
             \"metadata_admin\":{\"crm\":7},\"external_id\":\"crm-7\",\
             \"credentials\":{\"password\":{\"config\":{\"hashed_password\":\"$argon2id$new\"}}}}"
        );
        let change = Change {
            email: Some(("new@example.com", HERE)),
            active: Some((false, HERE)),
            ..Change::default()
        };
        let put = String::from_utf8(merged(&theirs(&[]), &change).unwrap().put.unwrap()).unwrap();
        let traits = "\"traits\":{\"desk\":12345678901234567890123.10,\"emails\":[\"new@example.com\"]}";
        assert!(
            put.contains(traits) && put.contains("\"inactive\"") && !put.contains("credentials"),
            "{put}"
        );
    }

    #[test]
    fn values_that_kratos_already_has_are_not_written() {
        let change = Change {
            password_hash: Some(("$2b$old", HERE)),
            email: Some(("trader@example.com", HERE)),
            active: Some((true, HERE)),
        };
        let found = merged(&theirs(&[]), &change).unwrap();
        assert!(found.put.is_none() && found.newer_in_kratos.is_none(), "{found:?}");
        assert!(merged(&theirs(&[("/credentials", json!({}))]), &change).unwrap().put.is_some());
    }

    #[test]
    fn a_later_change_in_kratos_is_kept() {
        let later = json!("2026-11-29T12:00:01Z");
        let change = Change {
            password_hash: Some((HASH, HERE)),
            email: Some(("new@example.com", HERE)),
            active: Some((false, HERE)),
        };
        for (pointer, part) in [
            ("/credentials/password/updated_at", "password"),
            ("/state_changed_at", "state"),
            ("/updated_at", "email"),
        ] {
            let found = merged(&theirs(&[(pointer, later.clone())]), &change).unwrap();
            assert!(found.newer_in_kratos.unwrap().contains(part), "{found:?}");
            let put: Value = serde_json::from_slice(&found.put.unwrap()).unwrap();
            assert_eq!(put.get("credentials").is_none(), part == "password");
            assert_eq!(put["state"] == "active", part == "state");
            assert_eq!(put["traits"]["emails"][0] == "Trader@Example.com", part == "email");
        }
    }

    #[test]
    fn an_email_outside_the_path_is_not_guessed() {
        let change = Change { email: Some(("new@example.com", HERE)), ..Change::default() };
        let why =
            |path: &str, text: &str| merge(text.as_bytes(), &change, &path.parse().unwrap()).unwrap_err();
        assert!(why("traits.email", &theirs(&[])).contains("no email at"));
        let elsewhere = json!({ "email": "trader@example.com" });
        assert!(
            why("metadata_admin.email", &theirs(&[("/metadata_admin", elsewhere)])).contains("not within")
        );
        assert!(why("traits.email", "{}").contains("cannot be read"));
    }
}
