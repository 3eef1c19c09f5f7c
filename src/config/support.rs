//! What operators may do for account owners, and when.

use std::time::Duration;

use super::bounds::{DAY, MINUTE, between};

/// What operators may do for account owners, and when.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Support")]
pub struct SupportSettings {
    /// How long an approved change of an account's address waits before it takes effect. Meanwhile its owner, who is
    /// told at the stored address, can stop it from any session
    #[arg(long, env, default_value = "1h", value_parser = address_change_delay)]
    pub address_change_delay: Duration,

    /// The name of a boolean trait, such as `protected`. An account that has it gets a recovery ticket or another
    /// address only after a second operator has approved it. Unset: one operator is enough for a ticket, and to set an
    /// address
    #[arg(long, env, value_parser = trait_name)]
    pub protected_trait: Option<String>,
}

/// Parses `ADDRESS_CHANGE_DELAY`, for `serve` and `request approve`: from 10 minutes to 7 days.
///
/// # Errors
///
/// A sentence, if it is no duration or out of bounds.
pub fn address_change_delay(text: &str) -> Result<Duration, String> {
    between(text, 10 * MINUTE, 7 * DAY)
}

/// Parses `PROTECTED_TRAIT`: 1 to 64 characters, without control characters and without white space
/// at either end.
///
/// # Errors
///
/// A sentence, if no trait can have this name.
pub fn trait_name(text: &str) -> Result<String, String> {
    let is_name = (1..=64).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if is_name && text.trim() == text {
        Ok(text.to_owned())
    } else {
        Err("must be the name of a trait, of 1 to 64 characters".into())
    }
}
