//! `reset`: sets the new password of a verified recovery.
//!
//! The policy check and the hash happen before the transaction: a refused password costs the user
//! nothing, and no lock waits for Argon2. Everything that follows from a new password is one
//! transaction, which locks the account's row first. Of many parallel resets, one consumes the
//! session. A crash at any point leaves either the old password or all of the new state.

use super::replay::remember_session;
use super::{Presented, Recovery, Step, find_active};
use crate::client::Client;
use crate::clock::first_id_of;
use crate::database::{transact, within_deadline};
use crate::error::{Detail, Error, Problem};
use crate::known_device::KnownDevice;
use crate::password::{Password, context};
use crate::second_factor::{self, Method};
use crate::session::{self, Caller, NewPassword, SignedIn};
use crate::{account, audit};

impl Recovery {
    /// Sets the password of the account that the verified session of `presented` belongs to. Ends
    /// all its other sessions and pending recoveries, enqueues the notice to its owner, and signs
    /// the client in. An `Err` in `password` is answered only if there is a session. With the key
    /// of an earlier success whose answer was lost, that success is repeated instead of a 401.
    ///
    /// # Errors
    ///
    /// `RecoverySession…` without a verified session; `RecoveryIdMismatch` if it is not the one the
    /// client expects; the error in `password`; `Password…` if the policy refuses the password, and
    /// the session remains; `HashingBusy`, with nothing spent; `StorageUnavailable`.
    pub async fn reset(
        &self,
        presented: Presented,
        password: Result<Password, Error>,
        device: Option<KnownDevice>,
        client: &Client,
    ) -> Result<SignedIn, Error> {
        let caller = Caller { client, device: device.as_ref(), second_factor: None };
        match (self.reset_once(&presented, &password, caller).await, password) {
            (Err(refused), Ok(password)) => self.replay_reset(refused, &presented, &password, caller).await,
            (result, _) => result,
        }
    }

    async fn reset_once(
        &self,
        presented: &Presented,
        password: &Result<Password, Error>,
        caller: Caller<'_>,
    ) -> Result<SignedIn, Error> {
        let token = presented.token.as_ref().ok_or(Problem::RecoverySessionMissing)?.hash();
        let (app, pool) = (&self.app, &self.app.pool);
        let session = find_active(pool, app.time()?, &token, presented.id.as_deref(), Step::Reset).await?;
        // Another reset may have ended the recovery since. This error takes precedence over an
        // error in `password`.
        let find = account::in_recovery(pool, &session.email, session.number);
        let account = within_deadline("find account", find).await?.ok_or(Problem::RecoverySessionUsed)?;
        let caller = Caller { second_factor: session.second_factor, ..caller };
        if caller.second_factor.is_none() {
            let methods = second_factor::methods(pool, account.id);
            refuse_if_any(&within_deadline("find second factors", methods).await?)?;
        }
        let password = password.as_ref().map_err(Clone::clone)?;
        let place = app.hasher.place()?;
        let password_hash =
            place.hash_new(password, context(&session.email, &app.config.mail.product_names())).await?;
        drop(place);
        let now = app.time()?;
        let opened = transact("set password", async {
            let mut transaction = pool.begin().await?;
            let locked = account::lock_in_recovery(&mut transaction, &session.email, session.number).await?;
            let account = locked.ok_or(Problem::RecoverySessionUsed)?;
            // One may have been enrolled meanwhile.
            if caller.second_factor.is_none() {
                refuse_if_any(&second_factor::methods(&mut *transaction, account.id).await?)?;
            }
            let consumed = sqlx::query!(
                "UPDATE recovery_session SET state = 'consumed' WHERE id = $1 AND state = 'verified' AND expires_at > $2",
                session.id,
                now,
            );
            if consumed.execute(&mut *transaction).await?.rows_affected() == 0 {
                return Err(Problem::RecoverySessionUsed.into());
            }
            let new = NewPassword { password_hash: &password_hash, cause: audit::Event::PasswordReset };
            let opened = session::replace_password(app, &mut transaction, now, account, new, caller).await?;
            if let Some(key) = &presented.key {
                remember_session(&mut transaction, now, session.id, key, opened.session_id()).await?;
            }
            transaction.commit().await?;
            Ok(opened)
        })
        .await?;
        app.wakeup.wake(first_id_of(now));
        Ok(opened.signed_in(app, now))
    }
}

/// Refuses a recovery that lacks the second factor of its account.
fn refuse_if_any(methods: &[Method]) -> Result<(), Error> {
    if methods.is_empty() {
        return Ok(());
    }
    let names = methods.iter().map(<&str>::from).collect();
    Err(Error::from(Problem::RecoveryFactorRequired).with(Detail::Methods(names)))
}
