//! The confirmation of destructive commands: on a terminal they ask, elsewhere they need `--yes`.

use std::fmt::Display;
use std::io::{IsTerminal as _, stderr, stdin};

use clap::Args;

use super::Failure;
use crate::terminal;

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Confirmation {
    /// Do not ask. Required unless the command runs on a terminal
    #[arg(long, conflicts_with = "dry_run")]
    yes: bool,
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Confirmation {
    /// Whether to go on. `extent` says what will be done, such as "end 3 sessions of 2 accounts".
    /// `email` is the address of the account: it is shown, but no error contains it.
    ///
    /// # Errors
    ///
    /// A sentence if the operator says no, or cannot be asked.
    pub(super) fn allows(self, extent: impl Display, email: Option<&str>) -> Result<bool, Failure> {
        let address = email.map(|email| format!(" Its address is {email}.")).unwrap_or_default();
        if self.dry_run {
            terminal::line(format_args!("Dry run: this would {extent}.{address}"));
            return Ok(false);
        }
        if self.yes {
            return Ok(true);
        }
        if !(stdin().is_terminal() && stderr().is_terminal()) {
            return Err(format!(
                "this would {extent}: run it on a terminal, which asks first, or with --yes. Nothing was changed"
            )
            .into());
        }
        terminal::error_line(format_args!("This will {extent}.{address}"));
        terminal::error_line_start("Continue? [y/N] ");
        let mut answer = String::new();
        stdin().read_line(&mut answer)?;
        if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            return Ok(true);
        }
        Err("nothing was changed".into())
    }
}

/// A number of things in words: "1 session", "1,240 sessions".
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    if number == 1 {
        return format!("1 {one}");
    }
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{grouped} {many}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let sessions = |number| counted(number, "session", "sessions");
        assert_eq!([0, 1, 2, 999].map(sessions), ["0 sessions", "1 session", "2 sessions", "999 sessions"]);
        assert_eq!(
            [1240, 12_400, 1_240_000].map(sessions),
            ["1,240 sessions", "12,400 sessions", "1,240,000 sessions"]
        );
    }
}
