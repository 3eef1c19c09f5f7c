//! Who emails are from, and what they say.

use std::time::Duration;

use super::bounds::{DAY, HOUR, between};
use super::dkim::DkimSettings;

/// Who emails are from, and what they say.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Mail")]
pub struct MailSettings {
    /// Who mails are from: a name and an address. A name with a comma is in quotes. The address is ASCII, but for its
    /// domain, which is sent as its A-label (xn--…)
    #[arg(long, env, default_value = "Vero OMS <no-reply@verolabs.co>")]
    pub mail_from: String,

    /// Where bounces go (the envelope's sender): an address, or @ and a domain, such as @bounces.verolabs.co, where each account
    /// and day has an address of its own by which `bounce` knows whose mail came back. Default: the address of MAIL_FROM
    #[arg(long, env)]
    pub mail_bounces: Option<String>,

    /// What the product is called in mails and on /recovery
    #[arg(long, env, default_value = "Vero OMS")]
    pub mail_brand: String,

    /// Whom a worried reader of a mail or of /recovery writes to
    #[arg(long, env, default_value = "support@verolabs.co")]
    pub mail_support: String,

    /// How long the mail about a changed password is tried, and kept for an operator if a relay has refused it for good;
    /// counted from the change
    #[arg(long, env, default_value = "7days", value_parser = |text: &str| between(text, HOUR, 90 * DAY))]
    pub notice_retention: Duration,

    /// The time zone of the times in mails, by its IANA name
    #[arg(long, env, default_value = "Asia/Ho_Chi_Minh")]
    pub mail_time_zone: String,

    /// With what mails are signed.
    #[command(flatten)]
    pub dkim: DkimSettings,
}
