//! Stored hashes of every supported scheme: bcrypt, SHA-crypt, Argon2, PBKDF2, scrypt. New hashes
//! are always Argon2id.
//!
//! [`StoredHash::parse`] alone decides whether a hash can be verified, for imports and logins
//! alike.

mod phc;

use sha_crypt::{PasswordVerifier as _, ShaCrypt};

use self::phc::{FirebaseScrypt, Phc, number};
use super::Memory;

const MAX_BCRYPT_COST: u32 = 16;
/// The number of octets of a password that bcrypt reads. It ignores what follows.
const BCRYPT_PASSWORD: usize = 72;
/// The maximum rounds of SHA-crypt. With the longest password, such a hash takes seconds.
const MAX_SHA_CRYPT_ROUNDS: u32 = 1_000_000;
/// The longest password that SHA-crypt is given, in octets, as in libxcrypt: its time grows with
/// length times rounds.
const MAX_SHA_CRYPT_PASSWORD: usize = 511;
/// The length of the passwords that take longest to verify, in octets.
pub(super) const SLOWEST_PASSWORD: usize = MAX_SHA_CRYPT_PASSWORD;

/// A hash that passwords can be verified against: of a supported scheme, complete, and not too
/// expensive. `Debug` does not show it.
#[derive(Clone)]
pub struct StoredHash(Scheme);

#[derive(Clone)]
enum Scheme {
    Bcrypt { text: String, cost: u32 },
    ShaCrypt { text: String, kind: &'static str, rounds: u32 },
    Phc(Phc),
    Firebase(FirebaseScrypt),
}

/// Why no password can be verified against a stored string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// A plain digest or similar, whose password is easily guessed once it leaks. Contains its
    /// kind.
    TooWeak(&'static str),
    /// A hash of a known scheme that is malformed or more expensive than this service computes.
    Broken,
    /// A hash that takes more memory than `HASHING_MEMORY_KIB`.
    TooLarge,
    /// A string of an unknown scheme.
    Unknown,
}

impl StoredHash {
    /// Parses a stored string in any system's notation.
    ///
    /// # Errors
    ///
    /// [`Unusable`] if no password can be verified against it.
    pub fn parse(text: &str) -> Result<Self, Unusable> {
        if let Some(kind) = weak_kind(text) {
            return Err(Unusable::TooWeak(kind));
        }
        let scheme = text.strip_prefix('$').and_then(|rest| rest.split('$').next());
        match scheme.ok_or(Unusable::Unknown)? {
            "2a" | "2b" | "2y" => bcrypt(text),
            "5" | "sha256-crypt" => sha_crypt(text, "sha256-crypt", "$5$", 43),
            "6" | "sha512-crypt" => sha_crypt(text, "sha512-crypt", "$6$", 86),
            "firescrypt" => FirebaseScrypt::parse(text).map(Scheme::Firebase),
            id if phc::kind(id).is_some() => Phc::parse(text).map(Scheme::Phc),
            _ => return Err(Unusable::Unknown),
        }
        .map(Self)
        .ok_or(Unusable::Broken)
    }

    /// Returns the hash if it takes at most this memory, in KiB.
    ///
    /// # Errors
    ///
    /// [`Unusable::TooLarge`].
    pub fn within(self, memory_kib: u32) -> Result<Self, Unusable> {
        if self.memory_kib() <= memory_kib { Ok(self) } else { Err(Unusable::TooLarge) }
    }

