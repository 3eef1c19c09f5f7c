//! Imports accounts of another system, many at a time. Imports can be repeated.

use std::collections::HashMap;

use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::new_id;
use crate::email_address::EmailAddress;
use crate::locale::Locale;

/// An account from another system.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Its id in the other system. `None` if only its address identifies it: this service then
    /// gives it a new id.
    pub id: Option<Uuid>,
    /// Its address.
    pub email: EmailAddress,
    /// Whether it is active.
    pub active: bool,
    /// The language of its emails.
    pub locale: Option<Locale>,
    /// Data about the person, unchanged.
    pub traits: Map<String, Value>,
    /// The hash that its password is verified against.
    pub password_hash: Option<String>,
    /// When its password was last changed.
    pub password_changed_at: Option<OffsetDateTime>,
    /// When it was created in the other system.
    pub created_at: Option<OffsetDateTime>,
}

/// The result for one [`Incoming`] account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImportOutcome {
    /// The account was created.
    Created,
    /// The account was updated: an earlier import wrote it, it was not used or changed in this
    /// service since, and it has changed in the other system.
    Updated,
    /// The account exists and has the same data.
    Unchanged,
    /// The account exists and differs, but was used or changed in this service, so it is not
    /// updated.
    Kept,
    /// The account with this id has another address in this service, so it is not updated.
    OtherEmail,
    /// The account with this address has another id in this service, so it is not updated.
    OtherId,
}

/// Imports accounts in one transaction and returns the result for each; with `dry_run`, the result
/// that each would have. No two accounts may have the same id or address.
pub async fn import(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    batch: &[Incoming],
    dry_run: bool,
) -> Result<Vec<ImportOutcome>, sqlx::Error> {
    loop {
        let mut transaction = connection.begin().await?;
        let existing = existing(&mut transaction, batch).await?;
        let outcomes: Vec<_> =
            batch.iter().zip(&existing).map(|(new, existing)| outcome(new, existing.as_ref())).collect();
        if dry_run {
            return Ok(outcomes);
        }
        let of = |outcome| {
            let rows =
                batch.iter().zip(&existing).zip(&outcomes).filter(move |(_, found)| **found == outcome);
            rows.map(|((new, existing), _)| {
                let id = existing.as_ref().map(|existing| existing.id).or(new.id);
                (id.unwrap_or_else(|| new_id(now)), new)
            })
        };
        let (created, updated) =
            (AccountColumns::of(of(ImportOutcome::Created)), AccountColumns::of(of(ImportOutcome::Updated)));
        let whole =
            created.insert(&mut transaction, now).await? && updated.update(&mut transaction, now).await?;
        if whole {
            transaction.commit().await?;
            return Ok(outcomes);
        }
        // An account was signed in to or created meanwhile: compare again.
        transaction.rollback().await?;
    }
}

/// The existing account that an incoming one corresponds to.
struct Existing {
    id: Uuid,
    email: String,
    active: bool,
    locale: Option<String>,
    traits: Value,
    password_hash: Option<String>,
    untouched: bool,
}

/// Finds existing accounts, by id first: the address may differ.
async fn existing(
    transaction: &mut PgConnection,
    batch: &[Incoming],
) -> Result<Vec<Option<Existing>>, sqlx::Error> {
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
    let mut existing: HashMap<i64, Existing> = HashMap::new();
    for row in rows.fetch_all(transaction).await? {
        let found = Existing {
            id: row.id,
            email: row.email,
            active: row.state == "active",
            locale: row.locale,
            traits: row.traits,
            password_hash: row.password_hash,
            untouched: row.untouched,
        };
        existing.entry(row.n).or_insert(found);
    }
    Ok((1..).take(batch.len()).map(|n| existing.remove(&n)).collect())
}

fn outcome(new: &Incoming, existing: Option<&Existing>) -> ImportOutcome {
    let Some(existing) = existing else { return ImportOutcome::Created };
    if new.id.is_some_and(|id| id != existing.id) {
        return ImportOutcome::OtherId;
    }
    let same = new.email.as_str() == existing.email
        && new.active == existing.active
        && new.locale.map(<&str>::from) == existing.locale.as_deref()
        && existing.traits.as_object() == Some(&new.traits)
        && new.password_hash == existing.password_hash;
    match existing {
        _ if same => ImportOutcome::Unchanged,
        Existing { untouched: false, .. } => ImportOutcome::Kept,
        _ if new.email.as_str() != existing.email => ImportOutcome::OtherEmail,
        _ => ImportOutcome::Updated,
    }
}

/// Accounts as columns, for one statement.
#[derive(Default)]
struct AccountColumns<'a> {
    ids: Vec<Uuid>,
    emails: Vec<&'a str>,
    states: Vec<&'static str>,
    locales: Vec<Option<&'static str>>,
    traits: Vec<Json<&'a Map<String, Value>>>,
    password_hashes: Vec<Option<&'a str>>,
    password_changes: Vec<Option<OffsetDateTime>>,
    creations: Vec<Option<OffsetDateTime>>,
}

impl<'a> AccountColumns<'a> {
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

    /// Inserts the accounts. Returns whether every row was written.
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

    /// Updates the accounts. Returns whether every row was written: an account that was used or
    /// changed since the comparison is not.
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
