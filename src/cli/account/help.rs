//! `vos-auth account set-email`, which tells the owner by email.

use std::time::Duration;

use clap::Args;
use time::OffsetDateTime;

use super::super::Failure;
use super::AccountArgument;
use crate::admin::{self, EmailSet, Help};
use crate::clock::{Clock, rfc3339};
use crate::config;
use crate::email_address::EmailAddress;
use crate::terminal;

#[derive(Debug, Args)]
pub(in crate::cli) struct Notice {
    /// The setting of `serve`: how long the notice to the owner is retried
    #[arg(long, env, default_value = "7days", value_parser = config::notice_retention)]
    pub(super) notice_retention: Duration,
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
        // This command never gets here: it does not read PROTECTED_TRAIT, because its user could
        // write the table `account` anyway.
        EmailSet::Protected => return Err("this account is protected: use `account recover-to`".into()),
        EmailSet::NotFound => return Err("the account has just been erased".into()),
        EmailSet::NotBefore(at) => return Err(too_often(at).into()),
    }
    Ok(())
}

/// The error for an exhausted rate limit of an operator. Only the admin API has this rate limit.
pub(super) fn too_often(at: OffsetDateTime) -> String {
    format!("this operator has helped too often; the next time is {}", rfc3339(at))
}
