//! The SMTP double: a relay that refuses, stalls or disconnects when a test tells it to. It stores
//! all mails or, for a measurement, only counts them.

mod arrivals;
mod mood;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{self, Runtime};
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub use self::arrivals::Arrival;
use self::arrivals::Arrivals;
pub use self::mood::Mood;
use crate::PATIENCE;
pub use crate::mail::Mail;
use crate::mail::read_data;
use crate::tokens::{Judge, heard_token};

/// A thread of its own: a test that blocks until a program ends must not block the answer to that
/// program's QUIT.
static THREAD: LazyLock<Runtime> =
    LazyLock::new(|| runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

async fn bound(address: SocketAddr) -> TcpListener {
    THREAD.spawn(TcpListener::bind(address)).await.unwrap().unwrap()
}

#[derive(Default)]
struct State {
    mails: Vec<Mail>,
    /// Used instead of `mails` by a relay that only counts.
    arrivals: Option<Arrivals>,
    messages: usize,
    mood: Mood,
    recipients_asked: usize,
    connections: JoinSet<()>,
    connected: usize,
    open: usize,
    most_open: usize,
    lost: usize,
    /// Decides whether an access token is valid. `None`: clients need not sign in.
    is_good: Option<Arc<Judge>>,
    signed_in: Vec<(String, String)>,
    announced: &'static [&'static str],
    ended: Vec<Ended>,
}

/// The result of a conversation that has ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub mails: usize,
    /// Whether the client said QUIT.
    pub quit: bool,
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
        Self::start_at(Ipv4Addr::LOCALHOST.into()).await
    }

    pub async fn start_at(address: IpAddr) -> Self {
        let listener = bound((address, 0).into()).await;
        let address = listener.local_addr().unwrap();
        let relay =
            Self { address, state: Arc::default(), changed: Arc::default(), listening: Arc::default() };
        relay.listen(listener);
        relay
    }

    pub fn url(&self) -> String {
        format!("smtp://{}?tls=none", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Sets the extensions that the relay announces in its answer to EHLO.
    pub fn announces(&self, announced: &'static [&'static str]) {
        self.state.lock().unwrap().announced = announced;
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

    /// Listens again at the same address.
    pub async fn comes_back(&self) {
        let listener = bound(self.address).await;
        self.listen(listener);
    }

    /// Leaves all present connections open, but answers nothing on them, as if a firewall had
    /// dropped their state.
    pub fn loses_its_connections(&self) {
        let mut state = self.state.lock().unwrap();
        state.lost = state.connected;
    }

    /// From now on, the relay requires clients to sign in by XOAUTH2 with a valid token.
    pub fn wants_tokens(&self, is_good: impl Fn(&str) -> bool + Send + Sync + 'static) {
        self.state.lock().unwrap().is_good = Some(Arc::new(is_good));
    }

    /// The user and the token of every connection that has signed in, in order.
    pub fn signed_in(&self) -> Vec<(String, String)> {
        self.state.lock().unwrap().signed_in.clone()
    }

    /// The number of connections so far.
    pub fn connected(&self) -> usize {
        self.state.lock().unwrap().connected
    }

    /// The largest number of connections that were open at once.
    pub fn most_open(&self) -> usize {
        self.state.lock().unwrap().most_open
    }

    /// Waits until `count` connections were made.
    pub async fn until_connected(&self, count: usize) {
        self.until(|state| state.connected >= count).await;
    }

    /// Waits until `count` conversations with mails have ended. Returns all of them, in the order
    /// in which they ended.
    pub async fn until_ended(&self, count: usize) -> Vec<Ended> {
        let with_mails =
            |state: &State| state.ended.iter().filter(|ended| ended.mails > 0).copied().collect::<Vec<_>>();
        self.until(|state| with_mails(state).len() >= count).await;
        with_mails(&self.state.lock().unwrap())
    }

    /// The mails that have arrived since the last [`Self::takes_mails`], in order.
    pub fn mails(&self) -> Vec<Mail> {
        self.state.lock().unwrap().mails.clone()
    }

    /// Removes and returns the mails that have arrived since the last call, in order.
    pub fn takes_mails(&self) -> Vec<Mail> {
        std::mem::take(&mut self.state.lock().unwrap().mails)
    }

    /// Waits until `count` mails have arrived, and returns the last of them.
    pub async fn mail(&self, count: usize) -> Mail {
        self.until(|state| state.mails.len() >= count).await;
        self.mails()[count - 1].clone()
    }

    /// Waits until `count` mails to an address have arrived, and returns the last of them.
    pub async fn mail_to(&self, address: &str, count: usize) -> Mail {
        let to = |mail: &&Mail| mail.recipients == [address];
        self.until(|state| state.mails.iter().filter(to).count() >= count).await;
        self.mails().iter().filter(to).nth(count - 1).unwrap().clone()
    }

    /// The number of RCPT commands, whatever the answers.
    pub fn asked(&self) -> usize {
        self.state.lock().unwrap().recipients_asked
    }

    /// Waits for the `count`th RCPT command, whatever the answers.
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

    fn mood(&self) -> Mood {
        self.state.lock().unwrap().mood
    }

    fn announced(&self) -> Vec<&'static str> {
        let state = self.state.lock().unwrap();
        let tokens = state.is_good.is_some().then_some("AUTH PLAIN XOAUTH2");
        state.announced.iter().copied().chain(tokens).collect()
    }

    /// Whether the relay announced the extension of each parameter of a MAIL command.
    fn has_announced(&self, parameters: &str) -> bool {
        let announced = self.announced();
        parameters.split_whitespace().all(|parameter| {
            let keyword = if parameter == "BODY=8BITMIME" { "8BITMIME" } else { parameter };
            announced.iter().any(|line| line.split(' ').next() == keyword.split('=').next())
        })
    }

    fn listen(&self, listener: TcpListener) {
        let relay = self.clone();
        let listening = THREAD.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut state = relay.state.lock().unwrap();
                state.connected += 1;
                state.open += 1;
                state.most_open = state.most_open.max(state.open);
                let conversation =
                    Conversation { relay: relay.clone(), number: state.connected, ended: Ended::default() };
                state.connections.spawn(async move { drop(conversation.goes_on(stream).await) });
                drop(state);
                relay.changed.notify_waiters();
            }
        });
        *self.listening.lock().unwrap() = Some(listening);
    }
}

