//! Parsers of bounded settings that several commands share.

use std::time::Duration;

use clap::builder::RangedI64ValueParser;

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const MINUTE: Duration = Duration::from_mins(1);
pub(super) const HOUR: Duration = Duration::from_hours(1);
pub(super) const DAY: Duration = Duration::from_hours(24);

pub(super) fn between(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (min..=max).contains(&duration) {
        return Ok(duration);
    }
    let show = humantime::format_duration;
    Err(format!("must be between {} and {}", show(min), show(max)))
}

/// Parses `LOGIN_FAILURE_TIME`, for `serve` and `account import`: from 10 ms to 10 s.
///
/// # Errors
///
/// A sentence, if it is no duration or out of bounds.
pub fn login_failure_time(text: &str) -> Result<Duration, String> {
    between(text, 10 * MILLISECOND, 10_000 * MILLISECOND)
}

/// Parses `AUDIT_RETENTION`, for `serve` and `account export`: from 1 to 36,500 days.
///
/// # Errors
///
/// A sentence, if it is no duration or out of bounds.
pub fn audit_retention(text: &str) -> Result<Duration, String> {
    between(text, DAY, 36_500 * DAY)
}

/// Parses `NOTICE_RETENTION`, for `serve` and for commands that enqueue a notice: from 1 hour to 90
/// days.
///
/// # Errors
///
/// A sentence, if it is no duration or out of bounds.
pub fn notice_retention(text: &str) -> Result<Duration, String> {
    between(text, HOUR, 90 * DAY)
}

/// Parses how long an operator's token is valid, for `operator create`: from 1 hour to 366 days.
///
/// # Errors
///
/// A sentence, if it is no duration or out of bounds.
pub fn operator_lifetime(text: &str) -> Result<Duration, String> {
    between(text, HOUR, 366 * DAY)
}

/// Parses `SESSION_IDLE`, for `serve`, `account show` and `account sessions`: from 1 minute to 30
/// days.
///
/// # Errors
///
/// A sentence, if it is no duration or out of bounds.
pub fn session_idle(text: &str) -> Result<Duration, String> {
    between(text, MINUTE, 30 * DAY)
}

/// Parses `PASSWORD_MIN_CHARS`: from 8 to 64.
#[must_use]
pub fn password_min_chars() -> RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(8..=64)
}

/// Parses `HASHING_MEMORY_KIB`, for `serve` and `account import`: from 1024 to 4194304.
#[must_use]
pub fn hashing_memory_kib() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1024..=4_194_304)
}
