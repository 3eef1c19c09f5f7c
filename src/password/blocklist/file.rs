//! The file of a filter. Numbers are little-endian:
//!
//! | Octets | Content |
//! |---|---|
//! | 8 | `VOSPWBL` and a line feed |
//! | 4 | The version, 1 |
//! | 4 | The bits of a fingerprint, 8 or 16 |
//! | 8, 8 | Of each part: its first key, and its seed |
//! | 4, 4, 4 | Its number of sums, the length of a segment, the start of the last two segments |
//! | … | Its fingerprints |
//! | 8 | The number of sums of all parts |
//! | 8 | The length of the file |
//! | 32 | The SHA-256 of all before |

use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};

use sha2::{Digest as _, Sha256};
use xorf::{BinaryFuse8, BinaryFuse16, Descriptor};

use super::build::{BuildError, PART};
use super::{Bits, Blocklist, Fingerprints, Part};

const MAGIC: [u8; 8] = *b"VOSPWBL\n";
const VERSION: u32 = 1;
const HEADER: u64 = 16;
const FOOTER: u64 = 48;
/// The longest segment of a binary fuse filter.
const MAX_SEGMENT: u32 = 1 << 18;
/// The maximum number of fingerprints in a part, so that a forged length cannot allocate more.
const MAX_SLOTS: u64 = 2 * PART as u64;

/// Why a filter cannot be read. Each continues a sentence after the file's name.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// An error of the operating system.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is another kind of file.
    #[error("is not a filter that `vos-auth passwords build` wrote")]
    NotAFilter,
    /// A later release wrote it.
    #[error("has version {0}, which this release cannot read: build it again with this release")]
    Version(u32),
    /// Its length is not the one that was written.
    #[error("is incomplete: copy or build it again")]
    Incomplete,
    /// Its checksum does not match.
    #[error("is damaged: copy or build it again")]
    Damaged,
}

/// Writes a file part by part.
pub(super) struct Writer<W> {
    out: W,
    bits: Bits,
    checksum: Sha256,
    length: u64,
    sums: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn begin(out: W, bits: Bits) -> Result<Self, BuildError> {
        let mut writer = Self { out, bits, checksum: Sha256::new(), length: 0, sums: 0 };
        writer.put(&MAGIC)?;
        writer.put(&VERSION.to_le_bytes())?;
        writer.put(&bits.count().to_le_bytes())?;
        Ok(writer)
    }

    /// Writes a part of distinct keys in their order.
    pub(super) fn part(&mut self, keys: &[u64]) -> Result<(), BuildError> {
        let (Some(first), Ok(sums)) = (keys.first(), u32::try_from(keys.len())) else { return Ok(()) };
        let unbuilt = |_| BuildError::Unbuilt;
        let (descriptor, octets) = match self.bits {
            Bits::Eight => {
                let filter = BinaryFuse8::try_from(keys).map_err(unbuilt)?;
                (filter.descriptor, filter.fingerprints.into_vec())
            }
            Bits::Sixteen => {
                let filter = BinaryFuse16::try_from(keys).map_err(unbuilt)?;
                let octets = filter.fingerprints.iter().flat_map(|fingerprint| fingerprint.to_le_bytes());
                (filter.descriptor, octets.collect())
            }
        };
        self.put(&first.to_le_bytes())?;
        self.put(&descriptor.seed.to_le_bytes())?;
        self.put(&sums.to_le_bytes())?;
        self.put(&descriptor.segment_length.to_le_bytes())?;
        self.put(&descriptor.segment_count_length.to_le_bytes())?;
        self.put(&octets)?;
        self.sums += u64::from(sums);
        Ok(())
    }

    /// Completes the file, and returns its number of sums and its length.
    pub(super) fn finish(mut self) -> Result<(u64, u64), BuildError> {
        let length = self.length + FOOTER;
        self.put(&self.sums.to_le_bytes())?;
        self.put(&length.to_le_bytes())?;
        let checksum: [u8; 32] = std::mem::take(&mut self.checksum).finalize().into();
        self.put(&checksum)?;
        self.out.flush().map_err(BuildError::Unwritable)?;
        Ok((self.sums, length))
    }

    fn put(&mut self, octets: &[u8]) -> Result<(), BuildError> {
        self.checksum.update(octets);
        self.length += octets.len() as u64;
        self.out.write_all(octets).map_err(BuildError::Unwritable)
    }
}

