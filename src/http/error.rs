//! The status map and the error body, `{error, message, status}` in JSON (`AuthError` of the
//! contract).

use std::time::Duration;

use axum::Json;
use axum::http::header::{CONTENT_LENGTH, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::{Detail, Error, Problem};
use crate::locale::{self, Locale};

/// The challenge that a 401 must have (RFC 9110 §11.6.1). A custom scheme, because browsers open a
/// dialog for `Basic`.
const CHALLENGE: HeaderValue = HeaderValue::from_static("VosAuth realm=\"vos-auth\"");

/// The status that is logged and counted if the client closed the connection before the answer. It
/// is never sent.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The status of each problem. The contract has no 403, 409 or 410; only the admin API answers 403
/// and 409.
#[must_use]
pub const fn status(problem: Problem) -> StatusCode {
    match problem {
        Problem::ContentTypeUnsupported
        | Problem::BodyTooLarge
        | Problem::BodyIncomplete
        | Problem::JsonMalformed
        | Problem::JsonNotObject
        | Problem::FieldUnknown
        | Problem::FieldMissing
        | Problem::FieldDuplicate
        | Problem::FieldTypeInvalid
        | Problem::EmailInvalid
        | Problem::CodeMalformed
        | Problem::CodeInvalid
        | Problem::PasswordTooShort
        | Problem::PasswordTooLong
        | Problem::PasswordGuessable
        | Problem::PasswordBreached
        | Problem::PasswordIncorrect
        | Problem::SecondFactorInvalid
        | Problem::RecoveryFactorRequired
        | Problem::FactorNameInvalid
        | Problem::FactorsTooMany
        | Problem::QueryInvalid
        | Problem::IdempotencyKeyInvalid
        | Problem::ReasonInvalid
        | Problem::FieldInvalid
        | Problem::OriginRefused => StatusCode::BAD_REQUEST,
        Problem::RecoverySessionMissing
        | Problem::RecoverySessionExpired
        | Problem::RecoverySessionSpent
        | Problem::RecoverySessionUnverified
        | Problem::RecoverySessionUsed
        | Problem::RecoveryIdMismatch
        | Problem::CredentialsInvalid
        | Problem::SessionInvalid
        | Problem::SecondFactorRequired
        | Problem::LoginStepMissing
        | Problem::OperatorUnknown => StatusCode::UNAUTHORIZED,
        Problem::RoleInsufficient | Problem::SecondOperatorRequired => StatusCode::FORBIDDEN,
        Problem::AccountDisabled
        | Problem::AccountChanged
        | Problem::AccountProtected
        | Problem::EmailTaken
        | Problem::EmailUnchanged
        | Problem::RequestPending
        | Problem::RequestEnded => StatusCode::CONFLICT,
        Problem::NetworkThrottled
        | Problem::AddressThrottled
        | Problem::LoginThrottled
        | Problem::PasswordThrottled
        | Problem::SecondFactorThrottled
        | Problem::OperatorThrottled
        | Problem::LiftThrottled => StatusCode::TOO_MANY_REQUESTS,
        Problem::MailUnavailable | Problem::StorageUnavailable => StatusCode::BAD_GATEWAY,
        Problem::HashingBusy | Problem::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        Problem::NotFound
        | Problem::AccountNotFound
        | Problem::RequestNotFound
        | Problem::FactorNotFound
        | Problem::FactorsUnavailable
        | Problem::AddressChangeMissing => StatusCode::NOT_FOUND,
        Problem::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
    }
}

#[derive(Serialize)]
struct AuthError {
    error: &'static str,
    message: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts_left: Option<i16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_characters: Option<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    advice: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    methods: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<serde_json::Value>,
}

/// The member `parts` of an error body: the state of each part of the service.
#[derive(Clone, Debug)]
pub struct Parts(pub serde_json::Value);

/// A handler returns an error without a body. [`render`] writes the body in the language of the
/// request.
impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = status(self.problem).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Seconds, rounded up: a client that waits that long does not retry too early.
pub(super) const fn ceil_seconds(duration: Duration) -> u64 {
    duration.as_secs() + if duration.subsec_nanos() > 0 { 1 } else { 0 }
}

/// Writes the body of an error answer. Other answers stay as they are.
pub fn render(mut response: Response, locale: Locale) -> Response {
    let Some(error) = response.extensions_mut().remove::<Error>() else {
        return response;
    };
    let parts = response.extensions_mut().remove::<Parts>().map(|parts| parts.0);
    let body = Json(AuthError {
        error: error.problem.code(),
        message: locale::message(error.problem, locale),
        status: response.status().as_u16(),
        field: error.field,
        attempts_left: if let Detail::AttemptsLeft(left) = error.detail { Some(left) } else { None },
        min_characters: if let Detail::MinChars(min) = error.detail { Some(min) } else { None },
        methods: if let Detail::Methods(methods) = &error.detail { methods.clone() } else { Vec::new() },
        advice: match error.detail {
            Detail::Advice(warning, suggestions) => {
                let warning = warning.map(|warning| locale::warning(warning, locale));
                let suggestions = suggestions.into_iter().map(|one| locale::suggestion(one, locale));
                warning.into_iter().chain(suggestions).collect()
            }
            Detail::BreachAdvice => locale::breach_advice(locale).to_vec(),
            _ => Vec::new(),
        },
        parts,
    });
    let (mut head, _) = response.into_parts();
    head.headers.remove(CONTENT_LENGTH);
    if let Some(wait) = error.retry_after {
        head.headers.insert(RETRY_AFTER, ceil_seconds(wait).max(1).into());
    }
    if head.status == StatusCode::UNAUTHORIZED {
        head.headers.insert(WWW_AUTHENTICATE, CHALLENGE);
    }
    let (body_head, body) = body.into_response().into_parts();
    head.headers.extend(body_head.headers);
    Response::from_parts(head, body)
}
