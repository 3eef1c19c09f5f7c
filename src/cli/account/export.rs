//! `vos-auth account export`: to a file, or back into Kratos.

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
use crate::transfer::export::{self, kratos::ExportReport, kratos::KratosExport};
use crate::transfer::import::create_private_file;
use crate::transfer::import::identity::JsonPath;
use crate::transfer::kratos::{AdminUrl, Kratos};

#[derive(Debug, Args)]
pub(in crate::cli) struct ExportArguments {
    /// The file, readable to its owner alone. Default: standard output
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Carry changes back into a running Kratos instead: the base of its admin API, such as http://127.0.0.1:4434. Of each
    /// account whose password, email or state was changed here since TIME, that alone is written. Can be interrupted and run
    /// again
    #[arg(long, value_name = "URL", requires = "since", conflicts_with = "out")]
    to_kratos: Option<AdminUrl>,
    /// The time of the first import, such as 2026-11-29T12:00:00Z
    #[arg(long, value_name = "TIME", requires = "to_kratos", value_parser = time)]
    since: Option<OffsetDateTime>,
    /// Look everything up, say what would be done, and write nothing to Kratos
    #[arg(long, requires = "to_kratos")]
    dry_run: bool,
    /// Where identities are listed that failed, or that were changed in Kratos later than here, with id and reason
    #[arg(long, value_name = "PATH", requires = "to_kratos", default_value = "kratos.failed.ndjson")]
    failed: PathBuf,
    /// Where in an identity the email stands
    #[arg(long, env = "IMPORT_EMAIL_PATH", value_name = "IMPORT_EMAIL_PATH", default_value = "traits.email")]
    email_path: JsonPath,
    /// Let hashes cross a network without TLS; without it http is for this machine and private addresses alone
    #[arg(long, requires = "to_kratos")]
    plain_http: bool,
    /// The setting of `serve`: changes that are older are not known any more
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
        return Err(format!("--since is longer ago than audit events are kept ({kept}): what changed then is not known any more").into());
    }
    let kratos = Kratos::new(url, plain_http, config::kratos_authorization()?.as_deref())?;
    let what = KratosExport { since, email_path, failed, dry_run };
    let mut connection = connect().await?;
    let mut progress = Progress::begin();
    let told = |carried: &ExportReport| {
        if carried.looked_at == 0 {
            terminal::error_line(format_args!("{} accounts have changed here since then", carried.changed));
        }
        progress.tell(carried.looked_at, |rate| {
            let ExportReport { changed, looked_at, failed, .. } = carried;
            format!("{looked_at} of {changed} accounts, {rate} a second, {failed} failed")
        });
    };
    let stop = stop_signal()?;
    let (carried, done) = tokio::select! {
        done = export::kratos::run(&mut connection, now, &kratos, &what, &stop, told) => done,
        never = says_that_it_stops(&stop) => match never {},
    };
    summary(&carried, &what).lines().for_each(terminal::line);
    done?;
    if carried.failed > 0 {
        return Err(format!("{} accounts failed: {} says why", carried.failed, what.failed.display()).into());
    }
    Ok(())
}

/// A PUT that was sent is waited for.
async fn says_that_it_stops(stop: &CancellationToken) -> Infallible {
    stop.cancelled().await;
    terminal::error_line("stopping as soon as Kratos has answered");
    std::future::pending().await
}

fn summary(carried: &ExportReport, what: &KratosExport) -> String {
    let ExportReport { changed, looked_at, written, same, newer_in_kratos, failed } = carried;
    let tense = if what.dry_run { "nothing was written; it would be " } else { "" };
    let done = format!(
        "{looked_at} of {changed} accounts that have changed here: {tense}{written} written, {same} as they were, {failed} failed"
    );
    if *newer_in_kratos == 0 {
        return done;
    }
    let list = what.failed.display();
    format!(
        "{done}\n{newer_in_kratos} were changed in Kratos later than here, and stay so in that: {list} says which"
    )
}

async fn to_file(out: Option<PathBuf>) -> Result<(), Failure> {
    let mut connection = connect().await?;
    let file: Box<dyn Write> = match &out {
        Some(path) => Box::new(
            create_private_file(path)
                .map_err(|why| format!("{} cannot be written: {why}", path.display()))?,
        ),
        None => Box::new(std::io::stdout()),
    };
    let count = export::run(&mut connection, Clock::system().now(), &mut BufWriter::new(file)).await?;
    terminal::error_line(format_args!("{count} accounts are exported, with the hashes of their passwords"));
    Ok(())
}
