//! Mail: what it says ([`message`]) and how it reaches a relay ([`gateway`]). Nothing outside this module and
//! `email_address.rs` knows lettre.

mod connect;
mod conversation;
pub mod device;
pub mod gateway;
pub mod message;
pub mod not_sent;
mod probe;
mod relay;
mod tls;
