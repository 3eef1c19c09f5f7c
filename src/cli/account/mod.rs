//! `vos-auth account`: an operator's commands on accounts.

mod end;
mod export;
mod help;
mod history;
mod import;
mod limits;
mod list;
mod recover;
mod show;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::confirm::Confirmation;
use super::{Failure, connect, password_from_stdin, print_json};
use crate::account::record::{self, Name, Record};
use crate::account::{self, NewAccount};
use crate::admin::inspect::overview;
use crate::admin::{self, Unblocked};
use crate::clock::{Clock, rfc3339};
use crate::config::{self, AddressLimitSettings};
use crate::email_address::EmailAddress;
use crate::error::Error;
use crate::locale::{self, Locale};
use crate::password::blocklist::Blocklist;
use crate::password::{self, Cost, Password};
use crate::throttle::RateLimit;
use crate::{session, terminal};

const UNKNOWN: &str = "there is no account with this address or id";

#[derive(Debug, Subcommand)]
pub(super) enum AccountCommand {
    /// Create an account. Without a password, its owner must recover it by email first
    Create {
        /// The email address; recovery codes are sent to it
        email: String,
        /// The language of its emails. Default: the language of each request
        #[arg(long)]
        locale: Option<Locale>,
        /// Data about the owner, as a JSON object
        #[arg(long, default_value = "{}")]
        traits: String,
        /// Read a password from the first line of standard input
        #[arg(long)]
        password_stdin: bool,
        /// The setting of `serve`: the minimum length of a new password in characters
        #[arg(long, env, default_value = "15", value_parser = config::password_min_chars())]
        password_min_chars: u16,
        /// The setting of `serve`: the filter of passwords known from breaches
        #[arg(long, env)]
        password_blocklist: Option<PathBuf>,
    },
    /// Import the accounts of another system: from a running Ory Kratos, a file of its identities,
    /// or a CSV file. Can be interrupted and run again; an account that has been used here since
    /// its import is never changed
    Import(import::ImportArguments),
    /// Export all accounts in the format of Ory Kratos, one JSON object a line, with password
    /// hashes; or write changes back to a running Kratos
    Export(export::ExportArguments),
    /// List accounts, the oldest first
    List(list::Page),
    /// Find accounts by address, by the beginning of an address, by id, or by the id that another
    /// system has for them
    Find(list::Find),
    /// Show an account: state, sessions, recent recoveries, rate limits that are partly or fully
    /// used, and what became of its emails
    Show {
        #[command(flatten)]
        account: AccountArgument,
        #[command(flatten)]
        idle: Idle,
        #[command(flatten)]
        limits: AddressLimitSettings,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Disable an account: its sessions and pending recoveries end, and its owner cannot sign in
    Disable {
        #[command(flatten)]
        account: AccountArgument,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Make a disabled account active again
    Enable(AccountArgument),
    /// Change the address of an account. Its pending recoveries end, its sessions continue, and the
    /// old address gets a notice
    SetEmail {
        #[command(flatten)]
        account: AccountArgument,
        /// The new address, which no other account may have
        new: String,
        #[command(flatten)]
        notice: help::Notice,
    },
    /// Set the language of the emails to an account
    SetLocale {
        #[command(flatten)]
        account: AccountArgument,
        /// The language. Default: that of each request
        locale: Option<Locale>,
    },
    /// List the open sessions of an account
    Sessions {
        #[command(flatten)]
        account: AccountArgument,
        #[command(flatten)]
        idle: Idle,
        /// Print a JSON object on each line, for programs
        #[arg(long)]
        json: bool,
    },
    /// List the audit events of an account, the newest first. Those of an erased account are found by
    /// its id
    History(history::History),
    /// Show what is left of the rate limits of an address
    Limits(limits::Limits),
    /// End every session of an account. Its JWTs stay valid for at most 10 minutes
    Revoke {
        #[command(flatten)]
        account: AccountArgument,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// End every session of every account, after the database was restored from a backup and before
    /// `serve` is started. Can be interrupted and run again
    RevokeAll(Confirmation),
    /// Delete an account and all data of its owner permanently. Audit events keep only its id
    Erase {
        #[command(flatten)]
        account: AccountArgument,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Reset the rate limits of an address after an attacker has exhausted them: recoveries, failed
    /// logins, new browsers. At most 3 times in 24 hours
    Unblock {
        /// Any address, whether an account has it or not
        email: String,
    },
    /// Print a ticket, with which its holder can start one recovery although the rate limit of the
    /// address is exhausted. The owner gets a notice by email. Needs DEVICE_SECRETS
    Recover(recover::RecoverArguments),
    /// Ask for another address for an account whose owner cannot read the stored one. Another
    /// operator has to approve it within 10 minutes. The stored address is then told at once, and
    /// the change takes effect after ADDRESS_CHANGE_DELAY, unless the owner stops it
    RecoverTo(recover::RecoverToArguments),
}

#[derive(Debug, Args)]
pub(super) struct AccountArgument {
    /// The address or the id of an account
    #[arg(value_name = "EMAIL|ID")]
    account: String,
}

#[derive(Debug, Args)]
pub(super) struct Idle {
    /// The setting of `serve`: how long a session lasts without being refreshed
    #[arg(long, env, default_value = "30min", value_parser = config::session_idle)]
    session_idle: Duration,
}

pub(super) async fn run(command: AccountCommand) -> Result<(), Failure> {
    match command {
        AccountCommand::Create {
            email,
            locale,
            traits,
            password_stdin,
            password_min_chars,
            password_blocklist,
        } => {
            let policy = password_stdin.then_some((password_min_chars, password_blocklist.as_deref()));
            create(&email, locale, &traits, policy).await
        }
        AccountCommand::Import(arguments) => import::import(arguments).await,
        AccountCommand::Export(arguments) => export::export(arguments).await,
        AccountCommand::List(page) => list::list(&page).await,
        AccountCommand::Find(find) => list::find(find).await,
        AccountCommand::Show { account, idle, limits, json } => {
            let (mut connection, account) = account.find().await?;
            let (now, limit) = (Clock::system().now(), RateLimit::for_address(&limits));
            let overview = overview(&mut connection, now, &account, idle.session_idle, limit);
            let overview = overview.await?.ok_or(UNKNOWN)?;
            if json {
                return print_json(&overview);
            }
            show::show(&overview);
            Ok(())
        }
        AccountCommand::Disable { account, confirmation } => end::disable(&account, confirmation).await,
        AccountCommand::Enable(account) => enable(&account).await,
        AccountCommand::SetEmail { account, new, notice } => help::set_email(&account, &new, &notice).await,
        AccountCommand::SetLocale { account, locale } => set_locale(&account, locale).await,
        AccountCommand::Sessions { account, idle, json } => {
            let (mut connection, account) = account.find().await?;
            let now = Clock::system().now();
            let sessions = session::list_open(&mut connection, now, idle.session_idle, account.id).await?;
            show::print_sessions(&sessions, json)
        }
        AccountCommand::History(history) => history::history(&history).await,
        AccountCommand::Limits(limits) => limits::limits(&limits).await,
        AccountCommand::Revoke { account, confirmation } => end::revoke(&account, confirmation).await,
        AccountCommand::RevokeAll(confirmation) => end::revoke_all(confirmation).await,
        AccountCommand::Erase { account, confirmation } => end::erase(&account, confirmation).await,
        AccountCommand::Unblock { email } => unblock(&email).await,
        AccountCommand::Recover(arguments) => recover::recover(&arguments).await,
        AccountCommand::RecoverTo(arguments) => recover::recover_to(&arguments).await,
    }
}

async fn create(
    email: &str,
    locale: Option<Locale>,
    traits: &str,
    policy: Option<(u16, Option<&Path>)>,
) -> Result<(), Failure> {
    let email = EmailAddress::parse(email)?;
    let traits: Map<String, Value> =
        serde_json::from_str(traits).map_err(|error| format!("--traits is not a JSON object: {error}"))?;
    let password = policy.map(|policy| read_password(policy, &email)).transpose()?;
    let mut connection = connect().await?;
    let password_hash = password.map(|password| password.hash(Cost::default()));
    let new = NewAccount { email, locale, traits, password_hash };
    let id = account::create(&mut connection, Clock::system().now(), new, None).await?;
    terminal::line(id);
    Ok(())
}

fn read_password(
    (min_chars, blocklist): (u16, Option<&Path>),
    email: &EmailAddress,
) -> Result<Password, Failure> {
    let password = password_from_stdin()?;
    let blocklist = blocklist.map(|path| Blocklist::read_for(path, &password)).transpose()?;
    let refused = |error: Error| locale::message(error.problem, Locale::En);
    let context = password::context(email.as_str(), &[]);
    password.check(min_chars, &context, blocklist.as_ref()).map_err(refused)?;
    Ok(password)
}

impl AccountArgument {
    fn name(&self) -> Result<Name, Failure> {
        Ok(self.account.parse()?)
    }

    async fn find(&self) -> Result<(PgConnection, Record), Failure> {
        let name = self.name()?;
        let mut connection = connect().await?;
        let account = record::find(&mut connection, &name).await?;
        Ok((connection, account.ok_or(UNKNOWN)?))
    }
}

async fn enable(argument: &AccountArgument) -> Result<(), Failure> {
    let (mut connection, account) = argument.find().await?;
    let changed = admin::set_active(&mut connection, Clock::system().now(), account.id, true, None).await?;
    terminal::line(if changed { "the account is active again" } else { "the account is active already" });
    Ok(())
}

async fn set_locale(argument: &AccountArgument, locale: Option<Locale>) -> Result<(), Failure> {
    let (mut connection, account) = argument.find().await?;
    let set = admin::set_locale(&mut connection, Clock::system().now(), account.id, locale, None).await?;
    terminal::line(if set {
        "the account has the new language"
    } else {
        "the account has this language already"
    });
    Ok(())
}

async fn unblock(email: &str) -> Result<(), Failure> {
    let email = EmailAddress::parse(email)?;
    match admin::unblock(&mut connect().await?, Clock::system().now(), &email, None).await? {
        Unblocked::Filled(filled) => {
            terminal::line(format_args!("{filled} rate limits of this address are reset"));
        }
        Unblocked::NotBefore(at) => {
            let at = rfc3339(at);
            return Err(format!(
                "this address was unblocked too often (at most 3 times in 24 hours); it can be unblocked again after {at}"
            )
            .into());
        }
    }
    Ok(())
}
