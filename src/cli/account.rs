//! `vos-auth account`: what an operator does about accounts.

use clap::Subcommand;
use serde_json::{Map, Value};
use sqlx::{Connection as _, PgConnection};

use super::{Failure, connect};
use crate::account::{self, Account, NewAccount};
use crate::audit::{self, Event};
use crate::clock::Clock;
use crate::config::{self, Origin, TICKET_LIFETIME};
use crate::email_address::EmailAddress;
use crate::known_device::{self, DeviceId, TICKET};
use crate::locale::Locale;
use crate::password::Password;
use crate::throttle;

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
    },
    /// Fill an address's budgets again, after strangers have spent them: recoveries, failed logins, new browsers
    Unblock {
        /// The address of an account
        email: String,
    },
    /// Print a ticket that lets its holder start one recovery for the address although its budget is spent. Needs
    /// DEVICE_SECRETS
    Recover {
        /// The address of an active account
        email: String,
        /// The origin of /recovery, for a link that holds the ticket
        #[arg(long, env, value_name = "PUBLIC_ORIGIN")]
        public_origin: Option<Origin>,
    },
}

pub(super) async fn run(command: AccountCommand) -> Result<(), Failure> {
    match command {
        AccountCommand::Create { email, locale, traits, password_stdin } => {
            create(&email, locale, &traits, password_stdin).await
        }
        AccountCommand::Unblock { email } => unblock(&email).await,
        AccountCommand::Recover { email, public_origin } => recover(&email, public_origin.as_ref()).await,
    }
}

async fn create(
    email: &str,
    locale: Option<Locale>,
    traits: &str,
    password_stdin: bool,
) -> Result<(), Failure> {
    let email = EmailAddress::parse(email)?;
    let traits: Map<String, Value> =
        serde_json::from_str(traits).map_err(|error| format!("--traits is not a JSON object: {error}"))?;
    let password = if password_stdin {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        let typed = line.trim_end_matches(['\r', '\n']);
        if typed.is_empty() {
            return Err("--password-stdin found no password on standard input".into());
        }
        Some(Password::new(typed))
    } else {
        None
    };
    let mut connection = connect().await?;
    let new = NewAccount { email, locale, traits, password };
    let id = account::create(&mut connection, Clock::system().now(), new).await?;
    println!("{id}");
    Ok(())
}

async fn unblock(email: &str) -> Result<(), Failure> {
    let email = EmailAddress::parse(email)?;
    let mut connection = connect().await?;
    let mut transaction = connection.begin().await?;
    let account = owner(&mut transaction, &email).await?;
    let lifted = throttle::lift(&mut *transaction, &email).await?;
    audit::record(&mut *transaction, Clock::system().now(), Event::AccountUnblocked, account.id, None)
        .await?;
    transaction.commit().await?;
    println!("{lifted} budgets were drawn on, and are full again");
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
    println!("{ticket}");
    eprintln!(
        "It is good for one recovery within {} minutes, in the header X-Recovery-Ticket of start. The code goes by mail, as always.",
        TICKET_LIFETIME.as_secs() / 60
    );
    if let Some(origin) = origin {
        eprintln!("As a link: {origin}/recovery#t={ticket}");
    }
    Ok(())
}

async fn owner(connection: &mut PgConnection, email: &EmailAddress) -> Result<Account, Failure> {
    account::active_by_email(connection, email.as_str())
        .await?
        .ok_or_else(|| "nobody has an active account with this address".into())
}
