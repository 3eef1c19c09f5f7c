//! Finds accounts.

use sqlx::PgConnection;
use uuid::Uuid;

use crate::account::search;
pub use crate::account::search::Found;
use crate::email_address::EmailAddress;

/// The most accounts of one page.
pub const MAX_PAGE: i64 = 1000;

/// Which accounts to find.
#[derive(Clone, Debug)]
pub enum Query {
    /// All accounts.
    All,
    /// The account of an address.
    Email(EmailAddress),
    /// Accounts whose address begins with a text, regardless of its case.
    Prefix(String),
    /// The account with an id.
    Id(Uuid),
    /// Accounts by their id in another system: the member `external_id` of their traits.
    ExternalId(String),
}

impl Query {
    /// What a person who types `text` looks for: an id, a whole address, or the beginning of one.
    #[must_use]
    pub fn typed(text: &str) -> Self {
        let text = text.trim();
        match (text.parse(), EmailAddress::parse(text)) {
            (Ok(id), _) => Self::Id(id),
            (_, Ok(email)) => Self::Email(email),
            _ => Self::Prefix(text.to_owned()),
        }
    }
}

/// A page of at most `limit` accounts (1 to 1000), after the account `after`. Accounts are ordered
/// by address if they are found by its beginning, otherwise by id.
pub async fn accounts(
    connection: &mut PgConnection,
    query: &Query,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Found>, sqlx::Error> {
    let (limit, first) = (limit.clamp(1, MAX_PAGE), after.unwrap_or(Uuid::nil()));
    let one = match query {
        // PostgreSQL stores no NUL, and refuses it in a parameter.
        Query::Prefix(text) | Query::ExternalId(text) if text.contains('\0') => None,
        Query::All => return search::all(connection, first, limit).await,
        Query::Prefix(text) => {
            return search::by_prefix(connection, &text.to_lowercase(), after, limit).await;
        }
        Query::ExternalId(text) => return search::by_external_id(connection, text, first, limit).await,
        Query::Email(email) => search::by_email(connection, email).await?,
        Query::Id(id) => search::by_id(connection, *id).await?,
    };
    Ok(one.into_iter().filter(|found| after.is_none_or(|after| found.id > after)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_an_id_or_an_address_or_its_beginning() {
        let id = Uuid::from_u128(7);
        assert!(matches!(Query::typed(&format!(" {id} ")), Query::Id(found) if found == id));
        assert!(matches!(Query::typed("Trader@Example.com "), Query::Email(_)));
        for beginning in ["trader", "trader@", "t"] {
            assert!(matches!(Query::typed(beginning), Query::Prefix(text) if text == beginning));
        }
    }
}
