//! Passwords known from breaches (NIST SP 800-63B-4 §3.1.1.2, OWASP ASVS 5.0 6.2.12): the filter
//! that `vos-auth passwords build` makes of a published list of SHA-1 sums, and that
//! `PASSWORD_BLOCKLIST` names.
//!
//! A filter contains no password and no sum. It consists of parts: a binary fuse filter for each
//! 2^20 sums of the sorted list. Building needs the memory of one part, and a lookup reads one
//! part. The filter never misses a listed password, and takes a few others for listed: see
//! [`Bits`].

mod build;
mod file;

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use sha1::{Digest as _, Sha1};
use unicode_normalization::UnicodeNormalization as _;
use xorf::{BinaryFuse8, BinaryFuse16, Filter as _};

pub use self::build::{BuildError, BuildOptions, BuildReport, build};
pub use self::file::Unreadable;
use super::Password;
use crate::config::ConfigError;

/// The size of a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// 8 bits: 1.13 octets a sum; one in 256 other passwords is taken for listed.
    Eight,
    /// 16 bits: 2.25 octets a sum; one in 65,536 other passwords is taken for listed.
    Sixteen,
}

impl Bits {
    /// The number of bits.
    #[must_use]
    pub const fn count(self) -> u32 {
        match self {
            Self::Eight => 8,
            Self::Sixteen => 16,
        }
    }

    /// Of this many passwords that are not listed, one is taken for listed on average.
    #[must_use]
    pub const fn others_for_one(self) -> u32 {
        1 << self.count()
    }

    fn octets(self) -> u64 {
        u64::from(self.count() / 8)
    }
}

/// A filter in memory.
#[derive(Debug)]
pub struct Blocklist {
    bits: Bits,
    sums: u64,
    /// In the order of their first keys.
    parts: Vec<Part>,
}

/// The filter of one part of the sorted list.
#[derive(Debug)]
struct Part {
    first: u64,
    fingerprints: Fingerprints,
}

#[derive(Debug)]
enum Fingerprints {
    Eight(BinaryFuse8),
    Sixteen(BinaryFuse16),
}

impl Blocklist {
    /// Reads the filter that `PASSWORD_BLOCKLIST` names and checks its length and checksum. Blocks.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable if the file is missing, incomplete, damaged or no filter.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_parts(path, None)
    }

    /// As [`Blocklist::read`], but keeps only the parts that can list this password, so that a
    /// command needs little memory.
    ///
    /// # Errors
    ///
    /// As [`Blocklist::read`].
    pub fn read_for(path: &Path, password: &Password) -> Result<Self, ConfigError> {
        Self::read_parts(path, Some(&keys(password)))
    }

    fn read_parts(path: &Path, keys: Option<&[u64]>) -> Result<Self, ConfigError> {
        let file = File::open(path).map_err(Unreadable::from);
        file.and_then(|file| file::read(file, keys))
            .map_err(|why| ConfigError::new("PASSWORD_BLOCKLIST", format!("({}) {why}", path.display())))
    }

    /// Reads a filter, and checks its length and checksum.
    ///
    /// # Errors
    ///
    /// [`Unreadable`].
    pub fn read_from(file: impl Read + Seek) -> Result<Self, Unreadable> {
        file::read(file, None)
    }

    /// Whether the list has the sum of this password: composed, decomposed, or as it was typed.
    #[must_use]
    pub fn contains(&self, password: &Password) -> bool {
        keys(password).into_iter().any(|key| self.contains_key(key))
    }

    fn contains_key(&self, key: u64) -> bool {
        let after = self.parts.partition_point(|part| part.first <= key);
        let part = after.checked_sub(1).and_then(|at| self.parts.get(at));
        part.is_some_and(|part| match &part.fingerprints {
            Fingerprints::Eight(filter) => filter.contains(&key),
            Fingerprints::Sixteen(filter) => filter.contains(&key),
        })
    }

    /// The size of its fingerprints.
    #[must_use]
    pub fn bits(&self) -> Bits {
        self.bits
    }

    /// The number of sums on the list.
    #[must_use]
    pub fn sums(&self) -> u64 {
        self.sums
    }

    /// The memory that its fingerprints take, in octets.
    #[must_use]
    pub fn octets(&self) -> u64 {
        let slots = self.parts.iter().map(|part| match &part.fingerprints {
            Fingerprints::Eight(filter) => filter.len() as u64,
            Fingerprints::Sixteen(filter) => filter.len() as u64,
        });
        slots.sum::<u64>() * self.bits.octets()
    }
}

