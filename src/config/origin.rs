//! The parser of `PUBLIC_ORIGIN` and `ALLOWED_ORIGINS`.

use std::fmt;
use std::str::FromStr;

use url::{Host, Url};

/// An origin (RFC 6454): scheme, host and port, as a browser writes them in the header `Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// The origin as a browser writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text).map_err(|_| "write it like https://platform.verolabs.co")?;
        if url.scheme() != "https" && !(url.scheme() == "http" && is_local(url.host())) {
            return Err("use https; http is allowed for localhost only");
        }
        let origin = url.origin().ascii_serialization();
        if text.trim_end_matches('/') != origin {
            return Err(
                "write only the scheme, the host in lower case, and the port if it is not the default",
            );
        }
        Ok(Self(origin))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a host is this machine, so that unencrypted traffic to it crosses no network.
#[must_use]
pub fn is_local<S: AsRef<str>>(host: Option<Host<S>>) -> bool {
    match host {
        Some(Host::Domain(name)) => name.as_ref() == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_would_write() {
        for good in
            ["https://platform.verolabs.co", "http://localhost:8080", "https://x.vn:8443", "https://x.vn/"]
        {
            assert_eq!(good.parse::<Origin>().unwrap().as_str(), good.trim_end_matches('/'));
        }
        for bad in [
            "platform.verolabs.co",
            "http://x.vn",
            "https://x.vn/path",
            "https://X.vn",
            "null",
            "",
            "https://x.vn:443",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
