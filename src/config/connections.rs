//! What one client connection may take.

use std::time::Duration;

use super::bounds::{HOUR, MILLISECOND, between};

/// What one client connection may take.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connections")]
pub struct ConnectionSettings {
    /// How long a client may take to send the headers of a request, counted from the answer before on a kept connection.
    /// Longer than the proxy keeps idle connections (nginx: 60 s), or the two race
    #[arg(long, env, default_value = "75s", value_parser = |text: &str| between(text, 10 * MILLISECOND, HOUR))]
    pub header_timeout: Duration,

    /// How long a client may take to send the body of a request
    #[arg(long, env, default_value = "10s", value_parser = |text: &str| between(text, 10 * MILLISECOND, HOUR))]
    pub body_timeout: Duration,

    /// How long a client may take to read an answer, or what of it did not fit into the kernel's buffer
    #[arg(long, env, default_value = "10s", value_parser = |text: &str| between(text, 10 * MILLISECOND, HOUR))]
    pub answer_timeout: Duration,

    /// Octets that a request line and its headers may have together; longer ones are answered 431. Cookies of sibling
    /// hosts count
    #[arg(long, env, default_value = "16384", value_parser = clap::value_parser!(u32).range(1024..=1_048_576))]
    pub max_header: u32,

    /// Connections of clients that are open at once, or fewer if RLIMIT_NOFILE does not allow for them. When one more
    /// comes, those that wait for a request are closed to make room
    #[arg(long, env, default_value = "16384", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
}
