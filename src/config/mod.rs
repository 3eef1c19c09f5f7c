//! Every setting: variable, flag, unit, default, reason. The doc comments are the help text of `vos-auth serve --help`.
//!
//! Secrets are read from the environment or from a file that `NAME_FILE` names, never from a flag: `ps` shows flags.

mod base_url;
mod bounds;
mod dkim;
mod oauth;
mod origin;
mod secrets;
mod sign_in;
mod traces;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use self::base_url::base_url;
use self::bounds::{DAY, HOUR, MILLISECOND, MINUTE, between};
pub use self::bounds::{
    audit_retention, hashing_memory_kib, login_failure_time, password_min_chars, session_idle,
};
pub use self::dkim::{DkimSettings, domain_name};
pub use self::oauth::{OauthSettings, TokenUrl};
pub use self::origin::{Origin, is_local};
pub use self::secrets::{
    OauthSecrets, Secrets, database_url, device_secrets, kratos_authorization, smtp_relays,
};
pub use self::sign_in::SignInUrl;
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

/// The settings of `serve` and `dev`.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Address and port of the public API. Behind a proxy on the same machine the default is right; a container sets
    /// 0.0.0.0:8080
    #[arg(long, env, value_name = "HTTP_ADDR", default_value = "127.0.0.1:8080", help_heading = "Listening")]
    pub http_addr: SocketAddr,

    /// Address and port of /metrics, which must not be public: figures of the whole service are there
    #[arg(
        long,
        env,
        value_name = "METRICS_ADDR",
        default_value = "127.0.0.1:9090",
        help_heading = "Listening"
    )]
    pub metrics_addr: SocketAddr,

    /// The origin that browsers see, such as <https://platform.verolabs.co>; a request that says it comes from another
    /// one is refused. Required by `serve`
    #[arg(long, env, value_name = "PUBLIC_ORIGIN", help_heading = "Clients")]
    pub public_origin: Option<Origin>,

    /// Further origins whose pages may call, separated by commas. They must be of the same site as PUBLIC_ORIGIN, or
    /// browsers keep the cookie back
    #[arg(long, env, value_name = "ALLOWED_ORIGINS", value_delimiter = ',', help_heading = "Clients")]
    pub allowed_origins: Vec<Origin>,

    /// Networks (CIDR, separated by commas) of the proxies whose X-Forwarded-For, X-Request-Id and traceparent are
    /// believed. Empty: nobody's
    #[arg(long, env, value_name = "TRUSTED_PROXIES", value_delimiter = ',', help_heading = "Clients")]
    pub trusted_proxies: Vec<IpNet>,

    /// Whether /recovery is served: the page that takes people through a recovery. On, because the service is of use without
    /// the OMS then; off once the OMS has a page of its own
    #[arg(long, env, value_name = "RECOVERY_PAGE", default_value = "on", help_heading = "Page")]
    pub recovery_page: Switch,

    /// Where /recovery leads when it is done, and back: the sign-in page, a path of this host or an https URL of the same
    /// site. A page of this host is handed the session token
    #[arg(long, env, value_name = "SIGN_IN_URL", default_value = "/", help_heading = "Page")]
    pub sign_in_url: SignInUrl,

    /// Requests of a kind that one network (an IPv4 address or an IPv6 /64) may send at once, a replica: start and a new
    /// password; login; verify and reset-password without a cookie of their own; unknown session tokens
    #[arg(long, env, value_name = "NETWORK_BURST", default_value = "30", help_heading = "Budgets", value_parser = clap::value_parser!(u32).range(1..))]
    pub network_burst: u32,

    /// Requests of a kind that one network may send a minute in the long run, a replica; also recovery cookies that it may
    /// begin to use
    #[arg(long, env, value_name = "NETWORK_PER_MINUTE", default_value = "60", help_heading = "Budgets", value_parser = clap::value_parser!(u32).range(1..))]
    pub network_per_minute: u32,

    /// Codes that one address may be sent at once; one more every 5 minutes. At most 3: the bound on guesses rests on it
    #[arg(long, env, value_name = "ADDRESS_BURST", default_value = "3", help_heading = "Budgets", value_parser = clap::value_parser!(u32).range(1..=3))]
    pub address_burst: u32,

    /// Codes that one address may be sent a day. At most 10 (19 in any 24 hours, with the burst): the bound on guesses
    /// rests on it
    #[arg(long, env, value_name = "ADDRESS_PER_DAY", default_value = "10", help_heading = "Budgets", value_parser = clap::value_parser!(u32).range(1..=10))]
    pub address_per_day: u32,

    /// The fewest characters (Unicode code points) of a new password. NIST SP 800-63B-4 asks for 15 where the password is
    /// the only factor
    #[arg(long, env, value_name = "PASSWORD_MIN_CHARS", default_value = "15", help_heading = "Passwords", value_parser = password_min_chars())]
    pub password_min_chars: u16,

    /// Memory of one Argon2id hash in KiB. What it is changed from is rehashed at the next login, if that is at most
    /// HASHING_MEMORY_KIB
    #[arg(long, env, value_name = "ARGON2_MEMORY_KIB", default_value = "19456", help_heading = "Passwords", value_parser = clap::value_parser!(u32).range(7168..=1_048_576))]
    pub argon2_memory_kib: u32,

    /// Passes of one Argon2id hash over its memory. Times ARGON2_MEMORY_KIB at most 4194304, a second or two
    #[arg(long, env, value_name = "ARGON2_PASSES", default_value = "2", help_heading = "Passwords", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub argon2_passes: u32,

    /// Lanes of one Argon2id hash
    #[arg(long, env, value_name = "ARGON2_LANES", default_value = "1", help_heading = "Passwords", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub argon2_lanes: u32,

    /// Passwords that are hashed at once. Default: one a core. One thread more computes hashes of the service's own cost
    /// alone, so that they do not wait for imported ones
    #[arg(long, env, value_name = "HASHING_THREADS", help_heading = "Passwords", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub hashing_threads: Option<u16>,

    /// Memory in KiB that imported hashes may take together while they are verified. One that takes more than all of it is
    /// not imported, and an account that has one is as one without a password
    #[arg(long, env, value_name = "HASHING_MEMORY_KIB", default_value = "262144", help_heading = "Passwords", value_parser = hashing_memory_kib())]
    pub hashing_memory_kib: u32,

    /// Requests that may wait for a hash; further ones are answered 503 at once. At 20 ms a hash and 2 threads, 32 wait
    /// 320 ms
    #[arg(long, env, value_name = "HASHING_QUEUE", default_value = "32", help_heading = "Passwords", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub hashing_queue: u16,

    /// When a failed login is answered, counted from its arrival or from the end of another one of the same address:
    /// whatever the cause, so that the time says nothing. Must be longer than twice the slowest hash and its wait; a metric
    /// counts the failures that were late
    #[arg(long, env, value_name = "LOGIN_FAILURE_TIME", default_value = "500ms", help_heading = "Sessions", value_parser = login_failure_time)]
    pub login_failure_time: Duration,

    /// How long a session lasts that nobody refreshes
    #[arg(long, env, value_name = "SESSION_IDLE", default_value = "30min", help_heading = "Sessions", value_parser = session_idle)]
    pub session_idle: Duration,

    /// How long a session lasts at most, however often it is refreshed
    #[arg(long, env, value_name = "SESSION_LIFETIME", default_value = "12h", help_heading = "Sessions", value_parser = |text: &str| between(text, MINUTE, 30 * DAY))]
    pub session_lifetime: Duration,

    /// The folder with the keys that sign JWTs, as `vos-auth key generate` makes them; it is read again every minute.
    /// Required by `serve`
    #[arg(long, env, value_name = "JWT_KEYS", help_heading = "JWT")]
    pub jwt_keys: Option<PathBuf>,

    /// Who a JWT says it is from (iss). Default: PUBLIC_ORIGIN
    #[arg(long, env, value_name = "JWT_ISSUER", help_heading = "JWT")]
    pub jwt_issuer: Option<String>,

    /// Whom a JWT is for (aud): the REST API
    #[arg(
        long,
        env,
        value_name = "JWT_AUDIENCE",
        default_value = "https://api-oms.verolabs.co",
        help_heading = "JWT"
    )]
    pub jwt_audience: String,

    /// Connections to PostgreSQL beside the one of `start`, three of the courier, two of session tokens, and the one of
    /// /readyz
    #[arg(long, env, value_name = "DATABASE_CONNECTIONS", default_value = "5", help_heading = "Storage", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub database_connections: u32,

    /// Starts that may wait for the database at once; further ones are answered 502, as they are when more wait than are
    /// committed within 100 ms and than one batch holds
    #[arg(long, env, value_name = "START_QUEUE", default_value = "2048", help_heading = "Storage", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub start_queue: u32,

    /// Starts that are committed together at most
    #[arg(long, env, value_name = "START_BATCH", default_value = "256", help_heading = "Storage", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub start_batch: u32,

    /// How long a recovery is kept after its end, with the address and the network it was asked for and from: long enough to
    /// find out what happened, and no longer
    #[arg(long, env, value_name = "RECOVERY_RETENTION", default_value = "24h", help_heading = "Storage", value_parser = |text: &str| between(text, HOUR, 90 * DAY))]
    pub recovery_retention: Duration,

    /// How long a session is kept after the latest time at which it could end
    #[arg(long, env, value_name = "SESSION_RETENTION", default_value = "24h", help_heading = "Storage", value_parser = |text: &str| between(text, HOUR, 90 * DAY))]
    pub session_retention: Duration,

    /// How long audit events are kept, such as 365days: what your law and your auditors ask for
    #[arg(long, env, value_name = "AUDIT_RETENTION", default_value = "365days", help_heading = "Storage", value_parser = audit_retention)]
    pub audit_retention: Duration,

    /// Who mails are from: a name and an address. A name with a comma is in quotes. The address is ASCII, but for its
    /// domain, which is sent as its A-label (xn--…)
    #[arg(
        long,
        env,
        value_name = "MAIL_FROM",
        default_value = "Vero OMS <no-reply@verolabs.co>",
        help_heading = "Mail"
    )]
    pub mail_from: String,

    /// Where bounces go (the envelope's sender): an address, or @ and a domain, such as @bounces.verolabs.co, where each account
    /// and day has an address of its own by which `bounce` knows whose mail came back. Default: the address of MAIL_FROM
    #[arg(long, env, value_name = "MAIL_BOUNCES", help_heading = "Mail")]
    pub mail_bounces: Option<String>,

    /// What the product is called in mails and on /recovery
    #[arg(long, env, value_name = "MAIL_BRAND", default_value = "Vero OMS", help_heading = "Mail")]
    pub mail_brand: String,

    /// Whom a worried reader of a mail or of /recovery writes to
    #[arg(
        long,
        env,
        value_name = "MAIL_SUPPORT",
        default_value = "support@verolabs.co",
        help_heading = "Mail"
    )]
    pub mail_support: String,

    /// How long the mail about a changed password is tried, and kept for an operator if a relay has refused it for good;
    /// counted from the change
    #[arg(long, env, value_name = "NOTICE_RETENTION", default_value = "7days", help_heading = "Mail", value_parser = |text: &str| between(text, HOUR, 90 * DAY))]
    pub notice_retention: Duration,

    /// The time zone of the times in mails, by its IANA name
    #[arg(
        long,
        env,
        value_name = "MAIL_TIME_ZONE",
        default_value = "Asia/Ho_Chi_Minh",
        help_heading = "Mail"
    )]
    pub mail_time_zone: String,

    /// With what mails are signed.
    #[command(flatten)]
    pub dkim: DkimSettings,

    /// The name that relays are greeted with (EHLO): this host's public name, or its address in square brackets, such as
    /// 192.0.2.1 or IPv6:2001:db8::1 between them
    #[arg(
        long,
        env,
        value_name = "SMTP_EHLO_NAME",
        default_value = "platform.verolabs.co",
        help_heading = "Relays"
    )]
    pub smtp_ehlo_name: String,

    /// A PEM file with the CA of the relays, if their certificate is not from a public one
    #[arg(long, env, value_name = "SMTP_CA_FILE", help_heading = "Relays")]
    pub smtp_ca_file: Option<PathBuf>,

    /// Mails that one relay is sent at once, each over a connection of its own; the probe has one more. A relay's own
    /// `connections=N` in its URL goes before
    #[arg(long, env, value_name = "SMTP_CONNECTIONS", default_value = "8", help_heading = "Relays", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub smtp_connections: u32,

    /// How long one mail may take, from connecting to the relay's last answer; a relay that greets late has that long, too.
    /// A claimed mail is leased for twice as long and 20 s, so that no two workers hold one
    #[arg(long, env, value_name = "SMTP_DEADLINE", default_value = "20s", help_heading = "Relays", value_parser = |text: &str| between(text, 100 * MILLISECOND, MINUTE))]
    pub smtp_deadline: Duration,

    /// How long a connection is kept for the next mail. Shorter than the relay's own limit (RFC 5321 §4.5.3.2 asks for 5
    /// minutes, some close after 10 s), or it is often found closed
    #[arg(long, env, value_name = "SMTP_IDLE", default_value = "8s", help_heading = "Relays", value_parser = |text: &str| between(text, Duration::ZERO, HOUR))]
    pub smtp_idle: Duration,

    /// Mails that one connection carries before another is opened. Lower it to the relay's own limit, if that is less
    #[arg(long, env, value_name = "SMTP_MAILS_PER_CONNECTION", default_value = "100", help_heading = "Relays", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub smtp_mails_per_connection: u32,

    /// How often each relay is asked whether it is usable, while it is. While it is not, it is asked every second, or at this
    /// interval if that is shorter or the relay refuses the password
    #[arg(long, env, value_name = "SMTP_PROBE_INTERVAL", default_value = "10s", help_heading = "Relays", value_parser = |text: &str| between(text, 10 * MILLISECOND, MINUTE))]
    pub smtp_probe_interval: Duration,

    /// Connections that ask at once whether a relay is usable which is not. One begins every second although others are still
    /// unanswered; for a provider that minds, set 1
    #[arg(long, env, value_name = "SMTP_PROBES_WHILE_DOWN", default_value = "5", help_heading = "Relays", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub smtp_probes_while_down: u16,

    /// Where access tokens for relays come from.
    #[command(flatten)]
    pub smtp_oauth: OauthSettings,

    /// How often the outbox is looked through for mails that another process left, or whose time to retry has come
    #[arg(long, env, value_name = "OUTBOX_POLL_INTERVAL", default_value = "1s", help_heading = "Relays", value_parser = |text: &str| between(text, 10 * MILLISECOND, MINUTE))]
    pub outbox_poll_interval: Duration,

    /// How long a client may take to send the headers of a request, counted from the answer before on a kept connection.
    /// Longer than the proxy keeps idle connections (nginx: 60 s), or the two race
    #[arg(long, env, value_name = "HEADER_TIMEOUT", default_value = "75s", help_heading = "Limits", value_parser = |text: &str| between(text, 10 * MILLISECOND, HOUR))]
    pub header_timeout: Duration,

    /// How long a client may take to send the body of a request
    #[arg(long, env, value_name = "BODY_TIMEOUT", default_value = "10s", help_heading = "Limits", value_parser = |text: &str| between(text, 10 * MILLISECOND, HOUR))]
    pub body_timeout: Duration,

    /// How long a client may take to read an answer, or what of it did not fit into the kernel's buffer
    #[arg(long, env, value_name = "ANSWER_TIMEOUT", default_value = "10s", help_heading = "Limits", value_parser = |text: &str| between(text, 10 * MILLISECOND, HOUR))]
    pub answer_timeout: Duration,

    /// Octets that a request line and its headers may have together; longer ones are answered 431. Cookies of sibling
    /// hosts count
    #[arg(long, env, value_name = "MAX_HEADER", default_value = "16384", help_heading = "Limits", value_parser = clap::value_parser!(u32).range(1024..=1_048_576))]
    pub max_header: u32,

    /// Connections of clients that are open at once, or fewer if RLIMIT_NOFILE does not allow for them. When one more
    /// comes, those that wait for a request are closed to make room
    #[arg(long, env, value_name = "MAX_CONNECTIONS", default_value = "16384", help_heading = "Limits", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,

    /// How long to go on serving after SIGTERM with /readyz red, so that a load balancer notices first
    #[arg(long, env, value_name = "DRAIN_DELAY", default_value = "5s", help_heading = "Stopping", value_parser = |text: &str| between(text, Duration::ZERO, HOUR))]
    pub drain_delay: Duration,

    /// How long requests and mails under way may take to finish after that
    #[arg(long, env, value_name = "STOP_TIMEOUT", default_value = "25s", help_heading = "Stopping", value_parser = |text: &str| between(text, Duration::ZERO, HOUR))]
    pub stop_timeout: Duration,
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
