//! SMTP conversations with a relay: connecting, sending emails, and QUIT.
//!
//! lettre's pool is not used, for two reasons. It reuses the connection of an abandoned
//! conversation, so that an old answer can be taken for the answer to the next email. And its
//! timeout covers only connecting.
//!
//! Here one email at a time uses a connection, and one deadline covers the whole conversation. A
//! connection is kept only if its email was accepted. Otherwise it is closed, with QUIT if the
//! relay's answer shows that the relay awaits a command.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{io, pin, task};

use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::commands::{Data, Mail as MailFrom, Noop, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout, timeout_at};

use crate::mail::connect::connect;
use crate::mail::message::Mail;
use crate::mail::not_sent::{NotSent, Stage, expect_code};
use crate::mail::oauth::Requester;
use crate::mail::relay_url::RelayUrl;
use crate::mail::sign_in::Proof;
use crate::mail::tls::Tls;

/// How long to wait for the answer to QUIT. No email waits meanwhile.
const QUIT_DEADLINE: Duration = Duration::from_secs(1);

/// A connection on which the relay awaits a command.
pub(super) struct Connection {
    smtp: AsyncSmtpConnection,
    /// The relay's address.
    pub(super) address: IpAddr,
    /// How many emails or NOOPs this side has sent on it.
    pub(super) uses: u32,
}

impl Connection {
    /// Sends NOOP to check that the relay still answers.
    pub(super) async fn noop(&mut self, deadline: Instant) -> Result<(), NotSent> {
        self.uses += 1;
        let answer = timeout_at(deadline, self.smtp.command(Noop)).await;
        answer.map_or_else(
            |_| Err(no_answer(Stage::Noop)),
            |answer| answer.map(drop).map_err(NotSent::at(Stage::Noop)),
        )
    }

    /// Offers an email with MAIL and RCPT, without sending its content. The caller limits the time.
    pub(super) async fn offer(&mut self, mail: &Mail) -> Result<(), NotSent> {
        self.smtp.command(mail_from(mail)).await.map_err(NotSent::at(Stage::Mail))?;
        for to in mail.envelope.to() {
            self.smtp.command(Rcpt::new(to.clone(), vec![])).await.map_err(NotSent::at(Stage::Rcpt))?;
        }
        Ok(())
    }

    /// Sends an email, from MAIL to the answer to the final dot. The relay must answer MAIL by
    /// `mail_deadline`. The caller limits the total time.
    pub(super) async fn send(&mut self, mail_deadline: Instant, mail: &Mail) -> Result<(), NotSent> {
        let smtp = &mut self.smtp;
        let answer = timeout_at(mail_deadline, smtp.command(mail_from(mail))).await;
        answer.map_err(|_| NotSent::just(Stage::Deadline))?.map_err(NotSent::at(Stage::Mail))?;
        for to in mail.envelope.to() {
            smtp.command(Rcpt::new(to.clone(), vec![])).await.map_err(NotSent::at(Stage::Rcpt))?;
        }
        // lettre accepts any 2xx or 3xx, but only 354 after DATA and 250 after the message mean
        // success.
        let answer = smtp.command(Data).await.map_err(NotSent::at(Stage::Data))?;
        expect_code(&answer, 354, Stage::Data)?;
        let answer = smtp.command(mail.dot_stuffed()).await.map_err(NotSent::at(Stage::Message))?;
        expect_code(&answer, 250, Stage::Message)
    }

    /// Closes the connection with QUIT (RFC 5321 §4.1.1.10).
    pub(super) async fn quit(mut self) {
        let _ = timeout(QUIT_DEADLINE, self.smtp.quit()).await;
    }

