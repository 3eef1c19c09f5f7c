//! Operations of operators on one account or on all, for the commands and the admin API. A change
//! of one account is one transaction, under the lock of the account's row. Each change is recorded
//! in the audit log. Repeating a change does not change the account again.
//!
//! `by` is the operator who called the admin API or whom a command names. It is `None` for other
//! commands, which cannot identify the person who runs them. [`request`] contains the operations
//! that need two operators.

mod help;
pub mod history;
pub mod inspect;
pub mod request;
pub mod search;

use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::help::{EmailSet, Help, Ticket, give_ticket, set_email};
use crate::account::{self, record};
use crate::audit::{self, By, Event};
use crate::email_address::EmailAddress;
use crate::locale::Locale;
use crate::mail::bounce::SignedAddress;
use crate::throttle::{self, Draw, RateLimit};
use crate::{outbox, recovery, session};

/// Disables an account, which ends its sessions, pending recoveries and open requests of operators,
/// or makes it active again. Returns false if it was already in that state or does not exist.
pub async fn set_active(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    active: bool,
    by: Option<By<'_>>,
) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    match record::lock_in_any_state(&mut transaction, id).await? {
        Some((_, already)) if already != active => {}
        _ => return Ok(false),
    }
    record::set_active(&mut transaction, now, id, active).await?;
    if !active {
        session::revoke_all(&mut transaction, now, id, None).await?;
        request::cancel_all(&mut transaction, now, id, by).await?;
    }
    let event = if active { Event::AccountEnabled } else { Event::AccountDisabled };
    audit::record(&mut *transaction, now, event, id, by).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Sets the language of the emails to an account; `None` for the language of each request. Returns
/// false if it was already that language or the account does not exist.
pub async fn set_locale(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    locale: Option<Locale>,
    by: Option<By<'_>>,
) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    if !record::set_locale(&mut transaction, now, id, locale).await? {
        return Ok(false);
    }
    audit::record(&mut *transaction, now, Event::LocaleChanged, id, by).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Gives a locked account another address, and ends its pending recoveries. Returns false if
/// another account has the address; the transaction can then only be rolled back.
async fn give_email(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    (old, new): (&str, &EmailAddress),
    by: Option<By<'_>>,
) -> Result<bool, sqlx::Error> {
    if !record::set_email(transaction, now, id, new).await? {
        return Ok(false);
    }
    recovery::revoke_pending(transaction, now, old).await?;
    audit::record(transaction, now, Event::EmailChanged, id, by).await?;
    Ok(true)
}

/// The result of recording a bounce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounced {
    /// The account's address is now marked as bouncing.
    Marked,
    /// The address was already marked.
    AlreadyMarked,
    /// The account does not exist, or no longer has the address that the email was sent to.
    NotFound,
}

/// Marks the address of an account as bouncing. Only operators see the mark. A right code
/// ([`account::clear_bouncing`]) or another address removes it.
pub async fn mark_bouncing(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    bounced: &SignedAddress,
) -> Result<Bounced, sqlx::Error> {
    let id = bounced.account_id;
    let mut transaction = connection.begin().await?;
    match record::lock_in_any_state(&mut transaction, id).await? {
        Some((email, _)) if bounced.was_sent_to(&email) => {}
        _ => return Ok(Bounced::NotFound),
    }
    if !record::mark_bouncing(&mut transaction, now, id).await? {
        return Ok(Bounced::AlreadyMarked);
    }
    audit::record(&mut *transaction, now, Event::EmailBounced, id, None).await?;
    transaction.commit().await?;
    Ok(Bounced::Marked)
}

/// Ends every session of an account and returns how many there were.
pub async fn revoke_sessions(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    by: Option<By<'_>>,
) -> Result<u64, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    record::lock_in_any_state(&mut transaction, id).await?;
    let ended = session::revoke_all(&mut transaction, now, id, None).await?;
    if ended > 0 {
        audit::record(&mut *transaction, now, Event::SessionsRevoked, id, by).await?;
    }
    transaction.commit().await?;
    Ok(ended)
}

/// Ends every session of every account and returns how many there were. A database that was
/// restored to an earlier time contains sessions that have been ended since.
///
/// It is not one transaction, because there may be millions. Before each page of 5000 sessions it
/// calls `continues` with the number of sessions ended so far, and stops if that returns false.
/// Calling it again ends the rest.
pub async fn revoke_all_sessions(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    mut continues: impl FnMut(u64) -> bool,
) -> Result<u64, sqlx::Error> {
    const PAGE: i64 = 5000;
    // Recorded first, so that the audit log has the event even if the loop does not finish.
    audit::record(&mut *connection, now, Event::SessionsRevoked, None, None).await?;
    let (mut ended, mut next) = (0, Some(Uuid::nil()));
    while let Some(after) = next
        && continues(ended)
    {
        let page = session::revoke_page(&mut *connection, now, after, PAGE).await?;
        (ended, next) = (ended + page.0, page.1);
    }
    Ok(ended)
}

/// The result of a request to refill the buckets of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Unblocked {
    /// All buckets are full now; this many were not full before.
    Filled(u64),
    /// The rate limit of refills is exhausted until this time.
    NotBefore(OffsetDateTime),
}

/// Refills the buckets of an address, whether or not it has an account, so that the refill does not
/// reveal one. At most 3 times in 24 hours, because each refill allows up to 95 more guesses at a
/// code, by default.
pub async fn unblock(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    email: &EmailAddress,
    by: Option<By<'_>>,
) -> Result<Unblocked, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let key = throttle::unblock_key(email);
    if let Draw::EmptyUntil(at) =
        throttle::try_draw(&mut *transaction, now, &key, RateLimit::for_unblocks()).await?
    {
        return Ok(Unblocked::NotBefore(at));
    }
    let account =
        account::active_by_email(&mut *transaction, email.as_str()).await?.map(|account| account.id);
    if let Some(id) = account {
        // A login refunds one of these buckets and draws from another under this lock.
        account::lock(&mut transaction, id, None).await?;
    }
    let filled = throttle::refill(&mut *transaction, email).await?;
    audit::record(&mut *transaction, now, Event::AccountUnblocked, account, by).await?;
    transaction.commit().await?;
    Ok(Unblocked::Filled(filled))
}

/// Deletes everything that is stored about a person: the account, its sessions, the recoveries of
/// its address, its pending emails. Returns false if the account does not exist.
///
/// The rate limits of its address are keyed by hashes and are deleted when their buckets are full,
/// within a day. Audit events stay for accountability: they keep the account's id, but no network
/// address or device except those of operators.
pub async fn erase(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    by: Option<By<'_>>,
) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let Some((email, _)) = record::lock_in_any_state(&mut transaction, id).await? else {
        return Ok(false);
    };
    let recoveries = recovery::delete_all(&mut transaction, &email).await?;
    outbox::forget(&mut transaction, id, &recoveries).await?;
    throttle::forget(&mut transaction, id).await?;
    audit::forget_clients(&mut transaction, id).await?;
    record::delete(&mut transaction, id).await?;
    audit::record(&mut *transaction, now, Event::AccountErased, id, by).await?;
    transaction.commit().await?;
    Ok(true)
}
