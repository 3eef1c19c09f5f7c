//! What can go wrong, in the domain's words and free of HTTP.
//!
//! A [`Problem`] is a cause with a code for machines; `locale.rs` says it to people and `http/error.rs` gives it its
//! status. An [`Error`] is a problem with what a caller needs to go on.

use std::time::Duration;

/// A cause, one code each. The codes are part of the published API: they are never renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Problem {
    /// The body's Content-Type is not `application/json`.
    ContentTypeUnsupported,
    /// The body is longer than is taken.
    BodyTooLarge,
    /// The body broke off, or did not arrive in time.
    BodyIncomplete,
    /// The body is not JSON in UTF-8.
    JsonMalformed,
    /// The body is JSON, but not an object.
    JsonNotObject,
    /// The object has a member that is not asked for.
    FieldUnknown,
    /// The object lacks a member.
    FieldMissing,
    /// The object has a member twice.
    FieldDuplicate,
    /// A member is of another JSON type than asked for.
    FieldTypeInvalid,
    /// The email is not one that mail could be sent to.
    EmailInvalid,
    /// A query parameter is unknown, or has a value that is not offered.
    QueryInvalid,
    /// The request came from a page of a foreign site.
    OriginRefused,
    /// The network sends more requests than it may.
    NetworkThrottled,
    /// The address was sent as many codes as it may be.
    AddressThrottled,
    /// No mail relay is usable.
    MailUnavailable,
    /// The database does not answer in time, or too many wait for it.
    StorageUnavailable,
    /// The service cannot work yet, or not at present.
    NotReady,
    /// There is nothing at this path.
    NotFound,
    /// The path does not know this method.
    MethodNotAllowed,
}

impl Problem {
    /// Every problem there is.
    pub const ALL: [Self; 19] = [
        Self::ContentTypeUnsupported,
        Self::BodyTooLarge,
        Self::BodyIncomplete,
        Self::JsonMalformed,
        Self::JsonNotObject,
        Self::FieldUnknown,
        Self::FieldMissing,
        Self::FieldDuplicate,
        Self::FieldTypeInvalid,
        Self::EmailInvalid,
        Self::QueryInvalid,
        Self::OriginRefused,
        Self::NetworkThrottled,
        Self::AddressThrottled,
        Self::MailUnavailable,
        Self::StorageUnavailable,
        Self::NotReady,
        Self::NotFound,
        Self::MethodNotAllowed,
    ];

    /// The code for machines, as in the member `error` of an answer.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::ContentTypeUnsupported => "content_type_unsupported",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyIncomplete => "body_incomplete",
            Self::JsonMalformed => "json_malformed",
            Self::JsonNotObject => "json_not_object",
            Self::FieldUnknown => "field_unknown",
            Self::FieldMissing => "field_missing",
            Self::FieldDuplicate => "field_duplicate",
            Self::FieldTypeInvalid => "field_type_invalid",
            Self::EmailInvalid => "email_invalid",
            Self::QueryInvalid => "query_invalid",
            Self::OriginRefused => "origin_refused",
            Self::NetworkThrottled => "network_throttled",
            Self::AddressThrottled => "address_throttled",
            Self::MailUnavailable => "mail_unavailable",
            Self::StorageUnavailable => "storage_unavailable",
            Self::NotReady => "not_ready",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
        }
    }
}

/// A problem, and when it makes sense to try again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problem.code())]
pub struct Error {
    /// What went wrong.
    pub problem: Problem,
    /// How long to wait before the same request may succeed.
    pub retry_after: Option<Duration>,
    /// The member of the request that it is about, if it is one that is asked for.
    pub field: Option<&'static str>,
}

impl Error {
    /// A problem with one member of the request.
    #[must_use]
    pub fn in_field(problem: Problem, field: &'static str) -> Self {
        Self { field: Some(field), ..problem.into() }
    }

    /// A problem that is there for `wait` at least.
    #[must_use]
    pub fn retry_after(problem: Problem, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..problem.into() }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self { problem, retry_after: None, field: None }
    }
}
