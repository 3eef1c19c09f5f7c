//! How emails reach the relays.

use std::path::PathBuf;
use std::time::Duration;

use super::bounds::{HOUR, MILLISECOND, MINUTE, between};
use super::oauth::OauthSettings;

/// How emails reach the relays.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Relays")]
pub struct RelaySettings {
    /// The name in EHLO: this host's public name, or its address in square brackets, such as
    /// 192.0.2.1 or IPv6:2001:db8::1 between them
    #[arg(long, env, default_value = "platform.verolabs.co")]
    pub smtp_ehlo_name: String,

    /// A PEM file with the CA of the relays, if their certificate is not from a public one
    #[arg(long, env)]
    pub smtp_ca_file: Option<PathBuf>,

    /// Emails that are sent to one relay at once, each over its own connection; the probe has one
    /// more. `connections=N` in a relay's URL takes precedence
    #[arg(long, env, default_value = "8", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub smtp_connections: u32,

    /// How long one email may take, from connecting to the relay's last answer; also how long a
    /// relay may take to greet. A claimed email is leased for twice as long plus 20 s, so that no
    /// two couriers send it
    #[arg(long, env, default_value = "20s", value_parser = |text: &str| between(text, 100 * MILLISECOND, MINUTE))]
    pub smtp_deadline: Duration,

    /// How long an idle connection is kept for the next email. Keep it shorter than the relay's own
    /// limit: RFC 5321 §4.5.3.2 asks for 5 minutes, some relays close after 10 s
    #[arg(long, env, default_value = "8s", value_parser = |text: &str| between(text, Duration::ZERO, HOUR))]
    pub smtp_idle: Duration,

    /// Emails that are sent over one connection before it is replaced. Keep it below the relay's
    /// own limit
    #[arg(long, env, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub smtp_mails_per_connection: u32,

    /// How often each relay is probed while it is up. A relay that is down is probed every second,
    /// or at this interval if that is shorter or the relay refuses the password
    #[arg(long, env, default_value = "10s", value_parser = |text: &str| between(text, 10 * MILLISECOND, MINUTE))]
    pub smtp_probe_interval: Duration,

    /// Probes of a relay that is down which may run at once. One starts every second even if others
    /// are unanswered. Set 1 for a provider that objects
    #[arg(long, env, default_value = "5", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub smtp_probes_while_down: u16,

    /// The OAuth 2.0 client that requests access tokens for relays.
    #[command(flatten)]
    pub smtp_oauth: OauthSettings,

    /// How often the courier looks for emails that another process left, or that are due again
    #[arg(long, env, default_value = "1s", value_parser = |text: &str| between(text, 10 * MILLISECOND, MINUTE))]
    pub outbox_poll_interval: Duration,
}
