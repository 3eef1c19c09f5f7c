//! `vos-auth account import`: a move from another system.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use humantime::format_duration;

use super::super::{Failure, connect, stop_signal};
use super::progress::Progress;
use crate::clock::Clock;
use crate::config;
use crate::terminal;
use crate::transfer::import::identity::JsonPath;
use crate::transfer::import::{self, Import, ImportReport, ImportSource, Paths};
use crate::transfer::kratos::{AdminUrl, Kratos};

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArguments {
    /// The export: a JSON array of identities, one identity a line, or a CSV with the columns email, and if you like
    /// password_hash, locale, state, id, traits
    #[arg(required_unless_present = "from_kratos")]
    file: Option<PathBuf>,
    /// Take them from a running Kratos instead: the base of its admin API, such as http://127.0.0.1:4434
    #[arg(long, value_name = "URL", conflicts_with = "file")]
    from_kratos: Option<AdminUrl>,
    /// Identities of one request to Kratos
    #[arg(long, value_name = "COUNT", requires = "from_kratos", default_value = "500", value_parser = clap::value_parser!(u16).range(1..=1000))]
    page_size: u16,
    /// Let hashes cross a network without TLS; without it http is for this machine and private addresses alone
    #[arg(long, requires = "from_kratos")]
    plain_http: bool,
    /// Where refused records are listed, with id and reason, and line in a file. Default: FILE.refused.ndjson, or
    /// kratos.refused.ndjson
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
    /// The setting of `serve`, which the slowest imported hash is compared with
    #[arg(long, env, default_value = "500ms", value_parser = config::login_failure_time)]
    login_failure_time: Duration,
    /// The setting of `serve`: a password whose hash takes more memory is left out
    #[arg(long, env, default_value = "262144", value_parser = config::hashing_memory_kib())]
    hashing_memory_kib: u32,
}

pub(super) async fn import(arguments: ImportArguments) -> Result<(), Failure> {
    let login_failure_time = arguments.login_failure_time;
    let what = what(arguments)?;
    let mut connection = connect().await?;
    let mut progress = Progress::begin();
    let (report, done) = import::run(&mut connection, &Clock::system(), &what, &stop_signal()?, |report| {
        progress.tell(report.records, |rate| {
            let percent = report.percent.map(|percent| format!("{percent}%, ")).unwrap_or_default();
            format!("{percent}{} records, {rate} a second, {} refused", report.records, report.refused)
        });
    })
    .await;
    let (report, slowest) = tokio::task::spawn_blocking(move || {
        let slowest = report.slowest();
        (report, slowest)
    })
    .await?;
    let mut lines = vec![summary(&report, &what)];
    if let Some((kind, time)) = slowest {
        let advice = Advice::of(kind, time, login_failure_time);
        // What is to be done before the import comes first.
        lines.insert(usize::from(!advice.is_to_be_done), advice.text);
    }
    if report.not_ascii > 0 {
        lines.insert(0, not_ascii(report.not_ascii));
    }
    lines.iter().flat_map(|line| line.lines()).for_each(terminal::line);
    done?;
    if report.refused > 0 {
        let why = format!("{} records were refused: {} says why", report.refused, what.refused.display());
        return Err(why.into());
    }
    Ok(())
}

fn what(arguments: ImportArguments) -> Result<Import, Failure> {
    let ImportArguments {
        file,
        from_kratos,
        page_size,
        plain_http,
        refused,
        dry_run,
        email_path,
        locale_path,
        hashing_memory_kib,
        ..
    } = arguments;
    let (source, default) = match (file, from_kratos) {
        (_, Some(url)) => {
            let kratos = Kratos::new(url, plain_http, config::kratos_authorization()?.as_deref())?;
            (ImportSource::Kratos(Box::new(kratos), page_size), "kratos.refused.ndjson".into())
        }
        (file, None) => {
            let file = file.unwrap_or_default();
            let mut default = file.clone().into_os_string();
            default.push(".refused.ndjson");
            (ImportSource::File(file), default.into())
        }
    };
    let paths = Paths { email: email_path, locale: locale_path };
    Ok(Import { source, refused: refused.unwrap_or(default), paths, hashing_memory_kib, dry_run })
}

fn not_ascii(count: u64) -> String {
    format!(
        "{count} emails have characters beyond ASCII before the @ and are refused: give these identities another email before \
         the import, or their owners cannot sign in here"
    )
}

fn summary(report: &ImportReport, what: &Import) -> String {
    let ImportReport { records, created, updated, unchanged, kept, refused, .. } = report;
    let tense = if what.dry_run { "nothing was written; it would be " } else { "" };
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
        (
            report.too_large,
            format!(
                "of more memory than HASHING_MEMORY_KIB ({}), which may be raised",
                what.hashing_memory_kib
            ),
        ),
        (report.unknown, "of an unknown kind".into()),
        (
            report.without_password,
            format!(
                "not in {}",
                if matches!(what.source, ImportSource::File(_)) { "the file" } else { "Kratos" }
            ),
        ),
    ];
    let left_out: Vec<_> = left_out
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
    if !left_out.is_empty() {
        lines.push(format!("without a password, to be recovered by mail: {}", left_out.join(", ")));
    }
    if report.passwords.is_empty() && report.without_password > 0 {
        lines.push(
            match what.source {
                ImportSource::File(_) => {
                    "the file has no password at all: was it exported with include_credential=password?"
                }
                ImportSource::Kratos(..) => {
                    "Kratos gave no password at all: import a file, one identity after the other"
                }
            }
            .into(),
        );
    }
    lines.join("\n")
}

/// Whether a failed login takes long enough.
struct Advice {
    text: String,
    is_to_be_done: bool,
}

impl Advice {
    fn of(kind: &str, time: Duration, setting: Duration) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let slowest = Duration::from_millis(millis(time));
        let slowest = format!("the slowest hash is {kind}, verified in {} here", format_duration(slowest));
        let setting_text = format_duration(setting);
        // A password that is not in NFC is tried as it was typed, too.
        let needed = time * 2;
        if needed < setting {
            let text = format!("{slowest}: LOGIN_FAILURE_TIME ({setting_text}) is long enough");
            return Self { text, is_to_be_done: false };
        }
        let enough = (millis(needed) + 1).next_multiple_of(100);
        let text = format!(
            "set LOGIN_FAILURE_TIME={enough}ms for `serve` before the switch (it is {setting_text}): {slowest}, and a failed \
             login that takes longer tells that the address has an account"
        );
        Self { text, is_to_be_done: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_login_has_to_take_longer_than_the_slowest_hash_twice() {
        let advice = |millis, setting| {
            Advice::of("scrypt", Duration::from_millis(millis), Duration::from_millis(setting))
        };
        assert!(!advice(249, 500).is_to_be_done);
        assert!(advice(249, 500).text.ends_with("LOGIN_FAILURE_TIME (500ms) is long enough"));
        for (millis, set) in [(250, "=600ms "), (299, "=600ms "), (310, "=700ms "), (550, "=1200ms ")] {
            let Advice { text, is_to_be_done } = advice(millis, 500);
            assert!(is_to_be_done && text.starts_with(&format!("set LOGIN_FAILURE_TIME{set}")), "{text}");
        }
    }
}
