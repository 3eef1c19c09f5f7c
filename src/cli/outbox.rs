//! `vos-auth outbox`: lists pending emails with their last error, and sends notices again.

use clap::{Args, Subcommand};
use humantime::format_duration;
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Failure, connect, print_json};
use crate::clock::{Clock, rfc3339};
use crate::mail::message::MailKind;
use crate::outbox::inspect::{self, EntryState, OutboxEntry, SeenEntry};
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// List the oldest pending emails, without their addresses
    List {
        /// The maximum number
        #[arg(long, default_value = "50", value_parser = clap::value_parser!(i64).range(1..=100_000))]
        limit: i64,
        /// Print a JSON object on each line, for programs
        #[arg(long)]
        json: bool,
    },
    /// Show one pending email, with its address
    Show {
        /// The id of the email, from `list` or the service's log
        id: Uuid,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Send notices again. The service itself retries codes until they expire
    Retry(Retry),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Retry {
    /// The id of the notice
    id: Option<Uuid>,
    /// All notices that were given up
    #[arg(long)]
    given_up: bool,
}

/// A pending email and the address of its recipient, if it has one.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    seen: SeenEntry,
    to: Option<String>,
}

pub(super) async fn run(command: OutboxCommand) -> Result<(), Failure> {
    let mut connection = connect().await?;
    let now = Clock::system().now();
    match command {
        OutboxCommand::List { limit, json } => {
            let entries = inspect::list(&mut connection, limit).await?;
            if json {
                return entries.into_iter().try_for_each(|entry| print_json(&entry.seen(now)));
            }
            if entries.is_empty() {
                terminal::line("no email is pending");
                return Ok(());
            }
            terminal::line(format_args!(
                "{:36}  {:16}  {:9}  {:>8}  {:>7}  LAST ERROR",
                "ID", "KIND", "STATE", "ATTEMPTS", "AGE"
            ));
            for entry in entries {
                let OutboxEntry { id, kind, attempts, .. } = &entry;
                let (state, age) = (entry.state(now), span(now - entry.created_at));
                let last_error = entry.last_error.as_deref().unwrap_or("-");
                terminal::line(format_args!(
                    "{id}  {kind:16}  {state:9}  {attempts:>8}  {age:>7}  {last_error}"
                ));
            }
        }
        OutboxCommand::Show { id, json } => {
            let (entry, to) = inspect::find(&mut connection, id).await?.ok_or_else(|| unknown(id))?;
            if json {
                return print_json(&Shown { seen: entry.seen(now), to });
            }
            for (name, value) in describe(&entry, to.as_deref(), now) {
                terminal::line(format_args!("{name:13} {value}"));
            }
        }
        OutboxCommand::Retry(Retry { id, .. }) => {
            let retried = inspect::retry(&mut connection, now, id).await?;
            if let (true, Some(id)) = (retried.is_empty(), id) {
                let (entry, _) = inspect::find(&mut connection, id).await?.ok_or_else(|| unknown(id))?;
                return Err(refusal(&entry, now).into());
            }
            terminal::line(format_args!(
                "{} sent again by the next replica that checks the outbox",
                emails(retried.len())
            ));
        }
    }
    Ok(())
}

fn unknown(id: Uuid) -> String {
    format!("no pending email has the id {id}: it was sent, has expired, or never existed")
}

fn refusal(entry: &OutboxEntry, now: OffsetDateTime) -> &'static str {
    match (entry.kind, entry.state(now)) {
        (MailKind::RecoveryCode, _) => {
            "this is a code: the service retries it until it expires; after that, the user requests another one"
        }
        (_, EntryState::UnderWay) => "a replica is sending this email: check again in a minute",
        _ => "this notice has expired",
    }
}

fn emails(count: usize) -> String {
    if count == 1 { "1 email is".into() } else { format!("{count} emails are") }
}

fn describe(entry: &OutboxEntry, to: Option<&str>, now: OffsetDateTime) -> [(&'static str, String); 10] {
    let since = |at: OffsetDateTime| {
        let (later, span) = (at > now, span((at - now).abs()));
        let at = rfc3339(at);
        if later { format!("{at}, in {span}") } else { format!("{at}, {span} ago") }
    };
    let lease =
        entry.lease_until.map_or_else(|| "no replica".into(), |until| format!("until {}", since(until)));
    [
        ("id", entry.id.to_string()),
        ("kind", entry.kind.to_string()),
        (
            "to",
            to.unwrap_or("no recipient: no active account, or its recovery has ended; it will be deleted")
                .into(),
        ),
        ("state", entry.state(now).to_string()),
        ("attempts", entry.attempts.to_string()),
        ("created", since(entry.created_at)),
        ("next attempt", since(entry.next_attempt_at)),
        ("leased", lease),
        ("expires", since(entry.expires_at)),
        ("last error", entry.last_error.clone().unwrap_or_else(|| "-".into())),
    ]
}

/// A duration in its two largest units: `2h 5m`.
fn span(time: time::Duration) -> String {
    let whole = std::time::Duration::from_secs(time.whole_seconds().unsigned_abs());
    format_duration(whole).to_string().split(' ').take(2).collect::<Vec<_>>().join(" ")
}
