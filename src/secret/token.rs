//! Bearer tokens, plain and hashed.
//!
//! A token has 16 random bytes, 4 bytes of the time of issue in seconds, and 12 bytes of a MAC of
//! both. The MAC tells a forged token from an issued one without a query. Only rate limits depend
//! on the MAC; access is decided by the look-up of the token's hash.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng as _;
use rand::rngs::SysRng;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;

use super::{Key, Keys};

/// The length of a token as text: 32 bytes in unpadded base64url.
pub const TOKEN_CHARS: usize = 43;
const TOKEN_BYTES: usize = 32;
const RANDOM_BYTES: usize = 16;
/// Random bytes and time: the input of the MAC.
const SIGNED_BYTES: usize = RANDOM_BYTES + 4;

/// A plain bearer token with 128 random bits. It leaves the service only in a cookie or response,
/// and only its [`TokenHash`] is stored.
#[derive(Clone)]
pub struct Token([u8; TOKEN_BYTES]);

impl Token {
    /// Issues a token with random bytes of the operating system, for the use that `label` names.
    ///
    /// # Panics
    ///
    /// If the operating system cannot provide random bytes; nothing safe could be done then.
    #[must_use]
    pub fn issue(key: &Key, label: &str, now: OffsetDateTime) -> Self {
        let mut bytes = [0; TOKEN_BYTES];
        SysRng.try_fill_bytes(&mut bytes[..RANDOM_BYTES]).expect("the operating system gives random bytes");
        bytes[RANDOM_BYTES..SIGNED_BYTES].copy_from_slice(&seconds(now).to_be_bytes());
        let mac = key.mac(label, &[&bytes[..SIGNED_BYTES]]);
        bytes[SIGNED_BYTES..].copy_from_slice(&mac[..TOKEN_BYTES - SIGNED_BYTES]);
        Self(bytes)
    }

    /// Whether it was issued under one of `keys` for this use within the last `lifetime`. A few
    /// seconds are allowed for clocks of replicas that differ.
    #[must_use]
    pub fn was_issued(&self, keys: &Keys, label: &str, lifetime: Duration, now: OffsetDateTime) -> bool {
        const CLOCK_SKEW: u64 = 5;
        let (signed, mac) = self.0.split_at(SIGNED_BYTES);
        let at = signed[RANDOM_BYTES..].iter().fold(0, |at, byte| at << 8 | u32::from(*byte));
        let age = i64::from(seconds(now)) - i64::from(at);
        let is_recent =
            age.unsigned_abs() <= if age < 0 { CLOCK_SKEW } else { lifetime.as_secs() + CLOCK_SKEW };
        is_recent && keys.iter().any(|key| key.mac(label, &[signed])[..mac.len()].ct_eq(mac).into())
    }

    /// Reads the text of [`Token::expose`]: exactly 43 characters of base64url.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != TOKEN_CHARS {
            return None;
        }
        Some(Self(URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()?))
    }

    /// The token as text, for the one response that hands it to the client.
    #[must_use]
    pub fn expose(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// The hash that is stored and looked up. It needs no salt or stretching: 128 random bits
    /// cannot be guessed from their SHA-256.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// SHA-256 of a [`Token`] or [`super::OperatorToken`]. The database stores only this hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of another kind of token than [`Token`], from its bytes.
    pub(super) const fn of(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    /// The bytes as they are stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes by value.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(redacted)")
    }
}

/// Seconds since 1970. A `u32` can hold them until 2106.
fn seconds(at: OffsetDateTime) -> u32 {
    u32::try_from(at.unix_timestamp()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "test/1";
    const LIFETIME: Duration = Duration::from_mins(15);

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::from_hours(400_000)
    }

    #[test]
    fn tokens_round_trip_and_other_text_does_not_parse() {
        let token = Token::issue(&Key::random("a"), LABEL, now());
        let text = token.expose();
        assert_eq!(text.len(), TOKEN_CHARS);
        assert_eq!(Token::parse(&text).unwrap().hash(), token.hash());
        for broken in ["", &text[1..], &format!("{text}="), &format!("{}+", &text[1..]), &"é".repeat(21)] {
            assert!(Token::parse(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn a_token_shows_that_it_was_issued_for_one_use_and_recently() {
        let (old, new) = (Key::random("a"), Key::random("b"));
        let rotated = Keys(vec![new, old.clone()]);
        let token = Token::issue(&old, LABEL, now());
        let was_issued = |at| token.was_issued(&rotated, LABEL, LIFETIME, at);
        assert!(
            was_issued(now()) && was_issued(now() + LIFETIME) && was_issued(now() - Duration::from_secs(1))
        );
        assert!(!was_issued(now() + LIFETIME + Duration::from_mins(1)), "too old");
        assert!(!was_issued(now() - Duration::from_mins(1)), "from the future");
        assert!(!token.was_issued(&rotated, "other/1", LIFETIME, now()), "another use");
        assert!(!token.was_issued(&Key::random("a").into(), LABEL, LIFETIME, now()), "another secret");
        for place in 0..TOKEN_BYTES {
            let mut changed = token.0;
            changed[place] ^= 1;
            assert!(!Token(changed).was_issued(&rotated, LABEL, LIFETIME, now()), "{place}");
        }
    }
}
