//! Which browsers and proxies the service trusts.

use ipnet::IpNet;

use super::origin::Origin;

/// Which browsers and proxies the service trusts.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Clients")]
pub struct ClientSettings {
    /// The origin that browsers see, such as <https://platform.verolabs.co>. Requests from other
    /// origins are refused. Required by `serve`
    #[arg(long, env)]
    pub public_origin: Option<Origin>,

    /// Further origins whose pages may call the API, separated by commas. They must be same-site
    /// with PUBLIC_ORIGIN, or browsers do not send the cookie
    #[arg(long, env, value_delimiter = ',')]
    pub allowed_origins: Vec<Origin>,

    /// Networks (CIDR, separated by commas) of the proxies whose X-Forwarded-For, X-Request-Id and
    /// traceparent are trusted. Empty: none
    #[arg(long, env, value_delimiter = ',')]
    pub trusted_proxies: Vec<IpNet>,
}
