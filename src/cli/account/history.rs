//! `vos-auth account history`: the audit events of an account.

use clap::Args;
use uuid::Uuid;

use super::super::{Failure, connect, print_json};
use super::{AccountArgument, UNKNOWN};
use crate::account::record::{self, Name};
use crate::admin::history::{self, AuditEntry};
use crate::clock::rfc3339;
use crate::terminal;

#[derive(Debug, Args)]
pub(in crate::cli) struct History {
    #[command(flatten)]
    account: AccountArgument,
    /// The maximum number
    #[arg(long, default_value = "50", value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    /// Only events that are older than this one: the last id of the output before
    #[arg(long, value_name = "ID")]
    before: Option<Uuid>,
    /// Print a JSON object on each line, for programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn history(arguments: &History) -> Result<(), Failure> {
    let History { account, limit, before, json } = arguments;
    let mut connection = connect().await?;
    let id = match account.name()? {
        // The account is not looked up: the events of an erased account are kept.
        Name::Id(id) => id,
        name @ Name::Email(_) => record::find(&mut connection, &name).await?.ok_or(UNKNOWN)?.id,
    };
    let events = history::of_account(&mut connection, id, *before, *limit).await?;
    if *json {
        return events.iter().try_for_each(print_json);
    }
    if events.is_empty() {
        terminal::line(if before.is_some() { "there is no older event" } else { "there is no event" });
        return Ok(());
    }
    terminal::line(format_args!("{:36}  {:20}  {:22}  {:15}  DEVICE", "ID", "TIME", "EVENT", "ADDRESS"));
    for AuditEntry { id, at, what, client_ip, user_agent, .. } in &events {
        let ip = client_ip.map_or_else(|| "-".into(), |ip| ip.to_string());
        let (at, device) = (rfc3339(*at), user_agent.as_deref().unwrap_or("-"));
        terminal::line(format_args!("{id}  {at:20}  {what:22}  {ip:15}  {device}"));
    }
    Ok(())
}