    /// The name of its scheme.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match &self.0 {
            Scheme::Bcrypt { .. } => "bcrypt",
            Scheme::ShaCrypt { kind, .. } => kind,
            Scheme::Phc(hash) => hash.kind(),
            Scheme::Firebase(_) => "firebase-scrypt",
        }
    }

    /// Its cost, comparable with other hashes of its kind.
    #[must_use]
    pub fn work(&self) -> u64 {
        match &self.0 {
            Scheme::Bcrypt { cost, .. } => 1 << cost,
            Scheme::ShaCrypt { rounds, .. } => (*rounds).into(),
            Scheme::Phc(hash) => hash.work(),
            Scheme::Firebase(hash) => hash.work(),
        }
    }

    /// The memory to compute it, in KiB.
    #[must_use]
    pub fn memory_kib(&self) -> u32 {
        match &self.0 {
            Scheme::Bcrypt { .. } | Scheme::ShaCrypt { .. } => 0,
            Scheme::Phc(hash) => hash.memory_kib(),
            Scheme::Firebase(hash) => hash.memory_kib(),
        }
    }

    /// Whether the hash distinguishes this password from all others. bcrypt reads only 72 octets,
    /// and repeats a password after a zero octet. HMAC pads a short password with zeros.
    #[must_use]
    pub fn sees_all_of(&self, password: &[u8]) -> bool {
        match &self.0 {
            Scheme::Bcrypt { .. } => password.len() < BCRYPT_PASSWORD && !password.contains(&0),
            _ => !password.contains(&0),
        }
    }

    /// Whether it is the hash of `password`.
    #[must_use]
    pub fn matches(&self, password: &[u8], memory: &mut Memory) -> bool {
        match &self.0 {
            Scheme::Bcrypt { text, .. } => bcrypt::verify(password, text).unwrap_or(false),
            Scheme::ShaCrypt { text, .. } => {
                password.len() <= MAX_SHA_CRYPT_PASSWORD
                    && ShaCrypt::default().verify_password(password, text.as_str()).is_ok()
            }
            Scheme::Phc(hash) => hash.matches(password, memory),
            Scheme::Firebase(hash) => hash.matches(password),
        }
    }
}

impl std::fmt::Debug for StoredHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredHash({}, redacted)", self.kind())
    }
}

/// The kind of a hash that is too weak to keep, by its prefix in Kratos, LDAP and crypt(3), or by
/// its length in hex.
fn weak_kind(text: &str) -> Option<&'static str> {
    const PREFIXES: [(&str, &str); 13] = [
        ("$md5$", "md5"),
        ("$sha1$", "sha1"),
        ("$sha256$", "sha256"),
        ("$sha512$", "sha512"),
        ("$hmac-", "hmac"),
        ("$md5-crypt$", "md5-crypt"),
        ("$1$", "md5-crypt"),
        ("$apr1$", "md5-crypt"),
        ("{SSHA", "ssha"),
        ("{SHA", "sha"),
        ("{SMD5}", "md5"),
        ("{MD5}", "md5"),
        ("{CRYPT}", "crypt"),
    ];
    let by_prefix = PREFIXES.iter().find(|(prefix, _)| text.starts_with(prefix)).map(|(_, kind)| *kind);
    by_prefix.or_else(|| match text.len() {
        _ if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) => None,
        32 => Some("md5"),
        40 => Some("sha1"),
        64 => Some("sha256"),
        128 => Some("sha512"),
        _ => None,
    })
}

fn bcrypt(text: &str) -> Option<Scheme> {
    let (cost, rest) = text[1..].split_once('$')?.1.split_once('$')?;
    let cost = number(cost).filter(|cost| (4..=MAX_BCRYPT_COST).contains(cost))?;
    // A hash that fails early would show by its time that it is stored, so it must be complete.
    let is_complete = rest.len() == 53 && text.parse::<bcrypt::HashParts>().is_ok();
    is_complete.then(|| Scheme::Bcrypt { text: text.to_owned(), cost })
}

/// `$5$[rounds=N$]salt$hash`; Kratos writes the scheme's name in place of the number.
fn sha_crypt(text: &str, kind: &'static str, prefix: &str, hash_len: usize) -> Option<Scheme> {
    let rest = text[1..].split_once('$')?.1;
    let (rounds, salted) = match rest.strip_prefix("rounds=") {
        Some(rest) => rest.split_once('$').and_then(|(rounds, rest)| Some((number(rounds)?, rest)))?,
        None => (5000, rest),
    };
    let (salt, hash) = salted.split_once('$')?;
    let is_complete = salt.len() <= 16 && crypt_digits(salt) && hash.len() == hash_len && crypt_digits(hash);
    // The unused bits of the last digit are 0. A hash that fails early would show by its time that
    // it is stored.
    let ends_well = hash.ends_with(|last| "./0123456789ABCD"[..1 << (6 - hash_len * 6 % 8)].contains(last));
    (is_complete && ends_well && (1000..=MAX_SHA_CRYPT_ROUNDS).contains(&rounds)).then(|| Scheme::ShaCrypt {
        text: format!("{prefix}{rest}"),
        kind,
        rounds,
    })
}

