//! `vos-auth account`: what an operator does about accounts.

use clap::Subcommand;
use serde_json::{Map, Value};

use super::{Failure, connect};
use crate::account::{self, NewAccount};
use crate::clock::Clock;
use crate::email_address::EmailAddress;
use crate::locale::Locale;
use crate::password::Password;

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
}

pub(super) async fn run(command: AccountCommand) -> Result<(), Failure> {
    let AccountCommand::Create { email, locale, traits, password_stdin } = command;
    create(&email, locale, &traits, password_stdin).await
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
