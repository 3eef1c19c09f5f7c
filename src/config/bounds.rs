//! Parsers and bounds of times and counts.

use std::time::Duration;

use clap::builder::RangedI64ValueParser;

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const MINUTE: Duration = Duration::from_mins(1);
pub(super) const HOUR: Duration = Duration::from_hours(1);
pub(super) const DAY: Duration = Duration::from_hours(24);

pub(super) fn between(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (least..=most).contains(&duration) {
        return Ok(duration);
    }
    let show = humantime::format_duration;
    Err(format!("it has to be between {} and {}", show(least), show(most)))
}

/// Reads `LOGIN_FAILURE_TIME`, for `serve` and `account import`.
///
/// # Errors
///
/// A sentence, if it is not a time or out of bounds.
pub fn login_failure_time(text: &str) -> Result<Duration, String> {
    between(text, 10 * MILLISECOND, 10_000 * MILLISECOND)
}

/// Reads `AUDIT_RETENTION`, for `serve` and `account export`.
///
/// # Errors
///
/// A sentence, if it is not a time or out of bounds.
pub fn audit_retention(text: &str) -> Result<Duration, String> {
    between(text, DAY, 36_500 * DAY)
}

/// Reads `SESSION_IDLE`, for `serve` and `account sessions`.
///
/// # Errors
///
/// A sentence, if it is not a time or out of bounds.
pub fn session_idle(text: &str) -> Result<Duration, String> {
    between(text, MINUTE, 30 * DAY)
}

/// Reads `PASSWORD_MIN_CHARS`: from 8 to 64.
#[must_use]
pub fn password_min_chars() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(8..=64)
}

/// Reads `HASHING_MEMORY_KIB`, for `serve` and `account import`: from 1024 to 4194304.
#[must_use]
pub fn hashing_memory_kib() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1024..=4_194_304)
}
