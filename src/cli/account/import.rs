//! `vos-auth account import`: imports accounts from another system.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use humantime::format_duration;

use super::super::progress::Progress;
use super::super::{Failure, connect, stop_signal};
use crate::clock::Clock;
use crate::config;
use crate::terminal;
use crate::transfer::import::identity::JsonPath;
use crate::transfer::import::{self, Import, ImportReport, ImportSource, Paths};
use crate::transfer::kratos::{AdminUrl, Kratos};

#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArguments {
    /// The file: a JSON array of identities, one identity a line, or a CSV file with the column
    /// email and optionally password_hash, locale, state, id, traits
    #[arg(required_unless_present = "from_kratos")]
    file: Option<PathBuf>,
    /// Import from a running Kratos instead: the base URL of its admin API, such as
    /// http://127.0.0.1:4434
    #[arg(long, value_name = "URL", conflicts_with = "file")]
    from_kratos: Option<AdminUrl>,
    /// Identities per request to Kratos
    #[arg(long, value_name = "COUNT", requires = "from_kratos", default_value = "500", value_parser = clap::value_parser!(u16).range(1..=1000))]
    page_size: u16,
    /// Allow http to public addresses, where hashes are sent without TLS. Otherwise http is only
    /// for this machine and private addresses
    #[arg(long, requires = "from_kratos")]
    plain_http: bool,
    /// The file that lists refused records, with id, reason and line number. Default:
    /// FILE.refused.ndjson, or kratos.refused.ndjson
    #[arg(long, value_name = "PATH")]
    refused: Option<PathBuf>,
    /// The file that lists, with id and line number, of which records the import leaves something
    /// behind, such as second factors. Default: FILE.left-behind.ndjson, or
    /// kratos.left-behind.ndjson
    #[arg(long, value_name = "PATH")]
    left_behind: Option<PathBuf>,
    /// Read everything, print what would be done, and write nothing to the database
    #[arg(long)]
    dry_run: bool,
    /// The path of the email in an identity: member names or array indexes, separated by dots. For
    /// files of `account export`: recovery_addresses.0.value
    #[arg(long, env = "IMPORT_EMAIL_PATH", value_name = "IMPORT_EMAIL_PATH", default_value = "traits.email")]
    email_path: JsonPath,
    /// The path of the language in an identity; vi and en are imported
    #[arg(
        long,
        env = "IMPORT_LOCALE_PATH",
        value_name = "IMPORT_LOCALE_PATH",
        default_value = "metadata_public.locale"
    )]
    locale_path: JsonPath,
    /// The setting of `serve`, with which the slowest imported hash is compared
    #[arg(long, env, default_value = "500ms", value_parser = config::login_failure_time)]
    login_failure_time: Duration,
    /// The setting of `serve`: hashes that take more memory are not imported
    #[arg(long, env, default_value = "262144", value_parser = config::hashing_memory_kib())]
    hashing_memory_kib: u32,
}

