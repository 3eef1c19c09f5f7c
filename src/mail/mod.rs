//! Mail: what it says ([`message`]) and how it reaches a relay ([`gateway`]). Nothing outside this module and
//! `email_address.rs` knows lettre.

pub mod bounce;
mod connect;
mod conversation;
mod demotion;
pub mod device;
pub mod dkim;
pub mod gateway;
mod headers;
pub mod message;
pub mod not_sent;
mod oauth;
mod probe;
mod relay;
mod relay_url;
pub mod report;
mod sender;
mod sign_in;
mod tls;
pub mod verdict;

/// A mail could not be built: the address or a setting does not fit a header.
#[derive(Debug, thiserror::Error)]
#[error("the mail could not be built")]
pub struct Unbuildable;
