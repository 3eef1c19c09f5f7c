//! Who asks, as far as a request says it.

use std::net::IpAddr;

use crate::locale::Locale;

/// Who asks: what is stored of a client beside a session.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address, as seen through trusted proxies.
    pub ip: IpAddr,
    /// Its User-Agent, cut to 200 characters.
    pub user_agent: String,
    /// The language it asks for, if it is one of ours.
    pub locale: Option<Locale>,
}
