//! `vos-auth bounce`: what a mail server runs for a message to a signed address (docs/operate/bounces.md).
//!
//! The signed address alone says whom the message is about. A message that is no bounce, is not ours or is too old counts as
//! handled: if it were refused, its sender would get a bounce from us.

use std::ffi::OsString;
use std::io::{Read as _, sink, stdin};
use std::time::Duration;

use clap::Args;
use sqlx::{Connection as _, PgConnection};

use super::Failure;
use crate::clock::Clock;
use crate::config;
use crate::database::{self, cause};
use crate::mail::bounce::SignedAddress;
use crate::mail::report;
use crate::operator::{self, Bounced};
use crate::terminal;

/// `EX_TEMPFAIL` of sysexits.h: a mail server keeps the message and runs the command again later.
pub(super) const TRY_AGAIN: u8 = 75;
/// Octets that are read of a message. What is of interest in a bounce comes before the mail that it returns.
const MAX_OCTETS: u64 = 1024 * 1024;
/// How long PostgreSQL may take: nobody waits but a mail server, which would give up after 1000 s.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Bounce {
    /// Where the message was delivered to. Default: what it says of that itself (Delivered-To, X-Original-To, Envelope-To, To)
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
        terminal::line("nothing is noted: it went to no address that was signed here in the last 7 days");
        return Ok(());
    };
    if !report::reports_failure(&message) {
        terminal::line("nothing is noted: it does not say that a mail could not be delivered (RFC 3464)");
        return Ok(());
    }
    let options = database::options(&config::database_url()?)?;
    let noted = tokio::time::timeout(DEADLINE, async {
        let mut connection = PgConnection::connect_with(&options).await?;
        operator::mark_bouncing(&mut connection, now, &signed).await
    });
    let noted = noted.await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    let noted = noted.map_err(|error| format!("PostgreSQL cannot note it now: {}", cause(&error)))?;
    let id = signed.account_id;
    match noted {
        Bounced::Marked => terminal::line(format_args!("mails to the address of account {id} bounce")),
        Bounced::Already => terminal::line(format_args!("it was known that mails to account {id} bounce")),
        Bounced::Gone => {
            terminal::line("nothing is noted: the account is gone, or has another address since");
        }
    }
    Ok(())
}

/// All is read, and the beginning kept: a mail server takes a command that closes its input for one that failed.
fn read() -> std::io::Result<Vec<u8>> {
    let (mut message, mut input) = (Vec::new(), stdin().lock());
    input.by_ref().take(MAX_OCTETS).read_to_end(&mut message)?;
    std::io::copy(&mut input, &mut sink())?;
    Ok(message)
}
