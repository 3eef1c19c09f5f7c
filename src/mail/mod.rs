//! Mail: what it says ([`message`]) and how it reaches a relay ([`gateway`]). Nothing outside this module and
//! `email_address.rs` knows lettre.

pub mod bounce;
mod connect;
mod conversation;
pub mod device;
pub mod gateway;
pub mod message;
pub mod not_sent;
mod probe;
mod relay;
pub mod report;
mod sender;
mod standing;
mod tls;
pub mod verdict;
