//! The URL of Kratos's admin API.

use std::str::FromStr;

use url::{Host, Url};
use uuid::Uuid;

use crate::config::{base_url, is_local};

/// The base URL of an admin API, http or https. It contains no credentials, because all users of a
/// machine can see its processes' flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminUrl(Url);

impl AdminUrl {
    pub(super) fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Whether data sent there is protected: by TLS, or because it stays on this machine or a
    /// private network.
    pub(super) fn is_safe(&self) -> bool {
        let is_private = match self.0.host() {
            Some(Host::Ipv4(ip)) => ip.is_private(),
            Some(Host::Ipv6(ip)) => ip.is_unique_local(),
            Some(Host::Domain(_)) | None => false,
        };
        self.is_https() || is_local(self.0.host()) || is_private
    }

    /// The URL of the list of identities.
    pub(super) fn identities_url(&self) -> Url {
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["admin", "identities"]);
        }
        url
    }

    /// The URL of one identity.
    pub(super) fn identity_url(&self, id: Uuid) -> Url {
        let mut url = self.identities_url();
        if let Ok(mut path) = url.path_segments_mut() {
            path.push(&id.to_string());
        }
        url
    }
}

impl FromStr for AdminUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let credentials =
            "other users can see flags: put the header value that a proxy requires into KRATOS_AUTHORIZATION";
        base_url(text, "write it like http://127.0.0.1:4434", credentials).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_gets_the_paths_of_the_api() {
        let of = |text: &str| text.parse::<AdminUrl>().map(|url| url.identity_url(Uuid::nil()).to_string());
        let path = "admin/identities/00000000-0000-0000-0000-000000000000";
        assert_eq!(of("http://127.0.0.1:4434"), Ok(format!("http://127.0.0.1:4434/{path}")));
        assert_eq!(of("https://ory.vn/kratos/"), Ok(format!("https://ory.vn/kratos/{path}")));
        for bad in [
            "",
            "127.0.0.1:4434",
            "ftp://ory.vn",
            "https://u:p@ory.vn",
            "https://ory.vn/?a",
            "https://ory.vn/#a",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_tls_only_this_machine_and_private_networks_are_safe() {
        let is_safe = |text: &str| text.parse::<AdminUrl>().unwrap().is_safe();
        for safe in [
            "https://ory.vn",
            "http://localhost:4434",
            "http://127.0.0.1",
            "http://[::1]",
            "http://10.1.2.3",
            "http://192.168.0.1",
            "http://[fd00::1]",
        ] {
            assert!(is_safe(safe), "{safe}");
        }
        for unsafe_one in [
            "http://ory.vn",
            "http://kratos-admin",
            "http://8.8.8.8",
            "http://172.32.0.1",
            "http://[2001:db8::1]",
        ] {
            assert!(!is_safe(unsafe_one), "{unsafe_one}");
        }
    }
}
