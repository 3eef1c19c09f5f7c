//! Random tokens, derived codes, and the keys that codes are derived from.
//!
//! A plain token and its stored hash are different types, so that storing a plain token does not
//! compile. No type here shows its secret in `Debug`, and none implements `Display`.

mod backup_code;
mod operator_token;
mod sealed;
mod token;
mod webhook;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use rand::TryRng as _;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};
use uuid::Uuid;

pub use self::backup_code::BackupCode;
pub use self::operator_token::OperatorToken;
pub use self::token::{TOKEN_CHARS, Token, TokenHash};
pub use self::webhook::WebhookSecrets;

/// The number of digits of a recovery code.
pub const CODE_DIGITS: usize = 8;
const KEY_BYTES: usize = 32;

/// A recovery code of 8 decimal digits.
#[derive(Clone)]
pub struct Code([u8; CODE_DIGITS]);

impl Code {
    /// Reads a code as users type and paste it, such as a whole line of the email: digits of every
    /// script count, everything else is ignored. Returns `None` unless there are exactly 8 digits,
    /// or if there is a control character that is no white space.
    #[must_use]
    pub fn parse(typed: &str) -> Option<Self> {
        if typed.chars().any(|c| c.is_control() && !c.is_whitespace()) {
            return None;
        }
        let digits: Vec<u8> = typed.chars().filter_map(digit_value).take(CODE_DIGITS + 1).collect();
        Some(Self(digits.try_into().ok()?))
    }

    /// Compares two codes in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// The code as users read and copy it: 8 digits in a row.
    #[must_use]
    pub fn expose(&self) -> String {
        self.0.iter().map(|digit| char::from(b'0' + digit)).collect()
    }
}

/// The value of a decimal digit. Unicode encodes the digits of a script as ten code points in a
/// row, from zero.
fn digit_value(digit: char) -> Option<u8> {
    let is_digit = |point: u32| {
        char::from_u32(point).is_some_and(|c| c.general_category() == GeneralCategory::DecimalNumber)
    };
    let point = u32::from(digit);
    if !is_digit(point) {
        return None;
    }
    let zero = (0..point).rev().take_while(|point| is_digit(*point)).last().unwrap_or(point);
    u8::try_from((point - zero) % 10).ok()
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code(redacted)")
    }
}

/// A key that codes are derived from, or that MACs are made with; with the id that is stored with
/// its values.
#[derive(Clone)]
pub struct Key {
    id: Arc<str>,
    key: [u8; KEY_BYTES],
}

impl Key {
    /// A random key, which exists as long as the process: for `vos-auth dev`, tests and sample
    /// emails.
    ///
    /// # Panics
    ///
    /// If the operating system cannot provide random bytes.
    #[must_use]
    pub fn random(id: &str) -> Self {
        let mut key = [0; KEY_BYTES];
        SysRng.try_fill_bytes(&mut key).expect("the operating system gives random bytes");
        Self { id: id.into(), key }
    }

    /// The id that is stored with a session.
    #[must_use]
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The code of a recovery session, from HMAC-SHA-256 (RFC 2104) of a label and the session's
    /// id. Each byte below 250 gives one digit; a plain remainder modulo 10 would favour the digits
    /// 0 to 5. The same session always gives the same code, so no table has to store it.
    #[must_use]
    pub fn code(&self, recovery_session: Uuid) -> Code {
        let mut digits = [0; CODE_DIGITS];
        let mut filled = 0;
        // A block has 32 bytes, of which 8 must be below 250: a second block is almost never
        // needed.
        for block in 0u8.. {
            for byte in self.block(recovery_session, block) {
                if byte < 250 {
                    digits[filled] = byte % 10;
                    filled += 1;
                }
                if filled == CODE_DIGITS {
                    return Code(digits);
                }
            }
        }
        unreachable!("256 blocks of 32 bytes hold 8 that are below 250")
    }

    fn block(&self, recovery_session: Uuid, block: u8) -> [u8; 32] {
        let first: &[u8] = if block > 0 { &[block] } else { &[] };
        self.mac("recovery-code/1", &[recovery_session.as_bytes(), first])
    }

