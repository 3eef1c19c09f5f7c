//! `vos-auth config check`: every problem of the settings at once, and what is in effect. It prints
//! no secret.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory as _, Subcommand};
use serde::Serialize;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;

use super::{Cli, Failure, Log, read_parts};
use crate::config::{Config, ConfigError, ConfigErrors, SECRETS, TraceSettings, secret_source};
use crate::parts::Parts;
use crate::secret::Keys;
use crate::terminal;
use crate::traces::Traces;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Read all settings and secrets as `serve` does, list those in effect without the secrets, and
    /// name everything that is missing or wrong. Connects to nothing
    Check(Box<Check>),
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    traces: TraceSettings,
}

/// A setting or secret in effect.
#[derive(Serialize)]
struct InEffect {
    #[serde(skip)]
    section: String,
    variable: String,
    /// `None` if it is not set or cannot be used. For a secret, only the parts that are not secret.
    value: Option<String>,
    /// Where the value is from.
    source: String,
}

/// Call it inside a Tokio runtime, because the exporter of traces needs one.
pub(super) fn check(check: &Check, matches: &ArgMatches, mut problems: ConfigErrors) -> Result<(), Failure> {
    let parts = read_parts(&check.config, &mut problems);
    problems.take(Traces::new(&check.traces, tokio::runtime::Handle::current()));
    let (settings, secrets) = (settings(matches, &problems), secrets(&parts, &problems));
    if check.json {
        let problem =
            |problem: &ConfigError| json!({ "variable": problem.variable(), "problem": problem.to_string() });
        let listed: Vec<_> = problems.iter().map(problem).collect();
        let usable = problems.is_empty();
        let found = json!({ "usable": usable, "problems": listed, "settings": settings, "secrets": secrets });
        serde_json::to_string_pretty(&found)?.lines().for_each(terminal::line);
    } else {
        list(settings.iter().chain(&secrets));
    }
    problems.or(Some(()))?;
    if !check.json {
        terminal::line("All settings can be used.");
    }
    Ok(())
}

/// Every setting of `serve`, in the order of its help.
fn settings(matches: &ArgMatches, problems: &ConfigErrors) -> Vec<InEffect> {
    let mut program = Cli::command();
    program.build();
    let serve = program.find_subcommand("serve").into_iter().flat_map(clap::Command::get_arguments);
    let mut given = matches;
    while let Some((_, inner)) = given.subcommand() {
        given = inner;
    }
    let in_effect = |argument: &clap::Arg| {
        let (id, variable) = (argument.get_id().as_str(), argument.get_env()?.to_str()?);
        let values = given.get_raw(id).into_iter().flatten();
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        let (value, source) = if problems.of(variable).is_some() {
            (None, "wrong")
        } else {
            let source = match given.value_source(id) {
                Some(ValueSource::CommandLine) => "flag",
                Some(ValueSource::EnvVariable) => "environment",
                Some(_) => "default",
                None => "not set",
            };
            (Some(values.join(",")).filter(|value| !value.is_empty()), source)
        };
        let section = argument.get_help_heading().unwrap_or_default().to_owned();
        Some(InEffect { section, variable: variable.to_owned(), value, source: source.to_owned() })
    };
    serve.filter_map(in_effect).collect()
}

fn secrets(parts: &Parts, problems: &ConfigErrors) -> Vec<InEffect> {
    let in_effect = |variable: &str| {
        let source = secret_source(variable);
        let is_wrong = problems.of(variable).is_some();
        let value = match variable {
            _ if is_wrong || source.is_none() => None,
            "DATABASE_URL" => parts.database.as_ref().map(describe_database),
            "ADMIN_DATABASE_URL" => parts.admin_database.as_ref().map(describe_database),
            "RECOVERY_SECRETS" => parts.code_keys.as_ref().map(ids),
            "DEVICE_SECRETS" => parts.device_keys.as_ref().map(ids),
            "FACTOR_SECRETS" => parts.factor_keys.as_ref().map(ids),
            "SMTP_RELAYS" => parts.gateway.as_ref().map(|gateway| {
                let relays: Vec<_> = gateway.relays().map(|relay| relay.to_string()).collect();
                relays.join(", ")
            }),
            _ => Some("set".to_owned()),
        };
        let source = if is_wrong { "wrong".to_owned() } else { source.unwrap_or_else(|| "not set".into()) };
        InEffect { section: "Secrets".to_owned(), variable: variable.to_owned(), value, source }
    };
    SECRETS.into_iter().map(in_effect).collect()
}

/// How PostgreSQL is reached, without the password.
fn describe_database(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => format!("{}:{}", options.get_host(), options.get_port()),
    };
    let database = options.get_database().unwrap_or(options.get_username());
    format!("{}@{host}/{database}, sslmode {:?}", options.get_username(), options.get_ssl_mode())
}

/// The ids of the keys.
fn ids(keys: &Keys) -> String {
    let ids: Vec<_> = keys.iter().map(|key| key.id().to_string()).collect();
    format!("keys {}", ids.join(", "))
}

fn list<'a>(settings: impl Iterator<Item = &'a InEffect>) {
    let mut section = "";
    for setting in settings {
        if setting.section != section {
            section = &setting.section;
            terminal::line(format_args!("{section}:"));
        }
        let InEffect { variable, value, source, .. } = setting;
        let value = value.as_deref().unwrap_or("-");
        terminal::line(format_args!("  {variable:28} {value} ({source})"));
    }
}
