//! What kinds of hashes are stored, and how many addresses bounce, counted a few pages at a time: a table of millions is not read
//! in one statement. Owns `hash_census`: what was counted last.

use sqlx::PgPool;
use sqlx::types::Json;

use crate::password::Counts;

/// What some pages of the table hold.
#[derive(Debug)]
pub struct Pages {
    /// The hashes by kind: a hash with its salt and its output filled up with one digit, so that nothing of a password leaves the
    /// database.
    pub kinds: Vec<(String, u64)>,
    /// The accounts whose address bounces.
    pub bouncing: u64,
    /// The page to go on with; none at the table's end.
    pub next: Option<i64>,
}

/// Looks through `pages` pages of the table, `from` on, and counts.
pub async fn count(pool: &PgPool, from: i64, pages: i64) -> Result<Pages, sqlx::Error> {
    let to = from + pages;
    let rows = sqlx::query_file!("src/account/hashes.sql", format!("({from},0)"), format!("({to},0)"),);
    let rows = rows.fetch_all(pool).await?;
    let end = rows.first().map_or(0, |row| row.pages);
    let bouncing = rows.iter().map(|row| row.bouncing.unsigned_abs()).sum();
    let kinds = rows.into_iter().filter_map(|row| Some((row.kind?, row.count.unsigned_abs())));
    Ok(Pages { kinds: kinds.collect(), bouncing, next: (to < end).then_some(to) })
}

/// What was counted of the whole table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// How many hashes of each kind there were, when they were counted last.
    pub now: Counts,
    /// How many there were after the last import. Each kind but ours only gets rarer until the next one.
    pub most: Counts,
}

impl Counted {
    /// Whether no more hashes of any kind but `ours` are stored than there were after the last import.
    #[must_use]
    pub fn covers(&self, counts: &Counts, ours: &str) -> bool {
        let is_covered = |kind: &str, count| self.most.get(kind).is_some_and(|most| count <= *most);
        counts.iter().all(|(kind, count)| kind == ours || is_covered(kind, *count))
    }
}

/// What was counted last, by any replica. `None` if nothing was, or nothing that can be read.
pub async fn counted(pool: &PgPool) -> Result<Option<Counted>, sqlx::Error> {
    let row = sqlx::query!(
        r#"SELECT counts AS "counts: Json<Counts>", most AS "most: Json<Counts>" FROM hash_census WHERE id"#
    );
    let row = match row.fetch_optional(pool).await {
        Err(sqlx::Error::ColumnDecode { .. }) => None,
        row => row?,
    };
    Ok(row.map(|row| Counted { now: row.counts.0, most: row.most.0 }))
}

/// Keeps what was counted of the whole table, and gives it back with what there was after the last import: that is now, if
/// there is more of any kind but `ours` than before.
pub async fn keep(pool: &PgPool, now: Counts, ours: &str) -> Result<Counted, sqlx::Error> {
    let before = counted(pool).await?;
    let most = before.as_ref().filter(|before| before.covers(&now, ours)).map(|before| before.most.clone());
    let counted = Counted { most: most.unwrap_or_else(|| now.clone()), now };
    if before.as_ref() != Some(&counted) {
        sqlx::query!(
            "INSERT INTO hash_census (counts, most) VALUES ($1, $2)
             ON CONFLICT (id) DO UPDATE SET counts = excluded.counts, most = excluded.most",
            Json(&counted.now) as _,
            Json(&counted.most) as _,
        )
        .execute(pool)
        .await?;
    }
    Ok(counted)
}
