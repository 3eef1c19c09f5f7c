//! The admin API: where it listens, and which client certificates have which role.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use strum::{Display, EnumString, IntoStaticStr, VariantArray};

use crate::config::ConfigError;

/// Maximum length of the identity of a client certificate, in characters.
const MAX_IDENTITY: usize = 200;

/// What an operator may do. Each role may do what the roles before it may.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    clap::ValueEnum,
    Display,
    EnumString,
    IntoStaticStr,
    VariantArray,
    serde::Serialize,
    sqlx::Type,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Role {
    /// Reads.
    Auditor,
    /// Helps an owner: gives recovery tickets, lifts rate limits, ends sessions.
    Support,
    /// Changes accounts.
    Admin,
}

/// The admin API for operators.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Admin API")]
pub struct AdminSettings {
    /// Address and port of the admin API for operators. Without ADMIN_TLS_CERT it must be an
    /// address of this machine, such as 127.0.0.1:9091. Unset: there is no admin API
    #[arg(long, env)]
    pub admin_addr: Option<SocketAddr>,

    /// The file with the certificate chain of the admin API in PEM form. It is read again every
    /// minute
    #[arg(long, env)]
    pub admin_tls_cert: Option<PathBuf>,

    /// The file with the private key of ADMIN_TLS_CERT in PEM form
    #[arg(long, env)]
    pub admin_tls_key: Option<PathBuf>,

    /// The file with the authorities of client certificates in PEM form. Operators may then present
    /// a certificate instead of a token
    #[arg(long, env)]
    pub admin_client_ca: Option<PathBuf>,

    /// The roles of client certificates, separated by commas: a SPIFFE ID or the common name of the
    /// subject, and auditor, support or admin, such as
    /// spiffe://verolabs.co/desk=support,CN=alice=admin
    #[arg(long, env, value_delimiter = ',')]
    pub admin_client_roles: Vec<ClientRole>,

    /// How many recoveries one operator may help in an hour, for all replicas together. Tickets and
    /// changes of the address count
    #[arg(long, env, default_value = "20", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub operator_per_hour: u32,
}

impl AdminSettings {
    /// The address of the admin API, if there is one.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable if one of these settings needs another, if an identity is
    /// named twice, or if tokens would be sent without TLS to another machine.
    pub fn address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(address) = self.admin_addr else { return Ok(None) };
        let needs = |variable, why: &str| Err(ConfigError::new(variable, why));
        match (&self.admin_tls_cert, &self.admin_tls_key, &self.admin_client_ca) {
            (Some(_), None, _) => {
                return needs("ADMIN_TLS_KEY", "is missing: set it to the key of ADMIN_TLS_CERT");
            }
            (None, Some(_), _) => {
                return needs("ADMIN_TLS_CERT", "is missing: set it, or unset ADMIN_TLS_KEY");
            }
            (None, _, Some(_)) => return needs("ADMIN_CLIENT_CA", "is set without ADMIN_TLS_CERT: set both"),
            (_, _, None) if !self.admin_client_roles.is_empty() => {
                return needs("ADMIN_CLIENT_ROLES", "is set without ADMIN_CLIENT_CA: set both");
            }
            _ => {}
        }
        if self.admin_tls_cert.is_none() && !address.ip().is_loopback() {
            let why = "is not an address of this machine alone, so tokens of operators would be sent without TLS: \
                       set ADMIN_TLS_CERT and ADMIN_TLS_KEY, or use 127.0.0.1";
            return Err(ConfigError::new("ADMIN_ADDR", why));
        }
        let mut identities: Vec<_> = self.admin_client_roles.iter().map(|known| &known.identity).collect();
        identities.sort_unstable();
        if identities.windows(2).any(|two| two[0] == two[1]) {
            return needs("ADMIN_CLIENT_ROLES", "names an identity twice: give each one role");
        }
        Ok(Some(address))
    }
}

/// The role of one client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRole {
    /// `spiffe://…`, or `CN=` and the common name.
    pub identity: String,
    /// What its holder may do.
    pub role: Role,
}

/// The error continues clap's sentence about the value that cannot be used.
impl FromStr for ClientRole {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str =
            "write spiffe://TRUST-DOMAIN/PATH=ROLE or CN=NAME=ROLE, with a role of auditor, support or admin";
        let (identity, role) = text.trim().rsplit_once('=').ok_or(FORM)?;
        let role = role.parse().map_err(|_| FORM)?;
        let name = identity.strip_prefix("spiffe://").or_else(|| identity.strip_prefix("CN=")).ok_or(FORM)?;
        if name.is_empty() || identity.chars().count() > MAX_IDENTITY || name.chars().any(char::is_control) {
            return Err(FORM);
        }
        Ok(Self { identity: identity.to_owned(), role })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_a_spiffe_id_or_a_common_name() {
        let read = |text: &str| text.parse::<ClientRole>().map(|read| (read.identity, read.role));
        assert_eq!(read("spiffe://a/b=support"), Ok(("spiffe://a/b".into(), Role::Support)));
        assert_eq!(read(" CN=Alice Nguyen=admin"), Ok(("CN=Alice Nguyen".into(), Role::Admin)));
        for bad in [
            "",
            "alice=admin",
            "CN=alice",
            "CN==admin",
            "spiffe://=admin",
            "spiffe://a/b=root",
            "CN=a\n=admin",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
