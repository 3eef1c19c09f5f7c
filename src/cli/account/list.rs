//! `vos-auth account list` and `find`: accounts, a line for each.

use clap::Args;
use uuid::Uuid;

use super::super::{Failure, connect, print_json};
use crate::admin::search::{self, Found, Query};
use crate::clock::rfc3339;
use crate::terminal;

#[derive(Debug, Args)]
pub(in crate::cli) struct Page {
    /// The maximum number
    #[arg(long, default_value = "50", value_parser = clap::value_parser!(i64).range(1..=10_000_000))]
    limit: i64,
    /// Only accounts that follow this one: the last id of the output before
    #[arg(long, value_name = "ID")]
    after: Option<Uuid>,
    /// Print a JSON object on each line, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Find {
    /// An address, the beginning of an address, or an id
    #[arg(value_name = "EMAIL|PREFIX|ID")]
    text: String,
    /// Take the text as the beginning of an address, even if it is a whole one
    #[arg(long, conflicts_with = "external_id")]
    prefix: bool,
    /// Take the text as an id in another system: the member `external_id` of the traits
    #[arg(long)]
    external_id: bool,
    #[command(flatten)]
    page: Page,
}

pub(super) async fn list(page: &Page) -> Result<(), Failure> {
    if print(&Query::All, page).await? == 0 && page.after.is_none() && !page.json {
        terminal::line("there is no account");
    }
    Ok(())
}

pub(super) async fn find(find: Find) -> Result<(), Failure> {
    let query = match find {
        Find { external_id: true, text, .. } => Query::ExternalId(text),
        Find { prefix: true, text, .. } => Query::Prefix(text.trim().to_owned()),
        Find { text, .. } => Query::typed(&text),
    };
    if print(&query, &find.page).await? == 0 {
        return Err("no account is found".into());
    }
    Ok(())
}

/// Prints the accounts, and returns how many it has printed.
async fn print(query: &Query, page: &Page) -> Result<i64, Failure> {
    let mut connection = connect().await?;
    let (mut after, mut printed) = (page.after, 0);
    loop {
        let limit = (page.limit - printed).min(search::MAX_PAGE);
        let found = search::accounts(&mut connection, query, after, limit).await?;
        if printed == 0 && !found.is_empty() && !page.json {
            terminal::line(format_args!(
                "{:36}  {:8}  {:8}  {:20}  {:20}  EMAIL",
                "ID", "STATE", "LANGUAGE", "CREATED", "BOUNCING SINCE"
            ));
        }
        for account in &found {
            if page.json { print_json(account)? } else { terminal::line(row(account)) }
        }
        let count = i64::try_from(found.len())?;
        printed += count;
        after = found.last().map(|last| last.id);
        let (Some(last), true) = (after, count == limit) else { return Ok(printed) };
        if printed == page.limit {
            terminal::error_line(format_args!("there may be more: --after {last}"));
            return Ok(printed);
        }
    }
}

fn row(account: &Found) -> String {
    let Found { id, email, state, locale, external_id: _, created_at, bouncing_since } = account;
    let bouncing = bouncing_since.map_or_else(|| "-".into(), rfc3339);
    let (locale, created) = (locale.as_deref().unwrap_or("-"), rfc3339(*created_at));
    format!("{id}  {state:8}  {locale:8}  {created:20}  {bouncing:20}  {email}")
}
