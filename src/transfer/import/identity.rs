//! Converts identities of Ory Kratos's admin API and rows of a CSV into accounts, and accounts into
//! identities.

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::left_behind::{self, LeftBehind};
use crate::account;
use crate::account::import::Incoming;
use crate::account::record::Record;
use crate::email_address::EmailAddress;
use crate::locale::Locale;
use crate::password::{StoredHash, Unusable};

/// The refusal of an identity whose address can be mistaken for another.
pub const NOT_ASCII: &str = "its email has characters beyond ASCII before the @, which can be mistaken for others; \
                             give it another email in the other system, then import again";

/// The paths of values whose place in an identity each Kratos installation chooses.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The address.
    pub email: JsonPath,
    /// The language.
    pub locale: JsonPath,
}

/// Names of members or numbers of elements, separated by dots: `traits.emails.0`.
#[derive(Clone, Debug)]
pub struct JsonPath(String);

impl JsonPath {
    /// The text at this path.
    #[must_use]
    pub fn text<'a>(&self, value: &'a Value) -> Option<&'a str> {
        value.pointer(&self.0)?.as_str()
    }

    /// The steps of the path, from the outermost.
    #[must_use]
    pub fn steps(&self) -> Vec<String> {
        self.0.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
    }
}

impl std::str::FromStr for JsonPath {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.split('.').any(str::is_empty) {
            return Err("it has to be names separated by dots, such as traits.email");
        }
        // A JSON pointer (RFC 6901).
        Ok(Self(format!("/{}", text.replace('~', "~0").replace('/', "~1").replace('.', "/"))))
    }
}

/// The contents of a record.
#[derive(Debug)]
pub struct ImportedIdentity {
    /// The account.
    pub new: Incoming,
    /// The hash of its password, or why the hash is unusable; `None` if the record has none.
    pub password: Option<Result<StoredHash, Unusable>>,
    /// What is not imported.
    pub left_behind: Vec<LeftBehind>,
}

/// Why a record is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The record's id, if it has one.
    pub id: Option<Uuid>,
    /// The reason. It quotes nothing of the record.
    pub reason: &'static str,
}

/// Reads an identity in JSON.
pub fn from_json(text: &str, paths: &Paths) -> Result<ImportedIdentity, Refusal> {
    let identity: Value =
        serde_json::from_str(text).map_err(|_| Refusal { id: None, reason: "it is not JSON" })?;
    let text = |pointer: &str| identity.pointer(pointer).and_then(Value::as_str);
    let id = uuid(text("/id"))?;
    let refused = |reason| Refusal { id, reason };
    let traits = identity.get("traits").and_then(Value::as_object).ok_or(refused("it has no traits"))?;
    let email = paths.email.text(&identity).ok_or(refused("it has no email at IMPORT_EMAIL_PATH"))?;
    let imported = Fields {
        email,
        state: text("/state"),
        locale: paths.locale.text(&identity),
        password_hash: text("/credentials/password/config/hashed_password"),
        password_changed_at: text("/credentials/password/updated_at"),
        created_at: text("/created_at"),
    }
    .identity(id, traits.clone())
    .map_err(refused)?;
    let left_behind = left_behind::of(&identity, &imported.new.email, paths);
    Ok(ImportedIdentity { left_behind, ..imported })
}

/// Converts an account to an identity.
#[must_use]
pub fn to_json(account: &Record) -> Value {
    let time = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_default();
    let credentials = account.password_hash.as_ref().map(|hash| {
        json!({
            "type": "password",
            "identifiers": [account.email],
            "config": { "hashed_password": hash },
            "updated_at": account.password_changed_at.map(time),
        })
    });
    json!({
        "id": account.id,
        "schema_id": "default",
        "state": if account.state == "active" { "active" } else { "inactive" },
        "traits": account.traits,
        "metadata_public": account.locale.as_ref().map(|locale| json!({ "locale": locale })),
        "recovery_addresses": [{ "via": "email", "value": account.email }],
        "credentials": credentials.map_or_else(|| json!({}), |password| json!({ "password": password })),
        "created_at": time(account.created_at),
        "updated_at": time(account.updated_at),
    })
}

/// The positions of the columns of a CSV, from its headers.
pub struct CsvColumns([Option<usize>; 6]);

