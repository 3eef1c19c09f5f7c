//! Compares the courier with lettre alone: how many mails a second each hands over to a relay.
//! lettre runs in a loop on the same number of open connections, with a mail like those of the
//! courier and without a database. The relay is first a task of this program, then Postfix.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use lettre::address::Envelope;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use vos_auth::config::Config;
use vos_auth::locale::Locale;
use vos_auth::mail::message::{Composer, MailKind};
use vos_auth::secret::Key;

use super::Bench;
use crate::Failure;
use crate::postfix::Postfix;

const CONNECTIONS: usize = 16;
/// The number of rounds. Each round measures the courier once, and lettre in each [`Way`].
const ROUNDS: u32 = 3;

#[derive(Parser)]
struct Settings {
    #[command(flatten)]
    config: Config,
}

/// The relay: its name, its port, and the number of mails in a round. `postfix` is set if the relay
/// is Postfix.
pub struct Given<'a> {
    pub name: &'a str,
    pub port: u16,
    pub mails: u32,
    pub postfix: Option<&'a Postfix>,
}

/// How lettre sends the message.
#[derive(Clone, Copy)]
enum Way {
    /// As lettre's own `send` does.
    Send,
    /// The message and its final dot in one write, as the courier does (docs/decisions/0016).
    OneWrite,
}

impl Bench {
    /// Prints the mails a second of the courier and of both ways of lettre, over all rounds.
    pub async fn beside_lettre(&self, given: &Given<'_>) -> Result<(), Failure> {
        let mut took = [Duration::ZERO; 3];
        for round in 1..=ROUNDS {
            eprint!("\r{}: round {round} of {ROUNDS}…        ", given.name);
            took[0] += self.hands_over(given).await?;
            took[1] += alone(given, Way::Send).await?;
            took[2] += alone(given, Way::OneWrite).await?;
        }
        let [courier, send, one_write] =
            took.map(|took| f64::from(given.mails * ROUNDS) / took.as_secs_f64());
        println!(
            "\r{}, {CONNECTIONS} connections, mails a second: courier {courier:.0}; lettre's send alone {send:.0} (the courier has {:.2} of it); lettre with one write a message {one_write:.0} ({:.2})",
            given.name,
            courier / send,
            courier / one_write,
        );
        Ok(())
    }

    /// The time that one replica takes to send all mails. Measures from the first reading of the
    /// replica's metric that is not 0, and adds the time for the mails that were sent before, in
    /// proportion.
    async fn hands_over(&self, given: &Given<'_>) -> Result<Duration, Failure> {
        self.is_empty().await?;
        self.has_backlog(given.mails, 1.0).await?;
        let relay = format!("smtp://127.0.0.1:{}?tls=none&connections={CONNECTIONS}", given.port);
        let replica = self.serve(&[("SMTP_RELAYS", &relay)]).await?;
        let sent = async || replica.metric("vos_auth_mails_total{outcome=\"sent\"").await;
        let mut began = (Instant::now(), 0);
        loop {
            let now = (Instant::now(), sent().await?);
            if began.1 == 0 {
                began = now;
            }
            if now.1 >= given.mails as usize {
                given.is_idle().await;
                let share = f64::from(given.mails) / f64::from(u32::try_from(now.1 - began.1)?);
                return Ok((now.0 - began.0).mul_f64(share));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Given<'_> {
    /// Waits until Postfix has delivered the mails that it has accepted.
    async fn is_idle(&self) {
        while self.postfix.is_some_and(|postfix| postfix.pending() > 0) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn alone(given: &Given<'_>, way: Way) -> Result<Duration, Failure> {
    let to = "pending1@example.com";
    let settings = Settings::try_parse_from(["bench"])?;
    let mail = Composer::new(&settings.config.mail, &Key::random("bench"))
        .map_err(|why| why.to_string())?
        .sample(MailKind::RecoveryCode, Locale::Vi, to, OffsetDateTime::UNIX_EPOCH)
        .map_err(|why| why.to_string())?;
    let bytes: Arc<[u8]> = mail.bytes().into();
    let envelope = Envelope::new(Some("no-reply@verolabs.co".parse()?), vec![to.parse()?])?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(connect(given.port).await?);
    }
    let left = Arc::new(AtomicUsize::new(given.mails as usize));
    let mut sending = JoinSet::new();
    let began = Instant::now();
    for mut connection in connections {
        let (left, bytes, envelope) = (Arc::clone(&left), Arc::clone(&bytes), envelope.clone());
        sending.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                match way {
                    Way::Send => drop(connection.send(&envelope, &bytes).await?),
                    Way::OneWrite => one_write(&mut connection, &envelope, &bytes).await?,
                }
            }
            Ok::<_, lettre::transport::smtp::Error>(())
        });
    }
    while let Some(sent) = sending.join_next().await {
        sent??;
    }
    let took = began.elapsed();
    given.is_idle().await;
    Ok(took)
}

async fn connect(port: u16) -> Result<AsyncSmtpConnection, Failure> {
    let hello = ClientId::Domain("bench.test".into());
    let patience = Some(Duration::from_secs(20));
    Ok(AsyncSmtpConnection::connect_tokio1(("127.0.0.1", port), patience, &hello, None, None).await?)
}

async fn one_write(
    connection: &mut AsyncSmtpConnection,
    envelope: &Envelope,
    bytes: &[u8],
) -> Result<(), lettre::transport::smtp::Error> {
    connection.command(Mail::new(envelope.from().cloned(), vec![])).await?;
    for to in envelope.to() {
        connection.command(Rcpt::new(to.clone(), vec![])).await?;
    }
    connection.command(Data).await?;
    // No line of the message begins with a dot, so dot-stuffing is not needed.
    let message = format!("{}\r\n.\r\n", String::from_utf8_lossy(bytes).trim_end_matches("\r\n"));
    connection.command(message).await?;
    Ok(())
}
