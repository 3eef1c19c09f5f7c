//! An SMTP server of the tests' own, which does on cue what relays do on bad days.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use mail_parser::{Message, MessageParser};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::PATIENCE;
use super::tokens::heard_token;

/// What the relay does with the next mails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Takes,
    /// Answers RCPT with this.
    RefusesRecipient(&'static str),
    /// Answers the message with this.
    RefusesMessage(&'static str),
    /// Keeps the mail, then drops the connection before it has answered.
    DropsAfterData,
    /// Never answers RCPT.
    StallsAtRecipient,
    /// Answers RCPT when its mood has changed.
    HoldsAtRecipient,
    /// Answers the dot with a code that is no yes, but that lettre takes for one.
    SaysMoreAfterData,
}

/// A mail as it came over the wire.
#[derive(Clone, Debug)]
pub struct Mail {
    pub sender: String,
    pub recipients: Vec<String>,
    pub raw: String,
}

/// Says of an access token whether it is good.
pub type Judge = dyn Fn(&str) -> bool + Send + Sync;

#[derive(Default)]
struct State {
    mails: Vec<Mail>,
    mood: Mood,
    recipients_asked: usize,
    connections: JoinSet<()>,
    connected: usize,
    lost: usize,
    /// Which access tokens are good; without it nobody has to sign in.
    is_good: Option<Arc<Judge>>,
    signed_in: Vec<(String, String)>,
}

/// A relay on a free port. Clones are the same relay.
#[derive(Clone)]
pub struct Relay {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    listening: Arc<Mutex<Option<tokio::task::JoinHandle<()>>>>,
}

impl Relay {
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let relay =
            Self { address, state: Arc::default(), changed: Arc::default(), listening: Arc::default() };
        relay.listen(listener);
        relay
    }

    pub fn url(&self) -> String {
        format!("smtp://{}?tls=none", self.address)
    }

    pub fn is_in_mood(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
        self.changed.notify_waiters();
    }

    /// Stops listening and cuts every conversation.
    pub async fn goes_down(&self) {
        let listening = self.listening.lock().unwrap().take();
        if let Some(listening) = listening {
            listening.abort();
            let _ = listening.await;
        }
        let mut connections = std::mem::take(&mut self.state.lock().unwrap().connections);
        connections.shutdown().await;
    }

    /// Listens again, at the same address.
    pub async fn comes_back(&self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.listen(listener);
    }

    /// Whatever is connected stays so and is answered no more, as when something on the way forgot it.
    pub fn loses_its_connections(&self) {
        let mut state = self.state.lock().unwrap();
        state.lost = state.connected;
    }

    /// From now on it takes mails of those alone who sign in by XOAUTH2 with a token that is good.
    pub fn wants_tokens(&self, is_good: impl Fn(&str) -> bool + Send + Sync + 'static) {
        self.state.lock().unwrap().is_good = Some(Arc::new(is_good));
    }

    /// The user and the token of every connection that has signed in, in order.
    pub fn signed_in(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().signed_in.clone()
    }

    /// How many have connected so far.
    pub fn connected(&self) -> usize {
        self.state.lock().unwrap().connected
    }

    /// Every mail that has arrived, in order.
    pub fn mails(&self) -> Vec<Mail> {
        self.state.lock().unwrap().mails.clone()
    }

    /// The mails that have arrived since the last call, in order; they are forgotten.
    pub fn takes_mails(&self) -> Vec<Mail> {
        std::mem::take(&mut self.state.lock().unwrap().mails)
    }

    /// Waits until `count` mails have arrived, and gives the last of them.
    pub async fn mail(&self, count: usize) -> Mail {
        self.until(|state| state.mails.len() >= count).await;
        self.mails()[count - 1].clone()
    }

    /// Waits until `count` mails to an address have arrived, and gives the last of them.
    pub async fn mail_to(&self, address: &str, count: usize) -> Mail {
        let to = |mail: &&Mail| mail.recipients == [address];
        self.until(|state| state.mails.iter().filter(to).count() >= count).await;
        self.mails().iter().filter(to).nth(count - 1).unwrap().clone()
    }

    /// Waits until a recipient was named for the `count`th time, whatever was answered.
    pub async fn until_asked(&self, count: usize) {
        self.until(|state| state.recipients_asked >= count).await;
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                if holds(&self.state.lock().unwrap()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the mail comes");
    }

    fn listen(&self, listener: TcpListener) {
        let relay = self.clone();
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut state = relay.state.lock().unwrap();
                state.connected += 1;
                let conversation = relay.clone().converse(stream, state.connected);
                state.connections.spawn(async move { drop(conversation.await) });
            }
        });
        *self.listening.lock().unwrap() = Some(listening);
    }

    async fn converse(self, stream: TcpStream, number: usize) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        stream.write_all(b"220 test relay\r\n").await?;
        let (mut sender, mut recipients) = (String::new(), Vec::new());
        let mut is_in = false;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            assert!(
                line.ends_with("\r\n") && !line.trim_end_matches("\r\n").contains(['\r', '\n']),
                "{line:?}"
            );
            if number <= self.state.lock().unwrap().lost {
                std::future::pending::<()>().await;
            }
            let mood = self.state.lock().unwrap().mood;
            let path = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
            let is_good = self.state.lock().unwrap().is_good.clone();
            let answer = match line[..4].to_ascii_uppercase().as_str() {
                "EHLO" if is_good.is_some() => "250-test relay\r\n250 AUTH PLAIN XOAUTH2",
                "AUTH" => {
                    let is_good = is_good.expect("offered");
                    let Some((user, token)) = heard_token(&mut stream, &line, &*is_good).await? else {
                        // As Exchange Online does: the next try wants another connection.
                        return stream.write_all(b"535 5.7.3 Authentication unsuccessful\r\n").await;
                    };
                    self.state.lock().unwrap().signed_in.push((user, token));
                    is_in = true;
                    "235 2.7.0 welcome"
                }
                "MAIL" if is_good.is_some() && !is_in => "530 5.7.0 sign in first",
                "MAIL" => {
                    (sender, recipients) = (path, Vec::new());
                    "250 ok"
                }
                "RCPT" => {
                    self.state.lock().unwrap().recipients_asked += 1;
                    self.changed.notify_waiters();
                    match mood {
                        Mood::RefusesRecipient(answer) => answer,
                        Mood::StallsAtRecipient => std::future::pending().await,
                        Mood::HoldsAtRecipient => {
                            self.until(|state| state.mood != Mood::HoldsAtRecipient).await;
                            recipients.push(path);
                            "250 ok"
                        }
                        _ => {
                            recipients.push(path);
                            "250 ok"
                        }
                    }
                }
                "DATA" => {
                    stream.write_all(b"354 go on\r\n").await?;
                    let raw = read_data(&mut stream).await?;
                    if let Mood::RefusesMessage(answer) = mood {
                        answer
                    } else if mood == Mood::SaysMoreAfterData {
                        "354 go on"
                    } else {
                        let mail = Mail { sender: sender.clone(), recipients: recipients.clone(), raw };
                        self.state.lock().unwrap().mails.push(mail);
                        self.changed.notify_waiters();
                        if mood == Mood::DropsAfterData {
                            return Ok(());
                        }
                        "250 kept"
                    }
                }
                "QUIT" => return stream.write_all(b"221 bye\r\n").await,
                _ => "250 ok",
            };
            stream.write_all(answer.as_bytes()).await?;
            stream.write_all(b"\r\n").await?;
        }
    }
}

async fn read_data(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
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
        let text = self.text();
        let lone = |line: &&str| {
            let groups: Vec<_> = line.trim().split(' ').collect();
            groups.len() == 2 && groups.iter().all(|g| g.len() == 4 && g.bytes().all(|b| b.is_ascii_digit()))
        };
        let mut codes = text.lines().filter(lone);
        let code = codes.next().expect("a code").trim().replace(' ', "");
        assert_eq!(codes.next(), None, "one code");
        code
    }
}
