//! Every setting: variable, flag, unit, default, reason. The doc comments are the help text of `vos-auth serve --help`.
//!
//! Secrets are read from the environment or from a file that `NAME_FILE` names, never from a flag: `ps` shows flags.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use url::{Host, Url};

use crate::secret::CodeKeys;

/// How long a recovery code lives. A published promise (OWASP ASVS 5.0 6.5.5: at most 10 minutes), so no setting.
pub const CODE_LIFETIME: Duration = Duration::from_mins(10);
/// A mail that would arrive with less of its code's life than this is not sent.
pub const CODE_LIFE_ON_ARRIVAL: Duration = Duration::from_mins(1);
/// A resend keeps a session that has at least this long to live; with less, `start` begins a new one.
pub const RESEND_LIFE: Duration = Duration::from_mins(3);
/// How long a request waits for the database before it is answered 502.
pub const STORAGE_DEADLINE: Duration = Duration::from_secs(2);
/// The longest request body that is read, in octets.
pub const MAX_BODY: usize = 16 * 1024;
/// The most characters of a User-Agent that are kept.
pub const MAX_USER_AGENT: usize = 200;

const MILLISECOND: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

fn between(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if (least..=most).contains(&duration) {
        return Ok(duration);
    }
    let show = humantime::format_duration;
    Err(format!("it has to be between {} and {}", show(least), show(most)))
}

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

    /// Networks (CIDR, separated by commas) of the proxies whose X-Forwarded-For and X-Request-Id are believed. Empty:
    /// nobody's
    #[arg(long, env, value_name = "TRUSTED_PROXIES", value_delimiter = ',', help_heading = "Clients")]
    pub trusted_proxies: Vec<IpNet>,

    /// Requests that one network (an IPv4 address or an IPv6 /64) may send at once, a replica
    #[arg(long, env, value_name = "NETWORK_BURST", default_value = "30", help_heading = "Budgets", value_parser = clap::value_parser!(u32).range(1..))]
    pub network_burst: u32,

    /// Requests that one network may send a minute in the long run, a replica
    #[arg(long, env, value_name = "NETWORK_PER_MINUTE", default_value = "60", help_heading = "Budgets", value_parser = clap::value_parser!(u32).range(1..))]
    pub network_per_minute: u32,

    /// Codes that one address may be sent at once; one more every 5 minutes. At most 3: the bound on guesses rests on it
    #[arg(long, env, value_name = "ADDRESS_BURST", default_value = "3", help_heading = "Budgets", value_parser = clap::value_parser!(u32).range(1..=3))]
    pub address_burst: u32,

    /// Codes that one address may be sent a day. At most 10 (19 in any 24 hours, with the burst): the bound on guesses
    /// rests on it
    #[arg(long, env, value_name = "ADDRESS_PER_DAY", default_value = "10", help_heading = "Budgets", value_parser = clap::value_parser!(u32).range(1..=10))]
    pub address_per_day: u32,

    /// Connections to PostgreSQL beside the one of `start` and the two of the courier
    #[arg(long, env, value_name = "DATABASE_CONNECTIONS", default_value = "5", help_heading = "Storage", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub database_connections: u32,

    /// Starts that may wait for the database at once; further ones are answered 502, so that waiting stays short
    #[arg(long, env, value_name = "START_QUEUE", default_value = "4096", help_heading = "Storage", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub start_queue: u32,

    /// Starts that are committed together at most
    #[arg(long, env, value_name = "START_BATCH", default_value = "256", help_heading = "Storage", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub start_batch: u32,

    /// How long audit events are kept, such as 365days: what your law and your auditors ask for
    #[arg(long, env, value_name = "AUDIT_RETENTION", default_value = "365days", help_heading = "Storage", value_parser = |text: &str| between(text, DAY, 36_500 * DAY))]
    pub audit_retention: Duration,

    /// Who mails are from: a name and an address
    #[arg(
        long,
        env,
        value_name = "MAIL_FROM",
        default_value = "Vero OMS <no-reply@verolabs.co>",
        help_heading = "Mail"
    )]
    pub mail_from: String,

    /// Where bounces go (the envelope's sender). Default: the address of MAIL_FROM
    #[arg(long, env, value_name = "MAIL_BOUNCES", help_heading = "Mail")]
    pub mail_bounces: Option<String>,

    /// What the product is called in mails
    #[arg(long, env, value_name = "MAIL_BRAND", default_value = "Vero OMS", help_heading = "Mail")]
    pub mail_brand: String,

    /// Whom a worried reader of a mail writes to
    #[arg(
        long,
        env,
        value_name = "MAIL_SUPPORT",
        default_value = "support@verolabs.co",
        help_heading = "Mail"
    )]
    pub mail_support: String,

    /// The time zone of the times in mails, by its IANA name
    #[arg(
        long,
        env,
        value_name = "MAIL_TIME_ZONE",
        default_value = "Asia/Ho_Chi_Minh",
        help_heading = "Mail"
    )]
    pub mail_time_zone: String,

    /// The name that relays are greeted with (EHLO): this host's public name
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

    /// Mails that are sent at once, each over a connection of its own
    #[arg(long, env, value_name = "SMTP_CONNECTIONS", default_value = "8", help_heading = "Relays", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub smtp_connections: u32,

    /// How long one mail may take, from connecting to the relay's last answer. A claimed mail is leased for three times
    /// as long, so that no two workers hold one
    #[arg(long, env, value_name = "SMTP_DEADLINE", default_value = "20s", help_heading = "Relays", value_parser = |text: &str| between(text, 100 * MILLISECOND, MINUTE))]
    pub smtp_deadline: Duration,

    /// How often each relay is asked whether it is usable
    #[arg(long, env, value_name = "SMTP_PROBE_INTERVAL", default_value = "10s", help_heading = "Relays", value_parser = |text: &str| between(text, 10 * MILLISECOND, MINUTE))]
    pub smtp_probe_interval: Duration,

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

    /// How long to go on serving after SIGTERM with /readyz red, so that a load balancer notices first
    #[arg(long, env, value_name = "DRAIN_DELAY", default_value = "5s", help_heading = "Stopping", value_parser = |text: &str| between(text, Duration::ZERO, HOUR))]
    pub drain_delay: Duration,

    /// How long requests and mails under way may take to finish after that
    #[arg(long, env, value_name = "STOP_TIMEOUT", default_value = "25s", help_heading = "Stopping", value_parser = |text: &str| between(text, Duration::ZERO, HOUR))]
    pub stop_timeout: Duration,
}

