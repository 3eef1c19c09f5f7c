//! Tokens of operators: the credential of the admin API.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng as _;
use rand::rngs::SysRng;
use sha2::{Digest as _, Sha256};

use super::TokenHash;

/// What each token begins with, so that scanners of secrets recognize one that was leaked.
const PREFIX: &str = "vosop_";
const BYTES: usize = 32;

/// The token of an operator, with 256 random bits. It is shown once, and only its [`TokenHash`] is
/// stored.
pub struct OperatorToken([u8; BYTES]);

impl OperatorToken {
    /// A token of random bytes of the operating system.
    ///
    /// # Panics
    ///
    /// If the operating system cannot provide random bytes; nothing safe could be done then.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; BYTES];
        SysRng.try_fill_bytes(&mut bytes).expect("the operating system gives random bytes");
        Self(bytes)
    }

    /// Reads the text of [`OperatorToken::expose`]: the prefix and exactly 43 characters of
    /// base64url.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(Self(URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?.try_into().ok()?))
    }

    /// The token as text, to be shown once.
    #[must_use]
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }

    /// The hash that is stored and looked up.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(Sha256::digest(self.0).into())
    }
}

impl fmt::Debug for OperatorToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorToken(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_other_text_does_not_parse() {
        let token = OperatorToken::random();
        let text = token.expose();
        assert_eq!(text.len(), 49);
        assert_eq!(OperatorToken::parse(&text).unwrap().hash(), token.hash());
        assert!(!format!("{token:?}").contains(&text[6..]));
        for broken in ["", PREFIX, &text[6..], &format!("{text}A"), &text[..48], &text.to_uppercase()] {
            assert!(OperatorToken::parse(broken).is_none(), "{broken}");
        }
    }
}
