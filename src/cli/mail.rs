//! `vos-auth mail`: tests the relays, previews emails, prints the DKIM record.

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Failure;
use crate::clock::Clock;
use crate::config::{self, ConfigError, ConfigErrors, MailSettings, OauthSecrets, RelaySettings};
use crate::email_address::EmailAddress;
use crate::locale::Locale;
use crate::mail::gateway::Gateway;
use crate::mail::message::{Composer, MailKind};
use crate::secret::Key;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum MailCommand {
    /// Send a test email through each relay of SMTP_RELAYS, and print the result of each
    Test(Box<Test>),
    /// Write an email as a relay would receive it, with an example code
    Preview(Box<Preview>),
    /// Print the DNS record that publishes the key of DKIM_KEY_FILE
    DkimRecord(Box<DkimRecord>),
}

#[derive(Debug, Args)]
pub(super) struct Test {
    /// The recipient
    #[arg(long, value_name = "EMAIL")]
    to: String,
    /// The language of the email
    #[arg(long, default_value = "vi")]
    locale: Locale,
    #[command(flatten)]
    mail: MailSettings,
    #[command(flatten)]
    relays: RelaySettings,
}

#[derive(Debug, Args)]
pub(super) struct Preview {
    /// The kind of email
    #[arg(long, value_enum, default_value = "recovery_code")]
    kind: MailKind,
    /// The language of the email
    #[arg(long, default_value = "vi")]
    locale: Locale,
    /// The file to write to. Default: standard output
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
            Ok(()) => terminal::line("accepted the email"),
            Err(why) => {
                failed += 1;
                terminal::line(format_args!("did not accept it: {why}"));
            }
        }
    }
    gateway.close().await;
    if failed > 0 {
        return Err(
            format!("{failed} of {} relays did not accept the email", gateway.relays().count()).into()
        );
    }
    Ok(())
}

/// A composer with a random key, so that a bounce of a sample matches no account.
fn composer(settings: &MailSettings) -> Result<Composer, ConfigErrors> {
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
