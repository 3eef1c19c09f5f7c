//! `second-factor`: between a right code and the new password of an account that has enrolled one.

use super::{Presented, Recovery, Step, find_active};
use crate::client::Client;
use crate::database::{transact, within_deadline};
use crate::email_address::EmailAddress;
use crate::error::{Error, Problem};
use crate::known_device::KnownDevice;
use crate::second_factor::{self, Method};
use crate::{account, audit, throttle};

impl Recovery {
    /// Accepts the second factor of a verified recovery, once. An `Err` in `factor` is answered only
    /// if there is a session. Attempts draw on the same rate limit as at sign-in.
    ///
    /// # Errors
    ///
    /// `RecoverySession…` without a verified session; `RecoveryIdMismatch`; the error in `factor`;
    /// `SecondFactorInvalid`, also if the account has enrolled none; `SecondFactorThrottled`;
    /// `StorageUnavailable`.
    pub async fn second_factor(
        &self,
        presented: Presented,
        factor: Result<second_factor::Presented, Error>,
        device: Option<KnownDevice>,
        client: &Client,
    ) -> Result<(), Error> {
        let token = presented.token.as_ref().ok_or(Problem::RecoverySessionMissing)?.hash();
        let (app, pool, now) = (&self.app, &self.app.pool, self.app.time()?);
        let session = find_active(pool, now, &token, presented.id.as_deref(), Step::Reset).await?;
        let find = account::in_recovery(pool, &session.email, session.number);
        let account = within_deadline("find account", find).await?.ok_or(Problem::RecoverySessionUsed)?;
        let factor = factor?;
        let address = EmailAddress::parse(&session.email).map_err(|_| Problem::RecoverySessionUsed)?;
        let device = device.and_then(|device| device.owned_by(&address));
        let (bucket_key, limit) = (throttle::factor_key(account.id, device), app.failure_limit);
        throttle::draw(pool, now, &bucket_key, limit, Problem::SecondFactorThrottled).await?;
        transact("accept second factor", async {
            let mut transaction = pool.begin().await?;
            let locked = account::lock_in_recovery(&mut transaction, &session.email, session.number).await?;
            let account = locked.ok_or(Problem::RecoverySessionUsed)?;
            let keys = app.factor_keys.as_ref();
            if !second_factor::spend(&mut transaction, keys, now, account.id, &factor).await? {
                return Err(Error::in_field(Problem::SecondFactorInvalid, "code").into());
            }
            let marked = sqlx::query!(
                "UPDATE recovery_session SET second_factor = $2 WHERE id = $1 AND state = 'verified' AND expires_at > $3",
                session.id,
                factor.method as Method,
                now
            );
            if marked.execute(&mut *transaction).await?.rows_affected() == 0 {
                return Err(Problem::RecoverySessionUsed.into());
            }
            if factor.method == Method::BackupCode {
                let event = audit::Event::BackupCodeUsed;
                audit::record(&mut *transaction, now, event, account.id, Some(client.into())).await?;
            }
            throttle::refund(&mut *transaction, &bucket_key, limit).await?;
            transaction.commit().await?;
            Ok(())
        })
        .await
    }
}
