//! Checks one relay for `vos-auth doctor`, from connecting to RCPT, without sending an email.

use tokio::time::{Instant, timeout_at};

use crate::mail::gateway::Gateway;
use crate::mail::message::Mail;
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::oauth::Requester;

impl Gateway {
    /// Connects to a relay and signs in, as for sending an email, and offers `mail` with MAIL and
    /// RCPT. QUIT then cancels the email (RFC 5321 §4.1.1.10). The check takes at most
    /// `SMTP_DEADLINE` and a second.
    ///
    /// # Errors
    ///
    /// [`NotSent`], with the stage at which the conversation ended.
    pub async fn check(&self, place: usize, mail: &Mail) -> Result<(), NotSent> {
        let deadline = Instant::now() + self.deadline();
        let mut connection = self.relays[place].connect(&self.ehlo_name, deadline, Requester::Probe).await?;
        let offered = timeout_at(deadline, connection.offer(mail)).await;
        connection.quit().await;
        offered.unwrap_or(Err(NotSent::just(Stage::Deadline)))
    }
}
