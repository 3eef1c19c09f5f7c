//! Rate limits of networks and addresses.

/// Rate limits of networks and addresses.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Rate limits")]
pub struct RateLimitSettings {
    /// Requests of a kind that one network (an IPv4 address or an IPv6 /64) may send at once, a replica: start and a new
    /// password; login; verify and reset-password without a cookie of their own; unknown session tokens
    #[arg(long, env, default_value = "30", value_parser = clap::value_parser!(u32).range(1..))]
    pub network_burst: u32,

    /// Requests of a kind that one network may send a minute in the long run, a replica; also recovery cookies that it may
    /// begin to use
    #[arg(long, env, default_value = "60", value_parser = clap::value_parser!(u32).range(1..))]
    pub network_per_minute: u32,

    /// Codes that one address may be sent at once; one more every 5 minutes. At most 3: the bound on guesses rests on it
    #[arg(long, env, default_value = "3", value_parser = clap::value_parser!(u32).range(1..=3))]
    pub address_burst: u32,

    /// Codes that one address may be sent a day. At most 10 (19 in any 24 hours, with the burst): the bound on guesses
    /// rests on it
    #[arg(long, env, default_value = "10", value_parser = clap::value_parser!(u32).range(1..=10))]
    pub address_per_day: u32,
}
