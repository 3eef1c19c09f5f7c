//! The program; `lib.rs` has the map.

use std::process::ExitCode;

/// Faster than glibc's allocator, whose per-thread cache ends at 1 KiB (docs/decisions/0024).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    vos_auth::cli::main()
}
