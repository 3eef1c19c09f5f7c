//! The recovery page.

use super::Switch;
use super::phone::Phone;
use super::sign_in::SignInUrl;

/// The recovery page.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Page")]
pub struct PageSettings {
    /// Whether /recovery is served: the page that takes people through a recovery. On, because the service is of use without
    /// the OMS then; off once the OMS has a page of its own
    #[arg(long, env, default_value = "on")]
    pub recovery_page: Switch,

    /// The telephone number of support, shown on /recovery, such as +84 28 1234 5678. Unset: email alone
    #[arg(long, env)]
    pub support_phone: Option<Phone>,

    /// Where /recovery leads when it is done, and back: the sign-in page, a path of this host or an https URL of the same
    /// site. A page of this host is handed the session token
    #[arg(long, env, default_value = "/")]
    pub sign_in_url: SignInUrl,
}
