//! The program; `lib.rs` has the map.

use std::process::ExitCode;

fn main() -> ExitCode {
    vos_auth::cli::main()
}
