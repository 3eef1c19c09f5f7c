//! How emails reach the relays.

use std::path::PathBuf;
use std::time::Duration;

use super::bounds::{HOUR, MILLISECOND, MINUTE, between};
use super::oauth::OauthSettings;

/// How emails reach the relays.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Relays")]
pub struct RelaySettings {
    /// The name that relays are greeted with (EHLO): this host's public name, or its address in square brackets, such as
    /// 192.0.2.1 or IPv6:2001:db8::1 between them
    #[arg(long, env, default_value = "platform.verolabs.co")]
    pub smtp_ehlo_name: String,

    /// A PEM file with the CA of the relays, if their certificate is not from a public one
    #[arg(long, env)]
    pub smtp_ca_file: Option<PathBuf>,

    /// Mails that one relay is sent at once, each over a connection of its own; the probe has one more. A relay's own
    /// `connections=N` in its URL goes before
    #[arg(long, env, default_value = "8", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub smtp_connections: u32,

    /// How long one mail may take, from connecting to the relay's last answer; a relay that greets late has that long, too.
    /// A claimed mail is leased for twice as long and 20 s, so that no two workers hold one
    #[arg(long, env, default_value = "20s", value_parser = |text: &str| between(text, 100 * MILLISECOND, MINUTE))]
    pub smtp_deadline: Duration,

    /// How long a connection is kept for the next mail. Shorter than the relay's own limit (RFC 5321 §4.5.3.2 asks for 5
    /// minutes, some close after 10 s), or it is often found closed
    #[arg(long, env, default_value = "8s", value_parser = |text: &str| between(text, Duration::ZERO, HOUR))]
    pub smtp_idle: Duration,

    /// Mails that one connection carries before another is opened. Lower it to the relay's own limit, if that is less
    #[arg(long, env, default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub smtp_mails_per_connection: u32,

    /// How often each relay is asked whether it is usable, while it is. While it is not, it is asked every second, or at this
    /// interval if that is shorter or the relay refuses the password
    #[arg(long, env, default_value = "10s", value_parser = |text: &str| between(text, 10 * MILLISECOND, MINUTE))]
    pub smtp_probe_interval: Duration,

    /// Connections that ask at once whether a relay is usable which is not. One begins every second although others are still
    /// unanswered; for a provider that minds, set 1
    #[arg(long, env, default_value = "5", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub smtp_probes_while_down: u16,

    /// Where access tokens for relays come from.
    #[command(flatten)]
    pub smtp_oauth: OauthSettings,

    /// How often the outbox is looked through for mails that another process left, or whose time to retry has come
    #[arg(long, env, default_value = "1s", value_parser = |text: &str| between(text, 10 * MILLISECOND, MINUTE))]
    pub outbox_poll_interval: Duration,
}
