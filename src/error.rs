//! The errors of the API, without HTTP.
//!
//! A [`Problem`] is a cause with an error code. `locale/mod.rs` has its message to people,
//! `http/error.rs` its HTTP status. An [`Error`] is a problem with details that help the caller.

use std::time::Duration;

use strum::{IntoStaticStr, VariantArray};
use zxcvbn::feedback::{Suggestion, Warning};

/// The cause of an error. Each has an error code, which is part of the published API and is never
/// renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Problem {
    /// The body's Content-Type is not `application/json`.
    ContentTypeUnsupported,
    /// The body is longer than [`crate::config::MAX_BODY`].
    BodyTooLarge,
    /// The body broke off, or did not arrive in time.
    BodyIncomplete,
    /// The body is not JSON in UTF-8.
    JsonMalformed,
    /// The body is JSON, but not an object.
    JsonNotObject,
    /// The object has an unknown member.
    FieldUnknown,
    /// The object lacks a required member.
    FieldMissing,
    /// The object has a member twice.
    FieldDuplicate,
    /// A member has the wrong JSON type.
    FieldTypeInvalid,
    /// The text is not an address that an email can be sent to.
    EmailInvalid,
    /// The code is not 8 digits. No attempt was spent.
    CodeMalformed,
    /// The code is not that of the session, or no account has the address.
    CodeInvalid,
    /// There is no recovery session: the cookie is missing, unknown, or was replaced at `verify`.
    RecoverySessionMissing,
    /// The recovery session has expired.
    RecoverySessionExpired,
    /// All attempts of the recovery session were spent on wrong codes.
    RecoverySessionSpent,
    /// The recovery session's code has not been entered yet.
    RecoverySessionUnverified,
    /// The recovery session was used to set a password, or another password change ended it.
    RecoverySessionUsed,
    /// The request names another recovery than its cookie.
    RecoveryIdMismatch,
    /// The new password has too few characters.
    PasswordTooShort,
    /// The new password has too many characters.
    PasswordTooLong,
    /// The new password is easy to guess.
    PasswordGuessable,
    /// The new password is on the list of passwords known from breaches.
    PasswordBreached,
    /// The given current password is wrong.
    PasswordIncorrect,
    /// The login failed. The causes are not told apart, so that an answer does not reveal whether
    /// an account exists.
    CredentialsInvalid,
    /// The password is right, and the account asks for a second factor.
    SecondFactorRequired,
    /// The recovery is verified, and the account asks for a second factor.
    #[strum(serialize = "second_factor_required")]
    RecoveryFactorRequired,
    /// The second factor is wrong, or was used before.
    SecondFactorInvalid,
    /// The rate limit of wrong second factors of the account is exhausted.
    SecondFactorThrottled,
    /// There is no login that waits for a second factor: the cookie is missing or unknown, or the
    /// login has expired, has no attempt left, or was completed.
    LoginStepMissing,
    /// The account has no such second factor, or has begun no such enrolment.
    FactorNotFound,
    /// `FACTOR_SECRETS` is not set.
    FactorsUnavailable,
    /// The name of a second factor is empty, too long, or has a control character.
    FactorNameInvalid,
    /// The account has the most second factors that it may have.
    FactorsTooMany,
    /// There is no session: the token is missing or unknown, or its session has ended.
    SessionInvalid,
    /// The rate limit of failed logins for the identifier is exhausted.
    LoginThrottled,
    /// The rate limit of wrong current passwords for the account is exhausted.
    PasswordThrottled,
    /// Too many passwords wait to be hashed.
    HashingBusy,
    /// No change of the account's address is waiting.
    AddressChangeMissing,
    /// The header Idempotency-Key is malformed or repeated.
    IdempotencyKeyInvalid,
    /// A query parameter is unknown, repeated or has an invalid value.
    QueryInvalid,
    /// The request came from a page of an origin that is not allowed.
    OriginRefused,
    /// The rate limit of the client's network is exhausted.
    NetworkThrottled,
    /// The rate limit of recoveries for the address is exhausted.
    AddressThrottled,
    /// No mail relay is usable.
    MailUnavailable,
    /// PostgreSQL fails or does not answer in time, too many requests wait for it, or its clock
    /// differs from this machine's.
    StorageUnavailable,
    /// The service is not ready, or is stopping.
    NotReady,
    /// Of the admin API: there is no valid operator token or client certificate.
    OperatorUnknown,
    /// Of the admin API: the operator's role may not do this.
    RoleInsufficient,
    /// Of the admin API: the header X-Reason is missing, too long or malformed.
    ReasonInvalid,
    /// Of the admin API: a member of the request has an invalid value.
    FieldInvalid,
    /// Of the admin API: there is no such account.
    AccountNotFound,
    /// Of the admin API: the account is disabled.
    AccountDisabled,
    /// Of the admin API: another account has the address.
    EmailTaken,
    /// Of the admin API: the operator has helped too often.
    OperatorThrottled,
    /// Of the admin API: there is no such request of an operator.
    RequestNotFound,
    /// Of the admin API: the account has an open request.
    RequestPending,
    /// Of the admin API: the request was approved before, or it has ended.
    RequestEnded,
    /// Of the admin API: another operator has to approve what this one has asked for.
    SecondOperatorRequired,
    /// Of the admin API: since the request, the account was disabled or got another address.
    AccountChanged,
    /// Of the admin API: only two operators can give the account another address.
    AccountProtected,
    /// Of the admin API: the account already has the address.
    EmailUnchanged,
    /// Of the admin API: the limits of the address were lifted too often.
    LiftThrottled,
    /// There is nothing at this path.
    NotFound,
    /// The path does not support this method.
    MethodNotAllowed,
}

impl Problem {
    /// The error code: the member `error` of the answer.
    #[must_use]
    pub fn code(self) -> &'static str {
        self.into()
    }
}

/// Details that help the caller to correct the request.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Detail {
    /// No details.
    #[default]
    None,
    /// How many attempts the recovery session has left.
    AttemptsLeft(i16),
    /// The minimum length of a password, in characters.
    MinChars(u16),
    /// Why a password is easy to guess, and how to choose a better one.
    Advice(Option<Warning>, Vec<Suggestion>),
    /// What to do about a password known from breaches.
    BreachAdvice,
    /// The methods by which a second factor can be given.
    Methods(Vec<&'static str>),
}

/// A problem with the details that an answer carries.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", problem.code())]
pub struct Error {
    /// The cause.
    pub problem: Problem,
    /// How long to wait before the same request may succeed.
    pub retry_after: Option<Duration>,
    /// The member of the request that has the problem. Never a name that the client made up.
    pub field: Option<&'static str>,
    /// Details that help the caller to correct the request.
    pub detail: Detail,
}

impl Error {
    /// A problem with one member of the request.
    #[must_use]
    pub fn in_field(problem: Problem, field: &'static str) -> Self {
        Self { field: Some(field), ..problem.into() }
    }

    /// Adds details that help the caller to correct the request.
    #[must_use]
    pub fn with(self, detail: Detail) -> Self {
        Self { detail, ..self }
    }

    /// A problem that lasts for at least `wait`.
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

    /// Renaming a variant would rename an error code that clients know.
    #[test]
    fn codes_are_as_in_the_snapshot() {
        let codes: Vec<_> = Problem::VARIANTS.iter().map(|problem| problem.code()).collect();
        insta::assert_snapshot!("codes", codes.join("\n"));
    }
}
