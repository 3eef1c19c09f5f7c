//! Hashes passwords with Argon2id (RFC 9106).

use argon2::password_hash::PasswordHasher;
use argon2::{Algorithm, Argon2, Params, Version};
use unicode_normalization::UnicodeNormalization as _;

/// Memory in KiB, passes, lanes: the first choice of OWASP's password storage cheat sheet.
const COST: (u32, u32, u32) = (19 * 1024, 2, 1);

/// A password as it was typed. `Debug` does not show it.
pub struct Password(String);

impl Password {
    /// NFC (NIST SP 800-63B-4 §3.1.1.2), so that one password is one string whichever keyboard composed it.
    #[must_use]
    pub fn new(typed: &str) -> Self {
        Self(typed.nfc().collect())
    }

    /// The PHC string that is stored. Takes 19 MiB and tens of milliseconds: call it where blocking is allowed.
    ///
    /// # Panics
    ///
    /// If the operating system has no randomness for the salt.
    #[must_use]
    pub fn hash(&self) -> String {
        let (memory, passes, lanes) = COST;
        let params = Params::new(memory, passes, lanes, None).expect("the cost is within Argon2's bounds");
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password(self.0.as_bytes()).expect("the operating system gives a salt").to_string()
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(redacted)")
    }
}