struct Conversation {
    relay: Relay,
    number: usize,
    ended: Ended,
}

impl Conversation {
    async fn goes_on(mut self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let relay = self.relay.clone();
        if !self.greets(&mut stream).await? {
            return Ok(());
        }
        let (mut sender, mut recipients) = (String::new(), Vec::new());
        let mut is_in = relay.state.lock().unwrap().is_good.is_none();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            assert!(
                line.ends_with("\r\n") && !line.trim_end_matches("\r\n").contains(['\r', '\n']),
                "{line:?}"
            );
            if self.number <= relay.state.lock().unwrap().lost {
                std::future::pending::<()>().await;
            }
            let mood = relay.mood();
            let path = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
            let command = line[..4].to_ascii_uppercase();
            if let Some(answer) = self.is_tired_at(&command, mood) {
                return stream.write_all(answer.as_bytes()).await;
            }
            let answer = match command.as_str() {
                "EHLO" => {
                    for keyword in relay.announced() {
                        stream.write_all(format!("250-{keyword}\r\n").as_bytes()).await?;
                    }
                    "250 ok"
                }
                "AUTH" => {
                    is_in = self.signs_in(&mut stream, &line).await?;
                    if !is_in {
                        // As Exchange Online does: the client must reconnect to try again.
                        return stream.write_all(b"535 5.7.3 Authentication unsuccessful\r\n").await;
                    }
                    "235 2.7.0 welcome"
                }
                "MAIL" if !is_in => "530 5.7.0 sign in first",
                "MAIL" if !relay.has_announced(line.rsplit('>').next().unwrap()) => "555 5.5.4 not announced",
                "MAIL" => {
                    (sender, recipients) = (path, Vec::new());
                    if let Mood::RefusesSender(answer) = mood { answer } else { "250 ok" }
                }
                "RCPT" => {
                    relay.state.lock().unwrap().recipients_asked += 1;
                    relay.changed.notify_waiters();
                    match mood {
                        Mood::RefusesRecipient(answer) => answer,
                        Mood::StallsAtRecipient => std::future::pending().await,
                        Mood::HoldsAtRecipient => {
                            relay.until(|state| state.mood != Mood::HoldsAtRecipient).await;
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
                    if let Mood::RefusesData(answer) = mood {
                        stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
                        continue;
                    }
                    stream.write_all(b"354 go on\r\n").await?;
                    let raw = read_data(&mut stream).await?;
                    if let Some(answer) = self.is_tired_at(".", mood) {
                        return stream.write_all(answer.as_bytes()).await;
                    }
                    if let Mood::RefusesMessage(answer) = mood {
                        answer
                    } else if mood == Mood::SaysMoreAfterData {
                        "354 go on"
                    } else {
                        if relay.holds(mood, &recipients)
                            && tokio::time::timeout(arrivals::HOLD, stream.read_line(&mut line)).await.is_ok()
                        {
                            // The client left without an answer, so the mail is not accepted.
                            return Ok(());
                        }
                        self.ended.mails += 1;
                        relay.takes(Mail { sender: sender.clone(), recipients: recipients.clone(), raw });
                        if mood == Mood::DropsAfterData {
                            return Ok(());
                        }
                        "250 kept"
                    }
                }
                "QUIT" => {
                    self.ended.quit = true;
                    return stream.write_all(b"221 bye\r\n").await;
                }
                _ => "250 ok",
            };
            // In one write: the second of two would wait for the client's delayed acknowledgement.
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
        }
    }

    /// Greets the client, as the mood says. Returns whether the conversation continues.
    async fn greets(&self, stream: &mut BufReader<TcpStream>) -> std::io::Result<bool> {
        stream.get_ref().set_nodelay(true)?;
        match self.relay.mood() {
            Mood::GreetsLate(after) => tokio::time::sleep(after).await,
            // Waits until the client disconnects.
            Mood::GreetsNobody => return stream.read_line(&mut String::new()).await.map(|_| false),
            _ => {}
        }
        stream.write_all(b"220 test relay\r\n").await?;
        Ok(true)
    }

    async fn signs_in(&self, stream: &mut BufReader<TcpStream>, line: &str) -> std::io::Result<bool> {
        let is_good = self.relay.state.lock().unwrap().is_good.clone().expect("offered");
        let heard = heard_token(stream, line, &*is_good).await?;
        let is_in = heard.is_some();
        self.relay.state.lock().unwrap().signed_in.extend(heard);
        Ok(is_in)
    }

    fn is_tired_at(&self, command: &str, mood: Mood) -> Option<&'static str> {
        match mood {
            Mood::TiresAt(at, answer) if at == command && self.ended.mails > 0 => Some(answer),
            _ => None,
        }
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        let Ok(mut state) = self.relay.state.lock() else { return };
        state.open -= 1;
        state.ended.push(self.ended);
        drop(state);
        self.relay.changed.notify_waiters();
    }
}
