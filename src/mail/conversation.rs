//! One SMTP conversation with a relay: connecting, a mail from MAIL to the last answer, and QUIT.
//!
//! lettre's pool is not used: it puts an abandoned conversation back, and the next mail then reads the wrong answer and
//! counts as sent; and its timeout covers connecting alone. Here a mail has a connection to itself, one deadline covers
//! the whole conversation, and a connection is kept only if its mail was taken. Otherwise it is left with QUIT if the
//! relay's answer says that it awaits a command, and dropped if not.

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
use crate::mail::not_sent::{NotSent, Stage, exactly};
use crate::mail::oauth::Asker;
use crate::mail::relay_url::RelayUrl;
use crate::mail::sign_in::Proof;
use crate::mail::tls::Tls;

/// How long the answer to QUIT is waited for. No mail waits meanwhile.
const QUIT_DEADLINE: Duration = Duration::from_secs(1);

/// A conversation in which the relay awaits a command.
pub(super) struct Connection {
    smtp: AsyncSmtpConnection,
    /// Where it leads.
    pub(super) address: IpAddr,
    /// How many mails or NOOPs it has carried.
    pub(super) uses: u32,
}

impl Connection {
    /// Asks whether the relay still answers.
    pub(super) async fn noop(&mut self, deadline: Instant) -> Result<(), NotSent> {
        self.uses += 1;
        let asked = timeout_at(deadline, self.smtp.command(Noop)).await;
        asked.map_or_else(
            |_| Err(in_vain(Stage::Noop)),
            |answer| answer.map(drop).map_err(NotSent::at(Stage::Noop)),
        )
    }

    /// From MAIL, which is to be answered by `mail_deadline`, to the answer to the dot.
    pub(super) async fn send(&mut self, mail_deadline: Instant, mail: &Mail) -> Result<(), NotSent> {
        let smtp = &mut self.smtp;
        let begun = timeout_at(mail_deadline, smtp.command(mail_from(mail))).await;
        begun.map_err(|_| NotSent::just(Stage::Deadline))?.map_err(NotSent::at(Stage::Mail))?;
        for to in mail.envelope.to() {
            smtp.command(Rcpt::new(to.clone(), vec![])).await.map_err(NotSent::at(Stage::Rcpt))?;
        }
        // lettre takes any 2xx or 3xx for a yes; only these two are.
        let go_on = smtp.command(Data).await.map_err(NotSent::at(Stage::Data))?;
        exactly(&go_on, 354, Stage::Data)?;
        let taken = smtp.command(mail.dot_stuffed()).await.map_err(NotSent::at(Stage::Message))?;
        exactly(&taken, 250, Stage::Message)
    }

    /// Ends it as RFC 5321 §4.1.1.10 asks.
    pub(super) async fn quit(mut self) {
        let _ = timeout(QUIT_DEADLINE, self.smtp.quit()).await;
    }

    /// A connection of its own: connected, encrypted, greeted, signed in. An access token that the relay refuses is renewed,
    /// and shown on another connection: some relays close the first.
    /// `preferred` is the address that is tried first.
    pub(super) async fn open(
        relay: &RelayUrl,
        preferred: Option<IpAddr>,
        hello: &ClientId,
        deadline: Instant,
        asker: Asker,
    ) -> Result<Self, NotSent> {
        let proof = timeout_at(deadline, relay.sign_in.proof()).await;
        let proof = proof.map_err(|_| NotSent::because(Stage::Auth, "no access token in time"))??;
        let connected = Self::open_with(&proof, relay, preferred, hello, deadline).await;
        let Err(why) = &connected else { return connected };
        match timeout_at(deadline, relay.sign_in.other_proof(&proof, why, asker)).await {
            Ok(Some(other)) => Self::open_with(&other, relay, preferred, hello, deadline).await,
            Ok(None) | Err(_) => connected,
        }
    }

    async fn open_with(
        proof: &Proof<'_>,
        relay: &RelayUrl,
        preferred: Option<IpAddr>,
        hello: &ClientId,
        deadline: Instant,
    ) -> Result<Self, NotSent> {
        let host = relay.host.trim_matches(['[', ']']);
        let connected = timeout_at(deadline, connect(host, relay.port, preferred)).await;
        let connected = connected
            .map_err(|_| in_vain(Stage::Connect))?
            .map_err(|why| NotSent::because(Stage::Connect, why))?;
        let (peer, has_spoken) = (connected.address, Arc::<AtomicBool>::default());
        let stream: Box<dyn AsyncTokioStream> = if let Tls::Implicit(tls) = &relay.tls {
            let encrypted = timeout_at(deadline, tls.handshake(connected.stream)).await;
            let stream = encrypted
                .map_err(|_| in_vain(Stage::Tls))?
                .map_err(|error| NotSent::because(Stage::Tls, error.to_string()))?;
            Box::new(Watched { stream, peer, has_spoken: Arc::clone(&has_spoken) })
        } else {
            Box::new(Watched { stream: connected.stream, peer, has_spoken: Arc::clone(&has_spoken) })
        };
        // lettre waits for the greeting before it says EHLO.
        let stage = || if has_spoken.load(Ordering::Relaxed) { Stage::Ehlo } else { Stage::Greeting };
        let greeted = AsyncSmtpConnection::connect_with_transport(stream, hello);
        let mut smtp = in_time(deadline, stage, greeted).await?;
        if let Tls::StartTls(parameters) = &relay.tls {
            in_time(deadline, || Stage::Tls, smtp.starttls(parameters.clone(), hello)).await?;
        }
        timeout_at(deadline, proof.sign_in(&mut smtp)).await.map_err(|_| in_vain(Stage::Auth))??;
        Ok(Self { smtp, address: peer.ip(), uses: 0 })
    }
}

/// No parameters, whatever the relay announces: addresses are ASCII, and lettre encodes every body to 7 bits.
fn mail_from(mail: &Mail) -> MailFrom {
    MailFrom::new(mail.envelope.from().cloned(), vec![])
}

/// A step before the relay has heard of any address, which is why it may be explained.
async fn in_time<T>(
    deadline: Instant,
    stage: impl FnOnce() -> Stage,
    step: impl Future<Output = Result<T, SmtpError>>,
) -> Result<T, NotSent> {
    let answered = timeout_at(deadline, step).await;
    let stage = stage();
    answered.map_err(|_| in_vain(stage))?.map_err(|error| NotSent::explained(stage, &error))
}

fn in_vain(stage: Stage) -> NotSent {
    NotSent::because(stage, "no answer in time")
}

/// A stream that knows whether this side has written to it.
#[derive(Debug)]
struct Watched<S> {
    stream: S,
    peer: SocketAddr,
    has_spoken: Arc<AtomicBool>,
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
        self.has_spoken.store(true, Ordering::Relaxed);
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
