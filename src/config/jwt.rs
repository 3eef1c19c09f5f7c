//! JSON Web Tokens for the REST API.

use std::path::PathBuf;

/// JSON Web Tokens for the REST API.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "JWT")]
pub struct JwtSettings {
    /// The folder with the keys that sign JWTs, as `vos-auth key generate` makes them; it is read again every minute.
    /// Required by `serve`
    #[arg(long, env)]
    pub jwt_keys: Option<PathBuf>,

    /// Who a JWT says it is from (iss). Default: PUBLIC_ORIGIN
    #[arg(long, env)]
    pub jwt_issuer: Option<String>,

    /// Whom a JWT is for (aud): the REST API
    #[arg(long, env, default_value = "https://api-oms.verolabs.co")]
    pub jwt_audience: String,
}
