//! `vos-auth operator`: who may call the admin API.

use std::time::Duration;

use clap::Subcommand;

use super::{Failure, connect, print_json};
use crate::clock::{Clock, rfc3339};
use crate::config;
use crate::operator::{self, OperatorName, Role};
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum OperatorCommand {
    /// Create an operator of the admin API and print the token, which is shown only this once. A
    /// name whose token was revoked or has expired gets another token
    Create {
        /// The name that audit events show
        name: OperatorName,
        /// What the operator may do: an auditor reads; support also gives recovery tickets, lifts
        /// rate limits and ends sessions; an admin does everything
        #[arg(long)]
        role: Role,
        /// How long the token is valid
        #[arg(long, value_name = "DURATION", default_value = "90days", value_parser = config::operator_lifetime)]
        expires: Duration,
    },
    /// List the operators, their roles and until when their tokens are valid
    List {
        /// Print a JSON object on each line, for programs
        #[arg(long)]
        json: bool,
    },
    /// Revoke the token of an operator at once
    Revoke {
        /// The name of the operator
        name: OperatorName,
    },
}

pub(super) async fn run(command: OperatorCommand) -> Result<(), Failure> {
    let mut connection = connect().await?;
    let now = Clock::system().now();
    match command {
        OperatorCommand::Create { name, role, expires } => {
            let token = operator::create(&mut connection, now, &name, role, expires).await?;
            let token = token.ok_or_else(|| {
                format!("{name} has a valid token: revoke it first, or choose another name")
            })?;
            terminal::line(token.expose());
            let until = rfc3339(now + expires);
            terminal::error_line(format_args!(
                "This is the token of {name} ({role}), valid until {until}. It is not stored and cannot be shown again."
            ));
        }
        OperatorCommand::List { json } => {
            let operators = operator::list(&mut connection, now).await?;
            if json {
                return operators.iter().try_for_each(print_json);
            }
            if operators.is_empty() {
                terminal::line("there is no operator; `vos-auth operator create` creates one");
                return Ok(());
            }
            terminal::line(format_args!("{:32}  {:8}  {:8}  UNTIL", "NAME", "ROLE", "STATE"));
            for operator in operators {
                let until = rfc3339(operator.revoked_at.unwrap_or(operator.expires_at));
                let (role, state) = (<&str>::from(operator.role), <&str>::from(operator.state));
                terminal::line(format_args!("{:32}  {role:8}  {state:8}  {until}", operator.name));
            }
        }
        OperatorCommand::Revoke { name } => {
            if !operator::revoke(&mut connection, now, &name).await? {
                return Err(format!("{name} has no valid token; `vos-auth operator list` lists all").into());
            }
            terminal::line(format_args!("the token of {name} is revoked"));
        }
    }
    Ok(())
}
