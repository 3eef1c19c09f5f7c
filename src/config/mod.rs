//! Every setting: variable, flag, unit, default, reason. The doc comments are the help text of `vos-auth serve --help`.
//!
//! Secrets are read from the environment or from a file that `NAME_FILE` names, never from a flag: `ps` shows flags.

mod base_url;
mod bounds;
mod clients;
mod connections;
mod dkim;
mod jwt;
mod listening;
mod mail;
mod oauth;
mod origin;
mod page;
mod passwords;
mod phone;
mod rate_limits;
mod relays;
mod secrets;
mod sessions;
mod sign_in;
mod stopping;
mod storage;
mod traces;

use std::time::Duration;

pub use self::base_url::base_url;
pub use self::bounds::{
    audit_retention, hashing_memory_kib, login_failure_time, password_min_chars, session_idle,
};
pub use self::clients::ClientSettings;
pub use self::connections::ConnectionSettings;
pub use self::dkim::{DkimSettings, domain_name};
pub use self::jwt::JwtSettings;
pub use self::listening::ListeningSettings;
pub use self::mail::MailSettings;
pub use self::oauth::{OauthSettings, TokenUrl};
pub use self::origin::{Origin, is_local};
pub use self::page::PageSettings;
pub use self::passwords::PasswordSettings;
pub use self::phone::Phone;
pub use self::rate_limits::RateLimitSettings;
pub use self::relays::RelaySettings;
pub use self::secrets::{
    OauthSecrets, Secrets, database_url, device_secrets, kratos_authorization, smtp_relays,
};
pub use self::sessions::SessionSettings;
pub use self::sign_in::SignInUrl;
pub use self::stopping::StoppingSettings;
pub use self::storage::StorageSettings;
pub use self::traces::{OtlpEndpoint, TraceSettings};

/// How long a recovery code lives. A published promise (OWASP ASVS 5.0 6.5.5: at most 10 minutes), so no setting.
pub const CODE_LIFETIME: Duration = Duration::from_mins(10);
/// A mail that would arrive with less of its code's life than this is not sent.
pub const CODE_LIFE_ON_ARRIVAL: Duration = Duration::from_mins(1);
/// A resend keeps a session that has at least this long to live; with less, `start` begins a new one.
pub const RESEND_LIFE: Duration = Duration::from_mins(3);
/// How long a verified recovery session may be used to choose a password.
pub const RESET_LIFETIME: Duration = Duration::from_mins(15);
/// How long a JWT lives. So long at most an ended session goes on at the REST API, which asks nobody.
pub const JWT_LIFETIME: Duration = Duration::from_mins(10);
/// How long a browser counts as known after its last sign-in.
pub const DEVICE_LIFETIME: Duration = Duration::from_hours(365 * 24);
/// How long a recovery ticket of an operator can be used.
pub const TICKET_LIFETIME: Duration = Duration::from_mins(15);
/// The most characters of a new password. NIST SP 800-63B-4 §3.1.1.2 asks for 64 at least.
pub const PASSWORD_MAX_CHARS: usize = 256;
/// How long a request waits for the database before it is answered 502.
pub const STORAGE_DEADLINE: Duration = Duration::from_secs(2);
/// The longest request body that is read, in octets.
pub const MAX_BODY: usize = 16 * 1024;
/// The most characters of a User-Agent that are kept.
pub const MAX_USER_AGENT: usize = 200;

/// The settings of `serve` and `dev`, by section.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where the service listens.
    #[command(flatten)]
    pub listening: ListeningSettings,
    /// Which browsers and proxies the service trusts.
    #[command(flatten)]
    pub clients: ClientSettings,
    /// The recovery page.
    #[command(flatten)]
    pub page: PageSettings,
    /// Rate limits of networks and addresses.
    #[command(flatten)]
    pub rate_limits: RateLimitSettings,
    /// Password policy, and what hashing may cost.
    #[command(flatten)]
    pub passwords: PasswordSettings,
    /// How long sessions last, and when a failed login is answered.
    #[command(flatten)]
    pub sessions: SessionSettings,
    /// JSON Web Tokens for the REST API.
    #[command(flatten)]
    pub jwt: JwtSettings,
    /// Connections to PostgreSQL, the queue of starts, and how long rows are kept.
    #[command(flatten)]
    pub storage: StorageSettings,
    /// Who emails are from, and what they say.
    #[command(flatten)]
    pub mail: MailSettings,
    /// How emails reach the relays.
    #[command(flatten)]
    pub relays: RelaySettings,
    /// What one client connection may take.
    #[command(flatten)]
    pub connections: ConnectionSettings,
    /// How the service stops.
    #[command(flatten)]
    pub stopping: StoppingSettings,
}

/// Whether a part of the service is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// A setting that the service cannot start with, as one sentence that names its variable.
#[derive(Debug, thiserror::Error)]
#[error("{variable} {why}")]
pub struct ConfigError {
    variable: &'static str,
    why: String,
}

impl ConfigError {
    /// `why` goes on where the variable's name ends: "is missing: …".
    #[must_use]
    pub fn new(variable: &'static str, why: impl Into<String>) -> Self {
        Self { variable, why: why.into() }
    }
}
