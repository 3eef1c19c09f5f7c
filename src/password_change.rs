//! Changing the password while signed in: the same revocations and the same mail as after a reset.

use crate::app::App;
use crate::clock::first_id_of;
use crate::database::{transact, within_deadline};
use crate::error::{Error, Problem};
use crate::password::{Password, Verdict, context};
use crate::session::{self, Authenticated, Caller, NewPassword, SignedIn};
use crate::{account, audit, throttle};

/// Sets a new password for somebody who is signed in and gives the current one. Every session of the account ends, the
/// one that asks included; a new one is opened for it. Changes are bounded like wrong passwords, 10 at once and one more
/// every 5 minutes: each owes its owner a mail.
///
/// # Errors
///
/// `Password…` for a new one that the policy refuses; `PasswordIncorrect` if the current one is not that;
/// `PasswordThrottled` after too many of those or of changes; `SessionInvalid` if the session ended or the password was changed elsewhere meanwhile;
/// `HashingBusy`, with nothing spent; `StorageUnavailable`.
pub async fn change(
    app: &App,
    by: Authenticated,
    current: &Password,
    new: &Password,
    caller: Caller<'_>,
) -> Result<SignedIn, Error> {
    let place = app.hasher.place()?;
    let (pool, now) = (&app.pool, app.time()?);
    let (bucket_key, budget) = (throttle::password_key(by.account.id), app.failure_limit);
    throttle::draw(pool, now, &bucket_key, budget, Problem::PasswordThrottled).await?;
    let stored = within_deadline("find password", account::password_hash(pool, by.account.id)).await?;
    let verdict = place.verify(current, stored.clone(), None).await?;
    let (Verdict::Right { .. }, Some(stored)) = (verdict, stored) else {
        return Err(Error::in_field(Problem::PasswordIncorrect, "currentPassword"));
    };
    let password_hash =
        match place.hash_new(new, context(&by.account.email, &app.config.mail.mail_brand)).await {
            Ok(password_hash) => password_hash,
            Err(refused) => {
                within_deadline("refund budget", throttle::refund(pool, &bucket_key, budget)).await?;
                // The policy speaks of `password`; a queue that is full speaks of no field.
                return Err(Error { field: refused.field.map(|_| "newPassword"), ..refused });
            }
        };
    drop(place);
    let now = app.time()?;
    let opened = transact("change password", async {
        let mut transaction = pool.begin().await?;
        let locked = account::lock(&mut transaction, by.account.id, Some(&stored)).await?;
        let account = locked.ok_or(Problem::SessionInvalid)?;
        if !session::is_open(app, &mut transaction, now, by.session.id).await? {
            return Err(Problem::SessionInvalid.into());
        }
        let new = NewPassword { password_hash: &password_hash, cause: audit::Event::PasswordChanged };
        let opened = session::replace_password(app, &mut transaction, now, account, new, caller).await?;
        transaction.commit().await?;
        Ok(opened)
    })
    .await?;
    app.wakeup.wake(first_id_of(now));
    Ok(opened.signed_in(app, now))
}
