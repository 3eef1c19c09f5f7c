//! What happens to a claimed email that no relay accepted: it is tried again, or given up.

use std::time::Duration;

use sqlx::PgPool;
use time::OffsetDateTime;

use super::{ClaimedMail, Content};
use crate::audit::{self, By, ClientInfo, Event};
use crate::config::{CODE_LIFE_ON_ARRIVAL, CODE_LIFETIME};

/// Makes an email that was not accepted due again at `next_attempt_at`. Does nothing if the row was
/// claimed again meanwhile. `why` must not quote the relay.
pub async fn retry_at(
    pool: &PgPool,
    next_attempt_at: OffsetDateTime,
    mail: &ClaimedMail,
    why: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query!(
        "UPDATE outbox SET next_attempt_at = $3, lease_until = NULL, holder = NULL, last_error = $4
         WHERE id = $1 AND attempts = $2",
        mail.id,
        mail.attempts,
        next_attempt_at,
        why
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Gives up an email. An email with a code is deleted and recorded in the audit log. A notice is
/// kept until it expires, so that an operator can send it again. Does nothing if the row was
/// claimed again meanwhile.
pub async fn give_up(
    pool: &PgPool,
    now: OffsetDateTime,
    mail: &ClaimedMail,
    why: &str,
) -> Result<(), sqlx::Error> {
    let Content::RecoveryCode { client_ip, .. } = mail.content else {
        return retry_at(pool, mail.expires_at, mail, why).await;
    };
    let mut transaction = pool.begin().await?;
    let deleted = sqlx::query!("DELETE FROM outbox WHERE id = $1 AND attempts = $2", mail.id, mail.attempts)
        .execute(&mut *transaction)
        .await?;
    if deleted.rows_affected() > 0 {
        let by = By::Client(ClientInfo { client_ip, user_agent: &mail.user_agent });
        audit::record(&mut *transaction, now, Event::RecoveryNotSent, mail.account_id, Some(by)).await?;
    }
    transaction.commit().await
}

/// The time of the next attempt, by exponential backoff: at most 1.1 s after the first attempt. The
/// bound then doubles with each attempt, up to 30 s for a code, 2 minutes for the notice of an
/// approved address change, and an hour for other notices. `None` if the email would then expire
/// within a minute.
///
/// `jitter`, uniform in 0 to 1, scales the pause, so that emails which failed together are not
/// tried again together.
#[must_use]
pub fn backoff(now: OffsetDateTime, mail: &ClaimedMail, jitter: f64) -> Option<OffsetDateTime> {
    let doublings = mail.attempts.clamp(0, 13).unsigned_abs();
    let max_pause = Duration::from_millis(500 << doublings).min(mail.content.max_backoff());
    let next = now + Duration::from_millis(100) + max_pause.mul_f64(jitter.clamp(0.0, 1.0));
    (next + CODE_LIFE_ON_ARRIVAL <= mail.expires_at).then_some(next)
}

const _: () = assert!(CODE_LIFE_ON_ARRIVAL.as_secs() < CODE_LIFETIME.as_secs());

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn backoff_grows_to_its_bound_and_ends_with_the_code() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let mail = |attempts, life, content| ClaimedMail {
            id: Uuid::nil(),
            attempts,
            created_at: now,
            expires_at: now + life,
            content,
            user_agent: String::new(),
            request_locale: None,
            account_id: Uuid::nil(),
            account_email: String::new(),
            account_locale: None,
        };
        let code = |attempts, life| {
            let content = Content::RecoveryCode {
                recovery_session_id: Uuid::nil(),
                key_id: String::new(),
                asked_at: now,
                client_ip: [127, 0, 0, 1].into(),
            };
            mail(attempts, life, content)
        };
        let wait = |mail: &ClaimedMail, jitter| backoff(now, mail, jitter).map(|next| next - now);
        assert_eq!(wait(&code(1, CODE_LIFETIME), 1.0), Some(time::Duration::milliseconds(1100)));
        assert_eq!(wait(&code(2, CODE_LIFETIME), 1.0), Some(time::Duration::milliseconds(2100)));
        assert_eq!(wait(&code(50, CODE_LIFETIME), 1.0), Some(time::Duration::milliseconds(30_100)));
        assert_eq!(wait(&code(50, CODE_LIFETIME), 0.0), Some(time::Duration::milliseconds(100)));
        assert_eq!(wait(&code(1, Duration::from_secs(61)), 1.0), None);
        let notice = mail(50, Duration::from_hours(7 * 24), Content::PasswordChanged);
        assert_eq!(wait(&notice, 1.0), Some(time::Duration::milliseconds(3_600_100)));
        let content = Content::AddressChange { new: String::new(), effective_at: now };
        let warning = mail(50, Duration::from_hours(7 * 24), content);
        assert_eq!(wait(&warning, 1.0), Some(time::Duration::milliseconds(120_100)));
    }
}
