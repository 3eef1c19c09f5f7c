//! Backup codes: each stands in once for a second factor that its owner has lost.

use std::fmt;

use data_encoding::BASE32_NOPAD;
use rand::TryRng as _;
use rand::rngs::SysRng;
use sha2::{Digest as _, Sha256};

/// 80 random bits, as NIST SP 800-63B-4 §3.1.2.2 allows without stretching (at least 64).
const BYTES: usize = 10;
/// The length as text: 5 bits a character.
const CHARS: usize = 16;

/// A backup code. It is shown once, and only its SHA-256 is stored.
#[derive(Clone)]
pub struct BackupCode([u8; BYTES]);

impl BackupCode {
    /// A code of random bytes of the operating system.
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

    /// Reads a code as its owner types it: 16 characters of base32 (RFC 4648 §6) in either case.
    /// White space and hyphens do not count.
    #[must_use]
    pub fn parse(typed: &str) -> Option<Self> {
        let is_filler = |c: char| c.is_whitespace() || c == '-';
        let text: String = typed.chars().filter(|c| !is_filler(*c)).take(CHARS + 1).collect();
        Some(Self(BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok()?.try_into().ok()?))
    }

    /// The code as it is shown, once: four groups of four.
    #[must_use]
    pub fn expose(&self) -> String {
        let text = BASE32_NOPAD.encode(&self.0);
        [&text[..4], &text[4..8], &text[8..12], &text[12..]].join("-")
    }

    /// The hash that is stored and looked up.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }
}

impl fmt::Debug for BackupCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupCode(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_code_is_read_as_people_type_it() {
        let code = BackupCode::random();
        let shown = code.expose();
        assert!(shown.len() == 19 && shown.split('-').all(|group| group.len() == 4), "{shown}");
        for typed in [
            shown.clone(),
            shown.to_lowercase(),
            shown.replace('-', ""),
            shown.replace('-', " "),
            format!(" {shown}\n"),
        ] {
            assert_eq!(BackupCode::parse(&typed).map(|read| read.hash()), Some(code.hash()), "{typed}");
        }
        for typed in
            ["", &shown[1..], &format!("{shown}A"), &shown.replacen(&shown[..1], "1", 1), "ÀBCDEFGHIJKLMNOP"]
        {
            assert!(BackupCode::parse(typed).is_none(), "{typed}");
        }
        assert_ne!(BackupCode::random().hash(), code.hash());
        assert!(!format!("{code:?}").contains(&shown[..4]));
    }
}
