//! The files of Postfix. `scripts/apt-install` unpacks them under target/ and does not install
//! them, so that an installed mail server of the machine is not replaced.

use std::path::PathBuf;
use std::process::Command;

use crate::place;

fn root() -> PathBuf {
    place::target().join("postfix")
}

/// A path such as `usr/sbin/postfix`.
pub fn path(file: &str) -> PathBuf {
    root().join(file)
}

/// A command for a program such as `usr/sbin/postfix`, which can find its libraries.
pub fn program(file: &str) -> Command {
    let mut command = Command::new(path(file));
    command.envs([libraries()]);
    command
}

/// The variable by which a program finds the libraries.
pub fn libraries() -> (&'static str, PathBuf) {
    ("LD_LIBRARY_PATH", path("usr/lib/postfix"))
}

/// The lines of main.cf that name the folders, and Postfix's user and group.
pub fn main_cf() -> String {
    let root = root().display().to_string();
    format!(
        "command_directory = {root}/usr/sbin
daemon_directory = {root}/usr/lib/postfix/sbin
meta_directory = {root}/etc/postfix
shlib_directory = {root}/usr/lib/postfix
import_environment = LANG=C TZ MAIL_CONFIG MAIL_LOGTAG POSTLOG_SERVICE POSTLOG_HOSTNAME LD_LIBRARY_PATH
mail_owner = postfix
setgid_group = postdrop"
    )
}
