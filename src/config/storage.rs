//! Connections to PostgreSQL, the queue of starts, and how long rows are kept.

use std::time::Duration;

use super::bounds::{DAY, HOUR, audit_retention, between};

/// Connections to PostgreSQL, the queue of starts, and how long rows are kept.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Storage")]
pub struct StorageSettings {
    /// Connections to PostgreSQL for requests. The service opens seven more: one for starts, three
    /// of the courier, two for session tokens, one for /readyz. EVENT_HOOKS needs two others, and
    /// the admin API three
    #[arg(long, env, default_value = "5", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub database_connections: u32,

    /// Starts that may wait for the database at once; further ones are answered 502. So are starts
    /// when more wait than can be committed within 100 ms and than one batch holds
    #[arg(long, env, default_value = "2048", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub start_queue: u32,

    /// Starts that are committed together at most
    #[arg(long, env, default_value = "256", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub start_batch: u32,

    /// How long a recovery is kept after the latest time at which it could end, with its email
    /// address, IP address and user agent, and what an operator asked of another one, with its
    /// addresses: long enough to investigate an attack, and no longer
    #[arg(long, env, default_value = "24h", value_parser = |text: &str| between(text, HOUR, 90 * DAY))]
    pub recovery_retention: Duration,

    /// How long a session is kept after the latest time at which it could end
    #[arg(long, env, default_value = "24h", value_parser = |text: &str| between(text, HOUR, 90 * DAY))]
    pub session_retention: Duration,

    /// How long audit events are kept, such as 365days: as your law and your auditors require
    #[arg(long, env, default_value = "365days", value_parser = audit_retention)]
    pub audit_retention: Duration,
}
