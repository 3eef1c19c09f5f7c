//! Normalised email addresses.
//!
//! Parse, do not validate: an [`EmailAddress`] can be compared byte by byte, written into an SMTP
//! command and used as a database key.

use std::fmt;

use lettre::Address;
use validator::ValidateEmail;

/// The longest address in octets: a path of 256 (RFC 5321 §4.5.3.1.3) less its angle brackets.
pub const MAX_OCTETS: usize = 254;

/// A normalised address: ASCII local part, punycode domain, lower case.
///
/// `Debug` does not show the address, so that no log can contain it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EmailAddress(String);

impl EmailAddress {
    /// Trims white space, converts an IDN domain to punycode (UTS 46), and converts ASCII letters
    /// to lower case. It does not apply Unicode case folding: that would send the code of `mıke@`
    /// to `mike@`.
    ///
    /// # Errors
    ///
    /// [`InvalidEmail`] for a control character, a non-ASCII local part, more than [`MAX_OCTETS`],
    /// and anything that `validator` or lettre's address parser refuses. Each of the two refuses
    /// input that the other accepts.
    pub fn parse(input: &str) -> Result<Self, InvalidEmail> {
        let trimmed = input.trim();
        if trimmed.len() > 4 * MAX_OCTETS || trimmed.chars().any(char::is_control) {
            return Err(InvalidEmail);
        }
        let (local, domain) = trimmed.rsplit_once('@').ok_or(InvalidEmail)?;
        if !local.is_ascii() {
            return Err(InvalidEmail);
        }
        let domain = idna::domain_to_ascii_strict(domain).map_err(|_| InvalidEmail)?;
        let normal = format!("{local}@{domain}").to_ascii_lowercase();
        if normal.len() > MAX_OCTETS || !normal.validate_email() || normal.parse::<Address>().is_err() {
            return Err(InvalidEmail);
        }
        Ok(Self(normal))
    }

    /// The normalised text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address for people to read, with a punycode domain converted back to Unicode.
    #[must_use]
    pub fn to_readable(&self) -> String {
        let (local, domain) = self.0.rsplit_once('@').unwrap_or((&self.0, ""));
        let (domain, _) = idna::domain_to_unicode(domain);
        let readable = format!("{local}@{domain}");
        if Self::parse(&readable).as_ref() == Ok(self) { readable } else { self.0.clone() }
    }
}

impl fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EmailAddress(redacted)")
    }
}

/// The text is not an address that an email can be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not an email address that can receive emails")]
pub struct InvalidEmail;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_to_one_spelling() {
        for (input, expected) in [
            ("  Trader@Example.COM ", "trader@example.com"),
            ("a+b@bücher.example", "a+b@xn--bcher-kva.example"),
            ("A@XN--BCHER-KVA.example", "a@xn--bcher-kva.example"),
            ("o'neil@example.com", "o'neil@example.com"),
        ] {
            assert_eq!(EmailAddress::parse(input).unwrap().as_str(), expected, "{input}");
        }
    }

    #[test]
    fn refuses_what_is_not_exactly_one_plain_address() {
        let long_local = format!("{}@example.com", "a".repeat(65));
        let label = "b".repeat(60);
        let of_octets =
            |octets: usize| format!("{}@{label}.{label}.{label}.{label}.vn", "a".repeat(octets - 247));
        assert_eq!(of_octets(MAX_OCTETS).len(), MAX_OCTETS);
        assert!(EmailAddress::parse(&of_octets(MAX_OCTETS)).is_ok());
        let too_long = of_octets(MAX_OCTETS + 1);
        for input in [
            "",
            "@",
            "a",
            "a@",
            "@b.vn",
            "a b@x.vn",
            "a..b@x.vn",
            ".a@x.vn",
            "a@x..vn",
            "a@x.vn,b@x.vn",
            "a@x.vn\0b@x.vn",
            "a@x.vn\r\nBcc: b@x.vn",
            "a\n@x.vn",
            "\"a b\"@x.vn",
            "mıke@x.vn",
            "ſ@x.vn",
            "\u{212a}@x.vn",
            "nguyễn@x.vn",
            "A <a@x.vn>",
            "a@b@x.vn",
            &long_local,
            &too_long,
        ] {
            assert_eq!(EmailAddress::parse(input), Err(InvalidEmail), "{input:?}");
        }
    }

    #[test]
    fn people_read_what_they_typed() {
        for text in ["a+b@bücher.example", "trader@example.com", "a@việt.vn"] {
            assert_eq!(EmailAddress::parse(text).unwrap().to_readable(), text);
        }
    }

    #[test]
    fn debug_does_not_show_it() {
        let address = EmailAddress::parse("secret.person@example.com").unwrap();
        assert!(!format!("{address:?}").contains("secret"));
    }
}
