//! The data of a Kratos identity that an import leaves behind.

use serde::Serialize;
use serde_json::Value;

use super::identity::Paths;
use crate::email_address::EmailAddress;

/// A kind of data that is not imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftBehind {
    /// Another address to which Kratos sends recovery codes.
    RecoveryAddress,
    /// The email, if Kratos has not verified it. The email itself is imported.
    UnverifiedEmail,
    /// Another address that Kratos has not verified.
    UnverifiedAddress,
    /// A name other than the email, with which the owner signs in by password.
    SignInName,
    /// One-time codes of an app.
    Totp,
    /// Backup codes.
    LookupSecret,
    /// Security keys.
    Webauthn,
    /// Passkeys.
    Passkey,
    /// Social sign-in.
    Oidc,
    /// Sign-in by SAML.
    Saml,
    /// Sign-in by an emailed code.
    Code,
    /// A credential of another kind.
    OtherCredential,
    /// Public metadata besides the language.
    MetadataPublic,
    /// Metadata that only administrators see.
    MetadataAdmin,
    /// The id in another system.
    ExternalId,
    /// The organization.
    OrganizationId,
}

impl LeftBehind {
    /// The rest of a sentence that begins with a number of identities.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::RecoveryAddress => "have a second recovery address; codes are sent to the email alone",
            Self::UnverifiedEmail => {
                "have an email that Kratos has not verified; codes are sent to it even so"
            }
            Self::UnverifiedAddress => "have another address that Kratos has not verified",
            Self::SignInName => "have another name to sign in with; here only the email signs in",
            Self::Totp => "have one-time codes of an app (TOTP)",
            Self::LookupSecret => "have backup codes (lookup secrets)",
            Self::Webauthn => "have security keys (WebAuthn)",
            Self::Passkey => "have passkeys",
            Self::Oidc => "have a social sign-in (OpenID Connect)",
            Self::Saml => "have a sign-in by SAML",
            Self::Code => "have a sign-in by emailed code",
            Self::OtherCredential => "have a credential of another kind",
            Self::MetadataPublic => "have public metadata besides the language",
            Self::MetadataAdmin => "have admin metadata",
            Self::ExternalId => "have an external id",
            Self::OrganizationId => "are in an organization",
        }
    }
}

/// The kinds of data of an identity that its account will lack, each once.
pub(super) fn of(identity: &Value, email: &EmailAddress, paths: &Paths) -> Vec<LeftBehind> {
    let is_other = |address: &str| EmailAddress::parse(address).ok().as_ref() != Some(email);
    let list = |pointer: &str| identity.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let value = |address: &Value| address["value"].as_str().unwrap_or_default().to_owned();

    let mut left = Vec::new();
    let mut leave = |is_there: bool, kind| left.extend(is_there.then_some(kind));
    leave(list("/recovery_addresses").any(|one| is_other(&value(one))), LeftBehind::RecoveryAddress);
    for address in list("/verifiable_addresses").filter(|one| one["verified"] == false) {
        let other = is_other(&value(address));
        leave(true, if other { LeftBehind::UnverifiedAddress } else { LeftBehind::UnverifiedEmail });
    }
    let mut names = list("/credentials/password/identifiers").filter_map(Value::as_str);
    leave(names.any(is_other), LeftBehind::SignInName);
    for (kind, credential) in identity["credentials"].as_object().into_iter().flatten() {
        leave(kind != "password" && !is_empty(&credential["config"]), credential_kind(kind));
    }
    let metadata = identity["metadata_public"].as_object();
    let is_imported = |name: &str| paths.locale.steps() == ["metadata_public", name];
    leave(metadata.is_some_and(|all| all.keys().any(|name| !is_imported(name))), LeftBehind::MetadataPublic);
    leave(has(&identity["metadata_admin"]), LeftBehind::MetadataAdmin);
    leave(has(&identity["external_id"]), LeftBehind::ExternalId);
    leave(has(&identity["organization_id"]), LeftBehind::OrganizationId);
    left.sort_unstable();
    left.dedup();
    left
}