/// What must not be seen: where it is stored, what codes are derived from, who may send mail.
#[derive(Clone)]
pub struct Secrets {
    /// `DATABASE_URL`.
    pub database_url: String,
    /// `RECOVERY_SECRETS`.
    pub code_keys: CodeKeys,
    /// `SMTP_RELAYS`, in order of preference.
    pub smtp_relays: Vec<String>,
}

impl Secrets {
    /// Reads `DATABASE_URL`, `RECOVERY_SECRETS` and `SMTP_RELAYS`, or the files that their `_FILE` forms name.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable that is missing, doubled, unreadable or too weak.
    pub fn from_environment() -> Result<Self, ConfigError> {
        let code_keys = required(
            "RECOVERY_SECRETS",
            "give it as 1:SECRET, with a SECRET from `openssl rand -base64 32`",
        )?
        .parse()
        .map_err(|why| ConfigError::new("RECOVERY_SECRETS", why))?;
        let relays =
            required("SMTP_RELAYS", "give it as smtp://USER:PASSWORD@HOST:587 (STARTTLS) or smtps://…:465")?;
        Ok(Self {
            database_url: database_url()?,
            code_keys,
            smtp_relays: relays
                .split([',', '\n', ' '])
                .filter(|url| !url.is_empty())
                .map(str::to_owned)
                .collect(),
        })
    }
}

/// `DATABASE_URL` alone, for commands that need nothing else.
///
/// # Errors
///
/// A sentence that names the variable if it is missing, doubled or unreadable.
pub fn database_url() -> Result<String, ConfigError> {
    required("DATABASE_URL", "give it as postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full")
}

fn required(name: &'static str, hint: &str) -> Result<String, ConfigError> {
    match secret(name)? {
        Some(value) => Ok(value),
        None => Err(ConfigError::new(
            name,
            format!("is missing: {hint}, or name a file that holds it in {name}_FILE"),
        )),
    }
}

fn secret(name: &'static str) -> Result<Option<String>, ConfigError> {
    let value = std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let Some(path) = std::env::var_os(format!("{name}_FILE")).filter(|path| !path.is_empty()) else {
        return Ok(value.map(|value| value.trim().to_owned()));
    };
    if value.is_some() {
        return Err(ConfigError::new(name, format!("is given twice: drop it or {name}_FILE")));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| {
        ConfigError::new(name, format!("cannot be read from the file in {name}_FILE: {error}"))
    })?;
    Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
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

/// Scheme, host and port of a web page (RFC 6454), as a browser writes them in the header Origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// As a browser writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text).map_err(|_| "write it like https://platform.verolabs.co")?;
        if url.scheme() != "https" && !(url.scheme() == "http" && is_local(url.host())) {
            return Err("only https is safe here, save for http://localhost");
        }
        let origin = url.origin().ascii_serialization();
        if text.trim_end_matches('/') != origin {
            return Err(
                "write the scheme, the host in lower case and the port if it is not the usual one, nothing more",
            );
        }
        Ok(Self(origin))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a host is this machine, so that plain text to it crosses no network.
#[must_use]
pub fn is_local<S: AsRef<str>>(host: Option<Host<S>>) -> bool {
    match host {
        Some(Host::Domain(name)) => name.as_ref() == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_would_write() {
        for good in
            ["https://platform.verolabs.co", "http://localhost:8080", "https://x.vn:8443", "https://x.vn/"]
        {
            assert_eq!(good.parse::<Origin>().unwrap().as_str(), good.trim_end_matches('/'));
        }
        for bad in [
            "platform.verolabs.co",
            "http://x.vn",
            "https://x.vn/path",
            "https://X.vn",
            "null",
            "",
            "https://x.vn:443",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }
}
