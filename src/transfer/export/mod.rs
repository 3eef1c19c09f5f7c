//! Exports accounts: to a file, in the format of Kratos's admin API with one JSON object a line, or
//! as changes into a running Kratos ([`kratos`]).

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

/// The number of accounts in memory at once.
const PAGE: i64 = 2000;

/// Why an export did not finish.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The export cannot be written.
    #[error("the export cannot be written: {0}")]
    Unwritable(#[from] io::Error),
    /// An error of PostgreSQL, shown without its details.
    #[error("the database failed ({})", cause(.0))]
    Storage(#[from] sqlx::Error),
}

/// Writes all accounts of one snapshot, including password hashes, and returns how many there are.
///
/// # Errors
///
/// [`ExportError`]; `out` is then incomplete.
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
            // Escaped, because a terminal may show the output.
            writeln!(out, "{}", terminal::escaped(&to_json(account).to_string()))?;
            count += 1;
        }
    }
    out.flush()?;
    audit::record(&mut *transaction, now, audit::Event::AccountsExported, None, None).await?;
    transaction.commit().await?;
    Ok(count)
}
