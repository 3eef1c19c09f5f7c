//! Writes a man page for each command, made from its `--help`, into the folder given. Run by `make deb`; a bench target,
//! because `cargo build` and `cargo test` leave those out.

use clap::CommandFactory as _;
use vos_auth::cli::Cli;

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).expect("the folder to write to");
    clap_mangen::generate_to(Cli::command(), folder)
}
