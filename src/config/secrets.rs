//! Secrets: read from the environment or from a file, never from a flag.

use super::{ConfigError, ConfigErrors};
use crate::secret::Keys;

/// The secrets of `serve`. A secret that is missing or wrong is `None`.
#[derive(Clone)]
pub struct Secrets {
    /// `DATABASE_URL`.
    pub database_url: Option<String>,
    /// `ADMIN_DATABASE_URL`: the same database, as a role that may change accounts.
    pub admin_database_url: Option<String>,
    /// `RECOVERY_SECRETS`: keys that recovery codes are derived from.
    pub code_keys: Option<Keys>,
    /// `DEVICE_SECRETS`: keys that authenticate device cookies and recovery tickets.
    pub device_keys: Option<Keys>,
    /// `FACTOR_SECRETS`: keys that encrypt secrets of second factors. Without them nobody can enrol.
    pub factor_keys: Option<Keys>,
    /// `SMTP_RELAYS`: the URLs of the relays, in order of preference.
    pub smtp_relays: Option<Vec<String>>,
    /// The secrets that request access tokens for relays.
    pub smtp_oauth: OauthSecrets,
    /// `EVENT_HOOKS`: the receivers of events, with their URLs and secrets. Empty: none.
    pub event_hooks: String,
}

/// The secrets that request access tokens for relays (RFC 6749). With a refresh token the client
/// acts for a user (§6), without one for itself (§4.4).
#[derive(Clone, Default)]
pub struct OauthSecrets {
    /// `SMTP_OAUTH_CLIENT_SECRET`.
    pub client_secret: Option<String>,
    /// `SMTP_OAUTH_REFRESH_TOKEN`.
    pub refresh_token: Option<String>,
}

impl OauthSecrets {
    /// Reads both variables, or the files that their `_FILE` forms name.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable if it is given twice or unreadable.
    pub fn from_environment() -> Result<Self, ConfigError> {
        Ok(Self {
            client_secret: secret("SMTP_OAUTH_CLIENT_SECRET")?,
            refresh_token: secret("SMTP_OAUTH_REFRESH_TOKEN")?,
        })
    }
}

impl Secrets {
    /// Reads the variables of [`SECRETS`], or the files that their `_FILE` forms name. Adds to
    /// `problems` each variable that is given twice, unreadable, too weak, or required and missing.
    pub fn from_environment(problems: &mut ConfigErrors) -> Self {
        Self {
            database_url: problems.take(database_url()),
            admin_database_url: problems.take(secret("ADMIN_DATABASE_URL")).flatten(),
            code_keys: problems.take(keys("RECOVERY_SECRETS")),
            device_keys: problems.take(device_secrets()),
            factor_keys: problems.take(optional_keys("FACTOR_SECRETS")).flatten(),
            smtp_relays: problems.take(smtp_relays()),
            smtp_oauth: OauthSecrets {
                client_secret: problems.take(secret("SMTP_OAUTH_CLIENT_SECRET")).flatten(),
                refresh_token: problems.take(secret("SMTP_OAUTH_REFRESH_TOKEN")).flatten(),
            },
            event_hooks: problems.take(secret("EVENT_HOOKS")).flatten().unwrap_or_default(),
        }
    }
}

/// The variables of the secrets of `serve`.
pub const SECRETS: [&str; 9] = [
    "DATABASE_URL",
    "ADMIN_DATABASE_URL",
    "RECOVERY_SECRETS",
    "DEVICE_SECRETS",
    "FACTOR_SECRETS",
    "SMTP_RELAYS",
    "SMTP_OAUTH_CLIENT_SECRET",
    "SMTP_OAUTH_REFRESH_TOKEN",
    "EVENT_HOOKS",
];

/// Where a secret is read from: `environment`, or its file. `None` if it is not set.
#[must_use]
pub fn secret_source(name: &str) -> Option<String> {
    match std::env::var_os(format!("{name}_FILE")).filter(|path| !path.is_empty()) {
        Some(path) => Some(format!("file {}", path.display())),
        None => std::env::var_os(name).filter(|value| !value.is_empty()).map(|_| "environment".into()),
    }
}

/// Reads `DATABASE_URL`, for commands that need no other secret.
///
/// # Errors
///
/// A sentence that names the variable if it is missing, given twice or unreadable.
pub fn database_url() -> Result<String, ConfigError> {
    required("DATABASE_URL", "set it to postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full")
}

/// Reads `DEVICE_SECRETS`.
///
/// # Errors
///
/// A sentence that names the variable if it is missing, given twice, unreadable or too weak.
pub fn device_secrets() -> Result<Keys, ConfigError> {
    keys("DEVICE_SECRETS")
}

/// Reads `SMTP_RELAYS`.
///
/// # Errors
///
/// A sentence that names the variable if it is missing, given twice or unreadable.
pub fn smtp_relays() -> Result<Vec<String>, ConfigError> {
    let relays =
        required("SMTP_RELAYS", "set it to smtp://USER:PASSWORD@HOST:587 (STARTTLS) or smtps://…:465")?;
    Ok(relays.split([',', '\n', ' ']).filter(|url| !url.is_empty()).map(str::to_owned).collect())
}

/// Reads `KRATOS_AUTHORIZATION`: the header `Authorization` for Kratos's admin API, if a proxy in
/// front of it requires one.
///
/// # Errors
///
/// A sentence that names the variable if it is given twice or unreadable.
pub fn kratos_authorization() -> Result<Option<String>, ConfigError> {
    secret("KRATOS_AUTHORIZATION")
}

fn keys(name: &'static str) -> Result<Keys, ConfigError> {
    let text = required(name, "set it to 1:SECRET, with a SECRET from `openssl rand -base64 32`")?;
    text.parse().map_err(|why| ConfigError::new(name, why))
}

fn optional_keys(name: &'static str) -> Result<Option<Keys>, ConfigError> {
    secret(name)?.map(|text| text.parse().map_err(|why| ConfigError::new(name, why))).transpose()
}

fn required(name: &'static str, hint: &str) -> Result<String, ConfigError> {
    match secret(name)? {
        Some(value) => Ok(value),
        None => Err(ConfigError::new(
            name,
            format!("is missing: {hint}, or set {name}_FILE to a file that contains it"),
        )),
    }
}

fn secret(name: &'static str) -> Result<Option<String>, ConfigError> {
    let value = std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let Some(path) = std::env::var_os(format!("{name}_FILE")).filter(|path| !path.is_empty()) else {
        return Ok(value.map(|value| value.trim().to_owned()));
    };
    if value.is_some() {
        return Err(ConfigError::new(name, format!("is given twice: unset it or {name}_FILE")));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| {
        ConfigError::new(name, format!("cannot be read from the file in {name}_FILE: {error}"))
    })?;
    Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
}
