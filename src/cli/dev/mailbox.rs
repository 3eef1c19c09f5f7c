//! The mailbox of `dev`: an SMTP server (RFC 5321) on this machine, so that a developer sees the
//! real emails. It accepts every email, keeps the newest in memory, and delivers none.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use mail_parser::MessageParser;
use serde::Serialize;
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::clock::Clock;

/// How many emails are kept.
const MAX_MAILS: usize = 200;
/// Maximum size of an email, in octets.
const MAX_MAIL: usize = 1024 * 1024;
/// Maximum length of a line, in octets. RFC 5321 §4.5.3.1.6 requires 1000.
const MAX_LINE: u64 = 8192;

/// An email that has arrived.
#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "the mailbox sends it under this name")]
pub struct Received {
    /// Envelope recipients.
    pub to: Vec<String>,
    /// The address in the header From.
    pub from: String,
    /// Decoded subject.
    pub subject: String,
    /// Decoded text part.
    pub text: String,
    /// Decoded HTML part.
    pub html: String,
    /// When it arrived.
    #[serde(with = "time::serde::rfc3339")]
    pub received_at: OffsetDateTime,
}

/// The emails that have arrived, newest first. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Mailbox(Arc<Mutex<VecDeque<Received>>>);

impl Mailbox {
    /// All kept emails, newest first.
    #[must_use]
    pub fn newest_first(&self) -> Vec<Received> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Deletes all emails.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn keep(&self, mail: Received) {
        let mut mails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mails.push_front(mail);
        mails.truncate(MAX_MAILS);
    }

    /// Accepts emails from `listener` for as long as the future is polled.
    pub async fn serve(self, listener: TcpListener, clock: Clock) {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                let (mailbox, clock) = (self.clone(), clock.clone());
                tokio::spawn(async move { drop(mailbox.converse(stream, &clock).await) });
            }
        }
    }

    async fn converse(&self, stream: TcpStream, clock: &Clock) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut to = Vec::new();
        reply(&mut stream, "220 dev mailbox").await?;
        while let Some(line) = read_line(&mut stream).await? {
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            let answer = match verb.as_str() {
                "EHLO" | "HELO" => "250 dev mailbox",
                "NOOP" => "250 ok",
                "MAIL" | "RSET" => {
                    to.clear();
                    "250 ok"
                }
                "RCPT" => {
                    to.extend(line.split(['<', '>']).nth(1).map(str::to_owned));
                    "250 ok"
                }
                "DATA" if to.is_empty() => "503 RCPT first",
                "DATA" => {
                    reply(&mut stream, "354 end with a dot").await?;
                    let Some(raw) = read_mail(&mut stream).await? else {
                        return Ok(());
                    };
                    self.keep(parse(&raw, std::mem::take(&mut to), clock.now()));
                    "250 kept"
                }
                "QUIT" => return reply(&mut stream, "221 bye").await,
                _ => "502 not here",
            };
            reply(&mut stream, answer).await?;
        }
        Ok(())
    }
}

fn parse(raw: &[u8], to: Vec<String>, received_at: OffsetDateTime) -> Received {
    let mail = MessageParser::default().parse(raw).unwrap_or_default();
    let from = mail.from().and_then(|from| from.first()).and_then(|from| from.address());
    Received {
        to,
        from: from.unwrap_or_default().to_owned(),
        subject: mail.subject().unwrap_or_default().to_owned(),
        text: mail.body_text(0).unwrap_or_default().into_owned(),
        html: mail.body_html(0).unwrap_or_default().into_owned(),
        received_at,
    }
}

/// Reads a line without its end; `None` if the client has disconnected.
async fn read_line(stream: &mut BufReader<TcpStream>) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    (&mut *stream).take(MAX_LINE).read_until(b'\n', &mut line).await?;
    Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).trim_end().to_owned()))
}

/// Reads the email after DATA up to the line with a single dot, and removes dot-stuffing (RFC 5321
/// §4.5.2). `None` if the client has disconnected or the email is too large.
async fn read_mail(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut raw = Vec::new();
    loop {
        let start = raw.len();
        if (&mut *stream).take(MAX_LINE).read_until(b'\n', &mut raw).await? == 0 || start > MAX_MAIL {
            return Ok(None);
        }
        if raw[start..] == *b".\r\n" {
            raw.truncate(start);
            return Ok(Some(raw));
        }
        if raw[start] == b'.' {
            raw.remove(start);
        }
    }
}

async fn reply(stream: &mut BufReader<TcpStream>, line: &str) -> io::Result<()> {
    stream.write_all(format!("{line}\r\n").as_bytes()).await?;
    stream.flush().await
}
