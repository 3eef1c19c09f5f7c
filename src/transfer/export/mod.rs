//! Writes every account as the incumbent's admin API does, one JSON object a line, for a copy or for the way back;
//! or carries what has changed here back into a running Kratos ([`kratos`]).

pub mod kratos;
mod merge;

use std::io::{self, Write};

use sqlx::{Connection as _, Executor as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::account::record;
use crate::audit;
use crate::database::cause;
use crate::terminal;
use crate::transfer::import::identity::to_json;

/// Accounts that are in memory at once.
const PAGE: i64 = 2000;

/// Why an export did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be written.
    #[error("the export cannot be written: {0}")]
    Unwritable(#[from] io::Error),
    /// What PostgreSQL answered, as it may be shown.
    #[error("the database failed ({})", cause(.0))]
    Storage(#[from] sqlx::Error),
}

/// Writes all accounts as they are at one moment, passwords' hashes included, and says how many there are.
///
/// # Errors
///
/// [`ExportError`]; then `out` is not whole.
pub async fn run(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    out: &mut impl Write,
) -> Result<u64, ExportError> {
    let mut transaction = connection.begin().await?;
    transaction.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
    let (mut last, mut count) = (Uuid::nil(), 0);
    loop {
        let page = record::page(&mut *transaction, last, PAGE).await?;
        let Some(end) = page.last() else { break };
        last = end.id;
        for account in &page {
            // It may be a terminal.
            writeln!(out, "{}", terminal::escaped(&to_json(account).to_string()))?;
            count += 1;
        }
    }
    out.flush()?;
    audit::record(&mut *transaction, now, audit::Event::AccountsExported, None, None).await?;
    transaction.commit().await?;
    Ok(count)
}
