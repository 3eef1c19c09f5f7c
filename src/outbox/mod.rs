//! Owns the table `outbox` of pending emails. Claims them under a lease, and reschedules or deletes
//! them.
//!
//! "Accepted is kept" (an invariant of [`crate`]): a row is deleted only
//!
//! - after a relay has accepted its email;
//! - when it has expired, or expires too soon to be sent;
//! - when it has no recipient: no active account has the address, or the recovery was used or
//!   ended;
//! - when every relay that is up says that the recipient does not exist (a code; a notice is kept
//!   until it expires).
//!
//! The loop that sends the emails is [`crate::courier`].

mod finish;
pub mod holder;
pub mod inspect;
mod round;

use std::net::IpAddr;
use std::time::Duration;

use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::finish::{backoff, give_up, retry_at};
pub use self::round::{Claim, Delivered, Round, WINDOW};
use crate::clock::new_id;
use crate::locale::Locale;
use crate::mail::message::MailKind;

/// An email that this process may send until its lease ends.
#[derive(Debug)]
pub struct ClaimedMail {
    /// The id of its row. The Message-ID is made from it.
    pub id: Uuid,
    /// The number of this claim. An update with the number of an earlier claim changes nothing.
    pub attempts: i32,
    /// When the email was enqueued.
    pub created_at: OffsetDateTime,
    /// When it expires.
    pub expires_at: OffsetDateTime,
    /// What it says.
    pub content: Content,
    /// The User-Agent of the request that the email is about; empty if the row has none.
    pub user_agent: String,
    /// The language of the request that the email is about.
    pub request_locale: Option<String>,
    /// The recipient's account.
    pub account_id: Uuid,
    /// The address that the email is sent to: the account's stored address, or the one stored with
    /// a notice about another address. No email is sent to an address that a client typed.
    pub account_email: String,
    /// The account's preferred language.
    pub account_locale: Option<String>,
}

/// What an email says.
#[derive(Debug)]
pub enum Content {
    /// A recovery code.
    RecoveryCode {
        /// The session that the code belongs to.
        recovery_session_id: Uuid,
        /// The id of the key that the code is derived from.
        key_id: String,
        /// When the session was started.
        asked_at: OffsetDateTime,
        /// The address of the client that started it.
        client_ip: IpAddr,
    },
    /// The password was changed when the email was enqueued.
    PasswordChanged,
    /// An operator gave a recovery ticket when the email was enqueued.
    TicketGiven,
    /// The account got another address when the email was enqueued. Sent to the previous address.
    EmailChanged,
    /// A change of the account's address was approved when the email was enqueued.
    AddressChange {
        /// The new address.
        new: String,
        /// When it takes effect, at the earliest.
        effective_at: OffsetDateTime,
    },
    /// The account got another address when the email was enqueued. Sent to the new address.
    NewAddress,
}

impl Content {
    /// The longest pause between two attempts. The user waits for a code; a notice may be days
    /// late.
    const fn max_backoff(&self) -> Duration {
        match self {
            Self::RecoveryCode { .. } => Duration::from_secs(30),
            // Its reader may have to stop the change, within `ADDRESS_CHANGE_DELAY`.
            Self::AddressChange { .. } => Duration::from_mins(2),
            Self::PasswordChanged | Self::TicketGiven | Self::EmailChanged | Self::NewAddress => {
                Duration::from_hours(1)
            }
        }
    }
}

/// Enqueues the notice that the password was changed, in the transaction that changes it. The email
/// names the device of `user_agent`. It expires after `retention`.
pub async fn enqueue_notice(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    locale: Option<Locale>,
    user_agent: &str,
    retention: Duration,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO outbox (id, kind, account_id, next_attempt_at, expires_at, created_at, locale, user_agent)
         VALUES ($1, 'password_changed', $2, $3, $4, $3, $5, $6)",
        new_id(now),
        account_id,
        now,
        now + retention,
        locale.map(<&str>::from),
        user_agent,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Enqueues the notice that an operator has given a ticket, or that the account has got another
/// address, in the transaction that does so. It is sent to `address`, or else to the account's
/// stored address, and expires after `retention`.
pub async fn enqueue_help_notice(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    kind: MailKind,
    account_id: Uuid,
    address: Option<&str>,
    retention: Duration,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "INSERT INTO outbox (id, kind, account_id, address, next_attempt_at, expires_at, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $5)",
        new_id(now),
        <&str>::from(kind),
        account_id,
        address,
        now,
        now + retention,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// Enqueues the notice to the stored address `old` that its account gets the address `new`, at
/// `effective_at` or later, in the transaction that approves the change. It expires after
/// `retention`. Returns the id of its row.
pub async fn enqueue_address_change(
    transaction: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    (old, new): (&str, &str),
    effective_at: OffsetDateTime,
    retention: Duration,
) -> Result<Uuid, sqlx::Error> {
    let id = new_id(now);
    sqlx::query!(
        "INSERT INTO outbox (id, kind, account_id, address, other_address, effective_at, next_attempt_at, expires_at, created_at)
         VALUES ($1, 'address_change', $2, $3, $4, $5, $6, $7, $6)",
        id,
        account_id,
        old,
        new,
        effective_at,
        now,
        now + retention,
    )
    .execute(transaction)
    .await?;
    Ok(id)
}

/// Whether this email is pending, and not given up. `None` if there is no such email any more: a
/// relay has accepted it, or it expired.
pub async fn is_pending(executor: impl PgExecutor<'_>, id: Uuid) -> Result<Option<bool>, sqlx::Error> {
    let pending = sqlx::query_scalar!(
        r#"SELECT next_attempt_at < expires_at AS "pending!" FROM outbox WHERE id = $1"#,
        id
    );
    pending.fetch_optional(executor).await
}

/// Deletes the pending emails of an account and of these recovery sessions.
pub async fn forget(
    transaction: &mut PgConnection,
    account_id: Uuid,
    recovery_sessions: &[Uuid],
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "DELETE FROM outbox WHERE account_id = $1 OR recovery_session_id = ANY($2)",
        account_id,
        recovery_sessions
    )
    .execute(transaction)
    .await?;
    Ok(())
}
