//! Changes the password while signed in, with the same revocations and the same notice as a reset.

use crate::app::App;
use crate::clock::first_id_of;
use crate::database::{transact, within_deadline};
use crate::error::{Error, Problem};
use crate::password::{Password, context};
use crate::session::{self, Authenticated, Caller, NewPassword, SignedIn};
use crate::{audit, throttle};

/// Sets a new password for a signed-in user who enters the current one. Every session of the
/// account ends, including the caller's, and a new one is opened. Changes share the rate limit of
/// wrong passwords, 10 at once and one more every 5 minutes, because each enqueues an email to the
/// owner.
///
/// # Errors
///
/// `Password…` if the policy refuses the new password; `PasswordIncorrect` if the current one is
/// wrong; `PasswordThrottled` after too many changes or wrong passwords; `SessionInvalid` if the
/// session ended or the password was changed elsewhere meanwhile; `HashingBusy`, with nothing
/// spent; `StorageUnavailable`.
pub async fn change(
    app: &App,
    authenticated: Authenticated,
    current: &Password,
    new: &Password,
    caller: Caller<'_>,
) -> Result<SignedIn, Error> {
    let place = app.hasher.place()?;
    let stored = session::confirm_password(app, &authenticated, &place, current, "currentPassword").await?;
    let context = context(&authenticated.account.email, &app.config.mail.product_names());
    let password_hash = match place.hash_new(new, context).await {
        Ok(password_hash) => password_hash,
        Err(refused) => {
            let key = throttle::password_key(authenticated.account.id);
            let refund = throttle::refund(&app.pool, &key, app.failure_limit);
            within_deadline("refund rate limit", refund).await?;
            // The policy names the field `password`; a full queue names none.
            return Err(Error { field: refused.field.map(|_| "newPassword"), ..refused });
        }
    };
    drop(place);
    let now = app.time()?;
    let opened = transact("change password", async {
        let mut transaction = app.pool.begin().await?;
        let locked = session::lock_if_open(app, &mut transaction, now, &authenticated, Some(&stored)).await?;
        let account = locked.ok_or(Problem::SessionInvalid)?;
        let new = NewPassword { password_hash: &password_hash, cause: audit::Event::PasswordChanged };
        let opened = session::replace_password(app, &mut transaction, now, account, new, caller).await?;
        transaction.commit().await?;
        Ok(opened)
    })
    .await?;
    app.wakeup.wake(first_id_of(now));
    Ok(opened.signed_in(app, now))
}