    /// HMAC-SHA-256 of a label and the parts. A label names a use, so that MACs of two uses never
    /// match. Every part but the last must have a fixed length.
    ///
    /// # Panics
    ///
    /// Never: HMAC takes a key of any length.
    #[must_use]
    pub fn mac(&self, label: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(label.as_bytes());
        mac.update(b"|");
        for part in parts {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The keys of `RECOVERY_SECRETS`, `DEVICE_SECRETS` or `FACTOR_SECRETS`. The first key is used for new values, the
/// others for values that were made with them.
#[derive(Clone, Debug)]
pub struct Keys(Vec<Key>);

impl Keys {
    /// The key for new values.
    #[must_use]
    pub fn newest(&self) -> &Key {
        &self.0[0]
    }

    /// The key that changes least often: a new key is the oldest only after all earlier ones were
    /// removed.
    #[must_use]
    pub fn oldest(&self) -> &Key {
        &self.0[self.0.len() - 1]
    }

    /// All keys, the newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }

    /// The key of this id, unless it has been rotated away.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<&Key> {
        self.0.iter().find(|key| &*key.id == id)
    }
}

impl From<Key> for Keys {
    fn from(key: Key) -> Self {
        Self(vec![key])
    }
}

/// Reads `ID:BASE64[,ID:BASE64]`. The error is the second half of a sentence and quotes no part of
/// the secret.
impl FromStr for Keys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut keys: Vec<Key> = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (id, key) = entry.split_once(':').ok_or("has an entry that is not in the form ID:BASE64")?;
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if id.is_empty() || id.len() > 32 || !id.chars().all(plain) {
                return Err("has an ID that is not 1 to 32 characters of a-z, 0-9 and '-'".into());
            }
            if keys.iter().any(|known| &*known.id == id) {
                return Err(format!("has the ID {id} twice"));
            }
            let bytes = STANDARD
                .decode(key)
                .or_else(|_| STANDARD_NO_PAD.decode(key))
                .or_else(|_| URL_SAFE_NO_PAD.decode(key))
                .map_err(|_| format!("has no base64 after the ID {id}"))?;
            let distinct = bytes.iter().collect::<std::collections::HashSet<_>>().len();
            // 32 random bytes have about 30 distinct values. Fewer than 16 indicate a repeated
            // pattern or a typed phrase.
            if bytes.len() < KEY_BYTES || distinct < KEY_BYTES / 2 {
                return Err(format!(
                    "has a weak secret after the ID {id}: generate 32 random bytes with `openssl rand -base64 32`"
                ));
            }
            let key = Sha256::digest(&bytes).into();
            keys.push(Key { id: id.into(), key });
        }
        if keys.is_empty() {
            return Err("is empty: set it to 1:SECRET, with a SECRET from `openssl rand -base64 32`".into());
        }
        Ok(Self(keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        Key { id: "1".into(), key: [7; 32] }
    }

    #[test]
    fn a_code_depends_on_session_and_key() {
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert!(key().code(a).matches(&key().code(a)));
        assert!(!key().code(a).matches(&key().code(b)));
        assert!(!key().code(a).matches(&Key { id: "2".into(), key: [8; 32] }.code(a)));
    }

    #[test]
    fn a_code_is_parsed_as_users_write_it() {
        let code = Code([0, 1, 2, 3, 4, 5, 6, 7]);
        for typed in [
            "01234567",
            "0123 4567",
            " 0123-4567\n",
            "0123\u{a0}4567",
            "０１２３　４５６７",
            "0123–4567",
            "0 1 2 3 4 5 6 7",
            "0123.4567",
            "\u{202b}٠١٢٣ ٤٥٦٧\u{202c}",
            "Mã của bạn là 0123 4567.",
            "𝟘𝟙𝟚𝟛 𝟰𝟱𝟲𝟳",
        ] {
            assert!(Code::parse(typed).is_some_and(|read| read.matches(&code)), "{typed:?}");
        }
        for typed in
            ["", "0123456", "012345678", "0123456a", "①1234567x", "01234567\u{0}", "01:05: 0123 4567"]
        {
            assert!(Code::parse(typed).is_none(), "{typed:?}");
        }
        assert!(!Code::parse("01234568").unwrap().matches(&code));
    }

    #[test]
    fn digits_are_uniform_and_leading_zeros_survive() {
        let mut counts = [[0u32; 10]; CODE_DIGITS];
        let samples = 20_000u32;
        for id in 0..samples {
            let code = key().code(Uuid::from_u128(id.into()));
            for (place, digit) in code.0.iter().enumerate() {
                counts[place][usize::from(*digit)] += 1;
            }
            assert_eq!(code.expose().len(), CODE_DIGITS);
        }
        // Chi-square with 9 degrees of freedom: over 40 has a chance of under one in 100,000 a
        // place.
        for place in counts {
            let expected = f64::from(samples) / 10.0;
            let chi: f64 = place.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
            assert!(chi < 40.0, "{place:?}");
        }
    }

    #[test]
    fn weak_and_malformed_secrets_are_refused_without_being_quoted() {
        let good = STANDARD.encode((0..32).collect::<Vec<u8>>());
        assert!(format!("2026-11:{good}, old:{good}").parse::<Keys>().is_ok());
        let same = STANDARD.encode([7; 32]);
        for bad in [
            "",
            ",",
            &good,
            "1:short",
            "1:!!!",
            &format!("1:{same}"),
            &format!("A b:{good}"),
            &format!("1:{good},1:{good}"),
        ] {
            let error = bad.parse::<Keys>().unwrap_err();
            assert!(!error.contains(&good) && !error.contains(&same) && !error.contains("short"), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let token = Token::issue(&key(), "test/1", time::OffsetDateTime::UNIX_EPOCH);
        let shown = format!("{token:?} {:?} {:?} {:?}", token.hash(), key(), key().code(Uuid::nil()));
        assert!(!shown.contains(&token.expose()) && !shown.contains(&key().code(Uuid::nil()).expose()));
        assert!(!shown.contains("7, 7"), "{shown}");
    }
}
