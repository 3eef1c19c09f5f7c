//! The client of a request.

use std::net::IpAddr;

use crate::locale::Locale;

/// What the service stores about the client of a request.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its IP address, as reported by trusted proxies.
    pub ip: IpAddr,
    /// Its User-Agent, cut to 200 characters.
    pub user_agent: String,
    /// The language it prefers, if the service has it.
    pub locale: Option<Locale>,
}
