//! Reads the command line and the environment variables. Reports all values that cannot be used
//! together; clap itself stops at the first.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command, CommandFactory as _, FromArgMatches as _};

use super::Cli;
use crate::config::{ConfigError, ConfigErrors};
use crate::terminal;

/// The parsed command line and environment variables.
pub(super) struct Arguments {
    pub(super) cli: Cli,
    pub(super) matches: ArgMatches,
    /// Values that cannot be used. `cli` was parsed without them.
    pub(super) problems: ConfigErrors,
}

/// The exit code for a bad command line or a bad value.
pub(super) const BAD_ARGUMENTS: u8 = 2;

/// Reads the command line and the environment variables.
///
/// # Errors
///
/// The exit code, after printing why the command line was refused, or the help.
pub(super) fn read() -> Result<Arguments, ExitCode> {
    let mut command = unset_empty_variables(Cli::command());
    let mut line: Vec<_> = std::env::args_os().collect();
    let mut problems = ConfigErrors::default();
    loop {
        let matches = command.clone().try_get_matches_from(&line);
        let error = match matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches))) {
            Ok((cli, matches)) => return Ok(Arguments { cli, matches, problems }),
            Err(error) => error,
        };
        let Some(argument) = refused_argument(&error) else {
            // A required value may be missing only because its bad value was removed: report the
            // bad value.
            return Err(if problems.is_empty() { refuse(&error) } else { print(&problems) });
        };
        problems.add(problem(&argument, &error));
        // Without the bad value, the next run of the loop finds the next problem.
        if !remove_flag(&mut line, &argument.flag) {
            let Some(without) = without_variable(&command, &argument.flag) else {
                return Err(print(&problems));
            };
            command = without;
        }
    }
}

/// Prints the problems, and returns the exit code for them.
pub(super) fn print(problems: &ConfigErrors) -> ExitCode {
    for problem in problems.iter() {
        terminal::error_line(format_args!("vos-auth: {problem}"));
    }
    ExitCode::from(BAD_ARGUMENTS)
}

/// Treats an empty environment variable as unset: compose files and manifests often pass an unset
/// variable as an empty one.
fn unset_empty_variables(command: Command) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|argument| match argument.get_env() {
            Some(name) if is_empty(name) => argument.env(None::<&str>),
            _ => argument,
        })
        .mut_subcommands(unset_empty_variables)
}

/// An argument as clap names it: `--http-addr <HTTP_ADDR>`.
struct Argument {
    flag: String,
    variable: String,
}

/// The argument that the error is about, if the error is a value that cannot be used.
fn refused_argument(error: &clap::Error) -> Option<Argument> {
    let (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(ContextValue::String(argument))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    else {
        return None;
    };
    let flag = argument.split([' ', '=']).next().unwrap_or_default().to_owned();
    Some(Argument { flag, variable: argument.split(['<', '>']).nth(1)?.to_owned() })
}

/// The problem as a sentence that names the variable, even if the value is from a flag.
fn problem(argument: &Argument, error: &clap::Error) -> ConfigError {
    // Email addresses, and URLs with a password or a token, must not reach a log.
    let value = error.get(ContextKind::InvalidValue).map(ToString::to_string).unwrap_or_default();
    let value =
        if value.contains(['@', '?', '#']) { "its current value".into() } else { format!("{value:?}") };
    let why = std::error::Error::source(error).map(|why| format!(": {why}")).unwrap_or_default();
    ConfigError::new(argument.variable.clone(), format!("cannot be {value}{why}"))
}

/// Removes a flag and its value. Returns whether the line had the flag.
fn remove_flag(line: &mut Vec<OsString>, flag: &str) -> bool {
    let Some(place) = line.iter().position(|word| is_flag(word, flag)) else { return false };
    let is_followed = line[place] == flag && place + 1 < line.len();
    line.drain(place..=place + usize::from(is_followed));
    true
}

/// Whether a word is `--flag` or `--flag=value`.
fn is_flag(word: &OsStr, flag: &str) -> bool {
    let rest = word.to_str().and_then(|word| word.strip_prefix(flag));
    flag.starts_with("--") && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
}

/// The command, which then reads this flag from no variable. `None` if the flag has no variable.
fn without_variable(command: &Command, flag: &str) -> Option<Command> {
    let name = flag.strip_prefix("--")?;
    let mut found = false;
    let without = unset(command.clone(), name, &mut found);
    found.then_some(without)
}

fn unset(command: Command, flag: &str, found: &mut bool) -> Command {
    let command = command.mut_args(|argument| {
        if argument.get_long() == Some(flag) && argument.get_env().is_some() {
            *found = true;
            argument.env(None::<&str>)
        } else {
            argument
        }
    });
    command.mut_subcommands(|command| unset(command, flag, found))
}

/// Prints why the command line was refused, or the help.
fn refuse(error: &clap::Error) -> ExitCode {
    // The message quotes arguments, such as file names, so it is escaped.
    let print = if error.use_stderr() {
        |line: &str| terminal::error_line(line)
    } else {
        |line: &str| terminal::line(line)
    };
    error.render().to_string().lines().for_each(print);
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(BAD_ARGUMENTS))
}
