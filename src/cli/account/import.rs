//! `vos-auth account import` and `export`: a move from another system, and back.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufWriter, IsTerminal as _, Write};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use humantime::format_duration;

use super::super::{Failure, connect, stop_signal};
use crate::clock::Clock;
use crate::config;
use crate::export;
use crate::import::identity::JsonPath;
use crate::import::{self, Import, Paths, Report};

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArguments {
    /// The export: a JSON array of identities, one identity a line, or a CSV with the columns email, and if you like
    /// password_hash, locale, state, id, traits
    file: PathBuf,
    /// Where refused records are listed, with line and reason. Default: FILE.refused.ndjson
    #[arg(long, value_name = "PATH")]
    refused: Option<PathBuf>,
    /// Read all of it, look everything up, say what would be done, and write nothing to the database
    #[arg(long)]
    dry_run: bool,
    /// Where in an identity the email stands: names with dots between them, or numbers in arrays. For files of `account
    /// export`: recovery_addresses.0.value
    #[arg(long, env = "IMPORT_EMAIL_PATH", value_name = "IMPORT_EMAIL_PATH", default_value = "traits.email")]
    email_path: JsonPath,
    /// Where in an identity the language stands; vi and en are kept
    #[arg(
        long,
        env = "IMPORT_LOCALE_PATH",
        value_name = "IMPORT_LOCALE_PATH",
        default_value = "metadata_public.locale"
    )]
    locale_path: JsonPath,
    /// The setting of `serve`, which the dearest imported password is compared with
    #[arg(long, env, value_name = "LOGIN_FAILURE_TIME", default_value = "500ms", value_parser = config::login_failure_time)]
    login_failure_time: Duration,
}

pub(super) async fn import(arguments: ImportArguments) -> Result<(), Failure> {
    let ImportArguments { file, refused, dry_run, email_path, locale_path, login_failure_time } = arguments;
    let refused = refused.unwrap_or_else(|| {
        let mut path = file.clone().into_os_string();
        path.push(".refused.ndjson");
        path.into()
    });
    let paths = Paths { email: email_path, locale: locale_path };
    let what = Import { file, refused, paths, dry_run };
    let mut connection = connect().await?;
    let mut progress = Progress::begin();
    let (report, done) = import::run(&mut connection, &Clock::system(), &what, &stop_signal()?, |report| {
        progress.tell(report);
    })
    .await;
    let (report, dearest) = tokio::task::spawn_blocking(move || {
        let dearest = report.dearest();
        (report, dearest)
    })
    .await?;
    println!("{}", summary(&report, dry_run));
    if let Some((kind, time)) = dearest {
        println!("{}", advice(kind, time, login_failure_time));
    }
    done?;
    if report.refused > 0 {
        let why = format!("{} records were refused: {} says why", report.refused, what.refused.display());
        return Err(why.into());
    }
    Ok(())
}

/// A line now and then on standard error: often for eyes, seldom for a log.
struct Progress {
    began: Instant,
    told: Instant,
    every: Duration,
}

impl Progress {
    fn begin() -> Self {
        let every = Duration::from_secs(if std::io::stderr().is_terminal() { 1 } else { 10 });
        Self { began: Instant::now(), told: Instant::now(), every }
    }

    fn tell(&mut self, report: &Report) {
        if self.told.elapsed() < self.every {
            return;
        }
        self.told = Instant::now();
        let percent = report.percent.map(|percent| format!("{percent}%, ")).unwrap_or_default();
        let rate = u128::from(report.records) * 1000 / self.began.elapsed().as_millis().max(1);
        eprintln!("{percent}{} records, {rate} a second, {} refused", report.records, report.refused);
    }
}

fn summary(report: &Report, dry_run: bool) -> String {
    let Report { records, created, updated, unchanged, kept, refused, .. } = report;
    let tense = if dry_run { "nothing was written; it would be " } else { "" };
    let mut lines = vec![format!(
        "{records} records: {tense}{created} new, {updated} changed, {unchanged} as they were, {kept} left as they are here, {refused} refused"
    )];
    let kinds = |counts: &std::collections::BTreeMap<&str, u64>| {
        counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
    };
    if !report.passwords.is_empty() {
        lines.push(format!("passwords that go on to work: {}", kinds(&report.passwords)));
    }
    let left_out = [
        (report.too_weak.values().sum(), format!("too weak to keep ({})", kinds(&report.too_weak))),
        (report.broken, "broken or too dear to compute".into()),
        (report.unknown, "of an unknown kind".into()),
        (report.without, "not in the file".into()),
    ];
    let left_out: Vec<_> = left_out
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
    if !left_out.is_empty() {
        lines.push(format!("without a password, to be recovered by mail: {}", left_out.join(", ")));
    }
    if report.passwords.is_empty() && report.without > 0 {
        lines.push(
            "the file has no password at all: was it exported with include_credential=password?".into(),
        );
    }
    lines.join("\n")
}

fn advice(kind: &str, time: Duration, setting: Duration) -> String {
    let millis = |time: Duration| {
        format_duration(Duration::from_millis(time.as_millis().try_into().unwrap_or(u64::MAX)))
    };
    let dearest = format!("the dearest password is {kind}, verified in {} here", millis(time));
    // A password that is not in NFC is tried as it was typed, too.
    let needed = time * 2;
    if needed < setting {
        return format!("{dearest}: LOGIN_FAILURE_TIME ({}) is long enough", format_duration(setting));
    }
    let needed =
        Duration::from_millis(needed.as_millis().next_multiple_of(100).try_into().unwrap_or(u64::MAX));
    format!(
        "{dearest}: raise LOGIN_FAILURE_TIME ({}) above {}, or the time of a failed login tells such accounts",
        format_duration(setting),
        format_duration(needed)
    )
}

pub(super) async fn export(out: Option<PathBuf>) -> Result<(), Failure> {
    let mut connection = connect().await?;
    let file: Box<dyn Write> = match &out {
        Some(path) => Box::new(
            file_of_its_owner(path).map_err(|why| format!("{} cannot be written: {why}", path.display()))?,
        ),
        None => Box::new(std::io::stdout()),
    };
    let count = export::run(&mut connection, Clock::system().now(), &mut BufWriter::new(file)).await?;
    eprintln!("{count} accounts are exported, with the hashes of their passwords");
    Ok(())
}

/// Whoever reads it can guess at every password, so a file that was there becomes its owner's alone, too.
fn file_of_its_owner(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_login_has_to_take_longer_than_the_dearest_password_twice() {
        let advice =
            |millis, setting| advice("scrypt", Duration::from_millis(millis), Duration::from_millis(setting));
        assert!(advice(249, 500).ends_with("LOGIN_FAILURE_TIME (500ms) is long enough"));
        assert!(advice(250, 500).contains("raise LOGIN_FAILURE_TIME (500ms) above 500ms"));
        assert!(advice(310, 500).contains("raise LOGIN_FAILURE_TIME (500ms) above 700ms"));
    }
}
