//! JSON Web Tokens for the REST API.

use std::path::PathBuf;

/// JSON Web Tokens for the REST API.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "JWT")]
pub struct JwtSettings {
    /// The folder of the keys that sign JWTs, made by `vos-auth key generate`. It is read again
    /// every minute. Required by `serve`
    #[arg(long, env)]
    pub jwt_keys: Option<PathBuf>,

    /// The issuer (iss) of JWTs. Default: PUBLIC_ORIGIN
    #[arg(long, env)]
    pub jwt_issuer: Option<String>,

    /// The audience (aud) of JWTs: the REST API
    #[arg(long, env, default_value = "https://api-oms.verolabs.co")]
    pub jwt_audience: String,
}
