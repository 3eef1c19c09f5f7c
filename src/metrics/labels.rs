//! The labels of the metrics and their values.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use strum::{IntoStaticStr, VariantArray};

/// The labels of an answered request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabel {
    /// The route's pattern in the router, or `none`.
    pub route: String,
    /// The HTTP status.
    pub status: u16,
}

/// The label of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabel {
    /// `api`, `admin` or `metrics`.
    pub listener: &'static str,
}

/// The outcome of an attempt to send an email, or of an email that left the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum MailOutcome {
    /// A relay accepted it.
    Sent,
    /// A relay did not accept it, and the next relay is tried.
    NextRelay,
    /// No relay accepted it, and it is tried again later.
    Retried,
    /// No attempt can help, or none is left in time.
    GivenUp,
    /// It expired before it could be sent.
    Expired,
    /// No active account has the address, or its recovery was used or has ended.
    NoRecipient,
}

/// The label of an email that left the outbox, or that failed once more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MailLabel {
    /// The outcome.
    pub outcome: MailOutcome,
    /// The stage at which the SMTP conversation failed ([`crate::mail::not_sent::Stage`]);
    /// `compose` if the email could not be built; `none` if a relay accepted it or no conversation
    /// was needed.
    pub stage: &'static str,
}

/// The labels of an email that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GivenUpLabel {
    /// As in [`KindLabel`].
    pub kind: &'static str,
    /// Whether recipient or relay is at fault: [`crate::mail::verdict::Verdict`].
    pub verdict: &'static str,
}

/// The label of emails of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// As in the outbox, such as `recovery_code`.
    pub kind: &'static str,
}

/// The label of a relay.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelayLabel {
    /// The position in `SMTP_RELAYS`, from 0.
    pub relay: usize,
}

/// The label of an operator. Administrators name the operators, so there are few values.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OperatorLabel {
    /// The name, or the identity in the client certificate.
    pub operator: String,
}

/// The label of a state of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// The state as in `/readyz`: [`crate::database::health::Health`].
    pub state: &'static str,
}

/// The outcome of an entered code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum CodeOutcome {
    Right,
    Wrong,
    Malformed,
}

/// The outcome of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LoginOutcome {
    SignedIn,
    SecondFactor,
    Failed,
    Throttled,
    Busy,
    Concurrent,
    Network,
    Aborted,
}

/// The outcome of an attempt to deliver an event to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum HookOutcome {
    /// The receiver accepted it.
    Delivered,
    /// It is tried again later.
    Retried,
    /// It is a dead letter: it was retried for a day, or the event was deleted.
    Dead,
}

// prometheus-client derives the variants' names in CamelCase, and every other label is in snake
// case.
macro_rules! encode_as_snake_case {
    ($($outcome:ty),+) => {$(
        impl EncodeLabelValue for $outcome {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                <&str>::from(*self).encode(encoder)
            }
        }
    )+};
}

encode_as_snake_case!(CodeOutcome, HookOutcome, LoginOutcome, MailOutcome);

/// The label of an entered code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// The outcome.
    pub outcome: CodeOutcome,
}

/// The label of a login.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LoginLabel {
    /// The outcome.
    pub outcome: LoginOutcome,
}

/// The label of stored hashes of one scheme.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HashLabel {
    /// The scheme, or `unusable`.
    pub scheme: &'static str,
}

/// The label of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HookLabel {
    /// Its name in `EVENT_HOOKS`.
    pub hook: String,
}

/// The labels of an attempt to deliver an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HookOutcomeLabel {
    /// As in [`HookLabel`].
    pub hook: String,
    /// The outcome.
    pub outcome: HookOutcome,
}
