//! Why a mail was not handed over: the stage of SMTP, the relay's codes, and what this machine says.

use std::error::Error as _;
use std::fmt;

use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::response::Response;
use strum::IntoStaticStr;

/// Where an attempt ended that did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
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

/// The enhanced status code of a negative answer (RFC 2034 §4). Its digits are all that is kept of the relay's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enhanced {
    /// The answer has none.
    #[default]
    None,
    /// Subject and detail (RFC 3463 §2). The class is the first digit of the reply's code.
    Code(u16, u16),
    /// The answer begins with digits and dots that are no code, or one of another class than the reply's.
    Unreadable,
}

impl Enhanced {
    /// Reads it from the text of an answer with this code.
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

/// One to three digits, and nothing else.
fn number(digits: &str) -> Option<u16> {
    let plain = digits.len() <= 3 && digits.bytes().all(|octet| octet.is_ascii_digit());
    if plain { digits.parse().ok() } else { None }
}

/// As in `#5.7.1` and `[5.7.1]`, which some relays write.
fn has_dotted_digits(word: &str) -> bool {
    word.as_bytes().windows(3).any(|part| matches!(part, [b'0'..=b'9', b'.', b'0'..=b'9']))
}

/// A mail that was not handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotSent {
    /// Where it ended.
    pub stage: Stage,
    /// The relay's answer, if there was one.
    pub code: Option<u16>,
    /// The enhanced code in it.
    pub enhanced: Enhanced,
    /// What this machine has to say about it. Never a word of the relay's, which may contain the address.
    pub why: Option<String>,
}

impl NotSent {
    /// Nothing is known but where it ended.
    pub(crate) const fn just(stage: Stage) -> Self {
        Self { stage, code: None, enhanced: Enhanced::None, why: None }
    }

    /// With words of this machine's own.
    pub(super) fn because(stage: Stage, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..Self::just(stage) }
    }

    pub(super) fn at(stage: Stage) -> impl Fn(SmtpError) -> Self {
        move |error| Self::answered(stage, &error)
    }

    /// With the reason, for the stages before the relay has heard of any address.
    pub(super) fn explained(stage: Stage, error: &SmtpError) -> Self {
        // lettre's words for an answer that it does not understand quote it.
        if error.is_response() {
            return Self::because(stage, "the answer is cut off, or not SMTP");
        }
        let answered = Self::answered(stage, error);
        // Without an answer of the relay's, the words are those of this machine's network and TLS.
        let why = error.source().filter(|_| answered.code.is_none()).map(ToString::to_string);
        Self { why, ..answered }
    }

    fn answered(stage: Stage, error: &SmtpError) -> Self {
        let code: Option<u16> = error.status().map(Into::into);
        // The error's source is the text of the answer, all lines of it.
        let enhanced = match (code, error.source()) {
            (Some(code), Some(text)) => Enhanced::of(code, &text.to_string()),
            _ => Enhanced::None,
        };
        Self { stage, code, enhanced, why: None }
    }
}

/// `rcpt 550 5.7.1`, `tls (…)`: the stage, and the relay's codes or what this machine says, for the outbox and the log.
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

/// Refuses every answer but this one.
pub(super) fn exactly(response: &Response, code: u16, stage: Stage) -> Result<(), NotSent> {
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
            // Of another class than the reply.
            (550, "4.7.1 greylisted", Enhanced::Unreadable),
            (450, "5.1.1 no such user", Enhanced::Unreadable),
            (550, "2.1.5 ok", Enhanced::Unreadable),
            // No code, but the beginning of one or the like.
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
    fn it_shows_digits_and_no_word() {
        let shown = |code, text| {
            let enhanced = Enhanced::of(code, text);
            NotSent { code: Some(code), enhanced, ..NotSent::just(Stage::Rcpt) }.to_string()
        };
        assert_eq!(shown(550, "5.1.1 trader@example.com unknown"), "rcpt 550 5.1.1");
        assert_eq!(shown(550, "trader@example.com unknown"), "rcpt 550");
        assert_eq!(shown(550, "4.7.1 192.0.2.1 listed"), "rcpt 550");
    }
}
