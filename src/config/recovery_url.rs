//! The parser of `RECOVERY_URL`.

use std::fmt;
use std::str::FromStr;

use url::Url;

use super::is_local;

/// The URL of the recovery page, as emails link to it: it says nothing about the recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryUrl(String);

impl FromStr for RecoveryUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text)
            .ok()
            .filter(|url| url.scheme() == "https" || (url.scheme() == "http" && is_local(url.host())))
            .ok_or("write a URL such as https://platform.verolabs.co/recovery")?;
        let has_more = !url.username().is_empty() || url.password().is_some();
        if has_more || url.query().is_some() || url.fragment().is_some() {
            return Err("write a plain URL, without a user, a query (?) and a fragment (#)");
        }
        Ok(Self(url.into()))
    }
}

impl fmt::Display for RecoveryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_plain_https_url() {
        let shown = |text: &str| text.parse::<RecoveryUrl>().map(|url| url.to_string());
        for (text, expected) in [
            ("https://platform.verolabs.co/recovery", "https://platform.verolabs.co/recovery"),
            ("http://localhost:8080/recovery", "http://localhost:8080/recovery"),
            ("https://bücher.example/\u{202e}x", "https://xn--bcher-kva.example/%E2%80%AEx"),
        ] {
            assert_eq!(shown(text).unwrap(), expected);
        }
        for bad in [
            "",
            "/recovery",
            "http://platform.verolabs.co/recovery",
            "javascript:alert(1)",
            "mailto:a@example.com",
            "https://platform.verolabs.co/recovery#t=secret",
            "https://platform.verolabs.co/recovery?token=secret",
            "https://u:secret@platform.verolabs.co/recovery",
        ] {
            let why = shown(bad).unwrap_err();
            assert!(!why.contains("secret"), "{bad}: {why}");
        }
    }
}
