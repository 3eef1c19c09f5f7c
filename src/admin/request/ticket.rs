//! Decides whether an operator may give a recovery ticket for a protected account. A ticket lifts
//! the rate limit of the account's address for one `start`; the code is sent to the stored address
//! as always.

use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::Actor;
use super::row::{Kind, State, end, insert, open_request};
use crate::audit::{self, Event};

/// Whether the trait `name` marks an account as protected. Any value but false and null does,
/// because a mark may have been imported as text.
#[must_use]
pub fn is_protected(traits: &Value, name: Option<&str>) -> bool {
    let mark = name.and_then(|name| traits.get(name));
    !matches!(mark, None | Some(Value::Null | Value::Bool(false)))
}

/// Whether an operator may give a ticket for a protected account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Permit {
    /// A second operator has approved this ticket, and the approval is used up now.
    Granted,
    /// Another operator can approve the request with this id within 10 minutes.
    Asked(Uuid),
    /// The account already has the open request with this id: nobody has approved it yet, or
    /// another operator made it.
    Pending(Uuid),
}

/// Asks for a ticket for a locked, protected account, or uses up the approval of a request that the
/// same operator made. Issue the ticket in the same transaction.
pub async fn permit(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    actor: Actor<'_>,
    account_id: Uuid,
) -> Result<Permit, sqlx::Error> {
    match open_request(transaction, now, account_id, Kind::Ticket).await? {
        Some(open) if open.state == State::Approved && open.asked_by == actor.name() => {
            end(transaction, now, open.id, State::Done, Some(actor.name())).await?;
            Ok(Permit::Granted)
        }
        Some(open) => Ok(Permit::Pending(open.id)),
        None => {
            let id = insert(transaction, now, actor, account_id, None).await?;
            audit::record(&mut *transaction, now, Event::TicketAsked, account_id, Some(actor.by())).await?;
            Ok(Permit::Asked(id))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mark_of_any_type_but_false_protects() {
        let is_marked = |value: Value| is_protected(&json!({ "protected": value }), Some("protected"));
        for value in [json!(true), json!("true"), json!("false"), json!(1), json!(0), json!({})] {
            assert!(is_marked(value.clone()), "{value}");
        }
        assert!(!is_marked(json!(false)) && !is_marked(Value::Null));
        assert!(!is_protected(&json!({}), Some("protected")), "no mark");
        assert!(!is_protected(&json!({ "protected": true }), None), "no such setting");
    }
}
