//! Passwords: hashed with Argon2id (RFC 9106) on a bounded pool, checked against a policy, and verified whatever scheme
//! they were stored with.
//!
//! [`Hasher`] is the only way to spend the memory and time that a hash takes: so many at once, so many waiting, and
//! further requests are refused before anything was spent on them. [`Decoys`] are what an address without a hash is
//! verified against.

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

pub use self::decoy::{Counts, Decoys, Slowest};
pub use self::hasher::{Hasher, Place};
pub use self::policy::context;
use self::stored::LONGEST_TO_HASH;
pub use self::stored::{Stored, Unusable};
use crate::config::PasswordSettings;
use crate::error::Error;

/// A password. `Debug` does not show it.
#[derive(Clone)]
pub struct Password {
    nfc: String,
    /// As it was typed, if that is something else: another system may have hashed it so.
    typed: Option<String>,
}

impl Password {
    /// NFC (NIST SP 800-63B-4 §3.1.1.2), so that one password is one string whichever keyboard composed it.
    #[must_use]
    pub fn new(typed: &str) -> Self {
        let nfc: String = typed.nfc().collect();
        let typed = (nfc != typed).then(|| typed.to_owned());
        Self { nfc, typed }
    }

    /// How many spellings of it a stored hash is tried with, so how many hashes a failure takes.
    #[must_use]
    pub fn spellings(&self) -> u32 {
        1 + u32::from(self.typed.is_some())
    }

    /// Checks it against the policy of new ones; see [`Place::hash_new`].
    ///
    /// # Errors
    ///
    /// `PasswordTooShort`, `PasswordTooLong` or `PasswordGuessable`, each with what helps.
    pub fn check(&self, min_chars: u16, context: &[String]) -> Result<(), Error> {
        policy::check(&self.nfc, min_chars, context)
    }

    /// The PHC string that is stored. Takes the cost's memory and tens of milliseconds: call it where blocking is
    /// allowed.
    ///
    /// # Panics
    ///
    /// If the operating system has no randomness for the salt.
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

    fn verify(&self, text: &str, memory: &mut Memory, cost: Cost) -> Verdict {
        let Ok(stored) = Stored::parse(text) else { return Verdict::Wrong };
        let mut spellings = [Some(&self.nfc), self.typed.as_ref()].into_iter().flatten();
        let Some(right) = spellings.find(|spelling| stored.matches(spelling.as_bytes(), memory)) else {
            return Verdict::Wrong;
        };
        let current = *right == self.nfc && cost.made(text);
        // A slip in what the hash did not see would be made permanent.
        let anew = !current && stored.sees_all_of(right.as_bytes());
        Verdict::Right { rehashed: anew.then(|| self.hash_in(memory, cost)) }
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(redacted)")
    }
}

/// How long one verification takes on this machine, at present, of a password that takes the longest: SHA-crypt's time grows with
/// its length. Call it where blocking is allowed.
#[must_use]
pub fn time_of(stored: &Stored) -> Duration {
    let mut memory = Memory::default();
    let password = [b'a'; LONGEST_TO_HASH];
    // The least of three: other work can only make it longer.
    let times = [(); 3].map(|()| {
        let began = Instant::now();
        std::hint::black_box(stored.matches(&password, &mut memory));
        began.elapsed()
    });
    times.into_iter().min().unwrap_or_default()
}

/// How many verifications are done within a time on this machine, at present; at least one. Call it where blocking is allowed.
fn count_within(stored: &Stored, time: Duration) -> u32 {
    let (mut memory, began, mut count) = (Memory::default(), Instant::now(), 0);
    loop {
        std::hint::black_box(stored.matches(b"a made-up password", &mut memory));
        count += 1;
        if began.elapsed() >= time {
            return count;
        }
    }
}

/// What one Argon2id hash costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// As the settings say.
    #[must_use]
    pub fn of(settings: &PasswordSettings) -> Self {
        Self {
            memory_kib: settings.argon2_memory_kib,
            passes: settings.argon2_passes,
            lanes: settings.argon2_lanes,
        }
    }

    /// Whether what is hashed at this cost can be verified, too: [`Stored`] bounds memory times passes.
    #[must_use]
    pub fn is_verifiable(self) -> bool {
        Stored::parse(&self.dummy_hash()).is_ok()
    }

    /// Whether a stored hash was made at this cost.
    fn made(self, stored: &str) -> bool {
        stored.starts_with(&self.prefix())
    }

    fn prefix(self) -> String {
        format!("$argon2id$v=19$m={},t={},p={}$", self.memory_kib, self.passes, self.lanes)
    }

    /// The hash of no password: verifying against it takes what any does.
    fn dummy_hash(self) -> String {
        format!("{}{}${}", self.prefix(), STANDARD_NO_PAD.encode([0; 16]), STANDARD_NO_PAD.encode([0; 32]))
    }
}

