//! What kinds of hashes are stored, counted a few pages at a time: a table of millions is not read in one statement.

use sqlx::PgPool;

/// Looks through `pages` pages of the table, `from` on, and counts the hashes there by kind. A kind is a hash with its salt
/// and its output filled up with one digit, so that nothing of a password leaves the database. Gives the page to go on
/// with, too; none at the table's end.
///
/// # Errors
///
/// What PostgreSQL answers.
pub async fn count(
    pool: &PgPool,
    from: i64,
    pages: i64,
) -> Result<(Vec<(String, u64)>, Option<i64>), sqlx::Error> {
    let to = from + pages;
    let rows = sqlx::query_file!("src/account/hashes.sql", format!("({from},0)"), format!("({to},0)"),);
    let rows = rows.fetch_all(pool).await?;
    let end = rows.first().map_or(0, |row| row.pages);
    let counts = rows.into_iter().filter_map(|row| Some((row.kind?, row.count.unsigned_abs())));
    Ok((counts.collect(), (to < end).then_some(to)))
}
