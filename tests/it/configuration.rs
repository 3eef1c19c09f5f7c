//! `docs/operate/configuration.md` is generated from `--help`. `UPDATE_DOCS=1 cargo test --test it
//! -- configuration` rewrites it.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};
use vos_auth::cli::Cli;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operate/configuration.md");

const HEAD: &str = "\
# Configuration

Every setting is a variable and a flag of the same name: `HTTP_ADDR` is `--http-addr`. The flag overrides the variable, and an empty
variable counts as unset. A time is written like `500ms`, `30s`, `5min`, `12h` or `365days`. With values that cannot be parsed, or are
out of their bounds, the service does not start: it prints one sentence for each, which names the variable. `vos-auth config check`
lists the settings in effect.

Generated from `--help` by `UPDATE_DOCS=1 cargo test --test it -- configuration`; do not edit it by hand.
";

const SECRETS: &str = "
## Secrets

Never flags, because `ps` shows flags. Each is set by its variable, or by a file that the variable with the suffix `_FILE` names; not both.

| Variable | Of | Meaning |
|---|---|---|
| `DATABASE_URL` | all that ask PostgreSQL | `postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full`, with one host; user and password are percent-encoded, as in `SMTP_RELAYS`. TLS is required to another machine |
| `ADMIN_DATABASE_URL` | `serve` | The same database for the admin API, as a role that may change accounts (`vos_auth_operator` of `deploy/grants.sql`). Required with `ADMIN_ADDR` |
| `RECOVERY_SECRETS` | `serve` | What codes are derived from: `ID:BASE64` of 32 random bytes, the newest first, with commas between them |
| `DEVICE_SECRETS` | `serve`, `account recover`, `bounce` | What the cookies of known browsers are made with, and the addresses that bounces go to, in the same form |
| `SMTP_RELAYS` | `serve`, `mail test` | URLs in order of preference, with commas between them: `smtp://USER:PASSWORD@HOST:587` for STARTTLS, `smtps://…` for TLS from the first byte; `?connections=4&per_second=10` bounds one of them; `smtp://USER@HOST:587?auth=xoauth2` signs in by an access token. User and password are percent-encoded: `@` is `%40`, `:` is `%3A`, `/` is `%2F`, `,` is `%2C`, `?` is `%3F`, `#` is `%23`, `%` is `%25`, a space is `%20` |
| `SMTP_OAUTH_CLIENT_SECRET` | `serve`, `mail test` | The secret of `SMTP_OAUTH_CLIENT_ID`, for relays with `auth=xoauth2`. Without a refresh token the client asks as itself (client credentials) |
| `SMTP_OAUTH_REFRESH_TOKEN` | `serve`, `mail test` | What the provider gave when a user consented: access tokens are that user's |
| `EVENT_HOOKS` | `serve` | The receivers of events ([webhooks](webhooks.md)): entries of `NAME URL SECRET KINDS`, on lines of their own or with semicolons between them |
| `KRATOS_AUTHORIZATION` | `account import --from-kratos`, `account export --to-kratos` | The value of the header `Authorization`, such as `Bearer …`, where a proxy before Kratos's admin API asks for one |
| `OTEL_EXPORTER_OTLP_HEADERS` | `serve` | What the receiver of traces asks for, as `NAME=VALUE`, with commas between them; no `_FILE` |
";

const DEV: &str = "\
It takes the settings of `serve`, but chooses `HTTP_ADDR`, `METRICS_ADDR`, `PUBLIC_ORIGIN`, `SIGN_IN_URL`, `RECOVERY_URL`,
`DRAIN_DELAY` and all secrets but `DATABASE_URL` itself.
";

#[test]
fn the_reference_of_the_settings_is_what_help_says() {
    let written = reference();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PATH, &written).unwrap();
    }
    let current = std::fs::read_to_string(PATH).unwrap_or_default();
    let differs = written.lines().zip(current.lines()).find(|(new, old)| new != old);
    assert!(
        written == current,
        "docs/operate/configuration.md is stale: UPDATE_DOCS=1 cargo test --test it -- configuration writes it. {differs:?}"
    );
}

fn reference() -> String {
    let mut program = Cli::command();
    program.build();
    let serve = program.find_subcommand("serve").expect("serve");
    let mut page = format!("{HEAD}{SECRETS}");
    let mut heading = None;
    for setting in settings(serve) {
        if setting.get_help_heading() != heading {
            heading = setting.get_help_heading();
            let _ = write!(page, "\n## {}\n\n", heading.expect("every setting is of a group"));
            page.push_str("| Variable | Default | Meaning |\n|---|---|---|\n");
        }
        let variable = variable(setting).expect("every setting is a variable");
        assert_eq!(setting.get_long().map(str::to_owned), Some(variable.to_lowercase().replace('_', "-")));
        let _ = writeln!(page, "| `{variable}` | {} | {} |", default(setting), meaning(setting));
    }
    page.push_str("\n## Commands\n");
    commands(&program, &mut page);
    page
}

fn commands(command: &Command, page: &mut String) {
    for command in
        command.get_subcommands().filter(|command| command.get_name() != "help" && !command.is_hide_set())
    {
        if command.has_subcommands() {
            commands(command, page);
            continue;
        }
        let name = command.get_bin_name().expect("built");
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let _ = write!(page, "\n### `{name}`\n\n{about}.\n");
        if name == "vos-auth serve" {
            page.push_str("Its settings are those above.\n");
        } else if name == "vos-auth dev" {
            page.push_str(DEV);
        } else if ["vos-auth config check", "vos-auth doctor"].contains(&name) {
            page.push_str("It takes the settings of `serve`.\n");
        } else if name.starts_with("vos-auth mail") {
            page.push_str("It takes the settings under Mail and Relays, too.\n");
        } else if ["vos-auth account show", "vos-auth account limits"].contains(&name) {
            page.push_str("It takes `ADDRESS_BURST` and `ADDRESS_PER_DAY`, too.\n");
        }
        let of_serve = |argument: &Arg| argument.get_help_heading().is_some();
        let mut own = settings(command).filter(|argument| !of_serve(argument)).peekable();
        if own.peek().is_some() {
            page.push_str("\n| Argument | Variable | Default | Meaning |\n|---|---|---|---|\n");
        }
        for argument in own {
            let variable = variable(argument).map_or(String::new(), |variable| format!("`{variable}`"));
            let (name, default, meaning) = (argument.to_string(), default(argument), meaning(argument));
            let _ = writeln!(page, "| `{name}` | {variable} | {default} | {meaning} |");
        }
    }
}

fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
}

fn variable(argument: &Arg) -> Option<&str> {
    argument.get_env().map(|name| name.to_str().expect("ASCII"))
}

fn default(argument: &Arg) -> String {
    let values: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if values.is_empty() { String::new() } else { format!("`{}`", values.join(",")) }
}

/// The help text, as a table cell.
fn meaning(argument: &Arg) -> String {
    let help = argument.get_long_help().or(argument.get_help()).expect("every argument says what it is");
    let help = help.to_string().split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let choices: Vec<_> =
        argument.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    match choices[..] {
        [] => format!("{help}."),
        _ => format!("{help}. One of {}.", choices.join(", ")),
    }
}
