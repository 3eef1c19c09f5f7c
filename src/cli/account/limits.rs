//! `vos-auth account limits`: what is left in the buckets of an address.

use clap::Args;

use super::super::{Failure, connect, print_json};
use super::{AccountArgument, UNKNOWN};
use crate::account::record::{self, Name};
use crate::clock::{Clock, rfc3339};
use crate::config::AddressLimitSettings;
use crate::email_address::EmailAddress;
use crate::terminal;
use crate::throttle::RateLimit;
use crate::throttle::inspect::{Level, levels};

#[derive(Debug, Args)]
pub(in crate::cli) struct Limits {
    #[command(flatten)]
    account: AccountArgument,
    #[command(flatten)]
    settings: AddressLimitSettings,
    /// Print a JSON object on each line, for programs
    #[arg(long)]
    json: bool,
}

pub(super) async fn limits(arguments: &Limits) -> Result<(), Failure> {
    let mut connection = connect().await?;
    let name = arguments.account.name()?;
    let account = record::find(&mut connection, &name).await?;
    // An address has limits whether or not it has an account.
    let email = match (name, &account) {
        (_, Some(account)) => EmailAddress::parse(&account.email)?,
        (Name::Email(email), None) => email,
        (Name::Id(_), None) => return Err(UNKNOWN.into()),
    };
    let limit = RateLimit::for_address(&arguments.settings);
    let id = account.map(|account| account.id);
    let levels = levels(&mut connection, Clock::system().now(), &email, id, limit).await?;
    if arguments.json {
        return levels.iter().try_for_each(print_json);
    }
    terminal::line(format_args!("{:24}  {:>4}  {:>8}  FULL", "LIMIT", "LEFT", "CAPACITY"));
    for level in &levels {
        let full = if level.is_full() { "now".into() } else { rfc3339(level.full_at) };
        let Level { name, capacity, left, .. } = level;
        terminal::line(format_args!("{:24}  {left:>4}  {capacity:>8}  {full}", <&str>::from(name)));
    }
    Ok(())
}
