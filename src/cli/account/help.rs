//! `vos-auth account set-email` and `recover`: what helps an owner, who is told by email.

use std::time::Duration;

use clap::Args;
use time::OffsetDateTime;

use super::super::{Failure, connect};
use super::AccountArgument;
use crate::account;
use crate::admin::{self, EmailSet, Help, Ticket};
use crate::clock::{Clock, rfc3339};
use crate::config::{self, Origin, TICKET_LIFETIME};
use crate::email_address::EmailAddress;
use crate::terminal;

#[derive(Debug, Args)]
pub(in crate::cli) struct Notice {
    /// The setting of `serve`: how long the notice to the owner is retried
    #[arg(long, env, default_value = "7days", value_parser = config::notice_retention)]
    notice_retention: Duration,
}

pub(super) async fn set_email(argument: &AccountArgument, new: &str, notice: &Notice) -> Result<(), Failure> {
    let new = EmailAddress::parse(new)?;
    let help = Help::by_command(notice.notice_retention);
    let (mut connection, account) = argument.find().await?;
    match admin::set_email(&mut connection, Clock::system().now(), account.id, &new, help).await? {
        EmailSet::Set => terminal::line("the account has the new address; its pending recoveries have ended"),
        EmailSet::AlreadySet => terminal::line("the account has this address already"),
        EmailSet::Taken => {
            return Err("another account has this address: change or erase that one first".into());
        }
        EmailSet::NotFound => return Err("the account has just been erased".into()),
        EmailSet::NotBefore(at) => return Err(too_often(at).into()),
    }
    Ok(())
}

/// Prints only the ticket to standard output, so that it can be piped.
pub(super) async fn recover(email: &str, origin: Option<&Origin>, notice: &Notice) -> Result<(), Failure> {
    const NO_ACCOUNT: &str = "there is no active account with this address";
    let email = EmailAddress::parse(email)?;
    let (keys, help) = (config::device_secrets()?, Help::by_command(notice.notice_retention));
    let mut connection = connect().await?;
    let account = account::active_by_email(&mut connection, email.as_str()).await?.ok_or(NO_ACCOUNT)?;
    let given = admin::give_ticket(&mut connection, Clock::system().now(), account.id, &keys, help);
    let ticket = match given.await? {
        Ticket::Given(ticket, _) => ticket,
        Ticket::NotFound | Ticket::Disabled => return Err(NO_ACCOUNT.into()),
        Ticket::NotBefore(at) => return Err(too_often(at).into()),
    };
    terminal::line(&ticket);
    terminal::error_line(format_args!(
        "It is valid for one recovery within {} minutes, in the header X-Recovery-Ticket of start. The code is sent by email, as always.",
        TICKET_LIFETIME.as_secs() / 60
    ));
    if let Some(origin) = origin {
        terminal::error_line(format_args!("As a link: {origin}/recovery#t={ticket}"));
    }
    Ok(())
}

/// Only an operator of the admin API has such a bound.
fn too_often(at: OffsetDateTime) -> String {
    format!("this operator has helped too often; the next time is {}", rfc3339(at))
}
