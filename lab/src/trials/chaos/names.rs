//! A relay's name with two addresses, which only the replicas resolve, by an /etc/hosts of their
//! own. The relay listens at the second address. The first refuses connections or is silent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};

use vos_auth_lab::Failure;
use vos_auth_lab::place::temporary;

/// The only relay name that the service accepts without TLS.
pub const RELAY: &str = "localhost";
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 3)];

pub struct Names {
    hosts: PathBuf,
    first: Ipv4Addr,
    port: u16,
}

/// Keeps an address silent until this value is dropped.
pub struct Silence {
    _listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Names {
    /// Writes the replicas' /etc/hosts, and asks the resolver which address it returns first.
    pub fn new() -> Result<Self, Failure> {
        let hosts = PathBuf::from(temporary("chaos-hosts"));
        let lines = ADDRESSES.map(|address| format!("{address} {RELAY}\n")).concat();
        std::fs::write(&hosts, lines)?;
        let mut names = Self { hosts, first: ADDRESSES[0], port: 0 };
        let inside = names.inside();
        let asked =
            Command::new(&inside[0]).args(&inside[1..]).args(["getent", "ahostsv4", RELAY]).output()?;
        let answer = String::from_utf8(asked.stdout)?;
        let first =
            answer.split_whitespace().next().ok_or("the relay's name cannot be resolved: is this root?")?;
        names.first = first.parse()?;
        Ok(names)
    }

    /// The command that runs a program with this /etc/hosts.
    pub fn inside(&self) -> Vec<String> {
        let mount = format!("mount --bind '{}' /etc/hosts && exec \"$@\"", self.hosts.display());
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", &mount, "sh"].map(Into::into).into()
    }

    /// The address at which the relay has to listen.
    pub fn second(&self) -> IpAddr {
        ADDRESSES.into_iter().find(|address| *address != self.first).unwrap_or(ADDRESSES[1]).into()
    }

    pub fn is_at(&mut self, port: u16) {
        self.port = port;
    }

    /// Makes the first address silent: the kernel drops packets for a listener with a full queue.
    pub fn first_is_silent(&self) -> Result<Silence, Failure> {
        let address = SocketAddr::from((self.first, self.port));
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(0)?;
        let mut waiting = Vec::new();
        loop {
            match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
                Ok(stream) => waiting.push(stream),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Silence { _listener: listener, _waiting: waiting })
    }
}
