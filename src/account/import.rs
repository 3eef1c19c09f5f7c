//! Accounts of another system's export: many at a time, as often as one likes.

use std::collections::HashMap;

use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::new_id;
use crate::email_address::EmailAddress;
use crate::locale::Locale;

/// An account as an export has it.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The id that other systems know it by; `None`: it is known by its address, and gets an id here.
    pub id: Option<Uuid>,
    /// Its address.
    pub email: EmailAddress,
    /// Whether it is active.
    pub active: bool,
    /// The language of its mails.
    pub locale: Option<Locale>,
    /// What is known of the person, as it is.
    pub traits: Map<String, Value>,
    /// What its password is verified against.
    pub password_hash: Option<String>,
    /// Since when it has been.
    pub password_changed_at: Option<OffsetDateTime>,
    /// When it was created there.
    pub created_at: Option<OffsetDateTime>,
}

/// What becomes of an [`Incoming`] account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It is new here.
    Created,
    /// It came from an export before, nobody has used it here since, and the export has changed.
    Updated,
    /// It is here, and the same.
    Unchanged,
    /// It is here and differs, and has been used or changed here: it stays as it is.
    Kept,
    /// Its id is that of an account with another address.
    OtherEmail,
    /// Its address is that of an account with another id.
    OtherId,
}

/// Writes the accounts of one transaction, all or none, and says what became of each; with `dry_run`, what would. No two
/// may have the same id or the same address.
pub async fn import(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    batch: &[Incoming],
    dry_run: bool,
) -> Result<Vec<Fate>, sqlx::Error> {
    loop {
        let mut transaction = connection.begin().await?;
        let known = known(&mut transaction, batch).await?;
        let fates: Vec<_> = batch.iter().zip(&known).map(|(new, known)| fate(new, known.as_ref())).collect();
        if dry_run {
            return Ok(fates);
        }
        let of = |fate| {
            let rows = batch.iter().zip(&known).zip(&fates).filter(move |(_, found)| **found == fate);
            rows.map(|((new, known), _)| {
                let id = known.as_ref().map(|known| known.id).or(new.id);
                (id.unwrap_or_else(|| new_id(now)), new)
            })
        };
        let (created, updated) = (Columns::of(of(Fate::Created)), Columns::of(of(Fate::Updated)));
        let whole =
            created.insert(&mut transaction, now).await? && updated.update(&mut transaction, now).await?;
        if whole {
            transaction.commit().await?;
            return Ok(fates);
        }
        // Somebody has signed in to one of them, or created it, meanwhile: look again.
        transaction.rollback().await?;
    }
}

/// The account that a new one meets here.
struct Known {
    id: Uuid,
    email: String,
    active: bool,
    locale: Option<String>,
    traits: Value,
    password_hash: Option<String>,
    untouched: bool,
}

/// By id first: an account is the same one whatever its address.
async fn known(
    transaction: &mut PgConnection,
    batch: &[Incoming],
) -> Result<Vec<Option<Known>>, sqlx::Error> {
    let ids: Vec<_> = batch.iter().map(|new| new.id).collect();
    let emails: Vec<_> = batch.iter().map(|new| new.email.as_str()).collect();
    let rows = sqlx::query!(
        r#"SELECT new.n AS "n!", a.id AS "id!", a.email AS "email!", a.state AS "state!", a.locale, a.traits AS "traits!",
               a.password_hash, coalesce(a.imported_at = a.updated_at, false) AS "untouched!"
           FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS new (id, email, n)
           CROSS JOIN LATERAL (
               SELECT * FROM account WHERE id = new.id
               UNION ALL
               SELECT * FROM account WHERE email = new.email AND id IS DISTINCT FROM new.id
           ) AS a"#,
        &ids as _,
        &emails as _,
    );
    let mut known: HashMap<i64, Known> = HashMap::new();
    for row in rows.fetch_all(transaction).await? {
        let found = Known {
            id: row.id,
            email: row.email,
            active: row.state == "active",
            locale: row.locale,
            traits: row.traits,
            password_hash: row.password_hash,
            untouched: row.untouched,
        };
        known.entry(row.n).or_insert(found);
    }
    Ok((1..).take(batch.len()).map(|n| known.remove(&n)).collect())
}

