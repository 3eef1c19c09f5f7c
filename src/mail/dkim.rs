//! DKIM signatures (RFC 6376), with RSA-SHA256 (RFC 8301) or Ed25519-SHA256 (RFC 8463). Header and
//! body are canonicalised with the algorithm `relaxed`.
//!
//! The finished message is signed. After that only SMTP's dot stuffing changes it, which the
//! receiver undoes.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::config::{ConfigError, ConfigErrors, DkimSettings, domain_name};

/// The headers that are signed. Each is listed once more than it occurs, so that adding one later
/// breaks the signature (RFC 6376 §5.4.2 and §8.15).
const SIGNED: [&str; 12] = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "Content-Language",
    "Auto-Submitted",
    "Reply-To",
    "Cc",
];
/// How many header names one line of the signature's header has.
const NAMES_PER_LINE: usize = 4;
/// How many characters of the signature one line has.
const BASE64_PER_LINE: usize = 72;
/// The longest string of a TXT record, in octets (RFC 1035 §3.3).
const TXT_STRING: usize = 255;

/// Signs emails for one domain.
pub struct Signer {
    domain: String,
    selector: String,
    key: SigningKey,
}

enum SigningKey {
    Rsa(RsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// Does not show the key.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("domain", &self.domain)
            .field("selector", &self.selector)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads the `DKIM_*` settings; `None` if there are none. `from` is the domain of `MAIL_FROM`.
    ///
    /// # Errors
    ///
    /// A sentence for each variable that is missing or wrong.
    pub fn new(settings: &DkimSettings, from: &str) -> Result<Option<Self>, ConfigErrors> {
        let DkimSettings { dkim_key_file, dkim_selector, dkim_domain } = settings;
        let Some(file) = dkim_key_file else {
            if dkim_selector.is_none() && dkim_domain.is_none() {
                return Ok(None);
            }
            let why = "is missing: DKIM_SELECTOR and DKIM_DOMAIN need it";
            return Err(ConfigError::new("DKIM_KEY_FILE", why).into());
        };
        let mut problems = ConfigErrors::default();
        let selector = problems.take(dkim_selector.clone().ok_or_else(|| {
            ConfigError::new("DKIM_SELECTOR", "is missing: give the key a name such as 2026-11 for DNS")
        }));
        let domain = dkim_domain.clone().map_or_else(|| domain_name(from), Ok).map_err(|_| {
            ConfigError::new("DKIM_DOMAIN", "is missing, and the domain of MAIL_FROM is not a DNS name")
        });
        let domain = problems.take(domain);
        let key = SigningKey::read(file).map_err(|why| ConfigError::new("DKIM_KEY_FILE", why));
        let key = problems.take(key);
        let parts = domain.zip(selector).zip(key);
        problems.or(parts).map(|((domain, selector), key)| Some(Self { domain, selector, key }))
    }

    /// The DNS record that publishes the key (RFC 6376 §3.6.1), as a line of a zone file.
    #[must_use]
    pub fn record(&self) -> String {
        let (kind, public) = match &self.key {
            SigningKey::Rsa(key) => ("rsa", rsa_public_key_info(key.public_key().as_ref())),
            SigningKey::Ed25519(key) => ("ed25519", key.public_key().as_ref().to_vec()),
        };
        let value = format!("v=DKIM1; k={kind}; p={}", STANDARD.encode(public));
        let strings: Vec<_> = pieces(&value, TXT_STRING).map(|piece| format!("\"{piece}\"")).collect();
        format!("{}._domainkey.{}. IN TXT ( {} )", self.selector, self.domain, strings.join(" "))
    }

    /// Adds a signature with the time `now` at the beginning of the message. `None` if the message
    /// is not UTF-8 with a header and a body, or the key cannot sign.
    pub(super) fn signed(&self, message: &[u8], now: OffsetDateTime) -> Option<Vec<u8>> {
        let (head, body) = std::str::from_utf8(message).ok()?.split_once("\r\n\r\n")?;
        let fields = fields(head);
        let mut names = Vec::new();
        let mut input = String::new();
        for name in SIGNED {
            names.push(name);
            // Repeated headers are signed from the last one up (RFC 6376 §5.4.2).
            for field in fields.iter().rev().filter(|field| is_named(field, name)) {
                names.push(name);
                input.push_str(&relaxed_field(field));
                input.push_str("\r\n");
            }
        }
        let names: Vec<_> = names.chunks(NAMES_PER_LINE).map(|names| names.join(":")).collect();
        let header = format!(
            "DKIM-Signature: v=1; a={}; c=relaxed/relaxed; t={};\r\n\td={}; s={};\r\n\th={};\r\n\tbh={};\r\n\tb=",
            self.key.algorithm(),
            now.unix_timestamp(),
            self.domain,
            self.selector,
            names.join(":\r\n\t"),
            STANDARD.encode(Sha256::digest(relaxed_body(body))),
        );
        input.push_str(&relaxed_field(&header));
        let signature = STANDARD.encode(self.key.sign(input.as_bytes())?);
        let signature: Vec<_> = pieces(&signature, BASE64_PER_LINE).collect();
        Some([header.as_bytes(), signature.join("\r\n\t").as_bytes(), b"\r\n", message].concat())
    }
}

impl SigningKey {
    /// Reads a PEM file. The error is the rest of a sentence that begins with the variable's name.
    fn read(file: &Path) -> Result<Self, String> {
        let pem =
            std::fs::read(file).map_err(|error| format!("names a file that cannot be read: {error}"))?;
        let pem = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| "names a file that contains no private key in PEM form without a password")?;
        // `openssl genpkey` writes PKCS#8; older RSA tools write PKCS#1.
        let key = match &pem {
            PrivateKeyDer::Pkcs8(key) => {
                let key = key.secret_pkcs8_der();
                let ed25519 = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key).map(Self::Ed25519);
                ed25519.or_else(|_| RsaKeyPair::from_pkcs8(key).map(Self::Rsa)).ok()
            }
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()).map(Self::Rsa).ok(),
            _ => None,
        };
        // RFC 8301 §3.2 recommends at least 2048 bits for signers.
        key.ok_or_else(|| "contains a key that is neither Ed25519 nor RSA of 2048, 3072 or 4096 bits".into())
    }

    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "rsa-sha256",
            Self::Ed25519(_) => "ed25519-sha256",
        }
    }

    fn sign(&self, input: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input, &mut signature).ok()?;
                Some(signature)
            }
            // Ed25519 signs the hash (RFC 8463 §3).
            Self::Ed25519(key) => Some(key.sign(&Sha256::digest(input)).as_ref().to_vec()),
        }
    }
}

