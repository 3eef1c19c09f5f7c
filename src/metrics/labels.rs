//! The labels of the metrics, and what they can be.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use strum::{IntoStaticStr, VariantArray};

/// An answered request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answer {
    /// The route's pattern, as the router has it, or `none`.
    pub route: String,
    /// The HTTP status.
    pub status: u16,
}

/// An address that is listened on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabel {
    /// `api` or `metrics`.
    pub listener: &'static str,
}

/// What became of an email.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum MailOutcome {
    /// A relay accepted it.
    Sent,
    /// A relay refused it, and the next relay is asked.
    NextRelay,
    /// Every relay refused it, and it is tried again later.
    Retried,
    /// No attempt can help, or none is left in time.
    GivenUp,
    /// It expired before it could be sent.
    Expired,
    /// No account has the address.
    NoRecipient,
}

/// The label of an email that left the outbox, or that failed once more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MailLabel {
    /// What became of it.
    pub outcome: MailOutcome,
    /// Where the conversation ended ([`crate::mail::not_sent::Stage`]), or `compose` if there was none because the mail
    /// could not be built; `none` if it ended well or was not needed.
    pub stage: &'static str,
}

/// A mail that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GivenUp {
    /// As in [`KindLabel`].
    pub kind: &'static str,
    /// Whose fault: [`crate::mail::verdict::Verdict`].
    pub verdict: &'static str,
}

/// Mails by what they are for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// `recovery_code` or `password_changed`.
    pub kind: &'static str,
}

/// A relay by its place in `SMTP_RELAYS`, from 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelayLabel {
    /// The place.
    pub relay: usize,
}

/// What a health check found of PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// As in `/readyz`: [`crate::database::health::Health`].
    pub state: &'static str,
}

/// What became of an entered code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum CodeOutcome {
    Right,
    Wrong,
    Malformed,
}

/// What became of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LoginOutcome {
    SignedIn,
    Failed,
    Throttled,
    Busy,
    Concurrent,
    Network,
    Aborted,
}

// The derived values of prometheus-client are the variants' names as they are, and every other label is in snake case.
macro_rules! encode_as_snake_case {
    ($($outcome:ty),+) => {$(
        impl EncodeLabelValue for $outcome {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                <&str>::from(*self).encode(encoder)
            }
        }
    )+};
}

encode_as_snake_case!(CodeOutcome, LoginOutcome, MailOutcome);

/// The label of an entered code.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// What became of it.
    pub outcome: CodeOutcome,
}

/// The label of a login.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LoginLabel {
    /// What became of it.
    pub outcome: LoginOutcome,
}

/// Stored hashes by scheme.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HashLabel {
    /// The scheme, or `unusable`.
    pub scheme: &'static str,
}
