//! Webhooks of audit events. Their URLs and secrets are in `EVENT_HOOKS`, which is a secret.

use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::bounds::{MILLISECOND, MINUTE, between};

/// How events reach the receivers of `EVENT_HOOKS`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Webhooks")]
pub struct EventHookSettings {
    /// Networks (CIDR, separated by commas) that are not public and in which receivers of EVENT_HOOKS may be. Empty:
    /// only public addresses are connected to
    #[arg(long, env, value_delimiter = ',')]
    pub event_hook_networks: Vec<IpNet>,

    /// A PEM file with the CA of the receivers, if their certificates are not from a public one
    #[arg(long, env)]
    pub event_hook_ca_file: Option<PathBuf>,

    /// How often a replica looks for new events if EVENT_HOOKS is set
    #[arg(long, env, default_value = "1s", value_parser = |text: &str| between(text, 10 * MILLISECOND, MINUTE))]
    pub event_hook_poll_interval: Duration,
}
