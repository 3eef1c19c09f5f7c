//! The recovery page.

use super::Switch;
use super::sign_in::SignInUrl;

/// The recovery page.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Page")]
pub struct PageSettings {
    /// Whether /recovery, the recovery page, is served. Turn it off once the OMS has a page of its
    /// own
    #[arg(long, env, default_value = "on")]
    pub recovery_page: Switch,

    /// The sign-in page that /recovery links to: a path of this host, or an https URL of the same
    /// site. A page of this host receives the session token. Required by `serve` while
    /// RECOVERY_PAGE is on
    #[arg(long, env)]
    pub sign_in_url: Option<SignInUrl>,
}
