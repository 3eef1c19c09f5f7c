//! `vos-auth completions` and `vos-auth man`: files for packages, generated from the command line.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Failure};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell. Save the script as ~/.local/share/bash-completion/completions/vos-auth for bash, as
    /// _vos-auth in a folder of $fpath for zsh, as ~/.config/fish/completions/vos-auth.fish for fish
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The folder to write to
    folder: PathBuf,
}

pub(super) fn completions(completions: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(completions.shell, &mut Cli::command(), "vos-auth", &mut script);
    // For bash, clap_complete 4.6 spells a hyphenated name in two ways (clap-rs/clap issue 6421).
    let script = String::from_utf8(script)?.replace("vos__subcmd__auth__", "vos__auth__");
    // The script is not escaped: it may contain tabs, and nothing in it comes from outside.
    Ok(std::io::stdout().write_all(script.as_bytes())?)
}

pub(super) fn man(man: &Man) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(&man.folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &man.folder));
    Ok(written.map_err(|error| format!("{} cannot be written: {error}", man.folder.display()))?)
}
