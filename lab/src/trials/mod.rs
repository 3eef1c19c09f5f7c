//! The trials. Each one breaks or counts something, and ends with an error if the service did not
//! keep a promise.

pub mod blind;
pub mod chaos;
pub mod cost;
pub mod failover;
pub mod hostile;
pub mod import;
pub mod upgrade;
