//! `vos-auth account export`: writes accounts to a file, or changes back to Kratos.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use humantime::format_duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::progress::{Progress, announce_stop};
use super::super::{Failure, connect, stop_signal};
use crate::clock::Clock;
use crate::config;
use crate::terminal;
use crate::transfer::export::{self, kratos::ExportReport, kratos::KratosExport};
use crate::transfer::import::create_private_file;
use crate::transfer::import::identity::JsonPath;
use crate::transfer::kratos::{AdminUrl, Kratos};

#[derive(Debug, Args)]
pub(in crate::cli) struct ExportArguments {
    /// The file, readable only by its owner. Default: standard output, unless that is a terminal
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Write changes back to a running Kratos instead: the base URL of its admin API, such as
    /// http://127.0.0.1:4434. Only passwords, emails and states that were changed here since TIME
    /// are written. Can be interrupted and run again
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
    let settings = KratosExport { since, email_path, failed, dry_run };
    let mut connection = connect().await?;
    let mut progress = Progress::begin();
    let report = |carried: &ExportReport| {
        if carried.looked_at == 0 {
            terminal::error_line(format_args!("{} accounts were changed here since then", carried.changed));
        }
        progress.report(carried.looked_at, |rate| {
            let ExportReport { changed, looked_at, failed, .. } = carried;
            format!("{looked_at} of {changed} accounts, {rate} a second, {failed} failed")
        });
    };
    let stop = stop_signal()?;
    let (carried, done) = tokio::select! {
        done = export::kratos::run(&mut connection, now, &kratos, &settings, &stop, report) => done,
        never = announce_stop(&stop, "stopping as soon as Kratos has answered") => match never {},
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

fn summary(carried: &ExportReport, settings: &KratosExport) -> String {
    let ExportReport { changed, looked_at, written, same, newer_in_kratos, failed } = carried;
    let prefix = if settings.dry_run { "dry run, the result would be " } else { "" };
    let done = format!(
        "{looked_at} of {changed} accounts that were changed here: {prefix}{written} written, {same} unchanged, {failed} failed"
    );
    if *newer_in_kratos == 0 {
        return done;
    }
    let list = settings.failed.display();
    format!(
        "{done}\n{newer_in_kratos} were changed in Kratos later than here and keep those changes; {list} lists them"
    )
}

async fn to_file(out: Option<PathBuf>) -> Result<(), Failure> {
    const TO_TERMINAL: &str = "an export contains password hashes, which a terminal would show and keep: write it to a file \
                               with --out PATH, or pipe it";
    let mut connection = connect().await?;
    let file: Box<dyn Write> = match &out {
        Some(path) => {
            let file = create_private_file(path)
                .map_err(|why| format!("{} cannot be written: {why}", path.display()))?;
            // The path may lead to a terminal, as /dev/stdout may.
            if file.is_terminal() {
                return Err(TO_TERMINAL.into());
            }
            Box::new(file)
        }
        None if io::stdout().is_terminal() => return Err(TO_TERMINAL.into()),
        None => Box::new(io::stdout()),
    };
    let mut lines = CountedLines { out: BufWriter::new(file), lines: 0, progress: Progress::begin() };
    let stop = stop_signal()?;
    let count = tokio::select! {
        done = export::run(&mut connection, Clock::system().now(), &mut lines) => done?,
        () = stop.cancelled() => {
            return Err("stopped; what was written is incomplete: run the same export again".into());
        }
    };
    terminal::error_line(format_args!("{count} accounts are exported, with their password hashes"));
    Ok(())
}

/// A writer that reports how many lines it has written.
struct CountedLines<W> {
    out: W,
    lines: u64,
    progress: Progress,
}

impl<W: Write> Write for CountedLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        let lines = bytes[..written].split(|byte| *byte == b'\n').count() - 1;
        self.lines += lines as u64;
        self.progress.report(self.lines, |rate| format!("{} accounts, {rate} a second", self.lines));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