impl CsvColumns {
    const NAMES: [&'static str; 6] = ["email", "password_hash", "locale", "state", "id", "traits"];

    /// Reads the headers.
    ///
    /// # Errors
    ///
    /// A sentence, if a column is unknown or the email column is missing.
    pub fn of(headers: &csv::StringRecord) -> Result<Self, String> {
        let known = Self::NAMES.join(", ");
        let columns = Self::NAMES.map(|name| headers.iter().position(|header| header == name));
        // Without this column, the first line may be a record, which no error may quote.
        if columns[0].is_none() {
            return Err(format!("there is no column email; the columns are {known}"));
        }
        match headers.iter().find(|header| !Self::NAMES.contains(header)) {
            None => Ok(Self(columns)),
            Some(unknown) => Err(format!("the column {unknown:?} is unknown; the columns are {known}")),
        }
    }

    /// Reads a row. An empty field counts as absent.
    pub fn identity(&self, row: &csv::StringRecord) -> Result<ImportedIdentity, Refusal> {
        let [email, password_hash, locale, state, id, traits] =
            self.0.map(|column| row.get(column?).map(str::trim).filter(|text| !text.is_empty()));
        let id = uuid(id)?;
        let refused = |reason| Refusal { id, reason };
        let email = email.ok_or(refused("it has no email"))?;
        let traits = match traits {
            Some(text) => {
                serde_json::from_str(text).map_err(|_| refused("its traits are not a JSON object"))?
            }
            None => Map::from_iter([("email".to_owned(), email.into())]),
        };
        Fields { email, state, locale, password_hash, password_changed_at: None, created_at: None }
            .identity(id, traits)
            .map_err(refused)
    }
}

/// The fields of both formats, as text.
struct Fields<'a> {
    email: &'a str,
    state: Option<&'a str>,
    locale: Option<&'a str>,
    password_hash: Option<&'a str>,
    password_changed_at: Option<&'a str>,
    created_at: Option<&'a str>,
}

impl Fields<'_> {
    fn identity(
        self,
        id: Option<Uuid>,
        traits: Map<String, Value>,
    ) -> Result<ImportedIdentity, &'static str> {
        let email =
            EmailAddress::parse(self.email).map_err(|_| match self.email.trim().rsplit_once('@') {
                Some((local, _)) if !local.is_ascii() => NOT_ASCII,
                _ => "its email is not a valid email address",
            })?;
        let active = match self.state {
            None | Some("active") => true,
            Some("inactive" | "disabled") => false,
            Some(_) => return Err("its state is neither active nor inactive"),
        };
        if !account::can_store(&traits) {
            return Err("its traits contain U+0000 or a number of 1e300 or more, which cannot be stored");
        }
        let time = |text: Option<&str>| {
            let parsed = text.map(|text| OffsetDateTime::parse(text, &Rfc3339)).transpose();
            parsed.map_err(|_| "one of its times is not in the form 2026-01-31T12:00:00Z")
        };
        let (password_changed_at, created_at) = (time(self.password_changed_at)?, time(self.created_at)?);
        let stored =
            self.password_hash.filter(|hash| !hash.is_empty()).map(|hash| (hash, StoredHash::parse(hash)));
        let kept = stored.as_ref().filter(|(_, stored)| stored.is_ok()).map(|(hash, _)| (*hash).to_owned());
        let new = Incoming {
            id,
            email,
            active,
            locale: self.locale.and_then(Locale::preferred),
            traits,
            password_changed_at: kept.as_ref().and(password_changed_at),
            password_hash: kept,
            created_at,
        };
        Ok(ImportedIdentity { new, password: stored.map(|(_, stored)| stored), left_behind: Vec::new() })
    }
}