    /// Opens a connection: connects (to `preferred` first), encrypts, sends EHLO and signs in.
    ///
    /// If the relay refuses the access token, this renews the token and tries once more, on another
    /// connection because some relays close the first one.
    pub(super) async fn open(
        relay: &RelayUrl,
        preferred: Option<IpAddr>,
        ehlo_name: &ClientId,
        deadline: Instant,
        requester: Requester,
    ) -> Result<Self, NotSent> {
        let proof = timeout_at(deadline, relay.sign_in.proof()).await;
        let proof = proof.map_err(|_| NotSent::because(Stage::Auth, "no access token in time"))??;
        let connected = Self::open_with(&proof, relay, preferred, ehlo_name, deadline).await;
        let Err(why) = &connected else { return connected };
        match timeout_at(deadline, relay.sign_in.renewed_proof(&proof, why, requester)).await {
            Ok(Some(renewed)) => Self::open_with(&renewed, relay, preferred, ehlo_name, deadline).await,
            Ok(None) | Err(_) => connected,
        }
    }

    async fn open_with(
        proof: &Proof<'_>,
        relay: &RelayUrl,
        preferred: Option<IpAddr>,
        ehlo_name: &ClientId,
        deadline: Instant,
    ) -> Result<Self, NotSent> {
        let host = relay.host.trim_matches(['[', ']']);
        let connected = timeout_at(deadline, connect(host, relay.port, preferred)).await;
        let connected = connected
            .map_err(|_| no_answer(Stage::Connect))?
            .map_err(|why| NotSent::because(Stage::Connect, why))?;
        let (peer, has_written) = (connected.address, Arc::<AtomicBool>::default());
        let stream: Box<dyn AsyncTokioStream> = if let Tls::Implicit(tls) = &relay.tls {
            let encrypted = timeout_at(deadline, tls.handshake(connected.stream)).await;
            let stream = encrypted
                .map_err(|_| no_answer(Stage::Tls))?
                .map_err(|error| NotSent::because(Stage::Tls, error.to_string()))?;
            Box::new(Watched { stream, peer, has_written: Arc::clone(&has_written) })
        } else {
            Box::new(Watched { stream: connected.stream, peer, has_written: Arc::clone(&has_written) })
        };
        // lettre waits for the greeting before it sends EHLO.
        let stage = || if has_written.load(Ordering::Relaxed) { Stage::Ehlo } else { Stage::Greeting };
        let greeting = AsyncSmtpConnection::connect_with_transport(stream, ehlo_name);
        let mut smtp = in_time(deadline, stage, greeting).await?;
        if let Tls::StartTls(parameters) = &relay.tls {
            in_time(deadline, || Stage::Tls, smtp.starttls(parameters.clone(), ehlo_name)).await?;
        }
        timeout_at(deadline, proof.sign_in(&mut smtp)).await.map_err(|_| no_answer(Stage::Auth))??;
        Ok(Self { smtp, address: peer.ip(), uses: 0 })
    }
}

/// MAIL needs no parameters: all addresses are ASCII, and all bodies are encoded in 7 bits.
fn mail_from(mail: &Mail) -> MailFrom {
    MailFrom::new(mail.envelope.from().cloned(), vec![])
}

/// Runs a step before the relay has received any email address. Its error cannot quote one, so the
/// reason may be shown.
async fn in_time<T>(
    deadline: Instant,
    stage: impl FnOnce() -> Stage,
    step: impl Future<Output = Result<T, SmtpError>>,
) -> Result<T, NotSent> {
    let answered = timeout_at(deadline, step).await;
    let stage = stage();
    answered.map_err(|_| no_answer(stage))?.map_err(|error| NotSent::explained(stage, &error))
}

fn no_answer(stage: Stage) -> NotSent {
    NotSent::because(stage, "no answer in time")
}

/// A stream that records whether this side has written to it.
#[derive(Debug)]
struct Watched<S> {
    stream: S,
    peer: SocketAddr,
    has_written: Arc<AtomicBool>,
}

impl<S> AsyncTokioStream for Watched<S>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin + std::fmt::Debug,
{
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: pin::Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> task::Poll<io::Result<()>> {
        pin::Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: pin::Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &[u8],
    ) -> task::Poll<io::Result<usize>> {
        self.has_written.store(true, Ordering::Relaxed);
        pin::Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(
        mut self: pin::Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<io::Result<()>> {
        pin::Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: pin::Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> task::Poll<io::Result<()>> {
        pin::Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
