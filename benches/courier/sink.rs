//! A relay that keeps no mail, only when whose came, and that may stall.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How long a mail is held when the relay stalls: longer than a conversation may take.
const STALL: Duration = Duration::from_secs(30);

/// What became of an address's mails.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// When the first was taken.
    pub taken_at: Option<Instant>,
    /// How many were taken.
    pub taken: usize,
    /// The first one's place in the order of all that were taken.
    pub place: usize,
    /// Whether one was held.
    pub stalled: bool,
}

#[derive(Default)]
pub struct Sink {
    seen: Mutex<HashMap<String, Seen>>,
    mails: AtomicUsize,
    taken: AtomicUsize,
    pub stalls: AtomicBool,
    /// Which of the mails are held then: every so many.
    pub stall_every: AtomicUsize,
}

impl Sink {
    pub async fn start() -> (Arc<Self>, SocketAddr) {
        let sink = Arc::<Self>::default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let listening = Arc::clone(&sink);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sink = Arc::clone(&listening);
                tokio::spawn(async move { drop(sink.converse(stream).await) });
            }
        });
        (sink, address)
    }

    /// What came, by address; the sink is empty afterwards.
    pub fn empty(&self) -> HashMap<String, Seen> {
        self.taken.store(0, Ordering::Relaxed);
        std::mem::take(&mut self.seen.lock().expect("no task panicked"))
    }

    fn note(&self, address: &str, note: impl FnOnce(&mut Seen)) {
        note(self.seen.lock().expect("no task panicked").entry(address.to_owned()).or_default());
    }

    async fn converse(&self, stream: TcpStream) -> std::io::Result<()> {
        let _ = stream.set_nodelay(true);
        let mut stream = BufReader::new(stream);
        stream.write_all(b"220 sink\r\n").await?;
        let (mut line, mut address, mut in_data) = (String::new(), String::new(), false);
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            if in_data {
                if line == ".\r\n" {
                    in_data = false;
                    let number = self.mails.fetch_add(1, Ordering::Relaxed) + 1;
                    let every = self.stall_every.load(Ordering::Relaxed).max(1);
                    if number.is_multiple_of(every) && self.stalls.load(Ordering::Relaxed) {
                        self.note(&address, |seen| seen.stalled = true);
                        // One that hangs up meanwhile has not heard that the mail was taken, so it was not.
                        let silence = tokio::time::timeout(STALL, stream.read_line(&mut line)).await;
                        if silence.is_ok() {
                            return Ok(());
                        }
                    }
                    stream.write_all(b"250 taken\r\n").await?;
                    let place = self.taken.fetch_add(1, Ordering::Relaxed);
                    self.note(&address, |seen| {
                        seen.taken += 1;
                        if seen.taken_at.is_none() {
                            (seen.taken_at, seen.place) = (Some(Instant::now()), place);
                        }
                    });
                }
                continue;
            }
            let answer: &[u8] = match line.get(..4) {
                Some("RCPT") => {
                    line.split(['<', '>']).nth(1).unwrap_or_default().clone_into(&mut address);
                    b"250 ok\r\n"
                }
                Some("DATA") => {
                    in_data = true;
                    b"354 go on\r\n"
                }
                Some("QUIT") => return stream.write_all(b"221 bye\r\n").await,
                _ => b"250 ok\r\n",
            };
            stream.write_all(answer).await?;
        }
    }
}
