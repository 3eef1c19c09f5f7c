//! The parser of `SIGN_IN_URL`.

use std::fmt;
use std::str::FromStr;

use url::Url;

use super::{Origin, is_local};

/// The URL of the sign-in page: a path of this host, or an https URL. A URL of localhost may be
/// http.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignInUrl(String);

impl SignInUrl {
    /// Whether the sign-in page has the given origin, so that it can read the session storage of
    /// `/recovery`.
    #[must_use]
    pub fn has_origin(&self, origin: Option<&Origin>) -> bool {
        let Ok(url) = Url::parse(&self.0) else {
            return true;
        };
        origin.is_some_and(|origin| url.origin().ascii_serialization() == origin.as_str())
    }
}

impl FromStr for SignInUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // After `//` or `/\` a browser reads the name of another host.
        let is_path = text.starts_with('/') && !text[1..].starts_with(['/', '\\']);
        let is_safe_url = Url::parse(text)
            .is_ok_and(|url| url.scheme() == "https" || (url.scheme() == "http" && is_local(url.host())));
        if (is_path || is_safe_url) && !text.contains(char::is_control) {
            return Ok(Self(text.to_owned()));
        }
        Err("write a path such as /login, or a URL such as https://oms.verolabs.co/login")
    }
}

impl fmt::Display for SignInUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_path_or_an_https_url() {
        let ours: Origin = "https://platform.verolabs.co".parse().unwrap();
        for (text, is_of_this_host) in [
            ("/", true),
            ("/login?from=recovery", true),
            ("https://platform.verolabs.co/login", true),
            ("https://oms.verolabs.co/login", false),
            ("http://localhost:3000/", false),
        ] {
            let url: SignInUrl = text.parse().unwrap();
            assert_eq!((url.has_origin(Some(&ours)), url.to_string().as_str()), (is_of_this_host, text));
        }
        for bad in
            ["", "login", "//evil.example", "/\\evil.example", "javascript:alert(1)", "http://oms.vn", "/\nx"]
        {
            assert!(bad.parse::<SignInUrl>().is_err(), "{bad}");
        }
    }
}