fn credential_kind(kind: &str) -> LeftBehind {
    match kind {
        "totp" => LeftBehind::Totp,
        "lookup_secret" => LeftBehind::LookupSecret,
        "webauthn" => LeftBehind::Webauthn,
        "passkey" => LeftBehind::Passkey,
        "oidc" => LeftBehind::Oidc,
        "saml" => LeftBehind::Saml,
        "code" => LeftBehind::Code,
        _ => LeftBehind::OtherCredential,
    }
}

/// Whether the configuration of a credential is given and empty, as after its owner has removed the
/// last key. A credential without a configuration is not empty: most exports contain the
/// configuration of passwords only.
fn is_empty(config: &Value) -> bool {
    let contents = ["credentials", "recovery_codes", "providers", "totp_url"];
    contents.iter().filter_map(|name| config.get(name)).any(|content| !has(content))
}

fn has(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn left(identity: &Value) -> Vec<LeftBehind> {
        let paths = Paths {
            email: "traits.email".parse().unwrap(),
            locale: "metadata_public.locale".parse().unwrap(),
        };
        of(identity, &EmailAddress::parse("an@example.com").unwrap(), &paths)
    }

    #[test]
    fn nothing_is_left_of_an_identity_that_is_imported_whole() {
        let whole = json!({
            "recovery_addresses": [{ "via": "email", "value": "An@Example.com" }],
            "verifiable_addresses": [{ "value": "an@example.com", "verified": true }],
            "credentials": { "password": { "identifiers": ["an@example.com"], "config": {} } },
            "metadata_public": { "locale": "vi" },
            "metadata_admin": null,
            "organization_id": null,
        });
        assert_eq!(left(&whole), []);
        assert_eq!(left(&json!({})), []);
    }

    #[test]
    fn every_kind_is_found() {
        use LeftBehind as Left;
        let credential = |kind: &str, value: Value| json!({ "credentials": { kind: value } });
        for (identity, kind) in [
            (json!({ "recovery_addresses": [{ "value": "b@example.com" }] }), Left::RecoveryAddress),
            (json!({ "recovery_addresses": [{ "via": "sms", "value": "+84" }] }), Left::RecoveryAddress),
            (
                json!({ "verifiable_addresses": [{ "value": "an@example.com", "verified": false }] }),
                Left::UnverifiedEmail,
            ),
            (
                json!({ "verifiable_addresses": [{ "value": "b@example.com", "verified": false }] }),
                Left::UnverifiedAddress,
            ),
            (credential("password", json!({ "identifiers": ["an@example.com", "an"] })), Left::SignInName),
            (credential("totp", json!({})), Left::Totp),
            (credential("lookup_secret", json!({})), Left::LookupSecret),
            (credential("webauthn", json!({ "config": { "credentials": [{}] } })), Left::Webauthn),
            (credential("passkey", json!({})), Left::Passkey),
            (credential("oidc", json!({})), Left::Oidc),
            (credential("saml", json!({})), Left::Saml),
            (credential("code", json!({})), Left::Code),
            (credential("telepathy", json!({})), Left::OtherCredential),
            (json!({ "metadata_public": { "locale": "vi", "desk": 7 } }), Left::MetadataPublic),
            (json!({ "metadata_admin": { "limit": 1 } }), Left::MetadataAdmin),
            (json!({ "external_id": "crm-7" }), Left::ExternalId),
            (json!({ "organization_id": "9f425a8d-7efc-4768-8f23-7647a74fdf13" }), Left::OrganizationId),
        ] {
            assert_eq!(left(&identity), [kind], "{identity}");
        }
        let removed = credential("webauthn", json!({ "config": { "credentials": [], "user_handle": "x" } }));
        assert_eq!(left(&removed), []);
    }
}
