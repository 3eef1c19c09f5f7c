//! `vos-auth event`: lists events that webhooks did not get, and sends them again.

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::{Failure, connect, print_json};
use crate::clock::{Clock, rfc3339};
use crate::event_hook::inspect::{self, DeadLetter};
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum EventCommand {
    /// List the oldest dead letters: events that a hook of EVENT_HOOKS did not get in a day
    List {
        /// Only those of this hook, by its name in EVENT_HOOKS
        #[arg(long)]
        hook: Option<String>,
        /// The maximum number
        #[arg(long, default_value = "50", value_parser = clap::value_parser!(i64).range(1..=100_000))]
        limit: i64,
        /// Print a JSON object on each line, for programs
        #[arg(long)]
        json: bool,
    },
    /// Send dead letters again, before later events of their accounts. Each is retried for a day
    Replay {
        #[command(flatten)]
        which: Which,
        /// Only to this hook
        #[arg(long)]
        hook: Option<String>,
    },
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// The id of the event
    id: Option<Uuid>,
    /// All dead letters
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(command: EventCommand) -> Result<(), Failure> {
    let mut connection = connect().await?;
    match command {
        EventCommand::List { hook, limit, json } => {
            let letters = inspect::dead_letters(&mut connection, hook.as_deref(), limit).await?;
            if json {
                return letters.iter().try_for_each(print_json);
            }
            if letters.is_empty() {
                terminal::line("no event is a dead letter");
                return Ok(());
            }
            terminal::line(format_args!(
                "{:36}  {:16}  {:22}  {:36}  {:20}  {:>8}  LAST ERROR",
                "EVENT", "HOOK", "KIND", "ACCOUNT", "GIVEN UP AT", "ATTEMPTS"
            ));
            for letter in letters {
                let DeadLetter { event_id, hook, kind, account_id, attempts, .. } = &letter;
                let kind = kind.as_deref().unwrap_or("deleted");
                let account = account_id.map_or_else(|| "-".into(), |id| id.to_string());
                let at = rfc3339(letter.died_at);
                let last_error = letter.last_error.as_deref().unwrap_or("-");
                terminal::line(format_args!(
                    "{event_id}  {hook:16}  {kind:22}  {account:36}  {at:20}  {attempts:>8}  {last_error}"
                ));
            }
        }
        EventCommand::Replay { which, hook } => {
            let now = Clock::system().now();
            let replayed = inspect::replay(&mut connection, now, which.id, hook.as_deref()).await?;
            if let (0, Some(id)) = (replayed, which.id) {
                return Err(
                    format!("no dead letter has the id {id}: `vos-auth event list` shows them").into()
                );
            }
            let are = if replayed == 1 { "1 event is".into() } else { format!("{replayed} events are") };
            terminal::line(format_args!("{are} sent again by the next replica that looks for events"));
        }
    }
    Ok(())
}
