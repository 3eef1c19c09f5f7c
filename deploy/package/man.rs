//! Writes a man page for each command, generated from its `--help`, into the given folder. `make deb` runs it. It is a bench
//! target, because `cargo build` and `cargo test` do not build those.

use clap::CommandFactory as _;
use vos_auth::cli::Cli;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).expect("the folder to write to");
    clap_mangen::generate_to(Cli::command(), folder)
}
