//! What can go wrong, in the domain's words and free of HTTP.
//!
//! A [`Problem`] is a cause with a code for machines; `locale.rs` says it to people and `http/error.rs` gives it its
//! status. An [`Error`] is a problem with what a caller needs to go on.

use std::time::Duration;

use strum::{IntoStaticStr, VariantArray};
use zxcvbn::feedback::{Suggestion, Warning};

/// A cause, one code each. The codes are part of the published API: they are never renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
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
    /// The code is not 8 digits; no attempt was spent on it.
    CodeMalformed,
    /// The code is not that of the session, or its mail went to nobody.
    CodeInvalid,
    /// There is no recovery session: no cookie, an unknown one, or one that was replaced at `verify`.
    RecoverySessionMissing,
    /// The recovery session's time is over.
    RecoverySessionExpired,
    /// Every attempt of the recovery session was spent on a wrong code.
    RecoverySessionSpent,
    /// The recovery session's code has not been entered yet.
    RecoverySessionUnverified,
    /// The recovery session has done its work, or another change of the password ended it.
    RecoverySessionUsed,
    /// The request is meant for another recovery than the one of its cookie.
    RecoveryIdMismatch,
    /// The new password has too few characters.
    PasswordTooShort,
    /// The new password has too many characters.
    PasswordTooLong,
    /// The new password is common, or made of what is easily guessed.
    PasswordGuessable,
    /// The current password is not that.
    PasswordIncorrect,
    /// The login failed, for whatever cause.
    CredentialsInvalid,
    /// There is no session: no token, an unknown one, or one whose session has ended.
    SessionInvalid,
    /// The identifier had as many failed logins as it may.
    LoginThrottled,
    /// The account had as many wrong current passwords as it may.
    PasswordThrottled,
    /// Too many passwords wait to be hashed.
    HashingBusy,
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
    /// The code for machines, as in the member `error` of an answer.
    #[must_use]
    pub fn code(self) -> &'static str {
        self.into()
    }
}

/// What a caller needs beside the problem to set it right.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Detail {
    /// Nothing.
    #[default]
    None,
    /// How many codes may still be tried with this session.
    AttemptsLeft(i16),
    /// The fewest characters that a password must have.
    MinChars(u16),
    /// Why a password is easily guessed, and how to make one that is not.
    Advice(Option<Warning>, Vec<Suggestion>),
}

/// A problem, when it makes sense to try again, and what helps.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", problem.code())]
pub struct Error {
    /// What went wrong.
    pub problem: Problem,
    /// How long to wait before the same request may succeed.
    pub retry_after: Option<Duration>,
    /// The member of the request that it is about, if it is one that is asked for.
    pub field: Option<&'static str>,
    /// What helps to set it right.
    pub detail: Detail,
}

impl Error {
    /// A problem with one member of the request.
    #[must_use]
    pub fn in_field(problem: Problem, field: &'static str) -> Self {
        Self { field: Some(field), ..problem.into() }
    }

    /// The same, with what helps to set it right.
    #[must_use]
    pub fn with(self, detail: Detail) -> Self {
        Self { detail, ..self }
    }

    /// A problem that is there for `wait` at least.
    #[must_use]
    pub fn retry_after(problem: Problem, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..problem.into() }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self { problem, retry_after: None, field: None, detail: Detail::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A variant that is renamed would rename a code that clients know.
    #[test]
    fn codes_are_as_in_the_snapshot() {
        let codes: Vec<_> = Problem::VARIANTS.iter().map(|problem| problem.code()).collect();
        insta::assert_snapshot!("codes", codes.join("\n"));
    }
}
