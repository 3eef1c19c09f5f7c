//! Owns `outbox`: mails that are owed. Claims them under a lease, reschedules or finishes them.
//!
//! Accepted is kept (promise 2): a row goes only when a relay took its mail, when its code is of no use any more, when there
//! is nobody to write to, or when every relay says so for good. The loop that sends is `courier.rs`.

mod finish;
pub mod holder;
pub mod inspect;
mod round;

use std::net::IpAddr;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

pub use self::finish::{backoff, give_up, retry_at};
pub use self::round::{Claim, Delivered, Round, WINDOW};
use crate::clock::new_id;
use crate::locale::Locale;

/// A mail that this process may send until its lease ends.
#[derive(Debug)]
pub struct ClaimedMail {
    /// The row, and the source of the Message-ID.
    pub id: Uuid,
    /// The claim's number: the fence against a later claim of the same row.
    pub attempts: i32,
    /// When the mail came to be owed.
    pub created_at: OffsetDateTime,
    /// When it is of no more use.
    pub expires_at: OffsetDateTime,
    /// What it says.
    pub content: Content,
    /// With what the request came that it is about.
    pub user_agent: String,
    /// The language of that request.
    pub request_locale: Option<String>,
    /// Whose account it is.
    pub account_id: Uuid,
    /// The stored address: the only one that is ever written to.
    pub account_email: String,
    /// The language that the account wants.
    pub account_locale: Option<String>,
}

/// What a mail says.
#[derive(Debug)]
pub enum Content {
    /// A recovery code.
    RecoveryCode {
        /// The session that the code belongs to.
        recovery_session_id: Uuid,
        /// The secret that the code is derived from.
        key_id: String,
        /// When the session began.
        asked_at: OffsetDateTime,
        /// Who asked.
        client_ip: IpAddr,
    },
    /// That the password was changed, when the mail came to be owed.
    PasswordChanged,
}

impl Content {
    /// The longest pause between two attempts: a code is waited for, and a notice is owed for days.
    const fn longest_backoff(&self) -> Duration {
        match self {
            Self::RecoveryCode { .. } => Duration::from_secs(30),
            Self::PasswordChanged => Duration::from_hours(1),
        }
    }
}

/// Owes the owner of an account a mail about the password that the same transaction sets. It names the device, and is
/// owed for `retention`.
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

/// Deletes the mails that are owed to an account, or to recovery sessions of its address.
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
