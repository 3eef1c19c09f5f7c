//! A client that writes arbitrary octets to a socket, as slowly as a test wants, and reads what the
//! service answers.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{interval, timeout};

use crate::PATIENCE;

/// The pause between two writes or reads of a slow client. Tests do not use it to wait for an
/// event.
const DRIP: Duration = Duration::from_millis(10);

pub struct Raw {
    stream: TcpStream,
    seen: Vec<u8>,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), seen: Vec::new() }
    }

    /// A client with a small receive buffer, so that data which it does not read stays at the
    /// service.
    pub async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(2048).unwrap();
        Self { stream: socket.connect(address).await.unwrap(), seen: Vec::new() }
    }

    /// Connects and sends the first octets.
    pub async fn says(address: SocketAddr, octets: impl AsRef<[u8]>) -> Self {
        let mut raw = Self::connect(address).await;
        assert!(raw.sends(octets).await, "the first is taken");
        raw
    }

    /// Sends octets. Returns whether that worked: it does not if the service has closed the
    /// connection.
    pub async fn sends(&mut self, octets: impl AsRef<[u8]>) -> bool {
        let sending = timeout(PATIENCE, self.stream.write_all(octets.as_ref()));
        sending.await.expect("it is taken or refused").is_ok()
    }

    /// Sends the same octets again and again until the service closes the connection. Returns how
    /// many were sent.
    pub async fn floods(&mut self, octets: &[u8]) -> usize {
        let mut sent = 0;
        let flooding = async {
            while self.sends(octets).await {
                sent += octets.len();
            }
        };
        timeout(PATIENCE, flooding).await.expect("a flood is cut off");
        sent
    }

    /// Sends the octets again and again, with a pause after each write, until the service closes
    /// the connection.
    pub async fn drips(&mut self, octets: &[u8]) {
        let mut tick = interval(DRIP);
        let dripping = async {
            while self.sends(octets).await {
                tick.tick().await;
            }
        };
        timeout(PATIENCE, dripping).await.expect("who drips is cut off");
    }

    /// Reads a few octets at a time until the service closes the connection. Returns how many were
    /// read.
    pub async fn sips(&mut self) -> usize {
        let (mut tick, mut sip, mut sipped) = (interval(DRIP), [0; 512], 0);
        let sipping = async {
            while let Ok(octets @ 1..) = self.stream.read(&mut sip).await {
                sipped += octets;
                tick.tick().await;
            }
        };
        timeout(PATIENCE, sipping).await.expect("who sips is cut off");
        sipped
    }

    /// Reads until `part` has arrived, and returns everything received so far.
    pub async fn hears(&mut self, part: &str) -> String {
        while !self.text().contains(part) {
            assert!(self.reads().await, "no {part:?} in {:?}", self.text());
        }
        self.text()
    }

    /// Reads until the service closes the connection, and returns everything received.
    pub async fn hears_all(mut self) -> String {
        self.hears_until_the_end().await
    }

    /// Reads until the service closes its side of the connection. The client's side stays open.
    pub async fn hears_until_the_end(&mut self) -> String {
        while self.reads().await {}
        self.text()
    }

    /// Sends the octets `drops` times, with pauses. Returns whether all writes worked.
    pub async fn drips_on(&mut self, octets: &[u8], drops: usize) -> bool {
        let mut tick = interval(DRIP);
        for _ in 0..drops {
            tick.tick().await;
            if !self.sends(octets).await {
                return false;
            }
        }
        true
    }

    async fn reads(&mut self) -> bool {
        let mut some = [0; 4096];
        let reading = timeout(PATIENCE, self.stream.read(&mut some)).await;
        let read = reading.unwrap_or_else(|_| panic!("nothing comes after {:?}", self.text())).unwrap_or(0);
        self.seen.extend_from_slice(&some[..read]);
        read > 0
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}
