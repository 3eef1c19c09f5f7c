//! Passwords: hashed with Argon2id (RFC 9106) on a bounded pool, checked against a policy and a
//! list of those known from breaches, and verified against hashes of many schemes.
//!
//! Only [`Hasher`] spends the memory and time of a hash: it runs a bounded number at once, queues a
//! bounded number, and refuses further requests before they cost anything. If an address has no
//! usable hash, the password is verified against one of the [`Decoys`].

pub mod blocklist;
mod decoy;
mod hasher;
mod policy;
mod stored;

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rand::TryRng as _;
use rand::rngs::SysRng;
use unicode_normalization::UnicodeNormalization as _;

use self::blocklist::Blocklist;
pub use self::decoy::{Counts, Decoys, SlowestHashes};
pub use self::hasher::{Hasher, Place};
pub use self::policy::context;
use self::stored::SLOWEST_PASSWORD;
pub use self::stored::{StoredHash, Unusable};
use crate::config::PasswordSettings;
use crate::error::{Detail, Error, Problem};

/// A password. `Debug` does not show it.
#[derive(Clone)]
pub struct Password {
    nfc: String,
    /// The password as typed, if it differs: another system may have hashed that form.
    typed: Option<String>,
}

impl Password {
    /// Normalizes to NFC (NIST SP 800-63B-4 §3.1.1.2), so that a password is the same string
    /// whichever keyboard composed it.
    #[must_use]
    pub fn new(typed: &str) -> Self {
        let nfc: String = typed.nfc().collect();
        let typed = (nfc != typed).then(|| typed.to_owned());
        Self { nfc, typed }
    }

    /// The number of Unicode forms of the password that are tried against a stored hash. A failed
    /// verification computes one hash for each form.
    #[must_use]
    pub fn spellings(&self) -> u32 {
        1 + u32::from(self.typed.is_some())
    }

    /// Checks it against the policy for new passwords and the list of breached ones; see
    /// [`Place::hash_new`].
    ///
    /// # Errors
    ///
    /// `PasswordTooShort`, `PasswordTooLong`, `PasswordGuessable` or `PasswordBreached`, each with
    /// advice.
    pub fn check(
        &self,
        min_chars: u16,
        context: &[String],
        blocklist: Option<&Blocklist>,
    ) -> Result<(), Error> {
        policy::check(&self.nfc, min_chars, context)?;
        if blocklist.is_some_and(|blocklist| blocklist.contains(self)) {
            return Err(Error::in_field(Problem::PasswordBreached, "password").with(Detail::BreachAdvice));
        }
        Ok(())
    }

    /// Hashes it to the PHC string that is stored. Takes the memory of `cost` and tens of
    /// milliseconds: call it where blocking is allowed.
    ///
    /// # Panics
    ///
    /// If the operating system cannot provide random bytes for the salt.
    #[must_use]
    pub fn hash(&self, cost: Cost) -> String {
        self.hash_in(&mut Memory::default(), cost)
    }

    fn hash_in(&self, memory: &mut Memory, cost: Cost) -> String {
        let (mut salt, mut output) = ([0; 16], [0; 32]);
        SysRng.try_fill_bytes(&mut salt).expect("the operating system gives random bytes");
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(output.len()));
        let params = params.expect("the settings keep the cost within Argon2's bounds");
        let blocks = memory.blocks(params.block_count());
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(self.nfc.as_bytes(), &salt, &mut output, blocks)
            .expect("salt, output and memory are as Argon2 wants them");
        format!("{}{}${}", cost.prefix(), STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(output))
    }

    fn verify(&self, text: &str, memory: &mut Memory, cost: Cost) -> PasswordMatch {
        let Ok(stored) = StoredHash::parse(text) else { return PasswordMatch::Wrong };
        let mut spellings = [Some(&self.nfc), self.typed.as_ref()].into_iter().flatten();
        let Some(matched) = spellings.find(|spelling| stored.matches(spelling.as_bytes(), memory)) else {
            return PasswordMatch::Wrong;
        };
        let current = *matched == self.nfc && cost.produced(text);
        // A rehash would make permanent a typing error in a part that the old hash ignores.
        let must_rehash = !current && stored.sees_all_of(matched.as_bytes());
        PasswordMatch::Right { rehashed: must_rehash.then(|| self.hash_in(memory, cost)) }
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(redacted)")
    }
}

