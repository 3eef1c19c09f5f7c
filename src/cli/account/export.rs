//! `vos-auth account export`: writes accounts to a file, or changes back to Kratos.

use std::convert::Infallible;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use humantime::format_duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use super::super::{Failure, connect, stop_signal};
use super::progress::Progress;
use crate::clock::Clock;
use crate::config;
use crate::terminal;
use crate::transfer::export::{self, kratos::Carried, kratos::ToKratos};
use crate::transfer::import::file_of_its_owner;
use crate::transfer::import::identity::JsonPath;
use crate::transfer::kratos::{AdminUrl, Kratos};

#[derive(Debug, Args)]
pub(in crate::cli) struct ExportArguments {
    /// The file, readable only by its owner. Default: standard output
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Write changes back to a running Kratos instead: the base URL of its admin API, such as
    /// http://127.0.0.1:4434. Of each account whose password, email or state was changed here since
    /// TIME, only these are written. Can be interrupted and run again
    #[arg(long, value_name = "URL", requires = "since", conflicts_with = "out")]
    to_kratos: Option<AdminUrl>,
    /// The time of the first import, such as 2026-11-29T12:00:00Z
    #[arg(long, value_name = "TIME", requires = "to_kratos", value_parser = time)]
    since: Option<OffsetDateTime>,
    /// Read everything, print what would be done, and write nothing to Kratos
    #[arg(long, requires = "to_kratos")]
    dry_run: bool,
    /// The file that lists, with id and reason, identities that failed or that were changed in
    /// Kratos later than here
    #[arg(long, value_name = "PATH", requires = "to_kratos", default_value = "kratos.failed.ndjson")]
    failed: PathBuf,
    /// The path of the email in an identity
    #[arg(long, env = "IMPORT_EMAIL_PATH", value_name = "IMPORT_EMAIL_PATH", default_value = "traits.email")]
    email_path: JsonPath,
    /// Allow http to public addresses, where hashes are sent without TLS. Otherwise http is only
    /// for this machine and private addresses
    #[arg(long, requires = "to_kratos")]
    plain_http: bool,
    /// The setting of `serve`: older changes are no longer recorded
    #[arg(long, env, default_value = "365days", value_parser = config::audit_retention)]
    audit_retention: Duration,
}

fn time(text: &str) -> Result<OffsetDateTime, &'static str> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "write it like 2026-11-29T12:00:00Z")
}

pub(super) async fn export(arguments: ExportArguments) -> Result<(), Failure> {
    let ExportArguments { out, to_kratos, since, dry_run, failed, email_path, plain_http, audit_retention } =
        arguments;
    let (Some(url), Some(since)) = (to_kratos, since) else { return to_file(out).await };
    let now = Clock::system().now();
    if since > now {
        return Err("--since is in the future: give the time of the first import".into());
    }
    if since < now - audit_retention {
        let kept = format_duration(audit_retention);
        return Err(format!(
            "--since is longer ago than audit events are kept ({kept}): older changes are no longer recorded"
        )
        .into());
    }
    let kratos = Kratos::new(url, plain_http, config::kratos_authorization()?.as_deref())?;
    let settings = ToKratos { since, email_path, failed, dry_run };
    let mut connection = connect().await?;
    let mut progress = Progress::begin();
    let report = |carried: &Carried| {
        if carried.looked_at == 0 {
            terminal::error_line(format_args!("{} accounts were changed here since then", carried.changed));
        }
        progress.report(carried.looked_at, |rate| {
            let Carried { changed, looked_at, failed, .. } = carried;
            format!("{looked_at} of {changed} accounts, {rate} a second, {failed} failed")
        });
    };
    let stop = stop_signal()?;
    let (carried, done) = tokio::select! {
        done = export::kratos::run(&mut connection, now, &kratos, &settings, &stop, report) => done,
        never = announce_stop(&stop) => match never {},
    };
    summary(&carried, &settings).lines().for_each(terminal::line);
    done?;
    if carried.failed > 0 {
        return Err(format!(
            "{} accounts failed; {} lists the reasons",
            carried.failed,
            settings.failed.display()
        )
        .into());
    }
    Ok(())
}

/// Says that the command stops, because it first waits for the answer to a PUT that was sent.
async fn announce_stop(stop: &CancellationToken) -> Infallible {
    stop.cancelled().await;
    terminal::error_line("stopping as soon as Kratos has answered");
    std::future::pending().await
}

fn summary(carried: &Carried, settings: &ToKratos) -> String {
    let Carried { changed, looked_at, written, same, newer_there, failed } = carried;
    let prefix = if settings.dry_run { "dry run, the result would be " } else { "" };
    let done = format!(
        "{looked_at} of {changed} accounts that were changed here: {prefix}{written} written, {same} unchanged, {failed} failed"
    );
    if *newer_there == 0 {
        return done;
    }
    let list = settings.failed.display();
    format!(
        "{done}\n{newer_there} were changed in Kratos later than here and keep those changes; {list} lists them"
    )
}

async fn to_file(out: Option<PathBuf>) -> Result<(), Failure> {
    let mut connection = connect().await?;
    let file: Box<dyn Write> = match &out {
        Some(path) => Box::new(
            file_of_its_owner(path).map_err(|why| format!("{} cannot be written: {why}", path.display()))?,
        ),
        None => Box::new(std::io::stdout()),
    };
    let count = export::run(&mut connection, Clock::system().now(), &mut BufWriter::new(file)).await?;
    terminal::error_line(format_args!("{count} accounts are exported, with their password hashes"));
    Ok(())
}
