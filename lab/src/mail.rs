//! A mail that a relay has accepted: as it came over the wire, and as its reader sees it.

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

    /// The HTML part, with its hexadecimal character references as characters.
    pub fn html(&self) -> String {
        let html = self.parsed().body_html(0).expect("an HTML part").into_owned();
        let (first, rest) = html.split_once("&#x").unwrap_or((&html, ""));
        rest.split("&#x").filter(|piece| !piece.is_empty()).fold(first.to_owned(), |text, piece| {
            let (number, after) = piece.split_once(';').expect("a whole reference");
            let sign = u32::from_str_radix(number, 16).ok().and_then(char::from_u32).expect("a character");
            text + &*sign.encode_utf8(&mut [0; 4]) + after
        })
    }

    pub fn message_id(&self) -> String {
        self.parsed().message_id().expect("a Message-ID").to_owned()
    }

    /// The code: 8 digits on a line of their own, as a reader finds them.
    pub fn code(&self) -> String {
        self.code_if_any().expect("a code")
    }

    /// Like [`Self::code`], but `None` for an email without a code.
    pub fn code_if_any(&self) -> Option<String> {
        let text = self.text();
        let lone = |line: &String| line.len() == 8 && line.bytes().all(|octet| octet.is_ascii_digit());
        // A replica of an older release writes a space in the middle.
        let mut codes = text.lines().map(|line| line.replace(' ', "")).filter(lone);
        let code = codes.next()?;
        assert_eq!(codes.next(), None, "one code");
        Some(code)
    }
}

/// The lines after DATA up to the final dot, without dot-stuffing.
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
