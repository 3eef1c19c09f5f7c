//! Moves accounts between systems: imports from Ory Kratos or a file, exports to a file or into
//! Kratos.

pub mod export;
pub mod import;
pub mod kratos;