/// Reads a filter: all of it, or with `keys` only the parts that can contain one of them.
pub(super) fn read(mut file: impl Read + Seek, keys: Option<&[u64]>) -> Result<Blocklist, Unreadable> {
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    if length < HEADER + FOOTER {
        return Err(Unreadable::NotAFilter);
    }
    let mut input = Input { file: BufReader::with_capacity(1 << 16, file), checksum: Sha256::new() };
    if input.array()? != MAGIC {
        return Err(Unreadable::NotAFilter);
    }
    let bits = match (input.u32()?, input.u32()?) {
        (VERSION, 8) => Bits::Eight,
        (VERSION, 16) => Bits::Sixteen,
        (VERSION, _) => return Err(Unreadable::Damaged),
        (version, _) => return Err(Unreadable::Version(version)),
    };
    // An incomplete copy is detected before its gigabytes are read.
    let written_length = input.length_in_footer(length)?;
    if written_length != length {
        return Err(Unreadable::Incomplete);
    }
    let (mut parts, mut sums, mut last) = (Vec::<Part>::new(), 0, None);
    let mut left = length - HEADER - FOOTER;
    while left > 0 {
        let (part, part_sums) = input.part(bits, &mut left)?;
        if last.is_some_and(|last| last >= part.first) {
            return Err(Unreadable::Damaged);
        }
        parts.pop_if(|last| !can_have(keys, last.first, Some(part.first)));
        (last, sums) = (Some(part.first), sums + part_sums);
        parts.push(part);
    }
    parts.pop_if(|last| !can_have(keys, last.first, None));
    let (written_sums, _) = (input.u64()?, input.u64()?);
    let checksum: [u8; 32] = std::mem::take(&mut input.checksum).finalize().into();
    if input.array()? != checksum || written_sums != sums {
        return Err(Unreadable::Damaged);
    }
    Ok(Blocklist { bits, sums, parts })
}

/// Whether one of the keys can be in the part that begins at `first`, before the part that begins
/// at `next`.
fn can_have(keys: Option<&[u64]>, first: u64, next: Option<u64>) -> bool {
    let is_there = |key: &u64| *key >= first && next.is_none_or(|next| *key < next);
    keys.is_none_or(|keys| keys.iter().any(is_there))
}

struct Input<R> {
    file: BufReader<R>,
    checksum: Sha256,
}

impl<R: Read + Seek> Input<R> {
    fn length_in_footer(&mut self, length: u64) -> Result<u64, Unreadable> {
        let mut written = [0; 8];
        self.file.seek(SeekFrom::Start(length - FOOTER + 8))?;
        self.file.read_exact(&mut written)?;
        self.file.seek(SeekFrom::Start(HEADER))?;
        Ok(u64::from_le_bytes(written))
    }

    /// Reads a part, and returns its number of sums, too. `left` is the number of octets of this
    /// part and all later ones; those of this part are subtracted.
    fn part(&mut self, bits: Bits, left: &mut u64) -> Result<(Part, u64), Unreadable> {
        let head = 28;
        *left = left.checked_sub(head).ok_or(Unreadable::Damaged)?;
        let (first, seed) = (self.u64()?, self.u64()?);
        let (sums, segment_length, segment_count_length) = (self.u32()?, self.u32()?, self.u32()?);
        let slots = u64::from(segment_count_length) + 2 * u64::from(segment_length);
        // A lookup computes positions from these values: with invalid values it would read outside
        // the part.
        let is_valid = segment_length.is_power_of_two()
            && segment_length <= MAX_SEGMENT
            && segment_count_length > 0
            && segment_count_length.is_multiple_of(segment_length)
            && slots <= MAX_SLOTS;
        let octets = slots * bits.octets();
        *left = left.checked_sub(octets).filter(|_| is_valid).ok_or(Unreadable::Damaged)?;
        let mut fingerprints = vec![0; usize::try_from(octets).map_err(|_| Unreadable::Damaged)?];
        self.fill(&mut fingerprints)?;
        let descriptor = Descriptor {
            seed,
            segment_length,
            segment_length_mask: segment_length - 1,
            segment_count_length,
        };
        let fingerprints = match bits {
            Bits::Eight => {
                Fingerprints::Eight(BinaryFuse8 { descriptor, fingerprints: fingerprints.into_boxed_slice() })
            }
            Bits::Sixteen => {
                let pairs = fingerprints.as_chunks().0.iter();
                let fingerprints = pairs.map(|pair| u16::from_le_bytes(*pair)).collect();
                Fingerprints::Sixteen(BinaryFuse16 { descriptor, fingerprints })
            }
        };
        Ok((Part { first, fingerprints }, sums.into()))
    }

    fn u32(&mut self) -> Result<u32, Unreadable> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Unreadable> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        let mut octets = [0; N];
        self.fill(&mut octets)?;
        Ok(octets)
    }

    fn fill(&mut self, octets: &mut [u8]) -> Result<(), Unreadable> {
        self.file.read_exact(octets)?;
        self.checksum.update(octets);
        Ok(())
    }
}
