//! `progress`: what a recovery is waiting for, so that a page shows what the service knows and not what it remembers.
//!
//! Blind as `start` is: it reads `account` only after a right code. It does not look at the outbox either: how long an email
//! waits there depends on whether there is an account.

use time::OffsetDateTime;

use super::{Recovery, RecoveryId, Step, find_active};
use crate::account;
use crate::database::within_deadline;
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::known_device::KnownDevice;
use crate::secret::Token;
use crate::throttle::{self, recovery_key};

/// A recovery that can be continued.
#[derive(Debug)]
pub struct Progress {
    /// Its id.
    pub id: RecoveryId,
    /// The address that it was started for.
    pub email: EmailAddress,
    /// What it is waiting for.
    pub awaited: Awaited,
    /// When it expires.
    pub expires_at: OffsetDateTime,
    /// How many codes may still be tried.
    pub attempts_left: i16,
    /// When the rate limit admits the next `start` for the address, from this browser.
    pub resend_at: OffsetDateTime,
}

/// What a recovery is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The code.
    Code,
    /// The new password.
    Password,
}

impl Recovery {
    /// What the recovery that `presented` belongs to is waiting for. A revoked one goes on like any other until its code is
    /// entered.
    ///
    /// # Errors
    ///
    /// `RecoverySession…` without a session that can do its next step; `StorageUnavailable`.
    pub async fn progress(
        &self,
        presented: Option<Token>,
        device: Option<KnownDevice>,
    ) -> Result<Progress, Error> {
        let presented = presented.ok_or(Problem::RecoverySessionMissing)?.hash();
        let (app, pool, now) = (&self.app, &self.app.pool, self.app.time()?);
        let session = find_active(pool, now, &presented, None, Step::Next).await?;
        let awaited = if session.waits_for_code() { Awaited::Code } else { Awaited::Password };
        if awaited == Awaited::Password {
            let find = account::in_recovery(pool, &session.email, session.number);
            within_deadline("find account", find).await?.ok_or(Problem::RecoverySessionUsed)?;
        }
        let email = EmailAddress::parse(&session.email).map_err(|_| Problem::RecoverySessionMissing)?;
        let key = recovery_key(&email, device.and_then(|device| device.of(&email)));
        let free_at = throttle::free_at(pool, now, &key, app.address_limit);
        Ok(Progress {
            id: RecoveryId::of(session.id),
            email,
            awaited,
            expires_at: session.expires_at,
            attempts_left: session.attempts_left,
            resend_at: within_deadline("read rate limit", free_at).await?,
        })
    }
}
