//! Why an email was not accepted: the stage of SMTP, the relay's codes, and this machine's own
//! reason.

use std::error::Error as _;
use std::fmt;

use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::response::Response;
use strum::IntoStaticStr;

/// The step at which an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "each is the step of its name, and most are SMTP commands")]
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

/// The enhanced status code of a negative answer (RFC 2034 §4). Nothing else of the answer's text
/// is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enhanced {
    /// The answer has no enhanced code.
    #[default]
    None,
    /// Subject and detail (RFC 3463 §2). The class is the first digit of the reply code.
    Code(u16, u16),
    /// The answer's first word contains digits and a dot but is no enhanced code, or the class of
    /// its enhanced code differs from the reply code's.
    Unreadable,
}

impl Enhanced {
    /// Reads the enhanced code from the text of an answer with this reply code.
    fn of(code: u16, text: &str) -> Self {
        let word = text.split_ascii_whitespace().next().unwrap_or_default();
        let mut numbers = word.split('.').map(number);
        let four = (numbers.next(), numbers.next(), numbers.next(), numbers.next());
        match four {
            (Some(Some(class)), Some(Some(subject)), Some(Some(detail)), None) if class == code / 100 => {
                Self::Code(subject, detail)
            }
            _ if has_dotted_digits(word) => Self::Unreadable,
            _ => Self::None,
        }
    }
}

/// Parses one to three ASCII digits.
fn number(digits: &str) -> Option<u16> {
    let plain = digits.len() <= 3 && digits.bytes().all(|octet| octet.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// Whether `word` contains a digit, a dot and a digit in a row. So do `#5.7.1` and `[5.7.1]`, the
/// forms of some relays.
fn has_dotted_digits(word: &str) -> bool {
    word.as_bytes().windows(3).any(|part| matches!(part, [b'0'..=b'9', b'.', b'0'..=b'9']))
}

/// The reason why an email was not accepted, or why a probe failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// The step that failed.
    pub stage: Stage,
    /// The relay's reply code, if it answered.
    pub code: Option<u16>,
    /// The enhanced code of the answer.
    pub enhanced: Enhanced,
    /// This machine's own reason. It never quotes the relay, whose text may contain the recipient's
    /// address.
    pub why: Option<String>,
}

impl NotSent {
    /// A failure at `stage` without further details.
    pub(crate) const fn just(stage: Stage) -> Self {
        Self { stage, code: None, enhanced: Enhanced::None, why: None }
    }

    /// A failure at `stage` with this machine's own reason.
    pub(super) fn because(stage: Stage, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..Self::just(stage) }
    }

    /// Converts lettre's errors at `stage`, keeping only the relay's codes.
    pub(super) fn at(stage: Stage) -> impl Fn(SmtpError) -> Self {
        move |error| Self::answered(stage, &error)
    }

    /// Converts an error and keeps the reason, for stages at which the relay has not received an
    /// email address yet.
    pub(super) fn explained(stage: Stage, error: &SmtpError) -> Self {
        // For an answer that lettre does not understand, its error quotes the answer.
        if error.is_response() {
            return Self::because(stage, "the answer is incomplete or not SMTP");
        }
        let answered = Self::answered(stage, error);
        // If the relay has not answered, the reason comes from this machine's network or TLS.
        let why = error.source().filter(|_| answered.code.is_none()).map(ToString::to_string);
        Self { why, ..answered }
    }

    fn answered(stage: Stage, error: &SmtpError) -> Self {
        let code: Option<u16> = error.status().map(Into::into);
        // The error's source is the whole text of the answer.
        let enhanced = match (code, error.source()) {
            (Some(code), Some(text)) => Enhanced::of(code, &text.to_string()),
            _ => Enhanced::None,
        };
        Self { stage, code, enhanced, why: None }
    }
}

/// The stage with the relay's codes or this machine's reason, for the outbox and the log: `rcpt 550
/// 5.7.1`, `tls (…)`.
impl fmt::Display for NotSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.stage.into())?;
        if let Some(code) = self.code {
            write!(f, " {code}")?;
            if let Enhanced::Code(subject, detail) = self.enhanced {
                write!(f, " {}.{subject}.{detail}", code / 100)?;
            }
        }
        self.why.as_ref().map_or(Ok(()), |why| write!(f, " ({why})"))
    }
}

/// Fails unless the relay answered with this code.
pub(super) fn expect_code(response: &Response, code: u16, stage: Stage) -> Result<(), NotSent> {
    let answered = response.code().into();
    if answered == code { Ok(()) } else { Err(NotSent { code: Some(answered), ..NotSent::just(stage) }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enhanced_code_is_read_strictly() {
        for (code, text, read) in [
            (550, "5.1.1 no such user", Enhanced::Code(1, 1)),
            (450, "4.2.0", Enhanced::Code(2, 0)),
            (556, "5.1.10 null MX", Enhanced::Code(1, 10)),
            (554, "5.999.999", Enhanced::Code(999, 999)),
            (550, "no such user", Enhanced::None),
            (550, "", Enhanced::None),
            (550, "user.name@example.com is unknown", Enhanced::None),
            (550, "5 of 7", Enhanced::None),
            // The class differs from the reply code's.
            (550, "4.7.1 greylisted", Enhanced::Unreadable),
            (450, "5.1.1 no such user", Enhanced::Unreadable),
            (550, "2.1.5 ok", Enhanced::Unreadable),
            // Looks similar to an enhanced code.
            (550, "#5.7.1 denied", Enhanced::Unreadable),
            (550, "[5.7.1] denied", Enhanced::Unreadable),
            (550, "5.1.1: no such user", Enhanced::Unreadable),
            (550, "5.1", Enhanced::Unreadable),
            (550, "5.1.1.1", Enhanced::Unreadable),
            (550, "5.1.1000", Enhanced::Unreadable),
            (550, "5.+1.1", Enhanced::Unreadable),
            (550, "5..1", Enhanced::None),
            (550, "5.1.\u{661}", Enhanced::Unreadable),
            (554, "192.0.2.1 is on a list", Enhanced::Unreadable),
        ] {
            assert_eq!(Enhanced::of(code, text), read, "{code} {text}");
        }
    }

    #[test]
    fn it_shows_codes_and_no_text_of_the_relay() {
        let shown = |code, text| {
            let enhanced = Enhanced::of(code, text);
            NotSent { code: Some(code), enhanced, ..NotSent::just(Stage::Rcpt) }.to_string()
        };
        assert_eq!(shown(550, "5.1.1 trader@example.com unknown"), "rcpt 550 5.1.1");
        assert_eq!(shown(550, "trader@example.com unknown"), "rcpt 550");
        assert_eq!(shown(550, "4.7.1 192.0.2.1 listed"), "rcpt 550");
    }
}
