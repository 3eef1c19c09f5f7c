//! A proxy before PostgreSQL or a relay, with failures that a test can choose.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// What a proxy does with connections and data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Connections are cut, and new ones are closed at once.
    Cut,
    /// No data passes. When the way changes, the connection is closed.
    Stalled,
    /// No data passes until the way changes; then all data passes.
    Held,
    /// Present connections stay open and silent, as if the machine had died; new ones work.
    Lost,
    /// Each read is delayed by `SLOWNESS`.
    Slow,
    /// Sends RST on all present and new connections.
    Reset,
    /// SMTP: every recipient is deferred.
    PutsOff,
    /// SMTP: every recipient is refused, as by a relay that does not accept the client.
    RefusesAll,
    /// SMTP: every recipient is answered 421, and the connection is closed.
    HangsUp,
    /// SMTP: the greeting is delayed by `LATENESS`.
    GreetsLate,
    /// SMTP: the relay's answer to a mail is dropped, and the connection is closed.
    DropsAnswers,
}

/// The delay of each read on [`Way::Slow`].
const SLOWNESS: Duration = Duration::from_millis(150);
/// The delay of a late greeting: postscreen's default.
const LATENESS: Duration = Duration::from_secs(6);

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Where a server listens.
#[derive(Clone)]
pub enum Server {
    Socket(PathBuf),
    Tcp(String, u16),
}

impl Server {
    pub async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Socket(path) => Box::new(UnixStream::connect(path).await?),
            Self::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

pub struct Proxy {
    pub address: SocketAddr,
    way: watch::Sender<Way>,
}

impl Proxy {
    pub async fn before_server(server: Server) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), server).await
    }

    /// Starts a proxy that listens at this address of the machine.
    pub async fn at(address: IpAddr, server: Server) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (way, ways) = watch::channel(Way::Open);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, ways) = (server.clone(), ways.clone());
                tokio::spawn(async move { drop(serve(client, server, ways).await) });
            }
        });
        Self { address, way }
    }

    pub fn is(&self, way: Way) {
        self.way.send_replace(way);
    }
}

async fn serve(client: TcpStream, server: Server, ways: watch::Receiver<Way>) -> io::Result<()> {
    client.set_nodelay(true)?;
    if *ways.borrow() == Way::GreetsLate {
        tokio::time::sleep(LATENESS).await;
    }
    pump(client, server.connect().await?, ways).await
}

async fn pump(
    mut client: TcpStream,
    mut server: Box<dyn Stream>,
    mut ways: watch::Receiver<Way>,
) -> io::Result<()> {
    let (mut from_client, mut from_server) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let (mut mail_is_in, mut is_found) = (false, *ways.borrow() == Way::Lost);
    loop {
        let way = *ways.borrow_and_update();
        is_found &= way == Way::Lost;
        match way {
            Way::Reset => return client.set_zero_linger(),
            Way::Cut => return Ok(()),
            Way::Stalled => return ways.changed().await.map_err(io::Error::other),
            Way::Lost if !is_found => std::future::pending().await,
            _ => {}
        }
        tokio::select! {
            biased;
            changed = ways.changed() => changed.map_err(io::Error::other)?,
            read = client.read(&mut from_client) => {
                let piece = &from_client[..read?];
                let way = let_pass(&mut ways).await?;
                if piece.is_empty() {
                    return Ok(());
                }
                if piece.starts_with(b"RCPT") {
                    match way {
                        Way::PutsOff => client.write_all(b"450 4.3.0 later\r\n").await?,
                        Way::RefusesAll => client.write_all(b"554 5.7.1 Relay access denied\r\n").await?,
                        Way::HangsUp => return client.write_all(b"421 4.3.2 shutting down\r\n").await,
                        _ => server.write_all(piece).await?,
                    }
                    continue;
                }
                mail_is_in = piece.ends_with(b"\r\n.\r\n");
                server.write_all(piece).await?;
            }
            read = server.read(&mut from_server) => {
                let piece = &from_server[..read?];
                let way = let_pass(&mut ways).await?;
                if piece.is_empty() || (way == Way::DropsAnswers && mail_is_in) {
                    return Ok(());
                }
                client.write_all(piece).await?;
            }
        }
    }
}

/// Waits until the way is not `Held`, and then for `SLOWNESS` if it is `Slow`. Returns this way.
async fn let_pass(ways: &mut watch::Receiver<Way>) -> io::Result<Way> {
    let way = *ways.wait_for(|way| *way != Way::Held).await.map_err(io::Error::other)?;
    if way == Way::Slow {
        tokio::time::sleep(SLOWNESS).await;
    }
    Ok(way)
}
