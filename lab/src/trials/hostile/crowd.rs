//! Clients that hold connections and send hardly anything.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

/// Connections on which nothing is sent.
pub const IDLE: usize = 10_000;
/// Connections that send slowly: half of them headers, the others bodies.
pub const SLOW: usize = 200;
/// The pause between two writes of a slow connection.
const DRIP: Duration = Duration::from_millis(100);
/// The number of connections from one address of 127.0.0.0/8. One address does not have enough
/// ports for all.
const OF_AN_ADDRESS: usize = 1_000;

/// All connections, which are closed when this is dropped.
pub struct Crowd {
    _idle: Vec<TcpStream>,
    _dripping: JoinSet<()>,
    /// How many slow connections the service has closed. The client of each has connected again.
    pub cut: Arc<AtomicUsize>,
}

impl Crowd {
    pub async fn gathers(service: SocketAddr) -> std::io::Result<Self> {
        let mut idle = Vec::with_capacity(IDLE);
        for number in 0..IDLE {
            idle.push(connect(service, number).await?);
        }
        let (cut, mut dripping) = (Arc::<AtomicUsize>::default(), JoinSet::new());
        for number in 0..SLOW {
            let cut = Arc::clone(&cut);
            dripping.spawn(async move {
                // Connects again after the service has closed the connection, or did not accept it.
                loop {
                    if let Ok(stream) = connect(service, IDLE + number).await {
                        let _ = drips(stream, number % 2 == 0).await;
                        cut.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        Ok(Self { _idle: idle, _dripping: dripping, cut })
    }
}

/// Connects from one of several addresses of this machine.
async fn connect(service: SocketAddr, number: usize) -> std::io::Result<TcpStream> {
    let host = u8::try_from(10 + number / OF_AN_ADDRESS).unwrap_or(u8::MAX);
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into())?;
    socket.connect(service).await
}

/// Sends one header, or one octet of a body, at a time until the service closes the connection.
async fn drips(mut stream: TcpStream, headers: bool) -> std::io::Result<()> {
    let (head, drop): (&[u8], &[u8]) = if headers {
        (b"GET /healthz HTTP/1.1\r\n", b"x: y\r\n")
    } else {
        let post = b"POST /api/auth/recovery/start HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 16000\r\n\r\n";
        (post, b" ")
    };
    stream.write_all(head).await?;
    let (mut tick, mut answer) = (interval(DRIP), [0; 4096]);
    loop {
        tick.tick().await;
        stream.write_all(drop).await?;
        if let Ok(read) = timeout(Duration::ZERO, stream.read(&mut answer)).await
            && read? == 0
        {
            return Ok(());
        }
    }
}
