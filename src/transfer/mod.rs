//! Moves accounts between systems: in from Ory Kratos or a file, out to a file or back into Kratos.

pub mod export;
pub mod import;
pub mod kratos;
