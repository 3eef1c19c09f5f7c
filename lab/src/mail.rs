//! A mail that a relay has taken: off the wire, and what its reader finds in it.

use mail_parser::{Message, MessageParser};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;

/// A mail as it came over the wire.
#[derive(Clone, Debug)]
pub struct Mail {
    pub sender: String,
    pub recipients: Vec<String>,
    pub raw: String,
}

impl Mail {
    pub fn parsed(&self) -> Message<'_> {
        MessageParser::default().parse(self.raw.as_bytes()).expect("a mail")
    }

    pub fn text(&self) -> String {
        self.parsed().body_text(0).expect("a text part").into_owned()
    }

    pub fn html(&self) -> String {
        self.parsed().body_html(0).expect("an HTML part").into_owned()
    }

    pub fn message_id(&self) -> String {
        self.parsed().message_id().expect("a Message-ID").to_owned()
    }

    /// The 8 digits, as a reader finds them: alone on a line.
    pub fn code(&self) -> String {
        self.code_if_any().expect("a code")
    }

    /// The same; none in an email about something else.
    pub fn code_if_any(&self) -> Option<String> {
        let text = self.text();
        let lone = |line: &&str| line.len() == 8 && line.bytes().all(|octet| octet.is_ascii_digit());
        let mut codes = text.lines().filter(lone);
        let code = codes.next()?.to_owned();
        assert_eq!(codes.next(), None, "one code");
        Some(code)
    }
}

/// What follows on DATA, up to the dot, without its dot-stuffing.
pub async fn read_data(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut raw = String::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if line == ".\r\n" || line.is_empty() {
            return Ok(raw);
        }
        raw.push_str(line.strip_prefix('.').unwrap_or(&line));
    }
}
