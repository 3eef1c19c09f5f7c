//! All settings by section: variable, flag, default, bounds. Their doc comments are the text of
//! `vos-auth serve --help`.
//!
//! Secrets are read from the environment or from a file that `NAME_FILE` names, never from a flag:
//! `ps` shows flags.

mod admin;
mod base_url;
mod bounds;
mod clients;
mod connections;
mod dkim;
mod event_hooks;
mod jwt;
mod listening;
mod mail;
mod oauth;
mod origin;
mod page;
mod passwords;
mod phone;
mod problems;
mod rate_limits;
mod recovery_url;
mod relays;
mod secrets;
mod sessions;
mod sign_in;
mod stopping;
mod storage;
mod support;
mod traces;

use std::time::Duration;

pub use self::admin::{AdminSettings, ClientRole, Role};
pub use self::base_url::base_url;
pub use self::bounds::{
    audit_retention, hashing_memory_kib, login_failure_time, notice_retention, operator_lifetime,
    password_min_chars, session_idle,
};
pub use self::clients::ClientSettings;
pub use self::connections::ConnectionSettings;
pub use self::dkim::{DkimSettings, domain_name};
pub use self::event_hooks::EventHookSettings;
pub use self::jwt::JwtSettings;
pub use self::listening::ListeningSettings;
pub use self::mail::MailSettings;
pub use self::oauth::{OauthSettings, TokenUrl};
pub use self::origin::{Origin, is_local};
pub use self::page::PageSettings;
pub use self::passwords::PasswordSettings;
pub use self::phone::Phone;
pub use self::problems::{ConfigError, ConfigErrors};
pub use self::rate_limits::{AddressLimitSettings, RateLimitSettings};
pub use self::recovery_url::RecoveryUrl;
pub use self::relays::RelaySettings;
pub use self::secrets::{
    OauthSecrets, SECRETS, Secrets, database_url, device_secrets, kratos_authorization, secret_source,
    smtp_relays,
};
pub use self::sessions::SessionSettings;
pub use self::sign_in::SignInUrl;
pub use self::stopping::StoppingSettings;
pub use self::storage::StorageSettings;
pub use self::support::{SupportSettings, address_change_delay, trait_name};
pub use self::traces::{OtlpEndpoint, TraceSettings};

/// How long a recovery code is valid. Not a setting, because the API documents it (OWASP ASVS 5.0
/// 6.5.5: at most 10 minutes).
pub const CODE_LIFETIME: Duration = Duration::from_mins(10);
/// How long a code or notice must still be valid for its email to be sent.
pub const CODE_LIFE_ON_ARRIVAL: Duration = Duration::from_mins(1);
/// `start` sends the same code again if its session is valid for at least this long; otherwise it
/// begins a new session.
pub const RESEND_LIFE: Duration = Duration::from_mins(3);
/// How long a verified recovery session may be used to choose a password.
pub const RESET_LIFETIME: Duration = Duration::from_mins(15);
/// How long a JWT is valid. The REST API accepts the JWT of an ended session for at most this long.
pub const JWT_LIFETIME: Duration = Duration::from_mins(10);
/// How long a browser counts as known after its id was issued. A sign-in in the second half of this
/// time issues a new id.
pub const DEVICE_LIFETIME: Duration = Duration::from_hours(365 * 24);
/// How long a recovery ticket of an operator can be used.
pub const TICKET_LIFETIME: Duration = Duration::from_mins(15);
/// How long a second operator may approve what another one has asked for, and how long after the
/// approval a ticket may be issued.
pub const APPROVAL_LIFETIME: Duration = Duration::from_mins(10);
/// Maximum length of a new password in characters. NIST SP 800-63B-4 §3.1.1.2 asks for 64 at least.
pub const PASSWORD_MAX_CHARS: usize = 256;
/// How long a request waits for the database before it is answered 502.
pub const STORAGE_DEADLINE: Duration = Duration::from_secs(2);
/// How long a call of the admin API waits for the database before it is answered 502. Some of an
/// operator's statements read a whole table.
pub const OPERATOR_DEADLINE: Duration = Duration::from_secs(20);
/// Maximum size of a request body, in octets.
pub const MAX_BODY: usize = 16 * 1024;
/// Maximum length of a stored User-Agent, in characters. A longer one is cut.
pub const MAX_USER_AGENT: usize = 200;

/// The settings of `serve` and `dev`, by section.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Where the service listens.
    #[command(flatten)]
    pub listening: ListeningSettings,
    /// The admin API for operators.
    #[command(flatten)]
    pub admin: AdminSettings,
    /// Which browsers and proxies the service trusts.
    #[command(flatten)]
    pub clients: ClientSettings,
    /// The recovery page.
    #[command(flatten)]
    pub page: PageSettings,
    /// Rate limits of networks and addresses.
    #[command(flatten)]
    pub rate_limits: RateLimitSettings,
    /// Password policy, and the cost of hashing.
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
    /// How events reach the receivers of `EVENT_HOOKS`.
    #[command(flatten)]
    pub event_hooks: EventHookSettings,
    /// What operators may do for account owners, and when.
    #[command(flatten)]
    pub support: SupportSettings,
    /// Bounds of client connections.
    #[command(flatten)]
    pub connections: ConnectionSettings,
    /// How the service stops.
    #[command(flatten)]
    pub stopping: StoppingSettings,
}

/// Whether an optional part of the service is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// Active.
    On,
    /// Inactive.
    Off,
}
