//! What an operator does to one account, or to all. Each is one transaction (of one account: under the lock of its row), is
//! recorded, and does nothing when it is done again.

use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::account::{self, record};
use crate::audit::{self, Event};
use crate::email_address::EmailAddress;
use crate::mail::bounce::SignedAddress;
use crate::throttle::{self, Draw, RateLimit};
use crate::{outbox, recovery, session};

/// Disables an account, which ends its sessions and its pending recoveries, or makes it active again. False: it was so
/// already, or is gone.
pub async fn set_active(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    active: bool,
) -> Result<bool, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    match record::lock_in_any_state(&mut transaction, id).await? {
        Some((_, already)) if already != active => {}
        _ => return Ok(false),
    }
    record::set_active(&mut transaction, now, id, active).await?;
    if !active {
        session::revoke_all(&mut transaction, now, id, None).await?;
    }
    let event = if active { Event::AccountEnabled } else { Event::AccountDisabled };
    audit::record(&mut *transaction, now, event, id, None).await?;
    transaction.commit().await?;
    Ok(true)
}

/// What became of a new address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmailSet {
    /// It is the account's.
    Set,
    /// It was the account's already.
    Already,
    /// It is another account's.
    Taken,
    /// There is no such account.
    Gone,
}

/// Gives an account another address, and ends the pending recoveries of both addresses: a code that was mailed to the old
/// one opens the account no longer. Sessions go on; nobody is mailed.
pub async fn set_email(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    email: &EmailAddress,
) -> Result<EmailSet, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let Some((old, _)) = record::lock_in_any_state(&mut transaction, id).await? else {
        return Ok(EmailSet::Gone);
    };
    if old == email.as_str() {
        return Ok(EmailSet::Already);
    }
    if !record::set_email(&mut transaction, now, id, email).await? {
        return Ok(EmailSet::Taken);
    }
    recovery::revoke_pending(&mut transaction, now, &old).await?;
    audit::record(&mut *transaction, now, Event::EmailChanged, id, None).await?;
    transaction.commit().await?;
    Ok(EmailSet::Set)
}

/// What a bounce changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounced {
    /// The address of the account is marked.
    Marked,
    /// It was marked already.
    Already,
    /// The account is gone, or has another address since that mail.
    Gone,
}

/// Marks the address of an account as one that mails come back from. Nothing but what operators see depends on it; a right code
/// ([`account::mark_reached`]) and another address take it away.
pub async fn mark_bouncing(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    bounced: &SignedAddress,
) -> Result<Bounced, sqlx::Error> {
    let id = bounced.account_id;
    let mut transaction = connection.begin().await?;
    match record::lock_in_any_state(&mut transaction, id).await? {
        Some((email, _)) if bounced.was_sent_to(&email) => {}
        _ => return Ok(Bounced::Gone),
    }
    if !record::mark_bouncing(&mut transaction, now, id).await? {
        return Ok(Bounced::Already);
    }
    audit::record(&mut *transaction, now, Event::EmailBounced, id, None).await?;
    transaction.commit().await?;
    Ok(Bounced::Marked)
}

/// Ends every session of an account, and says how many there were.
pub async fn revoke_sessions(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
) -> Result<u64, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    record::lock_in_any_state(&mut transaction, id).await?;
    let ended = session::revoke_all(&mut transaction, now, id, None).await?;
    if ended > 0 {
        audit::record(&mut *transaction, now, Event::SessionsRevoked, id, None).await?;
    }
    transaction.commit().await?;
    Ok(ended)
}

/// Ends every session there is, and says how many there were: a database that was set back to an earlier time has those
/// again that have been ended since.
pub async fn revoke_all_sessions(
    connection: &mut PgConnection,
    now: OffsetDateTime,
) -> Result<u64, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let ended = session::revoke_everybodys(&mut transaction, now).await?;
    audit::record(&mut *transaction, now, Event::SessionsRevoked, None, None).await?;
    transaction.commit().await?;
    Ok(ended)
}

/// What became of a request to fill the buckets of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Unblocked {
    /// So many buckets had been drawn on, and are full again.
    Filled(u64),
    /// It was done too often; the next time is after this.
    NotBefore(OffsetDateTime),
}

/// Fills the buckets of any address again, known or not: that an operator did so must not tell a stranger that there is
/// an account. At most 3 times in 24 hours, as each gives 95 guesses at a code.
pub async fn unblock(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    email: &EmailAddress,
) -> Result<Unblocked, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let key = throttle::unblock_key(email);
    if let Draw::EmptyUntil(at) =
        throttle::spend(&mut *transaction, now, &key, RateLimit::of_unblocks()).await?
    {
        return Ok(Unblocked::NotBefore(at));
    }
    let account =
        account::active_by_email(&mut *transaction, email.as_str()).await?.map(|account| account.id);
    if let Some(id) = account {
        // A login draws on two of these buckets under this lock.
        account::lock(&mut transaction, id, None).await?;
    }
    let filled = throttle::refill(&mut *transaction, email).await?;
    audit::record(&mut *transaction, now, Event::AccountUnblocked, account, None).await?;
    transaction.commit().await?;
    Ok(Unblocked::Filled(filled))
}

/// Deletes everything that is stored of a person: the account, its sessions, the recoveries of its address, the emails that
/// are pending for it. The rate limits of its address are hashes, and go when their buckets are full, within a day. Audit
/// events stay, as somebody has to answer for what happened; they keep the account's id, and no network address or device
/// any more. False: it is gone already.
pub async fn erase(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
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
    audit::record(&mut *transaction, now, Event::AccountErased, id, None).await?;
    transaction.commit().await?;
    Ok(true)
}
