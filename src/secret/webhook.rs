//! The secrets that sign webhooks, as the Standard Webhooks specification has them (version 1.0.0,
//! symmetric signatures).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The bounds of a secret, in bytes.
const MIN_BYTES: usize = 24;
const MAX_BYTES: usize = 64;

/// The secrets of one receiver. Each of them signs, so that the receiver can change from one to the
/// next.
#[derive(Clone)]
pub struct WebhookSecrets(Vec<Vec<u8>>);

impl WebhookSecrets {
    /// The header `webhook-signature` of a request: one signature for each secret, separated by
    /// spaces. `timestamp` is that of the attempt, in Unix time.
    ///
    /// # Panics
    ///
    /// Never: HMAC takes a key of any length.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let signatures = self.0.iter().map(|secret| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

/// Reads `whsec_BASE64[,whsec_BASE64]`. The error continues a sentence and quotes no part of the
/// secret.
impl FromStr for WebhookSecrets {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').map(secret).collect::<Result<Vec<_>, _>>().map(Self)
    }
}

fn secret(text: &str) -> Result<Vec<u8>, &'static str> {
    const FORM: &str = "has a secret that is not whsec_ and base64 of 24 to 64 random bytes: make one with \
                        `echo whsec_$(openssl rand -base64 32)`";
    let base64 = text.strip_prefix("whsec_").ok_or(FORM)?;
    let bytes = STANDARD.decode(base64).or_else(|_| STANDARD_NO_PAD.decode(base64)).map_err(|_| FORM)?;
    let distinct = bytes.iter().collect::<std::collections::HashSet<_>>().len();
    // As for other keys: few distinct values are a repeated pattern or a typed phrase.
    let is_random = distinct >= MIN_BYTES / 2;
    if (MIN_BYTES..=MAX_BYTES).contains(&bytes.len()) && is_random { Ok(bytes) } else { Err(FORM) }
}

impl fmt::Debug for WebhookSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecrets(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vector of the specification's reference libraries.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    #[test]
    fn a_signature_is_that_of_the_reference_vector() {
        let secrets: WebhookSecrets = SECRET.parse().unwrap();
        assert_eq!(secrets.sign(ID, 1_614_265_330, BODY), SIGNATURE);
        for (id, timestamp, body) in [
            ("msg_p5jXN8AQM9LWM0D4loKWxJel", 1_614_265_330, BODY),
            (ID, 1_614_265_331, BODY),
            (ID, 1_614_265_330, b"{}"),
        ] {
            assert_ne!(secrets.sign(id, timestamp, body), SIGNATURE);
        }
    }

    #[test]
    fn each_of_several_secrets_signs() {
        let other = format!("whsec_{}", STANDARD.encode((0..32).collect::<Vec<u8>>()));
        let both: WebhookSecrets = format!("{other},{SECRET}").parse().unwrap();
        let signed = both.sign(ID, 1_614_265_330, BODY);
        let (first, second) = signed.split_once(' ').unwrap();
        assert_eq!(second, SIGNATURE);
        assert_eq!(first, other.parse::<WebhookSecrets>().unwrap().sign(ID, 1_614_265_330, BODY));
    }

    #[test]
    fn weak_and_malformed_secrets_are_refused_and_none_is_shown() {
        let of = |bytes: &[u8]| format!("whsec_{}", STANDARD.encode(bytes));
        let random: Vec<u8> = (0..65).collect();
        for good in [of(&random[..24]), of(&random[..64]), SECRET.into()] {
            let secrets: WebhookSecrets = good.parse().unwrap();
            assert_eq!(format!("{secrets:?}"), "WebhookSecrets(redacted)");
        }
        for bad in [
            String::new(),
            "whsec_".into(),
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".into(),
            "whsec_!!!".into(),
            of(&random[..23]),
            of(&random),
            of(&[7; 32]),
            format!("{SECRET},"),
        ] {
            assert!(bad.parse::<WebhookSecrets>().is_err(), "{bad}");
        }
    }
}