/// The keys of a password. Another site may have hashed any of its forms in Unicode.
fn keys(password: &Password) -> Vec<u64> {
    let decomposed: String = password.nfc.nfd().collect();
    let forms = [Some(password.nfc.as_str()), Some(&decomposed), password.typed.as_deref()];
    forms.into_iter().flatten().map(key).collect()
}

/// The key of a sum: its first 64 bits, so that keys have the order of the sums.
fn key(form: &str) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha1::digest(form.as_bytes())[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use data_encoding::HEXLOWER;
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    /// A list of made-up sums, sorted, with their keys.
    fn made_up(count: usize) -> (String, Vec<u64>) {
        let mut random = SmallRng::seed_from_u64(34);
        let mut keys: Vec<u64> = (0..count).map(|_| random.random()).collect();
        keys.sort_unstable();
        let lines = keys.iter().map(|key| format!("{key:016X}{:024X}:{}\r\n", key >> 3, key % 90 + 1));
        (lines.collect(), keys)
    }

    fn built(list: &str, bits: Bits) -> Vec<u8> {
        let mut file = Vec::new();
        let options = BuildOptions { bits, min_count: 1 };
        build(list.as_bytes(), &mut file, options, |_| ()).unwrap();
        file
    }

    fn read(file: &[u8]) -> Result<Blocklist, Unreadable> {
        Blocklist::read_from(Cursor::new(file))
    }

    /// The sizes and rates that the documentation states.
    #[test]
    fn r8_a_million_sums_are_all_found_and_few_others_are() {
        let (list, keys) = made_up(1_000_000);
        for (bits, octets, falsely) in
            [(Bits::Eight, 1_100_000..1_150_000, 3_500..4_300), (Bits::Sixteen, 2_200_000..2_300_000, 2..40)]
        {
            let file = built(&list, bits);
            assert!(octets.contains(&file.len()), "{bits:?}: {}", file.len());
            let blocklist = read(&file).unwrap();
            assert_eq!((blocklist.sums(), blocklist.bits()), (1_000_000, bits));
            assert!(file.len() as u64 - blocklist.octets() < 200);
            assert!(keys.iter().all(|key| blocklist.contains_key(*key)), "{bits:?}");
            let mut random = SmallRng::seed_from_u64(35);
            let found = (0..1_000_000).filter(|_| blocklist.contains_key(random.random())).count();
            assert!(falsely.contains(&found), "{bits:?}: {found} of a million");
        }
    }

    #[test]
    fn a_list_longer_than_a_part_is_found_in_all_of_its_parts() {
        let (list, keys) = made_up(build::PART + 3);
        let file = built(&list, Bits::Sixteen);
        let blocklist = read(&file).unwrap();
        assert_eq!(blocklist.parts.len(), 2);
        for key in [0, 1, build::PART - 1, build::PART, build::PART + 2].map(|at| keys[at]) {
            assert!(blocklist.contains_key(key));
            // A command keeps only the part that can contain its password.
            let part = file::read(Cursor::new(&file), Some(&[key])).unwrap();
            assert!(part.parts.len() == 1 && part.contains_key(key));
        }
        assert!(!blocklist.contains_key(0), "before the first sum");
    }

    #[test]
    fn a_password_is_found_in_any_form() {
        let (composed, decomposed) =
            ("ngày mai trời lại sáng", "ngày mai trời lại sáng".nfd().collect::<String>());
        for listed in [composed, &decomposed] {
            let digits = HEXLOWER.encode(&Sha1::digest(listed.as_bytes()));
            let blocklist = read(&built(&digits, Bits::Sixteen)).unwrap();
            assert!(blocklist.contains(&Password::new(composed)), "{listed:?}");
            assert!(blocklist.contains(&Password::new(&decomposed)), "{listed:?}");
            assert!(!blocklist.contains(&Password::new("ngày mai trời lại mưa")));
        }
    }

    /// Every octet counts: a filter with any bit flipped, cut at any place or continued is refused.
    #[test]
    fn a_changed_file_is_refused() {
        let file = built(&made_up(50).0, Bits::Sixteen);
        assert!(read(&file).is_ok());
        for at in 0..file.len() {
            assert!(read(&file[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = file.clone();
                flipped[at] ^= 1 << bit;
                assert!(read(&flipped).is_err(), "bit {bit} of octet {at}");
            }
        }
        assert!(matches!(read(&file[..file.len() - 1]), Err(Unreadable::Incomplete)));
        assert!(matches!(read(&[file.as_slice(), b"\n"].concat()), Err(Unreadable::Incomplete)));
        assert!(matches!(read(b""), Err(Unreadable::NotAFilter)));
        assert!(matches!(read(&[b'A'; 100]), Err(Unreadable::NotAFilter)));
    }
}
