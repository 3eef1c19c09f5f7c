//! Who emails are from, and what they say.

use std::sync::Arc;
use std::time::Duration;

use super::bounds::notice_retention;
use super::dkim::DkimSettings;
use super::phone::Phone;
use super::recovery_url::RecoveryUrl;
use crate::brand::{self, Brand};
use crate::locale::Locale;

/// Who emails are from, and what they say.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Mail")]
pub struct MailSettings {
    /// The sender of emails: a name and an address. Quote a name that contains a comma. The address
    /// is ASCII; a domain of other letters is sent as its A-label (xn--…)
    #[arg(long, env, default_value = "Vero OMS <no-reply@verolabs.co>")]
    pub mail_from: String,

    /// Where bounces are sent (the envelope sender): an address, or @ and a domain such as
    /// @bounces.verolabs.co. With a domain, each account and day has its own address, by which
    /// `bounce` finds the account. Default: the address of MAIL_FROM
    #[arg(long, env)]
    pub mail_bounces: Option<String>,

    /// The product name in emails and on /recovery, if BRAND_DIR has none
    #[arg(long, env, default_value = "Vero OMS")]
    pub mail_brand: String,

    /// The folder with the look of /recovery and emails: brand.json with names, texts and colors,
    /// logo and icon. It is read once, at startup (docs/operate/brand.md). Unset: the look of
    /// this service
    #[arg(long, env, value_parser = Brand::read)]
    pub brand_dir: Option<Arc<Brand>>,

    /// The email address of support, in emails and on /recovery
    #[arg(long, env, default_value = "support@verolabs.co")]
    pub mail_support: String,

    /// The telephone number of support in emails and on /recovery, such as +84 28 1234 5678. Unset:
    /// only the email address is shown
    #[arg(long, env)]
    pub support_phone: Option<Phone>,

    /// The recovery page that emails link to, such as <https://platform.verolabs.co/recovery>. The
    /// link is the same in every email. Unset: emails have no link to a page
    #[arg(long, env)]
    pub recovery_url: Option<RecoveryUrl>,

    /// How long a notice to the owner, such as that of a changed password, is retried, counted from
    /// the change; also how long it is kept for an operator after a relay refused it for good
    #[arg(long, env, default_value = "7days", value_parser = notice_retention)]
    pub notice_retention: Duration,

    /// The time zone of times in emails, by its IANA name
    #[arg(long, env, default_value = "Asia/Ho_Chi_Minh")]
    pub mail_time_zone: String,

    /// The key that signs emails.
    #[command(flatten)]
    pub dkim: DkimSettings,
}

impl MailSettings {
    /// The look of the page and the emails.
    #[must_use]
    pub fn brand(&self) -> &Brand {
        self.brand_dir.as_deref().unwrap_or(&brand::DEFAULT)
    }

    /// The product name in a language.
    #[must_use]
    pub fn product_name(&self, locale: Locale) -> &str {
        self.brand().name.as_ref().map_or(&self.mail_brand, |name| name.in_language(locale))
    }

    /// The product name in every language.
    #[must_use]
    pub fn product_names(&self) -> [&str; 2] {
        [Locale::Vi, Locale::En].map(|locale| self.product_name(locale))
    }
}