/// Measures the current time of one verification on this machine, with the password that takes the
/// longest: the time of SHA-crypt grows with the password's length. Call it where blocking is
/// allowed.
#[must_use]
pub fn verification_time(stored: &StoredHash) -> Duration {
    let mut memory = Memory::default();
    let password = [b'a'; SLOWEST_PASSWORD];
    // The least of three, because other work on the machine only adds time.
    let times = [(); 3].map(|()| {
        let began = Instant::now();
        std::hint::black_box(stored.matches(&password, &mut memory));
        began.elapsed()
    });
    times.into_iter().min().unwrap_or_default()
}

/// Counts the verifications within a time on this machine, at least one. Call it where blocking is
/// allowed.
fn verifications_within(stored: &StoredHash, time: Duration) -> u32 {
    let (mut memory, began, mut count) = (Memory::default(), Instant::now(), 0);
    loop {
        std::hint::black_box(stored.matches(b"a made-up password", &mut memory));
        count += 1;
        if began.elapsed() >= time {
            return count;
        }
    }
}

/// The cost of one Argon2id hash.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// The cost in the settings.
    #[must_use]
    pub fn of(settings: &PasswordSettings) -> Self {
        Self {
            memory_kib: settings.argon2_memory_kib,
            passes: settings.argon2_passes,
            lanes: settings.argon2_lanes,
        }
    }

    /// Whether hashes of this cost can be verified: [`StoredHash`] bounds memory times passes.
    #[must_use]
    pub fn is_verifiable(self) -> bool {
        StoredHash::parse(&self.dummy_hash()).is_ok()
    }

    /// Whether a stored hash is an Argon2id hash of this cost.
    fn produced(self, stored: &str) -> bool {
        stored.starts_with(&self.prefix())
    }

    fn prefix(self) -> String {
        format!("$argon2id$v=19$m={},t={},p={}$", self.memory_kib, self.passes, self.lanes)
    }

    /// A hash of no password. Verifying against it takes as long as against any other of this cost.
    fn dummy_hash(self) -> String {
        format!("{}{}${}", self.prefix(), STANDARD_NO_PAD.encode([0; 16]), STANDARD_NO_PAD.encode([0; 32]))
    }
}

/// The cost that OWASP's password storage cheat sheet recommends as a minimum, and the default
/// setting.
impl Default for Cost {
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2, lanes: 1 }
    }
}

/// The working memory of Argon2, reused for the next hash.
#[derive(Debug, Default)]
pub struct Memory(Vec<Block>);

impl Memory {
    fn blocks(&mut self, count: usize) -> &mut [Block] {
        if self.0.len() < count {
            // The old memory is freed first, so that old and new memory never exist at once.
            self.0 = Vec::new();
            self.0 = vec![Block::new(); count];
        }
        &mut self.0[..count]
    }

