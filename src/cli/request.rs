//! `vos-auth request`: what one operator asks for and another approves. A command does not check
//! who runs it: a person with the database's password could write `operator_request` anyway.

use std::time::Duration;

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::{Failure, connect, print_json};
use crate::admin::request::{self, Actor, Approved, Cancelled, Request, State};
use crate::clock::{Clock, rfc3339};
use crate::config::{self, APPROVAL_LIFETIME};
use crate::operator::OperatorName;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum RequestCommand {
    /// List the requests that need the approval of a second operator, the newest first. Shows
    /// email addresses
    List {
        /// The maximum number
        #[arg(long, default_value = "50", value_parser = clap::value_parser!(i64).range(1..=1000))]
        limit: i64,
        /// Print a JSON object on each line, for programs
        #[arg(long)]
        json: bool,
    },
    /// Approve what another operator asked for in the last 10 minutes. The owner is told of an
    /// address change at once. A replica with ADMIN_ADDR carries it out after ADDRESS_CHANGE_DELAY
    Approve {
        /// The id of the request
        id: Uuid,
        #[command(flatten)]
        who: Who,
        /// The setting of `serve`: how long an approved change of an address waits
        #[arg(long, env, default_value = "1h", value_parser = config::address_change_delay)]
        address_change_delay: Duration,
        /// The setting of `serve`: how long a notice to the owner is retried
        #[arg(long, env, default_value = "7days", value_parser = config::notice_retention)]
        notice_retention: Duration,
    },
    /// Cancel a request, also an approved one that has not taken effect
    Cancel {
        /// The id of the request
        id: Uuid,
        #[command(flatten)]
        who: Who,
    },
}

/// Who asks, approves or cancels.
#[derive(Debug, Args)]
pub(super) struct Who {
    /// Your name as an operator
    #[arg(long, value_name = "NAME")]
    operator: OperatorName,
    /// Why, in at most 200 characters
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
}

impl Who {
    pub(super) fn actor(&self) -> Actor<'_> {
        Actor::of_command(self.operator.as_str(), &self.reason)
    }
}

/// Parses a reason by the rules of the admin API: 1 to 200 characters, no control characters.
pub(super) fn reason(text: &str) -> Result<String, String> {
    if (1..=200).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err("must have 1 to 200 characters, without line breaks".into())
    }
}

/// A sentence that says how another operator approves the request with this id.
pub(super) fn how_to_approve(id: Uuid) -> String {
    format!(
        "Another operator has to approve it within {} minutes: vos-auth request approve {id}",
        APPROVAL_LIFETIME.as_secs() / 60
    )
}

pub(super) async fn run(command: RequestCommand) -> Result<(), Failure> {
    let (mut connection, now) = (connect().await?, Clock::system().now());
    match command {
        RequestCommand::List { limit, json } => {
            print(&request::list(&mut connection, now, false, None, limit).await?, json)?;
        }
        RequestCommand::Approve { id, who, address_change_delay, notice_retention } => {
            let terms = (address_change_delay, notice_retention);
            match request::approve(&mut connection, now, who.actor(), id, terms).await? {
                Approved::Address(at) => {
                    terminal::line(format_args!(
                        "the owner is told now; the address changes at {} or later, unless the owner stops it",
                        rfc3339(at)
                    ));
                }
                Approved::Ticket => terminal::line("the operator who asked can now give the ticket"),
                Approved::SameOperator => {
                    return Err("this operator has asked for it: another one has to approve it".into());
                }
                Approved::NotAsked(state) => return Err(in_state(state).into()),
                Approved::AccountChanged => {
                    return Err(
                        "the account is disabled or has another address by now: cancel the request".into()
                    );
                }
                Approved::Taken => {
                    return Err("another account has the new address: cancel the request".into());
                }
                Approved::NotFound => return Err(unknown(id).into()),
            }
        }
        RequestCommand::Cancel { id, who } => {
            match request::cancel(&mut connection, now, who.actor(), id).await? {
                Cancelled::Cancelled => terminal::line("the request is cancelled"),
                Cancelled::Ended(state) => return Err(in_state(state).into()),
                Cancelled::NotFound => return Err(unknown(id).into()),
            }
        }
    }
    Ok(())
}

fn unknown(id: Uuid) -> String {
    format!("there is no request with the id {id}; `vos-auth request list` lists all")
}

fn in_state(state: State) -> String {
    format!("the request is {} already", <&str>::from(state))
}

fn print(requests: &[Request], json: bool) -> Result<(), Failure> {
    if json {
        return requests.iter().try_for_each(print_json);
    }
    if requests.is_empty() {
        terminal::line("no operator has asked for anything");
        return Ok(());
    }
    terminal::line(format_args!(
        "{:36}  {:7}  {:9}  {:16}  {:16}  WHAT",
        "ID", "KIND", "STATE", "ASKED BY", "APPROVED BY"
    ));
    for request in requests {
        let (kind, state): (&str, &str) = (request.kind.into(), request.state.into());
        let approved_by = request.approved_by.as_deref().unwrap_or("-");
        let what = match (&request.old_email, &request.new_email) {
            (Some(old), Some(new)) => format!("{old} to {new}"),
            _ => format!("account {}", request.account_id),
        };
        terminal::line(format_args!(
            "{}  {kind:7}  {state:9}  {:16}  {approved_by:16}  {what}: {}",
            request.id, request.asked_by, request.reason
        ));
    }
    Ok(())
}
