//! Builds a filter from a sorted list, in the memory of one part.

use std::io::{self, BufRead, Read as _, Write};

use super::Bits;
use super::file::Writer;

/// The maximum number of sums in a part. Building a part takes about 45 MiB.
pub(super) const PART: usize = 1 << 20;
/// The longest line, in octets: a sum, a colon and a count have 61.
const MAX_LINE: u64 = 128;
/// The lines between two reports.
const REPORT: u64 = 1 << 16;

/// The options of a filter.
#[derive(Clone, Copy, Debug)]
pub struct BuildOptions {
    /// The size of a fingerprint.
    pub bits: Bits,
    /// Sums that were counted less often are left out. A sum without a count is never left out.
    pub min_count: u64,
}

/// The progress of a build.
#[derive(Clone, Copy, Debug, Default)]
pub struct BuildReport {
    /// Lines that were read.
    pub lines: u64,
    /// Octets that were read.
    pub octets: u64,
    /// Sums in the filter.
    pub sums: u64,
    /// Lines that repeat a sum.
    pub repeated: u64,
    /// Sums that were counted too rarely.
    pub rare: u64,
    /// The length of the complete filter, in octets; until then 0.
    pub length: u64,
}

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// An error of the operating system.
    #[error("the list cannot be read: {0}")]
    List(io::Error),
    /// A line that is no sum, or out of order.
    #[error("line {line} of the list {why}")]
    Line {
        /// The number of the line, from 1.
        line: u64,
        /// Why.
        why: &'static str,
    },
    /// No sum is left.
    #[error("the list has no sum")]
    Empty,
    /// An error of the operating system.
    #[error("the filter cannot be written: {0}")]
    Unwritable(io::Error),
    /// The filter could not be built. For distinct sums this is less likely than a hardware
    /// failure.
    #[error("no filter could be built from these sums")]
    Unbuilt,
}

/// Builds a filter of a sorted list, one SHA-1 sum in hexadecimal a line, alone or followed by
/// `:COUNT`. Calls `progress` from time to time. Blocks.
///
/// # Errors
///
/// [`BuildError`]; `out` is then incomplete.
pub fn build(
    mut list: impl BufRead,
    out: impl Write,
    options: BuildOptions,
    mut progress: impl FnMut(&BuildReport),
) -> Result<BuildReport, BuildError> {
    let mut writer = Writer::begin(out, options.bits)?;
    let (mut report, mut previous) = (BuildReport::default(), None);
    let (mut keys, mut line) = (Vec::with_capacity(PART), Vec::new());
    loop {
        line.clear();
        let read = list.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(BuildError::List)?;
        if read == 0 {
            break;
        }
        report.lines += 1;
        report.octets += read as u64;
        if report.lines.is_multiple_of(REPORT) {
            progress(&report);
        }
        let refused = |why| BuildError::Line { line: report.lines, why };
        let Some((key, count)) = parse(&line).map_err(refused)? else { continue };
        match previous {
            Some(previous) if key < previous => {
                return Err(refused("is out of order: sort the list, as by `LC_ALL=C sort LIST`"));
            }
            Some(previous) if key == previous => report.repeated += 1,
            _ if count.is_some_and(|count| count < options.min_count) => report.rare += 1,
            _ => {
                keys.push(key);
                report.sums += 1;
                previous = Some(key);
            }
        }
        if keys.len() == PART {
            writer.part(&keys)?;
            keys.clear();
        }
    }
    if report.sums == 0 {
        return Err(BuildError::Empty);
    }
    writer.part(&keys)?;
    (report.sums, report.length) = writer.finish()?;
    Ok(report)
}

/// The key of a line's sum and its count; `None` for an empty line.
fn parse(line: &[u8]) -> Result<Option<(u64, Option<u64>)>, &'static str> {
    let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line).trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    let (sum, count) = match line.iter().position(|octet| *octet == b':') {
        Some(colon) => (&line[..colon], Some(&line[colon + 1..])),
        None => (line, None),
    };
    let no_sum = "is not the SHA-1 sum of a password, which has 40 hexadecimal digits";
    if sum.len() != 40 || !sum.iter().all(u8::is_ascii_hexdigit) {
        return Err(if sum.len() == 32 {
            "has 32 digits, as an NTLM hash: use the list of SHA-1 sums"
        } else {
            no_sum
        });
    }
    let text = |octets| std::str::from_utf8(octets).map_err(|_| no_sum);
    let key = u64::from_str_radix(text(&sum[..16])?, 16).map_err(|_| no_sum)?;
    let count = count.map(text).transpose()?.map(str::parse).transpose();
    Ok(Some((key, count.map_err(|_| "has no number after the colon")?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(list: &[u8], min_count: u64) -> Result<BuildReport, String> {
        let options = BuildOptions { bits: Bits::Eight, min_count };
        build(list, io::sink(), options, |_| ()).map_err(|error| error.to_string())
    }

    fn sum(first: u8) -> String {
        format!("{first:02x}").repeat(20)
    }

    #[test]
    fn lines_have_a_sum_and_perhaps_a_count() {
        let list = format!(
            "\u{feff}{}:1\r\n{}:12\r\n\n{}\n{}:0\n{}",
            sum(1),
            sum(2).to_uppercase(),
            sum(3),
            sum(3),
            sum(0xff)
        );
        let all = report(list.as_bytes(), 1).unwrap();
        assert_eq!((all.lines, all.sums, all.repeated, all.rare), (6, 4, 1, 0));
        assert_eq!(all.octets, list.len() as u64);
        let often = report(list.as_bytes(), 12).unwrap();
        assert_eq!((often.sums, often.repeated, often.rare), (3, 1, 1));
    }

    #[test]
    fn what_is_no_sorted_list_of_sums_is_refused_with_its_line() {
        let ordered = format!("{}\n{}\n", sum(1), sum(2));
        for (list, part) in [
            (format!("{ordered}{}\n", sum(1)), "line 3 of the list is out of order: sort the list"),
            (format!("{ordered}{}\n", &sum(3)[..32]), "line 3 of the list has 32 digits, as an NTLM hash"),
            (format!("{ordered}{}g\n", &sum(3)[..39]), "line 3 of the list is not the SHA-1 sum"),
            (format!("{ordered}+{}\n", &sum(3)[..39]), "line 3 of the list is not the SHA-1 sum"),
            (format!("{ordered}{}:many\n", sum(3)), "line 3 of the list has no number after the colon"),
            ("7".repeat(1000), "line 1 of the list is not the SHA-1 sum"),
            ("hunter2\n".into(), "line 1 of the list is not the SHA-1 sum"),
            ("\n\n".into(), "the list has no sum"),
            (String::new(), "the list has no sum"),
        ] {
            let why = report(list.as_bytes(), 1).unwrap_err();
            assert!(why.starts_with(part), "{why}");
            assert!(!why.contains("hunter2") && !why.contains(&sum(3)[..16]), "{why}");
        }
        assert!(report(format!("{}:1\n", sum(1)).as_bytes(), 2).unwrap_err().contains("no sum"));
    }
}
