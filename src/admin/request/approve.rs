//! A second operator approves a request.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use super::row::{Kind, Locked, State, lock};
use super::{Actor, is_taken};
use crate::audit::{self, Event};
use crate::email_address::EmailAddress;
use crate::outbox;

/// The result of approving a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Approved {
    /// The operator who asked for the ticket gets it by asking again within 10 minutes.
    Ticket,
    /// The address changes at this time or later. The owner is told now.
    Address(OffsetDateTime),
    /// This operator asked for it; another one has to approve it.
    SameOperator,
    /// It cannot be approved, because it is in this state.
    NotAsked(State),
    /// Since the request, the account was disabled or got another address.
    AccountChanged,
    /// Another account has the new address.
    Taken,
    /// There is no such request.
    NotFound,
}

/// Approves a request of another operator. An address change takes effect `delay` later; its notice
/// to the owner expires after `notice_retention`.
pub async fn approve(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    actor: Actor<'_>,
    id: Uuid,
    (delay, notice_retention): (Duration, Duration),
) -> Result<Approved, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let Some(Locked { request, email, is_active }) = lock(&mut transaction, now, id).await? else {
        return Ok(Approved::NotFound);
    };
    if request.state != State::Asked {
        return Ok(Approved::NotAsked(request.state));
    }
    // Case is ignored, as in the table's constraint: the same name in capitals is no second
    // operator.
    if request.asked_by.to_lowercase() == actor.name().to_lowercase() {
        return Ok(Approved::SameOperator);
    }
    if !is_active || request.old_email.as_ref().is_some_and(|old| *old != email) {
        return Ok(Approved::AccountChanged);
    }
    let (effective_at, notice_id, event, approved) = match (request.kind, &request.new_email) {
        (Kind::Address, Some(new)) => {
            match EmailAddress::parse(new) {
                Ok(new) if !is_taken(&mut transaction, &new).await? => {}
                _ => return Ok(Approved::Taken),
            }
            let effective_at = now + delay;
            let notice_id = outbox::enqueue_address_change(
                &mut transaction,
                now,
                request.account_id,
                (&email, new),
                effective_at,
                notice_retention,
            )
            .await?;
            let approved = Approved::Address(effective_at);
            (Some(effective_at), Some(notice_id), Event::AddressChangeApproved, approved)
        }
        _ => (None, None, Event::TicketApproved, Approved::Ticket),
    };
    sqlx::query!(
        "UPDATE operator_request SET state = 'approved', approved_by = $2, approved_at = $3, effective_at = $4, notice_id = $5
         WHERE id = $1",
        id,
        actor.name(),
        now,
        effective_at,
        notice_id,
    )
    .execute(&mut *transaction)
    .await?;
    audit::record(&mut *transaction, now, event, request.account_id, Some(actor.by())).await?;
    transaction.commit().await?;
    Ok(approved)
}
