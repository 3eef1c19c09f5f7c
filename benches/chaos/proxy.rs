//! What stands in the path and misbehaves: before PostgreSQL and before the relay.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// How a proxy treats what passes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Passes,
    /// Nothing moves until the mode changes.
    Stalls,
    /// Every piece waits.
    IsSlow,
    /// RST for all that is there and all that comes.
    Resets,
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

#[derive(Clone)]
pub enum Upstream {
    Port(u16),
    Socket(PathBuf),
}

pub struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
}

impl Proxy {
    pub async fn before(upstream: Upstream) -> io::Result<Self> {
        Self::at(Ipv4Addr::LOCALHOST.into(), upstream).await
    }

    pub async fn at(address: IpAddr, upstream: Upstream) -> io::Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let (mode, modes) = watch::channel(Mode::Passes);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (upstream, modes) = (upstream.clone(), modes.clone());
                tokio::spawn(async move { drop(serve(client, upstream, modes).await) });
            }
        });
        Ok(Self { address, mode })
    }

    pub fn is(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn serve(client: TcpStream, upstream: Upstream, modes: watch::Receiver<Mode>) -> io::Result<()> {
    client.set_nodelay(true)?;
    if *modes.borrow() == Mode::GreetsLate {
        tokio::time::sleep(LATENESS).await;
    }
    match upstream {
        Upstream::Port(port) => {
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
            server.set_nodelay(true)?;
            pump(client, server, modes).await
        }
        Upstream::Socket(path) => pump(client, UnixStream::connect(path).await?, modes).await,
    }
}

async fn pump(
    mut client: TcpStream,
    mut server: impl AsyncRead + AsyncWrite + Unpin,
    mut modes: watch::Receiver<Mode>,
) -> io::Result<()> {
    let (mut from_client, mut from_server) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let mut mail_is_in = false;
    loop {
        if *modes.borrow_and_update() == Mode::Resets {
            return client.set_zero_linger();
        }
        tokio::select! {
            changed = modes.changed() => changed.map_err(io::Error::other)?,
            read = client.read(&mut from_client) => {
                let piece = &from_client[..read?];
                let mode = let_pass(&mut modes).await?;
                if piece.is_empty() {
                    return Ok(());
                }
                if piece.starts_with(b"RCPT") {
                    match mode {
                        Mode::PutsOff => client.write_all(b"450 4.3.0 later\r\n").await?,
                        Mode::RefusesAll => client.write_all(b"554 5.7.1 Relay access denied\r\n").await?,
                        Mode::HangsUp => return client.write_all(b"421 4.3.2 shutting down\r\n").await,
                        _ => server.write_all(piece).await?,
                    }
                    continue;
                }
                mail_is_in = piece.ends_with(b"\r\n.\r\n");
                server.write_all(piece).await?;
            }
            read = server.read(&mut from_server) => {
                let piece = &from_server[..read?];
                let mode = let_pass(&mut modes).await?;
                if piece.is_empty() || (mode == Mode::DropsAnswers && mail_is_in) {
                    return Ok(());
                }
                client.write_all(piece).await?;
            }
        }
    }
}

/// Waits as the mode wants, and gives the one that holds then.
async fn let_pass(modes: &mut watch::Receiver<Mode>) -> io::Result<Mode> {
    let mode = *modes.wait_for(|mode| *mode != Mode::Stalls).await.map_err(io::Error::other)?;
    if mode == Mode::IsSlow {
        tokio::time::sleep(SLOWNESS).await;
    }
    Ok(mode)
}