pub(super) async fn import(arguments: ImportArguments) -> Result<(), Failure> {
    let login_failure_time = arguments.login_failure_time;
    let import = settings(arguments)?;
    let mut connection = connect().await?;
    let mut progress = Progress::begin();
    let (report, done) = import::run(&mut connection, &Clock::system(), &import, &stop_signal()?, |report| {
        progress.report(report.records, |rate| {
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
    let mut lines = vec![summary(&report, &import)];
    if let Some((kind, time)) = slowest {
        let advice = Advice::new(kind, time, login_failure_time);
        // A required action is printed first.
        lines.insert(usize::from(!advice.requires_action), advice.text);
    }
    if report.not_ascii > 0 {
        lines.insert(0, not_ascii(report.not_ascii));
    }
    lines.iter().flat_map(|line| line.lines()).for_each(terminal::line);
    done?;
    if report.refused > 0 {
        let why = format!(
            "{} records were refused; {} lists the reasons",
            report.refused,
            import.refused.display()
        );
        return Err(why.into());
    }
    Ok(())
}

fn settings(arguments: ImportArguments) -> Result<Import, Failure> {
    let ImportArguments {
        file,
        from_kratos,
        page_size,
        plain_http,
        refused,
        left_behind,
        dry_run,
        email_path,
        locale_path,
        hashing_memory_kib,
        ..
    } = arguments;
    let (source, name) = match (file, from_kratos) {
        (_, Some(url)) => {
            let kratos = Kratos::new(url, plain_http, config::kratos_authorization()?.as_deref())?;
            (ImportSource::Kratos(Box::new(kratos), page_size), PathBuf::from("kratos"))
        }
        (file, None) => {
            let file = file.unwrap_or_default();
            (ImportSource::File(file.clone()), file)
        }
    };
    let list = |path: Option<PathBuf>, kind: &str| {
        path.unwrap_or_else(|| {
            let mut name = name.clone().into_os_string();
            name.push(format!(".{kind}.ndjson"));
            name.into()
        })
    };
    Ok(Import {
        refused: list(refused, "refused"),
        left_behind: list(left_behind, "left-behind"),
        source,
        paths: Paths { email: email_path, locale: locale_path },
        hashing_memory_kib,
        dry_run,
    })
}

fn not_ascii(count: u64) -> String {
    format!(
        "{count} emails have non-ASCII characters before the @ and are refused: give these identities another email before \
         the import, or their owners cannot sign in"
    )
}

fn summary(report: &ImportReport, import: &Import) -> String {
    let ImportReport { records, created, updated, unchanged, kept, refused, .. } = report;
    let prefix = if import.dry_run { "dry run, the result would be " } else { "" };
    let mut lines = vec![format!(
        "{records} records: {prefix}{created} new, {updated} changed, {unchanged} unchanged, {kept} kept because they were used here, {refused} refused"
    )];
    let kinds = |counts: &std::collections::BTreeMap<&str, u64>| {
        counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
    };
    if !report.passwords.is_empty() {
        lines.push(format!("passwords that keep working: {}", kinds(&report.passwords)));
    }
    let left_out = [
        (report.too_weak.values().sum(), format!("too weak ({})", kinds(&report.too_weak))),
        (report.broken, "malformed or too slow to verify".into()),
        (
            report.too_large,
            format!(
                "need more memory than HASHING_MEMORY_KIB ({}), which can be raised",
                import.hashing_memory_kib
            ),
        ),
        (report.unknown, "of an unknown scheme".into()),
        (
            report.without_password,
            format!(
                "not in {}",
                if matches!(import.source, ImportSource::File(_)) { "the file" } else { "Kratos" }
            ),
        ),
    ];
    let left_out: Vec<_> = left_out
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, why)| format!("{count} {why}"))
        .collect();
    if !left_out.is_empty() {
        lines.push(format!(
            "accounts without a password, which their owners must recover by email: {}",
            left_out.join(", ")
        ));
    }
    if !report.left_behind.is_empty() {
        lines.push(format!("left behind, as {} lists for each record:", import.left_behind.display()));
        let kinds = report.left_behind.iter();
        lines.extend(kinds.map(|(kind, count)| format!("  {count} {}", kind.description())));
    }
    if report.passwords.is_empty() && report.without_password > 0 {
        lines.push(
            match import.source {
                ImportSource::File(_) => {
                    "the file contains no password: was it exported with include_credential=password?"
                }
                ImportSource::Kratos(..) => {
                    "Kratos returned no password: import a file, for which each identity is exported by itself"
                }
            }
            .into(),
        );
    }
    lines.join("\n")
}

/// Whether LOGIN_FAILURE_TIME is long enough for the slowest imported hash.
struct Advice {
    text: String,
    requires_action: bool,
}

impl Advice {
    fn new(kind: &str, time: Duration, setting: Duration) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let slowest = Duration::from_millis(millis(time));
        let slowest = format!(
            "the slowest hash is {kind}, which takes {} to verify on this machine",
            format_duration(slowest)
        );
        let setting_text = format_duration(setting);
        // A password that is not in NFC is verified twice: in NFC and as typed.
        let needed = time * 2;
        if needed < setting {
            let text = format!("{slowest}: LOGIN_FAILURE_TIME ({setting_text}) is long enough");
            return Self { text, requires_action: false };
        }
        let enough = (millis(needed) + 1).next_multiple_of(100);
        let text = format!(
            "set LOGIN_FAILURE_TIME={enough}ms for `serve` before the switch (it is {setting_text}): {slowest}. A failed \
             login that takes longer reveals that the address has an account"
        );
        Self { text, requires_action: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_login_must_take_longer_than_two_verifications_of_the_slowest_hash() {
        let advice = |millis, setting| {
            Advice::new("scrypt", Duration::from_millis(millis), Duration::from_millis(setting))
        };
        assert!(!advice(249, 500).requires_action);
        assert!(advice(249, 500).text.ends_with("LOGIN_FAILURE_TIME (500ms) is long enough"));
        for (millis, set) in [(250, "=600ms "), (299, "=600ms "), (310, "=700ms "), (550, "=1200ms ")] {
            let Advice { text, requires_action } = advice(millis, 500);
            assert!(requires_action && text.starts_with(&format!("set LOGIN_FAILURE_TIME{set}")), "{text}");
        }
    }
}
