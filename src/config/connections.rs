//! Bounds of client connections.

use std::time::Duration;

use super::bounds::{HOUR, MILLISECOND, between};

/// Bounds of client connections.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connections")]
pub struct ConnectionSettings {
    /// How long a client may take to send request headers, counted from the previous response on a
    /// kept connection. Must be longer than the proxy keeps idle connections (nginx: 60 s), or a
    /// request may be lost
    #[arg(long, env, default_value = "75s", value_parser = |text: &str| between(text, 10 * MILLISECOND, HOUR))]
    pub header_timeout: Duration,

    /// How long a client may take to send a request body
    #[arg(long, env, default_value = "10s", value_parser = |text: &str| between(text, 10 * MILLISECOND, HOUR))]
    pub body_timeout: Duration,

    /// How long a client may take to read a response, or the part of it that did not fit into the
    /// kernel's buffer
    #[arg(long, env, default_value = "10s", value_parser = |text: &str| between(text, 10 * MILLISECOND, HOUR))]
    pub answer_timeout: Duration,

    /// Maximum size of a request line and its headers in octets; longer ones are answered 431.
    /// Cookies of sibling hosts count
    #[arg(long, env, default_value = "16384", value_parser = clap::value_parser!(u32).range(1024..=1_048_576))]
    pub max_header: u32,

    /// Client connections that are open at once, or fewer if RLIMIT_NOFILE is too low. Beyond that,
    /// idle connections are closed to make room
    #[arg(long, env, default_value = "16384", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
}