fn fate(new: &Incoming, known: Option<&Known>) -> Fate {
    let Some(known) = known else { return Fate::Created };
    if new.id.is_some_and(|id| id != known.id) {
        return Fate::OtherId;
    }
    let same = new.email.as_str() == known.email
        && new.active == known.active
        && new.locale.map(<&str>::from) == known.locale.as_deref()
        && known.traits.as_object() == Some(&new.traits)
        && new.password_hash == known.password_hash;
    match known {
        _ if same => Fate::Unchanged,
        Known { untouched: false, .. } => Fate::Kept,
        _ if new.email.as_str() != known.email => Fate::OtherEmail,
        _ => Fate::Updated,
    }
}

/// Accounts as the arrays that one statement takes.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    emails: Vec<&'a str>,
    states: Vec<&'static str>,
    locales: Vec<Option<&'static str>>,
    traits: Vec<Json<&'a Map<String, Value>>>,
    password_hashes: Vec<Option<&'a str>>,
    password_changes: Vec<Option<OffsetDateTime>>,
    creations: Vec<Option<OffsetDateTime>>,
}

impl<'a> Columns<'a> {
    fn of(rows: impl Iterator<Item = (Uuid, &'a Incoming)>) -> Self {
        let mut columns = Self::default();
        for (id, new) in rows {
            columns.ids.push(id);
            columns.emails.push(new.email.as_str());
            columns.states.push(if new.active { "active" } else { "disabled" });
            columns.locales.push(new.locale.map(<&str>::from));
            columns.traits.push(Json(&new.traits));
            columns.password_hashes.push(new.password_hash.as_deref());
            columns.password_changes.push(new.password_changed_at);
            columns.creations.push(new.created_at);
        }
        columns
    }

    /// Whether every row was written.
    async fn insert(&self, transaction: &mut PgConnection, now: OffsetDateTime) -> Result<bool, sqlx::Error> {
        if self.ids.is_empty() {
            return Ok(true);
        }
        let inserted = sqlx::query!(
            "INSERT INTO account (id, email, state, locale, traits, password_hash, password_changed_at, created_at,
                 updated_at, imported_at)
             SELECT id, email, state, locale, traits, password_hash, password_changed_at, coalesce(created_at, $9), $9, $9
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::jsonb[], $6::text[], $7::timestamptz[],
                 $8::timestamptz[])
                 AS new (id, email, state, locale, traits, password_hash, password_changed_at, created_at)
             ON CONFLICT DO NOTHING",
            &self.ids,
            &self.emails as _,
            &self.states as _,
            &self.locales as _,
            &self.traits as _,
            &self.password_hashes as _,
            &self.password_changes as _,
            &self.creations as _,
            now,
        );
        Ok(inserted.execute(transaction).await?.rows_affected() == self.ids.len() as u64)
    }

    /// Whether every row was written: one that somebody has used since it was looked at is not.
    async fn update(&self, transaction: &mut PgConnection, now: OffsetDateTime) -> Result<bool, sqlx::Error> {
        if self.ids.is_empty() {
            return Ok(true);
        }
        let updated = sqlx::query!(
            "UPDATE account SET state = new.state, locale = new.locale, traits = new.traits,
                 password_hash = new.password_hash, password_changed_at = new.password_changed_at,
                 updated_at = $7, imported_at = $7
             FROM unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[], $5::text[], $6::timestamptz[])
                 AS new (id, state, locale, traits, password_hash, password_changed_at)
             WHERE account.id = new.id AND account.imported_at = account.updated_at",
            &self.ids,
            &self.states as _,
            &self.locales as _,
            &self.traits as _,
            &self.password_hashes as _,
            &self.password_changes as _,
            now,
        );
        Ok(updated.execute(transaction).await?.rows_affected() == self.ids.len() as u64)
    }
}