fn crypt_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWORD: &[u8] = b"con meo treo cay cau";

    fn matches(stored: &str, password: &[u8], memory: &mut Memory) -> bool {
        StoredHash::parse(stored).unwrap().matches(password, memory)
    }

    /// Hashes of `PASSWORD`, computed by other implementations: Python's hashlib (OpenSSL) and
    /// cryptography, the reference Argon2 in C, the `bcrypt` module, passlib, and `openssl passwd`.
    const VECTORS: [(&str, &str); 22] = [
        (
            "pbkdf2-sha1",
            "$pbkdf2-sha1$i=1000,l=32$AAECAwQFBgcICQoLDA0ODw$f4m2wZN2Wd6yr6GxLNv0aG/B6gBIXTZs+TRFOL6p8ZA",
        ),
        (
            "pbkdf2-sha256",
            "$pbkdf2-sha256$i=1000,l=32$AAECAwQFBgcICQoLDA0ODw$1ais+Zz5CUXaRLw2+GrgweO3OApy5eAfNTy6HdYbqYA",
        ),
        (
            "pbkdf2-sha512",
            "$pbkdf2-sha512$i=1000,l=32$AAECAwQFBgcICQoLDA0ODw$Zg4W+fVYAftm35H5nSkySv2lQX8Cd9v1izvITn+R5xU",
        ),
        ("pbkdf2-sha1", "$pbkdf2$1000$8PHy8/T19vf4.fr7/P3./w$zu6hKwpTtKdM/EAo.Pf36T0RhJE"),
        (
            "pbkdf2-sha256",
            "$pbkdf2-sha256$1000$8PHy8/T19vf4.fr7/P3./w$A20yYh/4JW0on8fVMYnc6WsVOYjo0tlnrhjftOI5UcA",
        ),
        (
            "pbkdf2-sha512",
            "$pbkdf2-sha512$1000$8PHy8/T19vf4.fr7/P3./w$Pf57K2cB9FPIJ/7Q3MK0STWo./icm6WE2J8KvCa9MxWseLBtt6xR0N1og2W3mVvKa.NiBmL3TNJG8PNSdW6Yvw",
        ),
        (
            "scrypt",
            "$scrypt$ln=10,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$cPsJpRNXzsFVdD6TOvXUn8kwnoJjd5+ZO9B5w3HALG4",
        ),
        (
            "scrypt",
            "$scrypt$ln=1024,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$cPsJpRNXzsFVdD6TOvXUn8kwnoJjd5+ZO9B5w3HALG4",
        ),
        (
            "scrypt",
            "$scrypt$ln=1024,r=8,p=1$AAECAwQFBgcICQoLDA0ODw==$cPsJpRNXzsFVdD6TOvXUn8kwnoJjd5+ZO9B5w3HALG4=",
        ),
        (
            "firebase-scrypt",
            "$firescrypt$ln=10,r=8,p=1$AAECAwQFBgcICQ==$qxl4gqRmdlgkwNnK1+snVGnpUPX7l3xoWzvj+ClONZbsCjhvkKjin+24F3UvklJD3g+m/iTHw3vetzfw+q8AmA==$Bw==$jxspr8Ki0RYycVU8zykbdLGjFQ3McFUH0uiiTvC8pVMXAn210wjLNmdZJzxUECKbm0QsEmYUSDzZvpjeJ9WmXA==",
        ),
        (
            "argon2i",
            "$argon2i$v=19$m=1024,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$PMCWVYWOh5ccnR0o0iGourWPgMEqzOwseBF5xRPG3ws",
        ),
        (
            "argon2d",
            "$argon2d$v=19$m=1024,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$mFRrlzC9Kvyp8sl9GMJ/3E6NyUrd83tfse7Z8yYOoHk",
        ),
        (
            "argon2id",
            "$argon2id$v=19$m=1024,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$0o5OID1MxUf2ag4jaVy/3Gcgf7RyJ6Ia3jYFblKkQw0",
        ),
        (
            "argon2id",
            "$argon2id$v=16$m=1024,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$eMqax1ncqLYnLoQNTQT3QXn873T1xomSSo+OmuvkwXQ",
        ),
        ("bcrypt", "$2b$04$oGfom7.iTdry90Ty.skkGuGe6sVSG7rM5WGnqVPXcx7qLzZlGCSiO"),
        ("bcrypt", "$2a$04$7HSvuyuwy8oEavtvaqTO/OSD9mLLEMRso2.Xg43AIr/1xVHIjw4gG"),
        ("bcrypt", "$2y$04$oGfom7.iTdry90Ty.skkGuGe6sVSG7rM5WGnqVPXcx7qLzZlGCSiO"),
        ("sha256-crypt", "$5$saltsalt$g.pySHrh479anqV8SH3/UFPudc5Mp04BA0WbjEEU6J2"),
        ("sha256-crypt", "$sha256-crypt$rounds=1400$saltstring$NsNMvoJjEaUtTr6YNkOFVcD2/pm0sHBIio.NEGg0u8C"),
        (
            "sha512-crypt",
            "$6$saltsalt$rKC2PhBUgrAOw1YxkamA0n19QwO1nx9zFErNGbYOr1NPDzl8GPpEvtW1BjS5wDozkChfkb4HuTKGyGGP2umev/",
        ),
        (
            "sha512-crypt",
            "$6$rounds=1400$saltstring$cAt9VRCLsG.Om7yfeIOtTM7440Bi24n4y7Yb9K7/JfAEBLCIiGbg32u0b6ih016agw9Mvalb.xV695GWL0NEh1",
        ),
        (
            "sha512-crypt",
            "$sha512-crypt$rounds=1400$saltstring$cAt9VRCLsG.Om7yfeIOtTM7440Bi24n4y7Yb9K7/JfAEBLCIiGbg32u0b6ih016agw9Mvalb.xV695GWL0NEh1",
        ),
    ];

    #[test]
    fn hashes_of_other_systems_verify() {
        for (kind, text) in VECTORS {
            let stored = StoredHash::parse(text).unwrap_or_else(|why| panic!("{text}: {why:?}"));
            assert_eq!(stored.kind(), kind);
            assert!(stored.matches(PASSWORD, &mut Memory::default()), "{text}");
            assert!(!stored.matches(b"con meo treo cay chuoi", &mut Memory::default()), "{text}");
        }
    }

    /// The example that Firebase publishes with its own implementation, at its usual cost.
    #[test]
    fn the_published_hash_of_firebase_verifies() {
        let stored = "$firescrypt$ln=14,r=8,p=1$42xEC+ixf3L2lw==$lSrfV15cpx95/sZS2W9c9Kp6i/LVgQNDNC/qzrCnh1SAyZvqmZqAjTdn3aoItz+VHjoZilo78198JAdRuid5lQ==$Bw==$jxspr8Ki0RYycVU8zykbdLGjFQ3McFUH0uiiTvC8pVMXAn210wjLNmdZJzxUECKbm0QsEmYUSDzZvpjeJ9WmXA==";
        assert!(matches(stored, b"user1password", &mut Memory::default()));
        assert!(!matches(stored, b"user2password", &mut Memory::default()));
    }

    #[test]
    fn weak_hashes_are_reported_by_kind() {
        for (kind, text) in [
            ("md5", "$md5$CY9rzUYh03PK3k6DJie09g=="),
            ("md5", "$md5$pf=e1NBTFR9e1BBU1NXT1JEfQ==$MTIz$q+RdKCgc+ipCAcm5ChQwlQ=="),
            (
                "sha256",
                "$sha256$pf=e1NBTFR9e1BBU1NXT1JEfQ==$MTIz$oQSrEkuL0sWCuv6yXJ2lPxk0NFQ1WOdWWYaeQmBG7lU=",
            ),
            (
                "hmac",
                "$hmac-sha256$YjhhZDA4YTNhNTQ3ZTM1ODI5YjgyMWI3NTM3MDMwMWRkOGM0YjA2YmRkNzc3MWY5YjU0MWE3NTkxNDA2ODcxOA==$MTIzNDU=",
            ),
            ("ssha", "{SSHA256}czO44OTV17PcF1cRxWrLZLy9xHd7CWyVYplr1rOhuMlx/7IK"),
            ("md5-crypt", "$md5-crypt$saltstring$6Kf3JjWTUOXqHsb4SSy6c0"),
            ("md5-crypt", "$1$saltstring$6Kf3JjWTUOXqHsb4SSy6c0"),
            ("md5", "5f4dcc3b5aa765d61d8327deb882cf99"),
            ("sha1", "5BAA61E4C9B93F3F0682250B6CF8331B7EE68FD8"),
        ] {
            assert_eq!(StoredHash::parse(text).err(), Some(Unusable::TooWeak(kind)), "{text}");
        }
    }

    #[test]
    fn unknown_schemes_are_unusable() {
        for text in ["", "$", "plain", "$2x$04$x", "$7$CU..../....x", "$y$j9T$x$y", "é", "$é$"] {
            assert_eq!(StoredHash::parse(text).err(), Some(Unusable::Unknown), "{text}");
        }
    }

    #[test]
    fn malformed_or_too_expensive_hashes_are_unusable() {
        let sha_of = |rounds: &str| format!("$6$rounds={rounds}$salt${}", ".".repeat(86));
        assert!(StoredHash::parse(&sha_of("1000000")).is_ok());
        let output = "A".repeat(86);
        for text in [
            "$argon2id",
            "$2b$31$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
            "$2b$04$short",
            // Its last digit sets bits that are 0 in every valid hash.
            "$2b$04$oGfom7.iTdry90Ty.skkGuGe6sVSG7rM5WGnqVPXcx7qLzZlGCSi4",
            "$2b$é",
            "$2b$+4$oGfom7.iTdry90Ty.skkGuGe6sVSG7rM5WGnqVPXcx7qLzZlGCSiO",
            &sha_of("+5000"),
            "$pbkdf2-sha256$i=+1000$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$pbkdf2-sha256$1000,l=32$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=+19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=8,t=1,p=1,X=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$2b$",
            "$5",
            "$6$é$é",
            "$6$salt$tooshort",
            &format!("$6$salt${}2", ".".repeat(85)),
            &format!("$5$salt${}E", ".".repeat(42)),
            &sha_of("1000001"),
            &sha_of("999"),
            "$argon2id$v=19$m=4294967295,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=65536,t=4000000000,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=18$m=65536,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$",
            "$argon2id$v=19$m=8,t=1,p=0$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$pbkdf2-sha256$i=4294967295$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$pbkdf2-sha256$i=0$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            // A long output multiplies the rounds.
            &format!("$pbkdf2-sha1$i=1000000$AAAAAAAAAAAAAAAAAAAAAA${output}"),
            "$scrypt$ln=31,r=4000000000,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$scrypt$ln=20,r=8,p=64$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            // 2 GiB for its four lanes in addition to the 1 GiB of its blocks.
            "$scrypt$ln=1,r=4194304,p=4$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$scrypt$ln=16385,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$scrypt$ln=0,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAA",
            "$firescrypt$ln=31,r=8,p=1$AAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAA==$Bw==$AAAAAAAAAAAAAAAAAAAAAA==",
            "$firescrypt$ln=14,r=8,p=1$AAAAAAAAAAAAAA==$AAAAAAAAAAAAAAAAAAAAAA==$Bw==$AAAA",
        ] {
            assert_eq!(StoredHash::parse(text).err(), Some(Unusable::Broken), "{text}");
        }
    }

    /// The time of SHA-crypt grows with the password's length, which only the size of a login's
    /// body bounds.
    #[test]
    fn sha_crypt_gets_no_password_of_kilobytes() {
        let stored = "$6$saltsalt$rKC2PhBUgrAOw1YxkamA0n19QwO1nx9zFErNGbYOr1NPDzl8GPpEvtW1BjS5wDozkChfkb4HuTKGyGGP2umev/";
        assert!(!matches(stored, &[b'a'; MAX_SHA_CRYPT_PASSWORD + 1], &mut Memory::default()));
    }
}
