//! The program; `lib.rs` has the map.

use std::process::ExitCode;

/// Quicker than glibc's, whose lists of a thread end at a kilobyte (docs/decisions/0024).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    vos_auth::cli::main()
}
