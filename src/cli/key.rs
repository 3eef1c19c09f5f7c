//! `vos-auth key`: the keys that sign JWTs.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::{Failure, print_json};
use crate::clock::{Clock, rfc3339};
use crate::config::{ConfigError, Origin};
use crate::jwt::{self, KeyRing, KeyStatus};
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Create the first key in the folder JWT_KEYS. It signs at once
    Generate(KeyFolder),
    /// Add a key, which is published at once and signs after 20 minutes, and delete keys whose JWTs
    /// have all expired. A running service reads the change within a minute. Can be run again at
    /// any time
    Rotate(KeyFolder),
    /// List the keys of the folder JWT_KEYS, and what each is used for
    List {
        #[command(flatten)]
        folder: KeyFolder,
        /// Print a JSON object on each line, for programs
        #[arg(long)]
        json: bool,
    },
    /// Read a JWT from standard input, verify it, and print its claims or why it is refused
    Verify {
        #[command(flatten)]
        folder: KeyFolder,
        /// The issuer (iss) that it must have. Default: PUBLIC_ORIGIN
        #[arg(long, env, required_unless_present = "public_origin")]
        jwt_issuer: Option<String>,
        /// The setting of `serve`
        #[arg(long, env)]
        public_origin: Option<Origin>,
        /// The audience (aud) that it must have
        #[arg(long, env, default_value = "https://api-oms.verolabs.co")]
        jwt_audience: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct KeyFolder {
    /// The folder with the keys
    #[arg(long, env)]
    jwt_keys: PathBuf,
}

pub(super) fn run(command: KeyCommand) -> Result<(), Failure> {
    let now = Clock::system().now();
    let config_error = |folder: &KeyFolder, why: jwt::KeysUnusable| {
        ConfigError::new("JWT_KEYS", format!("({}) {why}", folder.jwt_keys.display()))
    };
    match command {
        KeyCommand::Generate(folder) => {
            let id = jwt::generate(&folder.jwt_keys, now).map_err(|why| config_error(&folder, why))?;
            terminal::line(format_args!("key {id} signs from now on"));
        }
        KeyCommand::Rotate(folder) => {
            let rotation = jwt::rotate(&folder.jwt_keys, now).map_err(|why| config_error(&folder, why))?;
            for id in &rotation.deleted {
                terminal::line(format_args!("key {id} is deleted: all JWTs that it signed have expired"));
            }
            let minutes = ((rotation.waiting_until - now).as_seconds_f64() / 60.0).ceil();
            match rotation.added {
                Some(id) => {
                    terminal::line(format_args!("key {id} is published now and signs in {minutes} minutes"));
                }
                None => {
                    terminal::line(format_args!(
                        "a new key is already published and signs in {minutes} minutes; no other key is added"
                    ));
                }
            }
        }
        KeyCommand::List { folder, json } => {
            let keys = jwt::list(&folder.jwt_keys, now).map_err(|why| config_error(&folder, why))?;
            if json {
                return keys.iter().try_for_each(print_json);
            }
            let time = |at: Option<OffsetDateTime>| at.map_or_else(|| "-".into(), rfc3339);
            terminal::line(format_args!(
                "{:16}  {:8}  {:20}  {:20}  PUBLISHED UNTIL",
                "ID", "STATE", "SIGNS FROM", "SIGNS UNTIL"
            ));
            for KeyStatus { id, state, signs_from, signs_until, published_until } in keys {
                let [from, until] = [Some(signs_from), signs_until].map(time);
                let (state, published) = (state.to_string(), time(published_until));
                terminal::line(format_args!("{id:16}  {state:8}  {from:20}  {until:20}  {published}"));
            }
        }
        KeyCommand::Verify { folder, jwt_issuer, public_origin, jwt_audience } => {
            let issuer = jwt_issuer.or(public_origin.map(|origin| origin.to_string())).unwrap_or_default();
            let keys = KeyRing::read(&folder.jwt_keys).map_err(|why| config_error(&folder, why))?;
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            let claims = keys
                .verify(text.trim(), &issuer, &jwt_audience, now)
                .map_err(|why| format!("the JWT is refused: {why}"))?;
            serde_json::to_string_pretty(&claims)?.lines().for_each(terminal::line);
        }
    }
    Ok(())
}
