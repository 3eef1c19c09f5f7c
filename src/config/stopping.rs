//! How the service stops.

use std::time::Duration;

use super::bounds::{HOUR, between};

/// How the service stops.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Stopping")]
pub struct StoppingSettings {
    /// How long the service keeps serving after SIGTERM with /readyz red, so that a load balancer
    /// notices
    #[arg(long, env, default_value = "5s", value_parser = |text: &str| between(text, Duration::ZERO, HOUR))]
    pub drain_delay: Duration,

    /// How long requests and emails in progress may take to finish after that
    #[arg(long, env, default_value = "25s", value_parser = |text: &str| between(text, Duration::ZERO, HOUR))]
    pub stop_timeout: Duration,
}
