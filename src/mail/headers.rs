//! Headers of emails that lettre does not provide.

use lettre::message::header::{Header, HeaderName, HeaderValue};
use uuid::Uuid;

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

/// `X-Auto-Response-Suppress` (MS-OXCMAIL §2.1.3.2.20): the same for Exchange. `All` would also
/// suppress the reports of failed delivery that `vos-auth bounce` reads.
#[derive(Clone)]
pub(super) struct AutoResponseSuppress;

impl Header for AutoResponseSuppress {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("X-Auto-Response-Suppress")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "DR, RN, NRN, OOF, AutoReply".into())
    }
}

/// `X-Entity-Ref-ID`, different in each email: Gmail otherwise puts emails of one subject in a
/// thread, where an old code may be read for the newest.
#[derive(Clone)]
pub(super) struct EntityRefId(pub(super) Uuid);

impl Header for EntityRefId {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("X-Entity-Ref-ID")
    }

    fn parse(id: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self(id.parse()?))
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), self.0.to_string())
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
