//! Rate limits of networks and addresses.

/// Rate limits of networks and addresses.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Rate limits")]
pub struct RateLimitSettings {
    /// Requests of one kind that a network (an IPv4 address or an IPv6 /64) may send at once, for
    /// each replica. The kinds: start, a new password and the stop of an address change; login;
    /// verify and reset-password without a valid cookie; unknown session tokens
    #[arg(long, env, default_value = "30", value_parser = clap::value_parser!(u32).range(1..))]
    pub network_burst: u32,

    /// Requests of one kind that a network may send a minute in the long run, for each replica;
    /// also new recovery cookies that it may use a minute
    #[arg(long, env, default_value = "60", value_parser = clap::value_parser!(u32).range(1..))]
    pub network_per_minute: u32,

    /// Rate limits of an address.
    #[command(flatten)]
    pub address: AddressLimitSettings,
}

/// Rate limits of an address, which `account show` and `account limits` need, too.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Rate limits")]
pub struct AddressLimitSettings {
    /// Codes that can be requested at once for one email address; one more every 5 minutes. At
    /// most 3: the bound on guesses depends on it
    #[arg(long, env, default_value = "3", value_parser = clap::value_parser!(u32).range(1..=3))]
    pub address_burst: u32,

    /// Codes that can be requested for one email address a day. At most 10, which with the burst
    /// allows 19 in any 24 hours: the bound on guesses depends on it
    #[arg(long, env, default_value = "10", value_parser = clap::value_parser!(u32).range(1..=10))]
    pub address_per_day: u32,
}