fn uuid(text: Option<&str>) -> Result<Option<Uuid>, Refusal> {
    let id = text.map(str::parse).transpose();
    id.map_err(|_| Refusal { id: None, reason: "its id is not a UUID" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BCRYPT: &str = "$2b$04$oGfom7.iTdry90Ty.skkGuGe6sVSG7rM5WGnqVPXcx7qLzZlGCSiO";
    const ID: &str = "9f425a8d-7efc-4768-8f23-7647a74fdf13";

    fn paths() -> Paths {
        Paths { email: "traits.email".parse().unwrap(), locale: "metadata_public.locale".parse().unwrap() }
    }

    fn read(changes: &[(&str, Value)]) -> Result<ImportedIdentity, Refusal> {
        let mut identity = json!({
            "id": ID,
            "schema_id": "default",
            "state": "active",
            "traits": { "email": "Trader@Example.com", "name": { "first": "An" } },
            "metadata_public": { "locale": "vi-VN" },
            "credentials": { "password": {
                "type": "password",
                "identifiers": ["trader@example.com"],
                "config": { "hashed_password": BCRYPT },
                "updated_at": "2024-02-01T00:00:00.123456Z",
            } },
            "created_at": "2023-01-31T12:00:00Z",
        });
        for (pointer, value) in changes {
            *identity.pointer_mut(pointer).unwrap() = value.clone();
        }
        from_json(&identity.to_string(), &paths())
    }

    #[test]
    fn an_identity_becomes_an_account() {
        let ImportedIdentity { new, password, .. } = read(&[]).unwrap();
        assert_eq!(new.id.unwrap().to_string(), ID);
        assert_eq!(new.email.as_str(), "trader@example.com");
        assert!(new.active);
        assert_eq!(new.locale, Some(Locale::Vi));
        assert_eq!(new.traits["email"], "Trader@Example.com", "traits are as they were");
        assert_eq!(new.password_hash.as_deref(), Some(BCRYPT));
        assert_eq!(new.password_changed_at.unwrap().unix_timestamp(), 1_706_745_600);
        assert_eq!(new.created_at.unwrap().unix_timestamp(), 1_675_166_400);
        assert_eq!(password.unwrap().unwrap().kind(), "bcrypt");
    }

    #[test]
    fn unusable_hashes_are_left_out_and_reported() {
        let hash = "/credentials/password/config/hashed_password";
        for (text, found) in [
            ("$md5$CY9rzUYh03PK3k6DJie09g==", Some(Unusable::TooWeak("md5"))),
            ("$whirlpool$x", Some(Unusable::Unknown)),
            ("$2b$04$short", Some(Unusable::Broken)),
            ("", None),
        ] {
            let ImportedIdentity { new, password, .. } = read(&[(hash, text.into())]).unwrap();
            assert_eq!((new.password_hash, new.password_changed_at), (None, None), "{text}");
            assert_eq!(password.map(|password| password.unwrap_err()), found, "{text}");
        }
        assert!(!read(&[("/state", "inactive".into())]).unwrap().new.active);
        assert_eq!(read(&[("/metadata_public", "de".into())]).unwrap().new.locale, None);
    }

    #[test]
    fn an_invalid_identity_is_refused_with_the_reason() {
        for (pointer, value, part) in [
            ("/id", json!("17"), "UUID"),
            ("/traits", json!([]), "no traits"),
            ("/traits/email", json!(["a@example.com"]), "IMPORT_EMAIL_PATH"),
            ("/traits/email", json!("mıke@example.com"), "beyond ASCII before the @"),
            ("/traits/email", json!("mike@"), "not a valid email address"),
            ("/state", json!("gone"), "active nor inactive"),
            ("/created_at", json!("yesterday"), "2026-01-31"),
            ("/traits/name/first", json!("a\0b"), "U+0000"),
            ("/traits/name/first", json!(-1.797e308), "1e300"),
        ] {
            let refusal = read(&[(pointer, value)]).unwrap_err();
            assert!(refusal.reason.contains(part), "{refusal:?}");
            assert_eq!(refusal.id.is_some(), pointer != "/id");
        }
        assert_eq!(from_json("{\"id\": ", &paths()).unwrap_err().reason, "it is not JSON");
        assert_eq!(from_json("[]", &paths()).unwrap_err().reason, "it has no traits");
    }

    #[test]
    fn the_email_may_be_at_any_path() {
        let elsewhere = Paths { email: "traits.mails.1".parse().unwrap(), ..paths() };
        let identity = r#"{"traits": {"mails": ["a@example.com", "b@example.com"]}}"#;
        let new = from_json(identity, &elsewhere).unwrap().new;
        assert_eq!((new.email.as_str(), new.id), ("b@example.com", None));
        assert!("traits..email".parse::<JsonPath>().is_err());
    }

    #[test]
    fn a_row_needs_only_an_email() {
        let columns = |names: &[&str]| CsvColumns::of(&names.to_vec().into());
        let row = |names: &[&str], fields: &[&str]| columns(names).unwrap().identity(&fields.to_vec().into());
        let new = row(&["email"], &["a@example.com"]).unwrap().new;
        assert_eq!(Value::Object(new.traits), json!({ "email": "a@example.com" }));
        let names = ["id", "email", "password_hash", "locale", "state", "traits"];
        let new =
            row(&names, &[ID, "a@example.com", BCRYPT, "en", "disabled", r#"{"desk": 7}"#]).unwrap().new;
        assert_eq!((new.active, new.locale, &new.traits["desk"]), (false, Some(Locale::En), &json!(7)));
        assert_eq!(row(&names, &["", ""]).unwrap_err().reason, "it has no email");
        assert!(row(&names, &["", "a@example.com", "", "", "", "7"]).unwrap_err().reason.contains("traits"));
        assert!(columns(&["email", "passwort"]).err().unwrap().contains("\"passwort\" is unknown"));
        assert!(columns(&["id"]).err().unwrap().contains("no column email"));
    }
}
