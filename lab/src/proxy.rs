//! The proxy that misbehaves on cue, before PostgreSQL or before a relay.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// How a proxy treats what passes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Connections are cut, and new ones are closed at once.
    Cut,
    /// Nothing comes through, and what was under way never does: the connection ends with the stall.
    Stalled,
    /// Nothing comes through until the way changes; then it does.
    Held,
    /// Connections that there are stay so, silent for ever, as when a machine is gone; new ones come through.
    Lost,
    /// Every piece waits.
    Slow,
    /// RST for every connection that there is and every new one.
    Reset,
    /// SMTP: every recipient is put off.
    PutsOff,
    /// SMTP: every recipient is refused, as by a relay that does not know its client.
    RefusesAll,
    /// SMTP: 421 for every recipient, and the connection is gone.
    HangsUp,
    /// SMTP: who connects waits for the greeting.
    GreetsLate,
    /// SMTP: the relay's answer to a mail is swallowed, and the connection is gone.
    DropsAnswers,
}

/// How long a piece waits when the way is slow.
const SLOWNESS: Duration = Duration::from_millis(150);
/// How long a late greeting takes: postscreen's default.
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

    /// The same at an address of this machine.
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

/// Waits as the way wants, and gives the one that holds then.
async fn let_pass(ways: &mut watch::Receiver<Way>) -> io::Result<Way> {
    let way = *ways.wait_for(|way| *way != Way::Held).await.map_err(io::Error::other)?;
    if way == Way::Slow {
        tokio::time::sleep(SLOWNESS).await;
    }
    Ok(way)
}
