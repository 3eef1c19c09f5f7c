//! Counts the kinds of stored hashes and the bouncing addresses, a few pages at a time, because a
//! table of millions of rows is too large for one statement. Owns `hash_census`: the last counts.

use sqlx::PgPool;
use sqlx::types::Json;

use crate::password::Counts;

/// The counts of some pages of `account`.
#[derive(Debug)]
pub struct PageCounts {
    /// The hashes by kind. A kind is a hash whose salt and output are replaced by one repeated
    /// digit, so that nothing of a password leaves the database.
    pub kinds: Vec<(String, u64)>,
    /// The number of accounts whose address bounces.
    pub bouncing: u64,
    /// The page to continue with; `None` at the table's end.
    pub next: Option<i64>,
}

/// Counts the hashes of `pages` pages of the table, beginning with page `from`.
pub async fn count(pool: &PgPool, from: i64, pages: i64) -> Result<PageCounts, sqlx::Error> {
    let to = from + pages;
    let rows = sqlx::query_file!("src/account/hashes.sql", format!("({from},0)"), format!("({to},0)"),);
    let rows = rows.fetch_all(pool).await?;
    let end = rows.first().map_or(0, |row| row.pages);
    let bouncing = rows.iter().map(|row| row.bouncing.unsigned_abs()).sum();
    let kinds = rows.into_iter().filter_map(|row| Some((row.kind?, row.count.unsigned_abs())));
    Ok(PageCounts { kinds: kinds.collect(), bouncing, next: (to < end).then_some(to) })
}

/// The counts of the whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CensusCounts {
    /// The hashes of each kind at the last count.
    pub current: Counts,
    /// The hashes of each kind after the last import. Until the next import, every kind but the
    /// service's own can only become rarer.
    pub after_import: Counts,
}

impl CensusCounts {
    /// Whether `counts` exceeds the counts after the last import in no kind but `own_kind`.
    #[must_use]
    pub fn covers(&self, counts: &Counts, own_kind: &str) -> bool {
        let is_covered = |kind: &str, count| self.after_import.get(kind).is_some_and(|most| count <= *most);
        counts.iter().all(|(kind, count)| kind == own_kind || is_covered(kind, *count))
    }
}

/// Loads the last counts of any replica. Returns `None` if there are none, or if they cannot be
/// decoded.
pub async fn load_last(pool: &PgPool) -> Result<Option<CensusCounts>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT counts AS "counts: Json<Counts>", most AS "most: Json<Counts>" FROM hash_census WHERE id"#
    );
    let row = match row.fetch_optional(pool).await {
        Err(sqlx::Error::ColumnDecode { .. }) => None,
        row => row?,
    };
    Ok(row.map(|row| CensusCounts { current: row.counts.0, after_import: row.most.0 }))
}

/// Saves the counts of the whole table, and returns them with the counts after the last import. If
/// any kind but `own_kind` has grown, accounts were imported: the new counts then also become the
/// counts after the last import.
pub async fn save(pool: &PgPool, current: Counts, own_kind: &str) -> Result<CensusCounts, sqlx::Error> {
    let before = load_last(pool).await?;
    let after_import = before
        .as_ref()
        .filter(|before| before.covers(&current, own_kind))
        .map(|before| before.after_import.clone());
    let counted = CensusCounts { after_import: after_import.unwrap_or_else(|| current.clone()), current };
    if before.as_ref() != Some(&counted) {
        sqlx::query!(
            "INSERT INTO hash_census (counts, most) VALUES ($1, $2)
             ON CONFLICT (id) DO UPDATE SET counts = excluded.counts, most = excluded.most",
            Json(&counted.current) as _,
            Json(&counted.after_import) as _,
        )
        .execute(pool)
        .await?;
    }
    Ok(counted)
}
