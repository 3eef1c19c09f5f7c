//! What has changed here, merged into an identity as Kratos has it: of everything else, every octet stays as it is.
//!
//! A PUT, as only that takes a password: Kratos's PATCH refuses `credentials`. A PUT replaces the identity, so it has all that
//! was read, but the credentials, which Kratos keeps where none are given, by kind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::email_address::EmailAddress;
use crate::transfer::import::identity::JsonPath;

/// What has changed of an account here, and when. The later change wins, here or there.
#[derive(Default)]
pub(super) struct Change<'a> {
    pub password_hash: Option<(&'a str, OffsetDateTime)>,
    pub email: Option<(&'a str, OffsetDateTime)>,
    pub active: Option<(bool, OffsetDateTime)>,
}

/// What there is to do.
#[derive(Debug)]
pub(super) struct Merged {
    /// What is to be put; `None` if Kratos has it all.
    pub put: Option<Vec<u8>>,
    /// What differs and stays as Kratos has it, as it was changed there later.
    pub newer_there: Option<&'static str>,
}

/// An identity as Kratos gives it, as far as a PUT needs it.
#[derive(Deserialize)]
struct Theirs {
    schema_id: String,
    state: Option<String>,
    state_changed_at: Option<String>,
    traits: Box<RawValue>,
    metadata_public: Option<Box<RawValue>>,
    metadata_admin: Option<Box<RawValue>>,
    external_id: Option<String>,
    #[serde(default)]
    credentials: Credentials<PasswordThere>,
    updated_at: Option<String>,
}

#[derive(Default, Deserialize)]
struct PasswordThere {
    #[serde(default)]
    config: Config,
    updated_at: Option<String>,
}

/// The body of a PUT. An absent member becomes null there.
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
    credentials: Option<Credentials<PasswordHere>>,
}

#[derive(Serialize)]
struct PasswordHere {
    config: Config,
}

#[derive(Default, Deserialize, Serialize)]
struct Credentials<P> {
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<P>,
}

#[derive(Default, Deserialize, Serialize)]
struct Config {
    #[serde(default)]
    hashed_password: String,
}

/// Merges a change into an identity.
///
/// # Errors
///
/// Why that cannot be done; it quotes nothing.
pub(super) fn merge(identity: &[u8], change: &Change<'_>, path: &JsonPath) -> Result<Merged, &'static str> {
    const UNREADABLE: &str = "what Kratos says of it cannot be read";
    let theirs: Theirs = serde_json::from_slice(identity).map_err(|_| UNREADABLE)?;
    let all: Value = serde_json::from_slice(identity).map_err(|_| UNREADABLE)?;
    let there = theirs.credentials.password.unwrap_or_default();
    let mut newer_there = None;
    let mut keeps = |what, changed_there: Option<&String>, here: OffsetDateTime| {
        let changed_there = changed_there.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        let is_newer = changed_there.is_some_and(|there| there > here);
        newer_there = newer_there.or(is_newer.then_some(what));
        is_newer
    };

    let password = change.password_hash.filter(|(hash, at)| {
        *hash != there.config.hashed_password
            && !keeps("its password was changed in Kratos later than here", there.updated_at.as_ref(), *at)
    });
    let state = change.active.map(|(active, at)| (if active { "active" } else { "inactive" }, at));
    let state = state.filter(|(state, at)| {
        Some(*state) != theirs.state.as_deref()
            && !keeps(
                "its state was changed in Kratos later than here",
                theirs.state_changed_at.as_ref(),
                *at,
            )
    });
    let email = match change.email {
        Some((email, at)) => {
            let known = path.text(&all).ok_or("it has no email where IMPORT_EMAIL_PATH says")?;
            let is_same = EmailAddress::parse(known).is_ok_and(|known| known.as_str() == email);
            let why = "its email differs, and it was changed in Kratos later than here";
            (!is_same && !keeps(why, theirs.updated_at.as_ref(), at)).then_some(email)
        }
        None => None,
    };
    if password.is_none() && state.is_none() && email.is_none() {
        return Ok(Merged { put: None, newer_there });
    }

    let traits = match email {
        Some(email) => with_email(&theirs.traits, path, email)
            .ok_or("its email cannot be set, as IMPORT_EMAIL_PATH is not within its traits")?,
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
            password: Some(PasswordHere { config: Config { hashed_password: hash.to_owned() } }),
        }),
    };
    Ok(Merged { put: Some(serde_json::to_vec(&put).map_err(|_| UNREADABLE)?), newer_there })
}

fn with_email(traits: &RawValue, path: &JsonPath, email: &str) -> Option<Box<RawValue>> {
    match path.steps().split_first() {
        Some((first, rest)) if first == "traits" && !rest.is_empty() => replaced(traits, rest, email),
        _ => None,
    }
}

/// Numbers beside it stay as they are written: one with 20 digits would not survive being read.
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
    fn only_what_changed_here_is_put_and_the_rest_is_kept_to_the_octet() {
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
    fn what_kratos_has_already_is_not_put() {
        let change = Change {
            password_hash: Some(("$2b$old", HERE)),
            email: Some(("trader@example.com", HERE)),
            active: Some((true, HERE)),
        };
        let found = merged(&theirs(&[]), &change).unwrap();
        assert!(found.put.is_none() && found.newer_there.is_none(), "{found:?}");
        assert!(merged(&theirs(&[("/credentials", json!({}))]), &change).unwrap().put.is_some());
    }

    #[test]
    fn a_later_change_there_is_kept() {
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
            assert!(found.newer_there.unwrap().contains(part), "{found:?}");
            let put: Value = serde_json::from_slice(&found.put.unwrap()).unwrap();
            assert_eq!(put.get("credentials").is_none(), part == "password");
            assert_eq!(put["state"] == "active", part == "state");
            assert_eq!(put["traits"]["emails"][0] == "Trader@Example.com", part == "email");
        }
    }

    #[test]
    fn an_email_that_stands_elsewhere_is_not_guessed_at() {
        let change = Change { email: Some(("new@example.com", HERE)), ..Change::default() };
        let why =
            |path: &str, text: &str| merge(text.as_bytes(), &change, &path.parse().unwrap()).unwrap_err();
        assert!(why("traits.email", &theirs(&[])).contains("no email where"));
        let elsewhere = json!({ "email": "trader@example.com" });
        assert!(
            why("metadata_admin.email", &theirs(&[("/metadata_admin", elsewhere)])).contains("not within")
        );
        assert!(why("traits.email", "{}").contains("cannot be read"));
    }
}
