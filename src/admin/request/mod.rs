//! Owns `operator_request`: what one operator asks for, and another one has to approve within 10
//! minutes. There are two kinds:
//!
//! - another address for an account. It takes effect `ADDRESS_CHANGE_DELAY` after the approval,
//!   unless the account's owner or an operator stops it ([`carry_out`]);
//! - a recovery ticket for an account that the trait `PROTECTED_TRAIT` marks ([`ticket`]).
//!
//! Callers of this module name the operator; this module does not check the name. Everything that
//! changes the state of a request locks the row of its account first.

mod approve;
pub mod carry_out;
mod row;
pub mod ticket;

use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::approve::{Approved, approve};
pub use self::row::{Kind, Request, State, find, list, sweep};
use self::row::{end, insert, lock, open_request};
use crate::account::{self, record};
use crate::audit::{self, By, Event, OperatorInfo};
use crate::email_address::EmailAddress;
use crate::throttle::{self, Draw, RateLimit};

/// An operator who helps an account owner, or who makes, approves or cancels a request.
#[derive(Clone, Copy, Debug)]
pub struct Actor<'a> {
    operator: OperatorInfo<'a>,
    /// How often the operator may help, all kinds of help together. `None` for a command: no limit.
    limit: Option<RateLimit>,
}

impl<'a> Actor<'a> {
    /// The operator of a call of the admin API.
    #[must_use]
    pub fn calling(operator: OperatorInfo<'a>, limit: RateLimit) -> Self {
        Self { operator, limit: Some(limit) }
    }

    /// The operator whom a command names. Name and reason must have 1 to 200 characters each.
    #[must_use]
    pub fn of_command(name: &'a str, reason: &'a str) -> Self {
        Self { operator: OperatorInfo { name, reason: Some(reason), client: None }, limit: None }
    }

    fn name(self) -> &'a str {
        self.operator.name
    }

    /// The operator as the cause of an audit event.
    pub(super) fn by(self) -> By<'a> {
        By::Operator(self.operator)
    }

    /// Draws one unit from the operator's bucket, if the operator has a rate limit.
    pub(super) async fn draw(
        self,
        transaction: &mut PgConnection,
        now: OffsetDateTime,
    ) -> Result<Draw, sqlx::Error> {
        let Some(limit) = self.limit else { return Ok(Draw::Drawn) };
        throttle::try_draw(transaction, now, &throttle::operator_key(self.name()), limit).await
    }
}

/// The result of asking for another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Asked {
    /// Another operator can approve the request with this id.
    Asked(Uuid),
    /// The account already has the open request with this id.
    Pending(Uuid),
    /// The account already has this address.
    AlreadySet,
    /// Another account has this address.
    Taken,
    /// There is no such account, or it is disabled.
    NotFound,
    /// The operator's rate limit is exhausted until this time.
    NotBefore(OffsetDateTime),
}

/// Asks for another address for an active account. Another operator has to approve it within 10
/// minutes. An account has at most one open request for an address.
pub async fn ask_address(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    actor: Actor<'_>,
    account_id: Uuid,
    new: &EmailAddress,
) -> Result<Asked, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let Some((old, true)) = record::lock_in_any_state(&mut transaction, account_id).await? else {
        return Ok(Asked::NotFound);
    };
    if old == new.as_str() {
        return Ok(Asked::AlreadySet);
    }
    if is_taken(&mut transaction, new).await? {
        return Ok(Asked::Taken);
    }
    if let Some(open) = open_request(&mut transaction, now, account_id, Kind::Address).await? {
        return Ok(Asked::Pending(open.id));
    }
    if let Draw::EmptyUntil(at) = actor.draw(&mut transaction, now).await? {
        return Ok(Asked::NotBefore(at));
    }
    let id = insert(&mut transaction, now, actor, account_id, Some((&old, new.as_str()))).await?;
    audit::record(&mut *transaction, now, Event::AddressChangeAsked, account_id, Some(actor.by())).await?;
    transaction.commit().await?;
    Ok(Asked::Asked(id))
}

async fn is_taken(transaction: &mut PgConnection, email: &EmailAddress) -> Result<bool, sqlx::Error> {
    Ok(account::login_candidate(transaction, email).await?.is_some())
}

/// The result of cancelling a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Cancelled {
    /// It is cancelled.
    Cancelled,
    /// It had ended before, in this state.
    Ended(State),
    /// There is no such request.
    NotFound,
}

/// Cancels an open request. Every operator who may make requests may cancel one, also the operator
/// who made it.
pub async fn cancel(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    actor: Actor<'_>,
    id: Uuid,
) -> Result<Cancelled, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let Some(locked) = lock(&mut transaction, now, id).await? else { return Ok(Cancelled::NotFound) };
    let request = locked.request;
    if !matches!(request.state, State::Asked | State::Approved) {
        return Ok(Cancelled::Ended(request.state));
    }
    end(&mut transaction, now, id, State::Cancelled, Some(actor.name())).await?;
    let event = cancellation(request.kind);
    audit::record(&mut *transaction, now, event, request.account_id, Some(actor.by())).await?;
    transaction.commit().await?;
    Ok(Cancelled::Cancelled)
}

const fn cancellation(kind: Kind) -> Event {
    match kind {
        Kind::Ticket => Event::TicketCancelled,
        Kind::Address => Event::AddressChangeCancelled,
    }
}

/// Cancels the open requests of a locked account, because the account was disabled or got another
/// address.
pub(super) async fn cancel_all(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    by: Option<By<'_>>,
) -> Result<(), sqlx::Error> {
    for kind in [Kind::Ticket, Kind::Address] {
        if let Some(open) = open_request(transaction, now, account_id, kind).await? {
            end(transaction, now, open.id, State::Cancelled, None).await?;
            audit::record(&mut *transaction, now, cancellation(kind), account_id, by).await?;
        }
    }
    Ok(())
}

/// Stops the approved address change of a locked account, for its owner. Returns false if there is
/// none.
pub async fn stop(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
) -> Result<bool, sqlx::Error> {
    match open_request(transaction, now, account_id, Kind::Address).await? {
        Some(open) if open.state == State::Approved => {
            end(transaction, now, open.id, State::Stopped, None).await?;
            Ok(true)
        }
        _ => Ok(false),
    }
}
