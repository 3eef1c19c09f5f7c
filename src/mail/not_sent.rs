//! Why a mail was not handed over: the stage of SMTP, the relay's code, and what this machine says.

use std::fmt;

use lettre::transport::smtp::Error as SmtpError;

/// Where an attempt ended that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the step of that name, most of them of SMTP")]
pub enum Stage {
    Compose,
    NoRelay,
    Rate,
    Connect,
    Tls,
    Greeting,
    Ehlo,
    Auth,
    Noop,
    Mail,
    Rcpt,
    Data,
    Message,
    Deadline,
}

impl Stage {
    /// The name in metrics and in the outbox.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Compose => "compose",
            Self::NoRelay => "no_relay",
            Self::Rate => "rate",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Greeting => "greeting",
            Self::Ehlo => "ehlo",
            Self::Auth => "auth",
            Self::Noop => "noop",
            Self::Mail => "mail",
            Self::Rcpt => "rcpt",
            Self::Data => "data",
            Self::Message => "message",
            Self::Deadline => "deadline",
        }
    }
}

/// A mail that was not handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// Where it ended.
    pub stage: Stage,
    /// The relay's answer, if there was one.
    pub code: Option<u16>,
    /// What this machine has to say about it. Never a word of the relay's, which may contain the address.
    pub why: Option<String>,
}

impl NotSent {
    /// Nothing is known but where it ended.
    pub(crate) const fn just(stage: Stage) -> Self {
        Self { stage, code: None, why: None }
    }

    /// With words of this machine's own.
    pub(super) fn because(stage: Stage, why: impl Into<String>) -> Self {
        Self { stage, code: None, why: Some(why.into()) }
    }

    pub(super) fn at(stage: Stage) -> impl Fn(SmtpError) -> Self {
        move |error| Self { stage, code: error.status().map(Into::into), why: None }
    }

    /// With the reason, for the stages before the relay has heard of any address.
    pub(super) fn explained(stage: Stage, error: &SmtpError) -> Self {
        use std::error::Error as _;
        let code = error.status().map(Into::into);
        // Without an answer of the relay's, the words are those of this machine's network and TLS.
        let why = error.source().filter(|_| code.is_none()).map(ToString::to_string);
        Self { stage, code, why }
    }

    /// Whether trying again is pointless: the relay knows for good that there is no such recipient. Anything else may
    /// be the relay's fault or ours, and may pass.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.stage == Stage::Rcpt && self.code.is_some_and(|code| (500..600).contains(&code))
    }
}

/// `rcpt 450`, `tls (…)`: the stage, and the relay's code or what this machine says, for the outbox and the log.
impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.stage.as_str())?;
        self.code.map_or(Ok(()), |code| write!(f, " {code}"))?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}
