//! What kinds of hashes are stored, and how many addresses bounce, counted a few pages at a time: a table of millions is not read
//! in one statement.

use sqlx::PgPool;

/// What some pages of the table hold.
#[derive(Debug)]
pub struct Counted {
    /// The hashes by kind: a hash with its salt and its output filled up with one digit, so that nothing of a password leaves the
    /// database.
    pub kinds: Vec<(String, u64)>,
    /// The accounts whose address bounces.
    pub bouncing: u64,
    /// The page to go on with; none at the table's end.
    pub next: Option<i64>,
}

/// Looks through `pages` pages of the table, `from` on, and counts.
///
/// # Errors
///
/// What PostgreSQL answers.
pub async fn count(pool: &PgPool, from: i64, pages: i64) -> Result<Counted, sqlx::Error> {
    let to = from + pages;
    let rows = sqlx::query_file!("src/account/hashes.sql", format!("({from},0)"), format!("({to},0)"),);
    let rows = rows.fetch_all(pool).await?;
    let end = rows.first().map_or(0, |row| row.pages);
    let bouncing = rows.iter().map(|row| row.bouncing.unsigned_abs()).sum();
    let kinds = rows.into_iter().filter_map(|row| Some((row.kind?, row.count.unsigned_abs())));
    Ok(Counted { kinds: kinds.collect(), bouncing, next: (to < end).then_some(to) })
}
