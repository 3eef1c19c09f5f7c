//! Emails: building them ([`message`]) and sending them through relays ([`gateway`]). Only this
//! module and [`crate::email_address`] use lettre.

pub mod bounce;
mod check;
mod connect;
pub mod content;
mod conversation;
mod demotion;
pub mod device;
pub mod dkim;
pub mod gateway;
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

/// An email cannot be built: an address or a setting does not fit into a header.
#[derive(Debug, thiserror::Error)]
#[error("the email could not be built")]
pub struct Unbuildable;
