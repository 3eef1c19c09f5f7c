//! `vos-auth bounce`: run by a mail server for each message to a signed return path
//! (docs/operate/bounces.md).
//!
//! Only the signed address determines the account. A message is accepted and ignored if it is no
//! bounce, or was sent to no address that was signed in the last 7 days: if it were refused, the
//! mail server would send a bounce to its sender.

use std::ffi::OsString;
use std::io::{Read as _, sink, stdin};
use std::time::Duration;

use clap::Args;
use sqlx::{Connection as _, PgConnection};

use super::Failure;
use crate::admin::{self, Bounced};
use crate::clock::Clock;
use crate::config;
use crate::database::{self, cause};
use crate::mail::bounce::SignedAddress;
use crate::mail::report;
use crate::terminal;

/// `EX_TEMPFAIL` of sysexits.h: the mail server keeps the message and runs the command again later.
pub(super) const EX_TEMPFAIL: u8 = 75;
/// How much of a message is parsed, in octets. This is enough, because in a bounce the report
/// precedes the returned email.
const MAX_OCTETS: u64 = 1024 * 1024;
/// How long PostgreSQL may take. Meanwhile the mail server waits; Postfix gives up after 1000 s.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Bounce {
    /// The addresses that the message was delivered to. Default: those in its header (Delivered-To,
    /// X-Original-To, Envelope-To, To)
    #[arg(long, value_name = "ADDRESS", num_args = 1.., allow_hyphen_values = true)]
    recipient: Vec<OsString>,
}

pub(super) async fn run(bounce: Bounce) -> Result<(), Failure> {
    let message = read().map_err(|error| format!("standard input cannot be read: {error}"))?;
    let (keys, now) = (config::device_secrets()?, Clock::system().now());
    let recipients = match &bounce.recipient[..] {
        [] => report::recipients(&message),
        given => given.iter().map(|address| address.to_string_lossy().into_owned()).collect(),
    };
    let Some(signed) = recipients.iter().find_map(|text| SignedAddress::find(&keys, text, now)) else {
        terminal::line("ignored: the message was sent to no address that vos-auth signed in the last 7 days");
        return Ok(());
    };
    if !report::reports_failure(&message) {
        terminal::line("ignored: the message does not report a failed delivery (RFC 3464)");
        return Ok(());
    }
    let options = database::options(&config::database_url()?)?;
    let noted = tokio::time::timeout(DEADLINE, async {
        let mut connection = PgConnection::connect_with(&options).await?;
        admin::mark_bouncing(&mut connection, now, &signed).await
    });
    let noted = noted.await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    let noted =
        noted.map_err(|error| format!("PostgreSQL cannot store the bounce now: {}", cause(&error)))?;
    let id = signed.account_id;
    match noted {
        Bounced::Marked => terminal::line(format_args!("the address of account {id} is marked as bouncing")),
        Bounced::AlreadyMarked => {
            terminal::line(format_args!("the address of account {id} was already marked as bouncing"));
        }
        Bounced::NotFound => {
            terminal::line("ignored: the account was erased or has another address now");
        }
    }
    Ok(())
}

/// Reads all of standard input and returns its first [`MAX_OCTETS`]. A mail server treats a command
/// that stops reading as failed.
fn read() -> std::io::Result<Vec<u8>> {
    let (mut message, mut input) = (Vec::new(), stdin().lock());
    input.by_ref().take(MAX_OCTETS).read_to_end(&mut message)?;
    std::io::copy(&mut input, &mut sink())?;
    Ok(message)
}
