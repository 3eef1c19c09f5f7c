//! What helps the owner of an account to recover it: a ticket, another address. A notice to the
//! owner is enqueued at once, and a rate limit bounds how often one operator may help.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use super::request::Actor;
use super::request::ticket::{self, Permit};
use super::{give_email, request};
use crate::account::record::{self, Name};
use crate::audit::{self, By, Event};
use crate::config::TICKET_LIFETIME;
use crate::email_address::EmailAddress;
use crate::known_device::{self, DeviceId, TICKET};
use crate::mail::message::MailKind;
use crate::outbox;
use crate::secret::Keys;
use crate::throttle::Draw;

/// The operator who helps, and the settings that apply.
#[derive(Clone, Copy, Debug)]
pub struct Help<'a> {
    /// The operator; `None` for a command that names none.
    pub actor: Option<Actor<'a>>,
    /// How long the notice to the owner is retried.
    pub notice_retention: Duration,
    /// The trait that marks protected accounts (`PROTECTED_TRAIT`), if it is set.
    pub protected_trait: Option<&'a str>,
}

impl<'a> Help<'a> {
    /// The help of a command that names no operator. It has no rate limit.
    #[must_use]
    pub fn by_command(notice_retention: Duration) -> Self {
        Self { actor: None, notice_retention, protected_trait: None }
    }

    fn by(self) -> Option<By<'a>> {
        self.actor.map(Actor::by)
    }

    async fn draw(self, transaction: &mut PgConnection, now: OffsetDateTime) -> Result<Draw, sqlx::Error> {
        match self.actor {
            Some(actor) => actor.draw(transaction, now).await,
            None => Ok(Draw::Drawn),
        }
    }
}

/// The result of a request for a recovery ticket.
pub enum Ticket {
    /// The ticket, which is valid until this time.
    Given(String, OffsetDateTime),
    /// There is no such account.
    NotFound,
    /// The account is disabled, so its owner cannot recover it.
    Disabled,
    /// The operator's rate limit is exhausted until this time.
    NotBefore(OffsetDateTime),
    /// The account is protected: another operator can approve the request with this id within 10
    /// minutes, and the same call then gives the ticket.
    Asked(Uuid),
    /// The account is protected and has the open request with this id, which nobody has approved
    /// yet or which another operator made.
    Pending(Uuid),
    /// The account is protected, and the command names no operator.
    NoOperator,
}

/// Gives a ticket, with which its holder can start one recovery although the rate limit of the
/// address is exhausted. The code is sent to the account's stored address, as always. If the
/// account is protected, a second operator has to approve the ticket first.
pub async fn give_ticket(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    keys: &Keys,
    help: Help<'_>,
) -> Result<Ticket, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let email = match record::lock_in_any_state(&mut transaction, id).await? {
        Some((email, true)) => email,
        Some(_) => return Ok(Ticket::Disabled),
        None => return Ok(Ticket::NotFound),
    };
    // No code is sent to a stored address that is not valid, so a ticket would be useless.
    let Ok(address) = EmailAddress::parse(&email) else { return Ok(Ticket::NotFound) };
    let permit = if is_protected(&mut transaction, id, help).await? {
        let Some(actor) = help.actor else { return Ok(Ticket::NoOperator) };
        ticket::permit(&mut transaction, now, actor, id).await?
    } else {
        Permit::Granted
    };
    if let Permit::Pending(request) = permit {
        return Ok(Ticket::Pending(request));
    }
    if let Draw::EmptyUntil(at) = help.draw(&mut transaction, now).await? {
        return Ok(Ticket::NotBefore(at));
    }
    if let Permit::Asked(request) = permit {
        transaction.commit().await?;
        return Ok(Ticket::Asked(request));
    }
    audit::record(&mut *transaction, now, Event::RecoveryTicketIssued, id, help.by()).await?;
    let (kind, kept) = (MailKind::TicketGiven, help.notice_retention);
    outbox::enqueue_help_notice(&mut transaction, now, kind, id, None, kept).await?;
    transaction.commit().await?;
    let ticket = known_device::issue(&TICKET, keys, DeviceId::new(now), &address);
    Ok(Ticket::Given(ticket, now + TICKET_LIFETIME))
}

/// Whether a locked account has the trait that marks protected accounts.
async fn is_protected(transaction: &mut PgConnection, id: Uuid, help: Help<'_>) -> Result<bool, sqlx::Error> {
    if help.protected_trait.is_none() {
        return Ok(false);
    }
    let traits = record::find(transaction, &Name::Id(id)).await?.map(|account| account.traits);
    Ok(ticket::is_protected(&traits.unwrap_or_default(), help.protected_trait))
}

/// The result of setting an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmailSet {
    /// The account has the new address.
    Set,
    /// The account already had this address.
    AlreadySet,
    /// Another account has this address.
    Taken,
    /// There is no such account.
    NotFound,
    /// The account is protected: only two operators can give it another address.
    Protected,
    /// The operator's rate limit is exhausted until this time.
    NotBefore(OffsetDateTime),
}

/// Gives an account another address and ends the pending recoveries of the old and the new address,
/// so that a code emailed to the old address no longer opens the account. Open requests of
/// operators for this account end, too: they were about the old address. Sessions continue. A
/// notice is sent to the old address.
pub async fn set_email(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    email: &EmailAddress,
    help: Help<'_>,
) -> Result<EmailSet, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let Some((old, _)) = record::lock_in_any_state(&mut transaction, id).await? else {
        return Ok(EmailSet::NotFound);
    };
    if old == email.as_str() {
        return Ok(EmailSet::AlreadySet);
    }
    if is_protected(&mut transaction, id, help).await? {
        return Ok(EmailSet::Protected);
    }
    if let Draw::EmptyUntil(at) = help.draw(&mut transaction, now).await? {
        return Ok(EmailSet::NotBefore(at));
    }
    if !give_email(&mut transaction, now, id, (&old, email), help.by()).await? {
        return Ok(EmailSet::Taken);
    }
    request::cancel_all(&mut transaction, now, id, help.by()).await?;
    let (kind, kept) = (MailKind::EmailChanged, help.notice_retention);
    outbox::enqueue_help_notice(&mut transaction, now, kind, id, Some(&old), kept).await?;
    transaction.commit().await?;
    Ok(EmailSet::Set)
}
