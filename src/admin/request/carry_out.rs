//! Carries out approved address changes that are due, once across replicas.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, PgExecutor};
use strum::IntoStaticStr;
use time::OffsetDateTime;
use uuid::Uuid;

use super::cancel_all;
use super::row::{Locked, Request, State, end, lock};
use crate::admin::give_email;
use crate::audit::{self, Event};
use crate::email_address::EmailAddress;
use crate::mail::message::MailKind;
use crate::outbox;

/// By how much the owner's time to stop a change may be shorter than the delay: delivering the
/// notice takes a moment, and the change takes effect at the time that the notice names.
const SLACK: Duration = Duration::from_mins(1);

/// The result of carrying out a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Outcome {
    /// The account has the new address, and a notice to each address is enqueued.
    Done,
    /// The owner was told too recently or not yet: the change waits longer.
    Postponed,
    /// Another account has the address, or this account is disabled or has had another address
    /// since.
    Failed,
    /// The change was carried out, stopped or cancelled meanwhile, or is not due.
    NotDue,
}

/// The approved changes that are due, at most `limit`.
pub async fn due(
    executor: impl PgExecutor<'_>,
    now: OffsetDateTime,
    limit: i64,
) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar!(
        "SELECT id FROM operator_request WHERE kind = 'address' AND state = 'approved' AND effective_at <= $1
         ORDER BY effective_at LIMIT $2",
        now,
        limit
    )
    .fetch_all(executor)
    .await
}

/// How many approved changes are due and not carried out.
pub async fn overdue(executor: impl PgExecutor<'_>, now: OffsetDateTime) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM operator_request
           WHERE kind = 'address' AND state = 'approved' AND effective_at <= $1"#,
        now
    )
    .fetch_one(executor)
    .await
}

/// Carries out one change, if it is still due. Changes the address as [`crate::admin::set_email`]
/// does, and enqueues a notice to each address, which expires after `notice_retention`. If the
/// owner was told less than `delay` ago, the change is postponed, so that the owner has that time
/// to stop it.
pub async fn carry_out(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    id: Uuid,
    (delay, notice_retention): (Duration, Duration),
) -> Result<Outcome, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let Some(Locked { request, email, is_active }) = lock(&mut transaction, now, id).await? else {
        return Ok(Outcome::NotDue);
    };
    if request.state != State::Approved || request.effective_at.is_none_or(|at| at > now) {
        return Ok(Outcome::NotDue);
    }
    if let Some((effective_at, notice_id)) =
        postponed(&mut transaction, now, &request, &email, (delay, notice_retention)).await?
    {
        sqlx::query!(
            "UPDATE operator_request SET effective_at = $2, notice_id = $3 WHERE id = $1",
            id,
            effective_at,
            notice_id
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        return Ok(Outcome::Postponed);
    }
    let account = request.account_id;
    let new = request.new_email.as_deref().and_then(|new| EmailAddress::parse(new).ok());
    let new = new.filter(|_| is_active && request.old_email.as_ref() == Some(&email));
    // A savepoint, because the statement that finds the address taken aborts its transaction.
    let mut change = transaction.begin().await?;
    let is_set = match &new {
        Some(new) => give_email(&mut change, now, account, (&email, new), None).await?,
        None => false,
    };
    if !is_set {
        change.rollback().await?;
        end(&mut transaction, now, id, State::Failed, None).await?;
        audit::record(&mut *transaction, now, Event::AddressChangeFailed, account, None).await?;
        transaction.commit().await?;
        return Ok(Outcome::Failed);
    }
    change.commit().await?;
    end(&mut transaction, now, id, State::Done, None).await?;
    cancel_all(&mut transaction, now, account, None).await?;
    // Each notice stores its recipient, because the account may get another address before the
    // notice is sent.
    let new = request.new_email.as_deref();
    for (kind, to) in [(MailKind::EmailChanged, Some(email.as_str())), (MailKind::NewAddress, new)] {
        outbox::enqueue_help_notice(&mut transaction, now, kind, account, to, notice_retention).await?;
    }
    transaction.commit().await?;
    Ok(Outcome::Done)
}

/// If a change has to wait longer: its new time, and the email that tells the owner. `None` if the
/// owner was told at least `delay` ago (less [`SLACK`]), or if that email was given up.
async fn postponed(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    request: &Request,
    email: &str,
    (delay, notice_retention): (Duration, Duration),
) -> Result<Option<(OffsetDateTime, Uuid)>, sqlx::Error> {
    let (Some(notice), Some(approved_at), Some(new)) =
        (request.notice_id, request.approved_at, &request.new_email)
    else {
        return Ok(None);
    };
    let (account, told) = (request.account_id, Event::AddressChangeNoticeSent);
    match outbox::is_pending(&mut *transaction, notice).await? {
        Some(true) => return Ok(Some((now + delay, notice))),
        Some(false) => return Ok(None),
        None => {}
    }
    if let Some(told_at) = audit::newest(&mut *transaction, account, told, approved_at).await? {
        let effective_at = told_at + delay;
        return Ok((effective_at > now + SLACK).then_some((effective_at, notice)));
    }
    // The notice expired before a relay accepted it.
    let effective_at = now + delay;
    let addresses = (email, new.as_str());
    let notice =
        outbox::enqueue_address_change(transaction, now, account, addresses, effective_at, notice_retention)
            .await?;
    Ok(Some((effective_at, notice)))
}
