//! The key that signs emails (DKIM).

use std::path::PathBuf;

/// The settings of DKIM (RFC 6376). Without a key, emails are not signed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct DkimSettings {
    /// A PEM file with the private key that signs every email (DKIM, RFC 6376): RSA of 2048 to 4096
    /// bits, or Ed25519. For relays that do not sign; `vos-auth mail dkim-record` prints the DNS
    /// record. Unset: emails are not signed
    #[arg(long, env)]
    pub dkim_key_file: Option<PathBuf>,

    /// The name of the key in DNS: its record is at SELECTOR._domainkey.DOMAIN
    #[arg(long, env, value_parser = domain_name)]
    pub dkim_selector: Option<String>,

    /// The domain that signs. For DMARC it must be the domain of MAIL_FROM, or a parent or child of
    /// it. Default: the domain of MAIL_FROM
    #[arg(long, env, value_parser = domain_name)]
    pub dkim_domain: Option<String>,
}

/// Parses a DNS name. Labels with non-ASCII letters become A-labels, `xn--…` (RFC 5891).
///
/// # Errors
///
/// A sentence that says how a name is written.
pub fn domain_name(text: &str) -> Result<String, &'static str> {
    let name = idna::domain_to_ascii_strict(text).ok().filter(|name| !name.ends_with('.'));
    name.ok_or("write a name as in DNS: letters, digits and hyphens, with dots between its parts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_dns_allows_are_accepted() {
        for (text, name) in [
            ("verolabs.co", "verolabs.co"),
            ("2026-11", "2026-11"),
            ("a.b", "a.b"),
            ("Việt.vn", "xn--vit-5kz.vn"),
        ] {
            assert_eq!(domain_name(text).as_deref(), Ok(name));
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "a..b", "a.", "a b", "a;b", "a\r\nb", "[127.0.0.1]", "a_b", "a=b", &long] {
            assert!(domain_name(bad).is_err(), "{bad:?}");
        }
    }
}