/// The fields of a header, each with its continuation lines and without the final line break.
fn fields(head: &str) -> Vec<&str> {
    let mut fields = Vec::new();
    let mut begin = 0;
    for (end, _) in head.match_indices("\r\n") {
        if !head[end + 2..].starts_with([' ', '\t']) {
            fields.push(&head[begin..end]);
            begin = end + 2;
        }
    }
    fields.push(&head[begin..]);
    fields
}

fn is_named(field: &str, name: &str) -> bool {
    field.split(':').next().is_some_and(|found| found.trim_end().eq_ignore_ascii_case(name))
}

/// Canonicalises a header field (RFC 6376 §3.4.2), without the final line break.
fn relaxed_field(field: &str) -> String {
    let (name, value) = field.split_once(':').unwrap_or((field, ""));
    let words = value.split([' ', '\t', '\r', '\n']).filter(|word| !word.is_empty());
    format!("{}:{}", name.trim_end().to_ascii_lowercase(), words.collect::<Vec<_>>().join(" "))
}

/// Canonicalises a body (RFC 6376 §3.4.4).
fn relaxed_body(body: &str) -> String {
    let mut relaxed = String::with_capacity(body.len() + 2);
    // Empty lines are kept only if another line follows them.
    let mut empty = 0;
    for line in body.split("\r\n") {
        let line = line.trim_end_matches([' ', '\t']);
        if line.is_empty() {
            empty += 1;
            continue;
        }
        relaxed.push_str(&"\r\n".repeat(std::mem::take(&mut empty)));
        let mut is_in_space = false;
        for letter in line.chars() {
            let is_space = matches!(letter, ' ' | '\t');
            if !is_space {
                relaxed.push(letter);
            } else if !is_in_space {
                relaxed.push(' ');
            }
            is_in_space = is_space;
        }
        relaxed.push_str("\r\n");
    }
    relaxed
}

/// Wraps an `RSAPublicKey` in a `SubjectPublicKeyInfo` (RFC 5280 §4.1), as verifiers expect it.
fn rsa_public_key_info(key: &[u8]) -> Vec<u8> {
    const RSA_ENCRYPTION: [u8; 15] =
        [0x30, 13, 0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0];
    let key = der(0x03, &[&[0], key].concat());
    der(0x30, &[&RSA_ENCRYPTION, &*key].concat())
}

/// Encodes a DER value with a length of two octets, which fits every RSA key of 2048 to 4096 bits.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[tag, 0x82], &length[..], content].concat()
}

/// Splits ASCII text into pieces of `length` characters.
fn pieces(text: &str, length: usize) -> impl Iterator<Item = &str> {
    (0..text.len()).step_by(length).map(move |begin| &text[begin..text.len().min(begin + length)])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two assertions are the example of RFC 6376 §3.4.5.
    #[test]
    fn canonicalisation_follows_the_standard() {
        let fields: Vec<_> = fields("A: X\r\nB : Y\t\r\n\tZ  ").into_iter().map(relaxed_field).collect();
        assert_eq!(fields, ["a:X", "b:Y Z"]);
        assert_eq!(relaxed_body(" C \r\nD \t E\r\n\r\n\r\n"), " C\r\nD E\r\n");
        assert_eq!(relaxed_body(""), "");
        assert_eq!(relaxed_body("\r\n \r\n"), "");
        assert_eq!(relaxed_body("\r\n\r\na"), "\r\n\r\na\r\n");
    }

    /// The example of RFC 8463 appendix A, whose signature is deterministic.
    #[test]
    fn the_signature_equals_that_of_the_standard() {
        let seed = STANDARD.decode("nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=").unwrap();
        let key = SigningKey::Ed25519(Ed25519KeyPair::from_seed_unchecked(&seed).unwrap());
        let body = "Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n";
        let hash = STANDARD.encode(Sha256::digest(relaxed_body(body)));
        assert_eq!(hash, "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=");
        let signed = "From: Joe SixPack <joe@football.example.com>\r\n\
                      To: Suzie Q <suzie@shopping.example.net>\r\n\
                      Subject: Is dinner ready?\r\n\
                      Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n\
                      Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n\
                      DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n \
                      d=football.example.com; i=@football.example.com;\r\n \
                      q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n \
                      subject : date : message-id : from : subject : date;\r\n \
                      bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n b=";
        let input: Vec<_> = fields(signed).into_iter().map(relaxed_field).collect();
        let signature = STANDARD.encode(key.sign(input.join("\r\n").as_bytes()).unwrap());
        assert_eq!(
            signature,
            "/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw=="
        );
    }
}
