//! How long sessions last, and when a failed login is answered.

use std::time::Duration;

use super::bounds::{DAY, MINUTE, between, login_failure_time, session_idle};

/// How long sessions last, and when a failed login is answered.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sessions")]
pub struct SessionSettings {
    /// When a failed login is answered, whatever the cause, so that time does not tell. Counted
    /// from its arrival, or from the end of another login of the same address. Must be longer than
    /// twice the slowest hash including its wait; a metric counts late failures
    #[arg(long, env, default_value = "500ms", value_parser = login_failure_time)]
    pub login_failure_time: Duration,

    /// How long a session lasts without being refreshed
    #[arg(long, env, default_value = "30min", value_parser = session_idle)]
    pub session_idle: Duration,

    /// How long a session lasts at most, however often it is refreshed
    #[arg(long, env, default_value = "12h", value_parser = |text: &str| between(text, MINUTE, 30 * DAY))]
    pub session_lifetime: Duration,
}
