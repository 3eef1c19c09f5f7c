//! `vos-auth doctor`: checks an installation, and says what to do about each problem.
//!
//! It changes nothing and sends no email. No row contains a secret or an email address. The checks
//! of PostgreSQL, relays, NTP and ports run concurrently, each with a time limit. A check that
//! depends on a failed one is left out.

mod database;
mod files;
mod machine;
mod relays;
mod report;

use clap::Args;

use self::report::{Check, Report};
use super::{Failure, Log, read_parts};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, ConfigErrors, TraceSettings};
use crate::email_address::EmailAddress;
use crate::traces::Traces;

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
    /// The recipient that each relay is asked about. No email is sent. Default: MAIL_SUPPORT
    #[arg(long, value_name = "EMAIL")]
    to: Option<String>,
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    traces: TraceSettings,
}

pub(super) async fn run(doctor: Doctor, mut problems: ConfigErrors) -> Result<(), Failure> {
    let Doctor { json, to, config, traces, .. } = doctor;
    let to = to.as_deref().map(EmailAddress::parse).transpose()?;
    let (clock, mut report) = (Clock::system(), Report::new(json));
    let now = clock.now();
    let parts = read_parts(&config, &mut problems);
    problems.take(Traces::new(&traces, tokio::runtime::Handle::current()));

    let mail = relays::sample(parts.composer.as_ref(), &config.mail, to.as_ref(), now);
    let on_database = parts.database.map(|options| tokio::spawn(database::check(options, clock)));
    let on_admin = parts.admin_database.map(|options| tokio::spawn(database::check_admin(options)));
    let on_relays = parts.gateway.zip(mail).map(|(gateway, mail)| tokio::spawn(relays::check(gateway, mail)));
    let on_ntp = tokio::spawn(machine::ntp());
    let on_ports = tokio::spawn(machine::ports(config.listening.clone(), config.admin.admin_addr));

    report.add(settings(&problems));
    if problems.of("BRAND_DIR").is_none() {
        report.add([files::brand(&config.mail)]);
    }
    if let (Some(keys), Some(folder)) = (&parts.jwt_keys, &config.jwt.jwt_keys) {
        report.add([files::keys(keys, folder, now)]);
    }
    if let Some(checks) = on_database {
        report.wait("PostgreSQL", checks).await;
    }
    if let Some(checks) = on_admin {
        report.wait("PostgreSQL for the admin API", checks).await;
    }
    if let Some(checks) = on_relays {
        report.wait("the relays", checks).await;
    }
    report.wait("the clock", on_ntp).await;
    report.add([machine::descriptors(config.connections.max_connections)]);
    report.wait("the ports", on_ports).await;
    report.finish()
}

/// A row for each setting that cannot be used, or a single row if all can be used.
fn settings(problems: &ConfigErrors) -> Vec<Check> {
    if problems.is_empty() {
        return vec![Check::ok("settings", "all settings and secrets can be used")];
    }
    problems.iter().map(setting).collect()
}

fn setting(problem: &ConfigError) -> Check {
    let check = match problem.variable() {
        "BRAND_DIR" => "brand",
        "JWT_KEYS" => "JWT keys",
        _ => "settings",
    };
    // Most sentences about missing settings end with what to do.
    if let Some(hint) = problem.why().strip_prefix("is missing: ") {
        let mut action: String = hint.chars().take(1).flat_map(char::to_uppercase).collect();
        action.extend(hint.chars().skip(1));
        return Check::failed(check, format!("{} is missing", problem.variable()), format!("{action}."));
    }
    let action = match problem.variable() {
        "BRAND_DIR" => "Correct BRAND_DIR or its file: docs/operate/brand.md has the rules.".to_owned(),
        "JWT_KEYS" => {
            "Correct JWT_KEYS, or owner and mode of the folder; `vos-auth key generate` makes a first key."
                .to_owned()
        }
        other => format!("Correct {other}: docs/operate/configuration.md has its form and bounds."),
    };
    Check::failed(check, problem.to_string(), action)
}
