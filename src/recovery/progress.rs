//! `progress`: what a recovery waits for. A page can show what the service knows instead of what
//! the page remembers.
//!
//! It is blind, as `start` is: it reads `account` only after a right code was entered. It does not
//! read the outbox either, because how long an email stays there depends on whether there is an
//! account.

use time::OffsetDateTime;

use super::{Recovery, RecoveryId, Step, find_active};
use crate::account;
use crate::database::within_deadline;
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::known_device::KnownDevice;
use crate::second_factor::{self, Method};
use crate::secret::Token;
use crate::throttle::{self, recovery_key};

/// A recovery that can continue.
#[derive(Debug)]
pub struct Progress {
    /// Its id.
    pub id: RecoveryId,
    /// The address it was started for.
    pub email: EmailAddress,
    /// What it waits for.
    pub awaited: Awaited,
    /// When it expires.
    pub expires_at: OffsetDateTime,
    /// How many attempts at the code are left.
    pub attempts_left: i16,
    /// When the rate limit admits the next `start` for the address from this browser.
    pub resend_at: OffsetDateTime,
    /// The service's time, for countdowns.
    pub now: OffsetDateTime,
}

/// What a recovery waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The code.
    Code,
    /// The second factor, by one of these methods.
    SecondFactor(Vec<Method>),
    /// The new password.
    Password,
}

impl Recovery {
    /// Returns what the recovery that `presented` belongs to waits for. A revoked recovery looks
    /// like any other until its code is entered.
    ///
    /// # Errors
    ///
    /// `RecoverySession…` if there is no session that can take its next step; `StorageUnavailable`.
    pub async fn progress(
        &self,
        presented: Option<Token>,
        device: Option<KnownDevice>,
    ) -> Result<Progress, Error> {
        let presented = presented.ok_or(Problem::RecoverySessionMissing)?.hash();
        let (app, pool, now) = (&self.app, &self.app.pool, self.app.time()?);
        let session = find_active(pool, now, &presented, None, Step::Next).await?;
        let mut awaited = if session.awaits_code() { Awaited::Code } else { Awaited::Password };
        if awaited == Awaited::Password {
            let find = account::in_recovery(pool, &session.email, session.number);
            let account = within_deadline("find account", find).await?.ok_or(Problem::RecoverySessionUsed)?;
            let methods = second_factor::methods(pool, account.id);
            let methods = within_deadline("find second factors", methods).await?;
            if session.second_factor.is_none() && !methods.is_empty() {
                awaited = Awaited::SecondFactor(methods);
            }
        }
        let email = EmailAddress::parse(&session.email).map_err(|_| Problem::RecoverySessionMissing)?;
        let key = recovery_key(&email, device.and_then(|device| device.owned_by(&email)));
        let free_at = throttle::free_at(pool, now, &key, app.address_limit);
        Ok(Progress {
            id: RecoveryId::of(session.id),
            email,
            awaited,
            expires_at: session.expires_at,
            attempts_left: session.attempts_left,
            resend_at: within_deadline("read rate limit", free_at).await?,
            now,
        })
    }
}
