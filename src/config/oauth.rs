//! The OAuth 2.0 client that requests access tokens for relays.

use std::str::FromStr;

use url::Url;

use super::is_local;

/// The settings of the OAuth client. Its secrets are in [`super::OauthSecrets`].
#[derive(Clone, Debug, Default, clap::Args)]
pub struct OauthSettings {
    /// The token endpoint (RFC 6749) for every relay whose URL has `auth=xoauth2`, such as
    /// <https://login.microsoftonline.com/TENANT/oauth2/v2.0/token> or
    /// <https://oauth2.googleapis.com/token>
    #[arg(long, env)]
    pub smtp_oauth_token_url: Option<TokenUrl>,

    /// The client id that the provider gave this application
    #[arg(long, env)]
    pub smtp_oauth_client_id: Option<String>,

    /// The scopes of the access token, separated by spaces:
    /// <https://outlook.office365.com/.default> for Exchange Online. Default: chosen by the
    /// provider
    #[arg(long, env)]
    pub smtp_oauth_scope: Option<String>,
}

/// A token endpoint: https, or http on this machine, because the client's secret is sent to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenUrl(Url);

impl TokenUrl {
    /// Whether the endpoint uses TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// The endpoint as a URL.
    #[must_use]
    pub const fn url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for TokenUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text).map_err(|_| "write it like https://oauth2.googleapis.com/token")?;
        if url.scheme() != "https" && !(url.scheme() == "http" && is_local(url.host())) {
            return Err(
                "use https, because a secret is sent to it; http is allowed for an endpoint on this machine",
            );
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("flags are visible to other users: put the secret into SMTP_OAUTH_CLIENT_SECRET");
        }
        // RFC 6749 §3.2.
        if url.fragment().is_some() { Err("a token endpoint has no fragment (#)") } else { Ok(Self(url)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_url_keeps_secrets_off_the_network_and_out_of_flags() {
        for good in [
            "https://login.microsoftonline.com/t/oauth2/v2.0/token",
            "https://x.vn/token?tenant=1",
            "http://127.0.0.1:8080/token",
            "http://[::1]/token",
            "http://localhost/token",
        ] {
            assert!(good.parse::<TokenUrl>().is_ok(), "{good}");
        }
        for bad in
            ["", "x.vn/token", "http://x.vn/token", "ftp://x.vn", "https://u:p@x.vn/token", "https://x.vn/#a"]
        {
            assert!(bad.parse::<TokenUrl>().is_err(), "{bad}");
        }
    }
}