/// The first choice of OWASP's password storage cheat sheet, and the default of the settings.
impl Default for Cost {
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2, lanes: 1 }
    }
}

/// What Argon2 works in, kept from one hash to the next.
#[derive(Debug, Default)]
pub struct Memory(Vec<Block>);

impl Memory {
    fn blocks(&mut self, count: usize) -> &mut [Block] {
        if self.0.len() < count {
            // The former one first: never both.
            self.0 = Vec::new();
            self.0 = vec![Block::new(); count];
        }
        &mut self.0[..count]
    }

    /// Gives back what a hash took that wanted more than one of this cost does.
    fn keep_for(&mut self, cost: Cost) {
        let kept = usize::try_from(cost.memory_kib).unwrap_or(usize::MAX);
        if self.0.len() > kept {
            self.0 = Vec::new();
        }
    }
}

/// What became of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not the password, or there is none.
    Wrong,
    /// It is. What was stored with another scheme, cost or spelling comes back hashed anew.
    Right {
        /// To be stored instead.
        rehashed: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hashed_verifies_and_other_costs_are_rehashed() {
        let (password, cheap) =
            (Password::new("ngày mai trời lại sáng"), Cost { memory_kib: 7168, passes: 1, lanes: 1 });
        let stored = password.hash(cheap);
        assert_eq!(
            password.verify(&stored, &mut Memory::default(), cheap),
            Verdict::Right { rehashed: None }
        );
        let Verdict::Right { rehashed: Some(rehashed) } =
            password.verify(&stored, &mut Memory::default(), Cost::default())
        else {
            panic!("a hash of another cost is made anew");
        };
        assert_eq!(
            password.verify(&rehashed, &mut Memory::default(), Cost::default()),
            Verdict::Right { rehashed: None }
        );
        assert_eq!(
            Password::new("ngày mai trời lại mưa").verify(&stored, &mut Memory::default(), cheap),
            Verdict::Wrong
        );
        assert_eq!(password.verify(&cheap.dummy_hash(), &mut Memory::default(), cheap), Verdict::Wrong);
    }

    #[test]
    fn what_another_system_hashed_as_it_was_typed_is_found_too() {
        let decomposed: String = "mật khẩu".nfd().collect();
        let cheap = Cost { memory_kib: 7168, passes: 1, lanes: 1 };
        // Another system may even hash at this one's cost.
        let at_our_cost = Password { nfc: decomposed.clone(), typed: None }.hash(cheap);
        for stored in [bcrypt::hash(&decomposed, 4).unwrap(), at_our_cost] {
            let verify = |typed| Password::new(typed).verify(&stored, &mut Memory::default(), cheap);
            assert!(matches!(verify(&decomposed), Verdict::Right { rehashed: Some(_) }), "{stored}");
            assert_eq!(verify("mật khẩu"), Verdict::Wrong, "{stored}");
        }
    }

    /// Who is charged the time of a hash must not take more of it with a long password.
    #[test]
    fn the_time_of_a_hash_is_that_of_the_password_that_takes_longest() {
        let stored = Stored::parse(&format!("$6$rounds=20000$saltstring${}", ".".repeat(86))).unwrap();
        let of = |password: &[u8]| {
            let times = [(); 3].map(|()| {
                let began = Instant::now();
                assert!(!stored.matches(password, &mut Memory::default()));
                began.elapsed()
            });
            times.into_iter().min().unwrap()
        };
        let (short, long, measured) = (of(b"con meo treo cay cau"), of(&[b'a'; 511]), time_of(&stored));
        assert!(measured > (short + long) / 2, "{short:?} {long:?} {measured:?}");
    }

    /// A slip that the hash does not see signs in, and must not take the place of the true password. Nor may what is only
    /// the same to HMAC, which fills a short key up with zeros, or to bcrypt, which repeats one behind a zero.
    #[test]
    fn what_a_hash_did_not_see_is_not_made_permanent() {
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
            let verdict = Password::new(&typed).verify(&stored, &mut Memory::default(), Cost::default());
            assert_eq!(verdict, Verdict::Right { rehashed: None }, "{stored}");
        }
        let whole = &long[1..];
        let verdict = Password::new(whole).verify(&bcrypt(whole), &mut Memory::default(), Cost::default());
        assert!(matches!(verdict, Verdict::Right { rehashed: Some(_) }), "all of it was seen");
    }
}
