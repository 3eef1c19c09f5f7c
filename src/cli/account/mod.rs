//! `vos-auth account`: what an operator does about accounts.

mod export;
mod import;
mod progress;
mod show;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};
use sqlx::PgConnection;

use super::{Failure, connect};
use crate::account::record::{self, Name, Record};
use crate::account::{self, Account, NewAccount};
use crate::audit::{self, Event};
use crate::clock::Clock;
use crate::config::{self, Origin, TICKET_LIFETIME};
use crate::email_address::EmailAddress;
use crate::error::Error;
use crate::known_device::{self, DeviceId, TICKET};
use crate::locale::{self, Locale};
use crate::operator::{self, EmailSet, Unblocked};
use crate::password::{self, Password};
use crate::{session, terminal};

#[derive(Debug, Subcommand)]
pub(super) enum AccountCommand {
    /// Create an account; without a password its owner recovers by mail first
    Create {
        /// The address; recovery codes go there
        email: String,
        /// The language of its mails. Default: that of each request
        #[arg(long)]
        locale: Option<Locale>,
        /// What is known of the person, as a JSON object
        #[arg(long, default_value = "{}")]
        traits: String,
        /// Read a password from standard input, up to the first line's end
        #[arg(long)]
        password_stdin: bool,
        /// The setting of `serve`: the fewest characters of a new password
        #[arg(long, env, default_value = "15", value_parser = config::password_min_chars())]
        password_min_chars: u16,
    },
    /// Take over the accounts of another system: from a running Ory Kratos, a file of its identities, or a CSV. Can be
    /// interrupted and run again: an account that has been used here since is never changed
    Import(import::ImportArguments),
    /// Write all accounts as Ory Kratos does, one JSON object a line, with the hashes of their passwords; or carry what has
    /// changed here back into a running Kratos
    Export(export::ExportArguments),
    /// Show an account, in whatever state
    Show {
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        idle: Idle,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Disable an account: its sessions and pending recoveries end, nobody signs in to it
    Disable(Whose),
    /// Make a disabled account active again
    Enable(Whose),
    /// Give an account another address; its pending recoveries end, its sessions go on, nobody is mailed
    SetEmail {
        #[command(flatten)]
        whose: Whose,
        /// The new address; no other account may have it
        new: String,
    },
    /// List the sessions of an account that have not ended
    Sessions {
        #[command(flatten)]
        whose: Whose,
        #[command(flatten)]
        idle: Idle,
    },
    /// End every session of an account; its JWTs go on for 10 minutes at most
    Revoke(Whose),
    /// End every session of every account, after the database was set back to an earlier time; before `serve` is started
    RevokeAll,
    /// Delete an account and all that is stored of its owner, for good. Audit events keep its id alone
    Erase(Whose),
    /// Fill the rate limits of an address again, after strangers have used them up: recoveries, failed logins, new browsers.
    /// At most 3 times in 24 hours
    Unblock {
        /// Any address, whether an account has it or not
        email: String,
    },
    /// Print a ticket that lets its holder start one recovery for the address although its budget is spent. Needs
    /// DEVICE_SECRETS
    Recover {
        /// The address of an active account
        email: String,
        /// The origin of /recovery, for a link that holds the ticket
        #[arg(long, env)]
        public_origin: Option<Origin>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Whose {
    /// The address or the id of an account
    #[arg(value_name = "EMAIL|ID")]
    account: String,
}

#[derive(Debug, Args)]
pub(super) struct Idle {
    /// The setting of `serve`: when a session has ended that nobody has refreshed
    #[arg(long, env, default_value = "30min", value_parser = config::session_idle)]
    session_idle: Duration,
}

pub(super) async fn run(command: AccountCommand) -> Result<(), Failure> {
    match command {
        AccountCommand::Create { email, locale, traits, password_stdin, password_min_chars } => {
            create(&email, locale, &traits, password_stdin.then_some(password_min_chars)).await
        }
        AccountCommand::Import(arguments) => import::import(arguments).await,
        AccountCommand::Export(arguments) => export::export(arguments).await,
        AccountCommand::Show { whose, idle, json } => {
            let (mut connection, account) = whose.found().await?;
            show::show(&mut connection, Clock::system().now(), idle.session_idle, &account, json).await
        }
        AccountCommand::Disable(whose) => set_active(&whose, false).await,
        AccountCommand::Enable(whose) => set_active(&whose, true).await,
        AccountCommand::SetEmail { whose, new } => set_email(&whose, &new).await,
        AccountCommand::Sessions { whose, idle } => {
            let (mut connection, account) = whose.found().await?;
            let now = Clock::system().now();
            let sessions = session::open_of(&mut connection, now, idle.session_idle, account.id).await?;
            show::print_sessions(&sessions);
            Ok(())
        }
        AccountCommand::Revoke(whose) => revoke(&whose).await,
        AccountCommand::RevokeAll => revoke_all().await,
        AccountCommand::Erase(whose) => erase(&whose).await,
        AccountCommand::Unblock { email } => unblock(&email).await,
        AccountCommand::Recover { email, public_origin } => recover(&email, public_origin.as_ref()).await,
    }
}

async fn create(
    email: &str,
    locale: Option<Locale>,
    traits: &str,
    min_chars: Option<u16>,
) -> Result<(), Failure> {
    let email = EmailAddress::parse(email)?;
    let traits: Map<String, Value> =
        serde_json::from_str(traits).map_err(|error| format!("--traits is not a JSON object: {error}"))?;
    let password = min_chars.map(|min_chars| read_password(min_chars, &email)).transpose()?;
    let mut connection = connect().await?;
    let new = NewAccount { email, locale, traits, password };
    let id = account::create(&mut connection, Clock::system().now(), new).await?;
    terminal::line(id);
    Ok(())
}

fn read_password(min_chars: u16, email: &EmailAddress) -> Result<Password, Failure> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let typed = line.trim_end_matches(['\r', '\n']);
    if typed.is_empty() {
        return Err("--password-stdin found no password on standard input".into());
    }
    let password = Password::new(typed);
    let refused = |error: Error| locale::message(error.problem, Locale::En);
    password.check(min_chars, &password::context(email.as_str(), "")).map_err(refused)?;
    Ok(password)
}

impl Whose {
    async fn found(&self) -> Result<(PgConnection, Record), Failure> {
        let name: Name = self.account.parse()?;
        let mut connection = connect().await?;
        let account = record::find(&mut connection, &name).await?;
        Ok((connection, account.ok_or("there is no account with this address or id")?))
    }
}

async fn set_active(whose: &Whose, active: bool) -> Result<(), Failure> {
    let (mut connection, account) = whose.found().await?;
    let changed = operator::set_active(&mut connection, Clock::system().now(), account.id, active).await?;
    terminal::line(match (active, changed) {
        (true, true) => "the account is active again",
        (true, false) => "the account is active already",
        (false, true) => "the account is disabled; its sessions and pending recoveries have ended",
        (false, false) => "the account is disabled already",
    });
    Ok(())
}

async fn set_email(whose: &Whose, new: &str) -> Result<(), Failure> {
    let new = EmailAddress::parse(new)?;
    let (mut connection, account) = whose.found().await?;
    match operator::set_email(&mut connection, Clock::system().now(), account.id, &new).await? {
        EmailSet::Set => terminal::line("the account has the new address; its pending recoveries have ended"),
        EmailSet::Already => terminal::line("the account has this address already"),
        EmailSet::Taken => {
            return Err("another account has this address: change or erase that one first".into());
        }
        EmailSet::Gone => return Err("the account has just been erased".into()),
    }
    Ok(())
}

async fn revoke(whose: &Whose) -> Result<(), Failure> {
    let (mut connection, account) = whose.found().await?;
    let ended = operator::revoke_sessions(&mut connection, Clock::system().now(), account.id).await?;
    terminal::line(format_args!("{ended} sessions have ended"));
    Ok(())
}

async fn revoke_all() -> Result<(), Failure> {
    let ended = operator::revoke_all_sessions(&mut connect().await?, Clock::system().now()).await?;
    terminal::line(format_args!("{ended} sessions have ended"));
    Ok(())
}

async fn erase(whose: &Whose) -> Result<(), Failure> {
    let (mut connection, account) = whose.found().await?;
    operator::erase(&mut connection, Clock::system().now(), account.id).await?;
    terminal::line(format_args!("account {} and all that was stored of its owner are erased", account.id));
    Ok(())
}

async fn unblock(email: &str) -> Result<(), Failure> {
    let email = EmailAddress::parse(email)?;
    match operator::unblock(&mut connect().await?, Clock::system().now(), &email).await? {
        Unblocked::Filled(filled) => terminal::line(format_args!(
            "{filled} rate limits of this address were drawn on, and are full again"
        )),
        Unblocked::NotBefore(at) => {
            let at = at.truncate_to_second();
            return Err(format!(
                "this address was unblocked 3 times in 24 hours; the next time is after {at}"
            )
            .into());
        }
    }
    Ok(())
}

/// The ticket goes to standard output alone, so that it can be piped to where it is needed.
async fn recover(email: &str, origin: Option<&Origin>) -> Result<(), Failure> {
    let email = EmailAddress::parse(email)?;
    let keys = config::device_secrets()?;
    let mut connection = connect().await?;
    let account = owner(&mut connection, &email).await?;
    let now = Clock::system().now();
    audit::record(&mut connection, now, Event::RecoveryTicketIssued, account.id, None).await?;
    let ticket = known_device::issue(&TICKET, &keys, DeviceId::new(now), &email);
    terminal::line(&ticket);
    terminal::note(format_args!(
        "It is good for one recovery within {} minutes, in the header X-Recovery-Ticket of start. The code goes by mail, as always.",
        TICKET_LIFETIME.as_secs() / 60
    ));
    if let Some(origin) = origin {
        terminal::note(format_args!("As a link: {origin}/recovery#t={ticket}"));
    }
    Ok(())
}

async fn owner(connection: &mut PgConnection, email: &EmailAddress) -> Result<Account, Failure> {
    account::active_by_email(connection, email.as_str())
        .await?
        .ok_or_else(|| "nobody has an active account with this address".into())
}