    /// Frees the memory if the last hash took more than one of this cost does.
    fn keep_for(&mut self, cost: Cost) {
        let kept = usize::try_from(cost.memory_kib).unwrap_or(usize::MAX);
        if self.0.len() > kept {
            self.0 = Vec::new();
        }
    }
}

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PasswordMatch {
    /// The password is wrong, or no usable hash is stored.
    Wrong,
    /// The password is right. A hash of another scheme, cost or form is replaced by a new one.
    Right {
        /// The new hash to store; `None` if the stored hash stays.
        rehashed: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_verifies_and_other_costs_are_rehashed() {
        let (password, cheap) =
            (Password::new("ngày mai trời lại sáng"), Cost { memory_kib: 7168, passes: 1, lanes: 1 });
        let stored = password.hash(cheap);
        assert_eq!(
            password.verify(&stored, &mut Memory::default(), cheap),
            PasswordMatch::Right { rehashed: None }
        );
        let PasswordMatch::Right { rehashed: Some(rehashed) } =
            password.verify(&stored, &mut Memory::default(), Cost::default())
        else {
            panic!("a hash of another cost is replaced");
        };
        assert_eq!(
            password.verify(&rehashed, &mut Memory::default(), Cost::default()),
            PasswordMatch::Right { rehashed: None }
        );
        assert_eq!(
            Password::new("ngày mai trời lại mưa").verify(&stored, &mut Memory::default(), cheap),
            PasswordMatch::Wrong
        );
        assert_eq!(password.verify(&cheap.dummy_hash(), &mut Memory::default(), cheap), PasswordMatch::Wrong);
    }

    #[test]
    fn a_hash_of_the_typed_form_by_another_system_verifies() {
        let decomposed: String = "mật khẩu".nfd().collect();
        let cheap = Cost { memory_kib: 7168, passes: 1, lanes: 1 };
        // Another system may even use this service's cost.
        let at_our_cost = Password { nfc: decomposed.clone(), typed: None }.hash(cheap);
        for stored in [bcrypt::hash(&decomposed, 4).unwrap(), at_our_cost] {
            let verify = |typed| Password::new(typed).verify(&stored, &mut Memory::default(), cheap);
            assert!(matches!(verify(&decomposed), PasswordMatch::Right { rehashed: Some(_) }), "{stored}");
            assert_eq!(verify("mật khẩu"), PasswordMatch::Wrong, "{stored}");
        }
    }

    /// A client must not get more hashing time than it is charged by choosing a long password.
    #[test]
    fn verification_time_is_measured_with_the_slowest_password() {
        let stored = StoredHash::parse(&format!("$6$rounds=20000$saltstring${}", ".".repeat(86))).unwrap();
        let of = |password: &[u8]| {
            let times = [(); 3].map(|()| {
                let began = Instant::now();
                assert!(!stored.matches(password, &mut Memory::default()));
                began.elapsed()
            });
            times.into_iter().min().unwrap()
        };
        let times = || (of(b"con meo treo cay cau"), of(&[b'a'; 511]), verification_time(&stored));
        // Other tests can take the processor away from one measurement.
        let tries = [(); 5].map(|()| times());
        assert!(tries.iter().any(|(short, long, measured)| *measured > (*short + *long) / 2), "{tries:?}");
    }

    /// A typing error in a part that the old hash ignores signs in, but must not replace the true
    /// password: beyond 72 octets in bcrypt; a zero at the end in HMAC, which pads a short key with
    /// zeros; and in bcrypt a repetition after a zero, because bcrypt repeats a key that way.
    #[test]
    fn parts_that_a_hash_ignores_are_not_made_permanent() {
        let long = "a".repeat(72);
        let bcrypt = |password: &str| bcrypt::hash(password, 4).unwrap();
        // By Python's hashlib, of `con meo treo cay cau`.
        let pbkdf2 =
            "$pbkdf2-sha256$i=1000,l=32$AAECAwQFBgcICQoLDA0ODw$1ais+Zz5CUXaRLw2+GrgweO3OApy5eAfNTy6HdYbqYA";
        for (stored, typed) in [
            (bcrypt(&format!("{long} and the rest")), format!("{long} and a slip")),
            (bcrypt(&format!("{long} and the rest")), long.clone()),
            (bcrypt("morning boat"), "morning boat\0morning boat".into()),
            (pbkdf2.into(), "con meo treo cay cau\0".into()),
        ] {
            let result = Password::new(&typed).verify(&stored, &mut Memory::default(), Cost::default());
            assert_eq!(result, PasswordMatch::Right { rehashed: None }, "{stored}");
        }
        let whole = &long[1..];
        let result = Password::new(whole).verify(&bcrypt(whole), &mut Memory::default(), Cost::default());
        assert!(matches!(result, PasswordMatch::Right { rehashed: Some(_) }), "the hash covers all of it");
    }
}
