//! `vos-auth account recover` and `recover-to`: help for an owner who cannot sign in.

use clap::Args;

use super::super::request::{Who, how_to_approve, reason};
use super::super::{Failure, connect};
use super::AccountArgument;
use super::help::{Notice, too_often};
use crate::account;
use crate::admin::request::{self, Actor, Asked};
use crate::admin::{self, Help, Ticket};
use crate::clock::Clock;
use crate::config::{self, Origin, TICKET_LIFETIME};
use crate::email_address::EmailAddress;
use crate::operator::OperatorName;
use crate::terminal;

#[derive(Debug, Args)]
pub(in crate::cli) struct RecoverArguments {
    /// The address of an active account
    email: String,
    /// The origin of /recovery, to print a link with the ticket too
    #[arg(long, env)]
    public_origin: Option<Origin>,
    #[command(flatten)]
    notice: Notice,
    /// The setting of `serve`: the trait of accounts whose tickets a second operator has to approve
    #[arg(long, env, value_parser = config::trait_name)]
    protected_trait: Option<String>,
    /// Your name as an operator, for the audit log. The ticket of such an account needs it
    #[arg(long, value_name = "NAME", requires = "reason")]
    operator: Option<OperatorName>,
    /// Why, in at most 200 characters
    #[arg(long, value_name = "TEXT", requires = "operator", value_parser = reason)]
    reason: Option<String>,
}

impl RecoverArguments {
    fn actor(&self) -> Option<Actor<'_>> {
        let (Some(operator), Some(reason)) = (&self.operator, &self.reason) else { return None };
        Some(Actor::of_command(operator.as_str(), reason))
    }
}

/// Prints only the ticket to standard output, so that it can be piped.
pub(super) async fn recover(arguments: &RecoverArguments) -> Result<(), Failure> {
    const NO_ACCOUNT: &str = "there is no active account with this address";
    let email = EmailAddress::parse(&arguments.email)?;
    let keys = config::device_secrets()?;
    let mut connection = connect().await?;
    let account = account::active_by_email(&mut connection, email.as_str()).await?.ok_or(NO_ACCOUNT)?;
    let help = Help {
        protected_trait: arguments.protected_trait.as_deref(),
        actor: arguments.actor(),
        ..Help::by_command(arguments.notice.notice_retention)
    };
    let ticket = match admin::give_ticket(&mut connection, Clock::system().now(), account.id, &keys, help)
        .await?
    {
        Ticket::Given(ticket, _) => ticket,
        Ticket::NotFound | Ticket::Disabled => return Err(NO_ACCOUNT.into()),
        Ticket::NotBefore(at) => return Err(too_often(at).into()),
        Ticket::NoOperator => {
            return Err("this account is protected: name yourself by --operator and --reason".into());
        }
        Ticket::Asked(id) => {
            let how = how_to_approve(id);
            return Err(format!("this account is protected. {how}, then run this command again").into());
        }
        Ticket::Pending(id) => {
            return Err(format!(
                "the request {id} for a ticket of this protected account is not approved, or another operator made it"
            )
            .into());
        }
    };
    terminal::line(&ticket);
    terminal::error_line(format_args!(
        "It is valid for one recovery within {} minutes, in the header X-Recovery-Ticket of start. The code is sent by email, as always.",
        TICKET_LIFETIME.as_secs() / 60
    ));
    if let Some(origin) = &arguments.public_origin {
        terminal::error_line(format_args!("As a link: {origin}/recovery#t={ticket}"));
    }
    Ok(())
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RecoverToArguments {
    #[command(flatten)]
    account: AccountArgument,
    /// The new address, which no other account may have
    new: String,
    #[command(flatten)]
    who: Who,
}

/// Prints only the id of the request to standard output, so that it can be piped.
pub(super) async fn recover_to(arguments: &RecoverToArguments) -> Result<(), Failure> {
    let new = EmailAddress::parse(&arguments.new)?;
    let (mut connection, account) = arguments.account.find().await?;
    let (now, actor) = (Clock::system().now(), arguments.who.actor());
    match request::ask_address(&mut connection, now, actor, account.id, &new).await? {
        Asked::Asked(id) => {
            terminal::line(id);
            terminal::error_line(how_to_approve(id));
            Ok(())
        }
        Asked::Pending(id) => {
            Err(format!("the account has the open request {id}: approve or cancel that one first").into())
        }
        Asked::AlreadySet => Err("the account has this address already".into()),
        Asked::Taken => Err("another account has this address: change or erase that one first".into()),
        Asked::NotFound => Err("the account is disabled, so its owner cannot recover it".into()),
        Asked::NotBefore(at) => Err(too_often(at).into()),
    }
}
