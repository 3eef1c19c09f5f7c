//! Extractors: strict JSON, the client, its language, its tokens.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{ACCEPT_LANGUAGE, CONTENT_TYPE, USER_AGENT};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::value::MapDeserializer;
use serde::de::{self, DeserializeOwned, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::Value;

use crate::app::App;
use crate::client::Client;
use crate::config::{MAX_BODY, MAX_USER_AGENT};
use crate::error::{Error, Problem};
use crate::http::{AppState, cookie};
use crate::known_device::{KnownDevice, TICKET};
use crate::locale::Locale;
use crate::recovery::{IdempotencyKey, Presented};
use crate::secret::Token;

/// The client's address, which [`super::guard::observe`] determines behind trusted proxies.
#[derive(Clone, Copy, Debug)]
pub struct ClientIp(pub IpAddr);

/// The supported language that a request prefers, from `Accept-Language`.
#[must_use]
pub fn locale_of(headers: &HeaderMap) -> Option<Locale> {
    headers.get_all(ACCEPT_LANGUAGE).iter().find_map(|value| Locale::preferred(value.to_str().ok()?))
}

/// The value of the parameter `name`, the only one that the query may have.
///
/// # Errors
///
/// `QueryInvalid` for another parameter, a value that cannot be parsed, or a repeated parameter.
pub fn only_parameter<T: FromStr>(query: Option<&str>, name: &str) -> Result<Option<T>, Error> {
    let mut parameters = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match (parameters.next(), parameters.next()) {
        (None, _) => Ok(None),
        (Some((found, value)), None) if found == name => match value.parse() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(Problem::QueryInvalid.into()),
        },
        _ => Err(Problem::QueryInvalid.into()),
    }
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

/// The session token of a request: from `X-Session-Token`, the header of the contract, or else a
/// Bearer token (RFC 6750). `None` unless the header occurs once and the token is well-formed.
#[derive(Clone, Debug)]
pub struct SessionToken(pub Option<Token>);

impl<S: Sync> FromRequestParts<S> for SessionToken {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let headers = &parts.headers;
        let text = if headers.contains_key("x-session-token") {
            single_header(headers, "x-session-token")
        } else {
            bearer(headers)
        };
        Ok(Self(text.and_then(Token::parse)))
    }
}

/// The Bearer token of a request (RFC 6750).
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = single_header(headers, "authorization")?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The recovery ticket of a request, from `X-Recovery-Ticket`. An operator issues it (`vos-auth
/// account recover`) to a user whose rate limits an attacker has exhausted.
#[must_use]
pub fn ticket(headers: &HeaderMap, app: &App) -> Option<KnownDevice> {
    KnownDevice::read(
        &TICKET,
        &app.device_keys,
        single_header(headers, "x-recovery-ticket")?,
        app.clock.now(),
    )
}

/// The header with the public id of a recovery, in requests and answers.
pub const RECOVERY_ID: HeaderName = HeaderName::from_static("x-recovery-id");

/// The header with the key under which a client repeats a request whose answer was lost.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The recovery of a request: its cookie, the id that the client expects in `X-Recovery-Id`, and
/// the request's `Idempotency-Key`. A repeated `X-Recovery-Id` matches no recovery.
///
/// # Errors
///
/// `IdempotencyKeyInvalid` if the key is malformed or repeated.
pub fn presented(headers: &HeaderMap) -> Result<Presented, Error> {
    let id = || single_header(headers, RECOVERY_ID.as_str()).unwrap_or_default().to_owned();
    let key = headers.contains_key(IDEMPOTENCY_KEY).then(|| {
        let text = single_header(headers, IDEMPOTENCY_KEY.as_str());
        text.and_then(IdempotencyKey::parse).ok_or(Problem::IdempotencyKeyInvalid)
    });
    Ok(Presented {
        token: cookie::recovery_token(headers),
        id: headers.contains_key(RECOVERY_ID).then(id),
        key: key.transpose()?,
    })
}

/// The value of a header, if the header occurs exactly once.
fn single_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?.trim();
    values.next().is_none().then_some(value)
}

/// A body that is a JSON object of strings, parsed into `T`. Unknown, missing, duplicate and
/// mistyped members are refused. `T` must derive `Deserialize` with `deny_unknown_fields`.
#[derive(Debug)]
pub struct StrictJson<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for StrictJson<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Error> {
        read_json(request, state.app.config.connections.body_timeout)
            .await
            .and_then(|body| parse(&body))
            .map(Self)
    }
}

/// Reads a JSON body of at most [`MAX_BODY`] octets, which must arrive within `timeout`.
pub(super) async fn read_json(request: Request, timeout: Duration) -> Result<Vec<u8>, Error> {
    // Other types are refused, because a page of any origin can send a form or text/plain without a
    // CORS preflight.
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    if !essence.trim().eq_ignore_ascii_case("application/json") {
        return Err(Problem::ContentTypeUnsupported.into());
    }
    let body = tokio::time::timeout(timeout, read_body(request.into_body())).await;
    Ok(body.map_err(|_| Problem::BodyIncomplete)??)
}

/// Copies chunks into one buffer as they arrive, because 16,384 stored chunks of one octet each
/// would take half a megabyte.
async fn read_body(body: Body) -> Result<Vec<u8>, Problem> {
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

/// Parses a body. A function of its own, so that it can be fuzzed.
///
/// # Errors
///
/// The problem of the body. The error names a member only if `T` has that member.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let read = members(body)?;
    let mut members = Vec::with_capacity(read.len());
    let mut mistyped = false;
    for (name, value) in read {
        let text = if let Value::String(text) = value { Some(text) } else { None };
        mistyped |= text.is_none();
        members.push((name, text.unwrap_or_default()));
    }
    // Names are checked before types, so an unknown member that is no string is still unknown.
    let read = T::deserialize(MapDeserializer::<_, MemberError>::new(members.into_iter()));
    match read {
        Err(MemberError(error)) => Err(error),
        Ok(_) if mistyped => Err(Problem::FieldTypeInvalid.into()),
        Ok(read) => Ok(read),
    }
}

/// As [`parse`], but a member may have any type that `T` declares for it, not only a string.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_typed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let members = members(body)?.into_iter().map(|(name, value)| (name, Member(value)));
    T::deserialize(MapDeserializer::<_, MemberError>::new(members)).map_err(|MemberError(error)| error)
}

fn members(body: &[u8]) -> Result<Vec<(String, Value)>, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::JsonMalformed)?;
    let Object(members) = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Problem::JsonNotObject,
        _ => Problem::JsonMalformed,
    })?;
    Ok(members)
}

/// The value of a member. Errors of its deserialization quote no part of the value.
struct Member(Value);

impl IntoDeserializer<'_, MemberError> for Member {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Member {
    type Error = MemberError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, MemberError> {
        self.0.deserialize_any(visitor).map_err(|_| de::Error::custom(""))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, MemberError> {
        self.0.deserialize_option(visitor).map_err(|_| de::Error::custom(""))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The members of an object in order, duplicates included: the maps of serde_json keep only the
/// last duplicate.
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

/// Maps the errors of serde to [`Error`].
#[derive(Debug)]
struct MemberError(Error);

impl fmt::Display for MemberError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for MemberError {}

impl de::Error for MemberError {
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
    fn each_kind_of_bad_body_has_its_problem() {
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
