//! `vos-auth mail`: whether the relays take mails, and what the mails look like.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Failure;
use crate::clock::Clock;
use crate::config::{self, ConfigError, MailSettings, OauthSecrets, RelaySettings};
use crate::email_address::EmailAddress;
use crate::locale::Locale;
use crate::mail::gateway::Gateway;
use crate::mail::message::{Composer, MailKind};
use crate::secret::Key;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum MailCommand {
    /// Send a test mail by each relay of SMTP_RELAYS, and say how far each came
    Test(Box<Test>),
    /// Write a mail as a relay would get it, with a made-up code
    Preview(Box<Preview>),
    /// Print the line of DNS that publishes the key of DKIM_KEY_FILE
    DkimRecord(Box<DkimRecord>),
}

#[derive(Debug, Args)]
pub(super) struct Test {
    /// Where to
    #[arg(long, value_name = "EMAIL")]
    to: String,
    /// The language of the mail
    #[arg(long, default_value = "vi")]
    locale: Locale,
    #[command(flatten)]
    mail: MailSettings,
    #[command(flatten)]
    relays: RelaySettings,
}

#[derive(Debug, Args)]
pub(super) struct Preview {
    /// Which mail
    #[arg(long, value_enum, default_value = "recovery_code")]
    kind: MailKind,
    /// Its language
    #[arg(long, default_value = "vi")]
    locale: Locale,
    /// Where to write it. Default: standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    mail: MailSettings,
}

#[derive(Debug, Args)]
pub(super) struct DkimRecord {
    #[command(flatten)]
    mail: MailSettings,
}

pub(super) async fn test(test: &Test) -> Result<(), Failure> {
    let to = EmailAddress::parse(&test.to)?;
    let gateway = Gateway::new(&test.relays, &config::smtp_relays()?, &OauthSecrets::from_environment()?)?;
    let mail =
        composer(&test.mail)?.sample(MailKind::Test, test.locale, to.as_str(), Clock::system().now())?;
    let mut failed = 0;
    for relay in gateway.relays() {
        terminal::line_start(format_args!("relay {relay}: "));
        match gateway.send_via(relay.place, &mail).await {
            Ok(()) => terminal::line("took the mail"),
            Err(why) => {
                failed += 1;
                terminal::line(format_args!("did not take it: {why}"));
            }
        }
    }
    gateway.close().await;
    if failed > 0 {
        return Err(format!("{failed} of {} relays did not take the mail", gateway.relays().count()).into());
    }
    Ok(())
}

/// A bounce of what it builds is about no account.
fn composer(settings: &MailSettings) -> Result<Composer, ConfigError> {
    Composer::new(settings, &Key::random("sample"))
}

pub(super) fn preview(preview: &Preview) -> Result<(), Failure> {
    let composer = composer(&preview.mail)?;
    let mail = composer.sample(preview.kind, preview.locale, "trader@example.com", Clock::system().now())?;
    match &preview.out {
        Some(file) => std::fs::write(file, mail.bytes())
            .map_err(|error| format!("{} cannot be written: {error}", file.display()))?,
        None => std::io::stdout().write_all(mail.bytes())?,
    }
    Ok(())
}

pub(super) fn dkim_record(record: &DkimRecord) -> Result<(), Failure> {
    let composer = composer(&record.mail)?;
    let signer = composer.dkim().ok_or_else(|| ConfigError::new("DKIM_KEY_FILE", "is missing"))?;
    terminal::line(signer.record());
    Ok(())
}
