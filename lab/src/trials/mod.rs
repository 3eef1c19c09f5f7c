//! The trials: each breaks or counts something, and ends with an error if a promise was broken.

pub mod blind;
pub mod chaos;
pub mod cost;
pub mod failover;
pub mod hostile;
pub mod import;
pub mod upgrade;
