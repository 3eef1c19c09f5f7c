//! From a request to values: strict JSON, the client, its language.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{ACCEPT_LANGUAGE, CONTENT_TYPE, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::value::MapDeserializer;
use serde::de::{self, DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::app::App;
use crate::client::Client;
use crate::config::{MAX_BODY, MAX_USER_AGENT};
use crate::error::{Error, Problem};
use crate::http::{AppState, cookie};
use crate::known_device::{KnownDevice, TICKET};
use crate::locale::Locale;
use crate::recovery::Presented;
use crate::secret::Token;

/// The client's address, as [`super::guard::observe`] found it behind trusted proxies.
#[derive(Clone, Copy, Debug)]
pub struct ClientIp(pub IpAddr);

/// The language that a request asks for, if it is one of ours.
#[must_use]
pub fn locale_of(headers: &HeaderMap) -> Option<Locale> {
    headers.get_all(ACCEPT_LANGUAGE).iter().find_map(|value| Locale::preferred(value.to_str().ok()?))
}

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let ip = parts.extensions.get::<ClientIp>().map_or(IpAddr::from([0, 0, 0, 0]), |client| client.0);
        let user_agent = parts.headers.get(USER_AGENT).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let user_agent = user_agent.unwrap_or_default();
        let printable = user_agent.chars().filter(|c| !c.is_control());
        Ok(Self {
            ip,
            user_agent: printable.take(MAX_USER_AGENT).collect(),
            locale: locale_of(&parts.headers),
        })
    }
}

/// The session token of a request: in `X-Session-Token`, as the clients of the contract send it, or else as a Bearer
/// token (RFC 6750). Sent once and well-formed; otherwise none.
#[derive(Clone, Debug)]
pub struct SessionToken(pub Option<Token>);

impl<S: Sync> FromRequestParts<S> for SessionToken {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let only = |name: &str| only(&parts.headers, name);
        let bearer = || {
            let (scheme, token) = only("authorization")?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        };
        let text =
            if parts.headers.contains_key("x-session-token") { only("x-session-token") } else { bearer() };
        Ok(Self(text.and_then(Token::parse)))
    }
}

/// The ticket that a victim on a new device got from an operator (`vos-auth account recover`), in `X-Recovery-Ticket`.
#[must_use]
pub fn ticket(headers: &HeaderMap, app: &App) -> Option<KnownDevice> {
    KnownDevice::read(&TICKET, &app.device_keys, only(headers, "x-recovery-ticket")?, app.clock.now())
}

/// The header with the public id of a recovery, in answers and in requests.
pub const RECOVERY_ID: HeaderName = HeaderName::from_static("x-recovery-id");

/// The recovery that a request presents: the cookie, and in `X-Recovery-Id` the id that the client means. A header that
/// was sent twice is the id of none.
#[must_use]
pub fn presented(headers: &HeaderMap) -> Presented {
    let id = || only(headers, RECOVERY_ID.as_str()).unwrap_or_default().to_owned();
    Presented { token: cookie::recovery_token(headers), id: headers.contains_key(RECOVERY_ID).then(id) }
}

/// A header that was sent once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?.trim();
    values.next().is_none().then_some(value)
}

/// A JSON object whose members are all strings, read into `T` with nothing unknown, missing, doubled or mistyped. Every
/// request of the API is of this form; derive `Deserialize` with `deny_unknown_fields` for `T`.
#[derive(Debug)]
pub struct StrictJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for StrictJson<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Error> {
        // Anything but JSON by name is refused: a form or text/plain can be sent from a foreign page without asking.
        let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
        if !essence.trim().eq_ignore_ascii_case("application/json") {
            return Err(Problem::ContentTypeUnsupported.into());
        }
        let body =
            tokio::time::timeout(state.app.config.connections.body_timeout, read(request.into_body())).await;
        parse(&body.map_err(|_| Problem::BodyIncomplete)??).map(Self)
    }
}

/// Copied into one piece as it comes: kept as they came, 16,384 chunks of an octet would take half a megabyte.
async fn read(body: Body) -> Result<Vec<u8>, Problem> {
    let (mut body, mut read) = (Limited::new(body, MAX_BODY), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() { Problem::BodyTooLarge } else { Problem::BodyIncomplete }
        })?;
        if let Some(data) = frame.data_ref() {
            read.extend_from_slice(data);
        }
    }
    Ok(read)
}

/// Reads a body. Pure, so that it can be fuzzed.
///
/// # Errors
///
/// The problem that the body has; a member's name is given back only if it is one that `T` asks for.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::JsonMalformed)?;
    let value: Object = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Problem::JsonNotObject,
        _ => Problem::JsonMalformed,
    })?;
    let mut members = Vec::with_capacity(value.0.len());
    let mut mistyped = false;
    for (name, value) in value.0 {
        let text = if let Value::String(text) = value { Some(text) } else { None };
        mistyped |= text.is_none();
        members.push((name, text.unwrap_or_default()));
    }
    // Names first: an unknown member is unknown whatever its type.
    let read = T::deserialize(MapDeserializer::<_, Member>::new(members.into_iter()));
    match read {
        Err(Member(error)) => Err(error),
        Ok(_) if mistyped => Err(Problem::FieldTypeInvalid.into()),
        Ok(read) => Ok(read),
    }
}

/// The members of an object in their order, doubled ones included: serde's maps would keep the last and say nothing.
struct Object(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members(PhantomData<Object>);

        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// serde's complaints about members, as ours.
#[derive(Debug)]
struct Member(Error);

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Member {}

impl de::Error for Member {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(Problem::FieldTypeInvalid.into())
    }

    fn unknown_field(_: &str, _: &'static [&'static str]) -> Self {
        Self(Problem::FieldUnknown.into())
    }

    fn missing_field(field: &'static str) -> Self {
        Self(Error::in_field(Problem::FieldMissing, field))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self(Error::in_field(Problem::FieldDuplicate, field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        email: String,
    }

    #[test]
    fn each_fault_has_its_name() {
        let parse = |body: &str| parse::<Sample>(body.as_bytes());
        assert_eq!(parse(r#" {"email":"a"} "#).unwrap(), Sample { email: "a".into() });
        for (body, problem) in [
            ("", Problem::JsonMalformed),
            ("{", Problem::JsonMalformed),
            (r#"{"email":"a"} x"#, Problem::JsonMalformed),
            (r#"{"email":"\ud800"}"#, Problem::JsonMalformed),
            (r#"{"email":"a",}"#, Problem::JsonMalformed),
            ("\"a\"", Problem::JsonNotObject),
            ("[]", Problem::JsonNotObject),
            ("null", Problem::JsonNotObject),
            ("{}", Problem::FieldMissing),
            (r#"{"email":null}"#, Problem::FieldTypeInvalid),
            (r#"{"email":["a"]}"#, Problem::FieldTypeInvalid),
            (r#"{"email":1}"#, Problem::FieldTypeInvalid),
            (r#"{"email":"a","email":"b"}"#, Problem::FieldDuplicate),
            (r#"{"email":"a","to":"b"}"#, Problem::FieldUnknown),
            (r#"{"email":"a","":[]}"#, Problem::FieldUnknown),
        ] {
            assert_eq!(parse(body).unwrap_err().problem, problem, "{body}");
        }
        assert_eq!(parse("{}").unwrap_err().field, Some("email"));
        let deep = format!("{{\"email\":{}", "[".repeat(5000));
        assert_eq!(parse(&deep).unwrap_err().problem, Problem::JsonMalformed);
    }
}
