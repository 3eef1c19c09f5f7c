//! Headers of emails that lettre does not provide.

use lettre::message::header::{Header, HeaderName, HeaderValue};

use crate::locale::Locale;

/// `Auto-Submitted: auto-generated` (RFC 3834 §5): prevents automatic replies such as holiday
/// notices.
#[derive(Clone)]
pub(super) struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".into())
    }
}

/// `Content-Language` (RFC 3282): the text part's counterpart of the HTML part's `lang`.
#[derive(Clone)]
pub(super) struct ContentLanguage(pub(super) Locale);

impl Header for ContentLanguage {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Content-Language")
    }

    fn parse(tag: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        tag.parse().map(Self).map_err(|_| "not a supported language".into())
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), <&str>::from(self.0).to_owned())
    }
}
