//! One SMTP conversation with a relay: connecting, and a mail from MAIL to the last answer.
//!
//! lettre's pool is not used: it puts an abandoned conversation back, and the next mail then reads the wrong answer and
//! counts as sent; and its timeout covers connecting alone. Here a mail has a connection to itself, one deadline covers
//! the whole conversation, and a connection is kept only if its mail was taken; in any other case it is dropped.

use std::time::Duration;

use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::Response;

use crate::mail::message::Mail;
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::oauth::Asker;
use crate::mail::relay::{Relay, Tls};
use crate::mail::sign_in::Proof;

impl Relay {
    /// A connection of its own: connected, encrypted, signed in. An access token that the relay refuses is renewed, and
    /// shown on another connection: some relays close the first.
    pub(super) async fn connect(
        &self,
        hello: &ClientId,
        timeout: Duration,
        asker: Asker,
    ) -> Result<AsyncSmtpConnection, NotSent> {
        let proof = self.sign_in.proof().await?;
        let connected = self.connect_with(&proof, hello, timeout).await;
        let Err(why) = &connected else { return connected };
        match self.sign_in.other_proof(&proof, why, asker).await {
            Some(other) => self.connect_with(&other, hello, timeout).await,
            None => connected,
        }
    }

    async fn connect_with(
        &self,
        proof: &Proof<'_>,
        hello: &ClientId,
        timeout: Duration,
    ) -> Result<AsyncSmtpConnection, NotSent> {
        let implicit = match &self.tls {
            Tls::Implicit(parameters) => Some(parameters.clone()),
            Tls::Plain | Tls::StartTls(_) => None,
        };
        let server = (self.host.trim_matches(['[', ']']), self.port);
        let mut connection =
            AsyncSmtpConnection::connect_tokio1(server, Some(timeout), hello, implicit, None).await.map_err(
                |error| {
                    let stage = if error.is_tls() { Stage::Tls } else { Stage::Connect };
                    NotSent::explained(stage, &error)
                },
            )?;
        if let Tls::StartTls(parameters) = &self.tls {
            let encrypted = connection.starttls(parameters.clone(), hello).await;
            encrypted.map_err(|error| NotSent::explained(Stage::Tls, &error))?;
        }
        proof.sign_in(&mut connection).await?;
        Ok(connection)
    }

    /// Hands a mail over: on a connection that was kept, or on one of its own.
    pub(super) async fn hand_over(
        &self,
        hello: &ClientId,
        deadline: Duration,
        mail: &Mail,
    ) -> Result<(), NotSent> {
        // In the hands of this function alone: whatever ends it early drops the connection with it.
        let mut connection = if let Some(connection) = begin_on_kept(self, mail).await {
            connection
        } else {
            let mut fresh = self.connect(hello, deadline, Asker::Mail).await?;
            fresh.command(mail_from(mail)).await.map_err(NotSent::at(Stage::Mail))?;
            fresh
        };
        for to in mail.envelope.to() {
            connection.command(Rcpt::new(to.clone(), vec![])).await.map_err(NotSent::at(Stage::Rcpt))?;
        }
        // lettre takes any 2xx or 3xx for a yes; only these two are.
        let go_on = connection.command(Data).await.map_err(NotSent::at(Stage::Data))?;
        exactly(&go_on, 354, Stage::Data)?;
        let taken = connection.command(mail.dot_stuffed()).await.map_err(NotSent::at(Stage::Message))?;
        exactly(&taken, 250, Stage::Message)?;
        self.keep(connection);
        Ok(())
    }
}

/// Begins the mail on a kept connection. `None` if there is none, or if it turns out to be dead: relays close idle
/// connections, and that is no failure of this mail.
async fn begin_on_kept(relay: &Relay, mail: &Mail) -> Option<AsyncSmtpConnection> {
    let mut connection = relay.kept()?;
    connection.command(mail_from(mail)).await.ok()?;
    Some(connection)
}

/// Refuses every answer but this one.
pub(super) fn exactly(response: &Response, code: u16, stage: Stage) -> Result<(), NotSent> {
    let answered = response.code().into();
    if answered == code { Ok(()) } else { Err(NotSent { stage, code: Some(answered), why: None }) }
}

/// No parameters: addresses are ASCII, and lettre encodes every body to 7 bits.
fn mail_from(mail: &Mail) -> MailFrom {
    MailFrom::new(mail.envelope.from().cloned(), vec![])
}
