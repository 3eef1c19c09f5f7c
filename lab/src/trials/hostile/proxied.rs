//! An attack on nginx: clients at one address hold connections with unfinished headers, at the port
//! without TLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use vos_auth_lab::Failure;
use vos_auth_lab::nginx::{Nginx, Setup};
use vos_auth_lab::replica::Replica;

/// The number of clients that never finish their headers. nginx disconnects each after
/// `client_header_timeout`, and the client connects again.
const UNFINISHED: usize = 1_700;
/// The number of requests of another client (the victim), each on a new connection. Together they
/// take longer than two `client_header_timeout`s.
const REQUESTS: usize = 440;
const A_SECOND: usize = 20;

/// Runs nginx with `deploy/nginx.conf` and the worker settings of docs/operate/install.md. Fails if
/// any request of the victim fails.
pub async fn measure(replica: &Replica) -> Result<(), Failure> {
    let nginx = Nginx::start([replica.address; 2], &Setup { is_documented: true, ..Setup::default() });
    let plain = SocketAddr::from((Ipv4Addr::LOCALHOST, nginx.plain));
    let mut crowd = JoinSet::new();
    for _ in 0..UNFINISHED {
        crowd.spawn(async move {
            loop {
                if unfinished(plain).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
    }
    let fresh = "header = \"Connection: close\"\n";
    let statuses = nginx.asks_at_a_rate("/api/auth/session", REQUESTS, A_SECOND, fresh).await;
    let failed = REQUESTS - statuses.iter().filter(|status| **status == 401).count();
    println!(
        "through nginx, {UNFINISHED} unfinished headers: {failed} of a victim's {REQUESTS} requests failed"
    );
    if failed > 0 { Err(format!("a victim's requests failed: {}", nginx.log()).into()) } else { Ok(()) }
}

/// Begins a request, and returns when nginx has closed the connection.
async fn unfinished(nginx: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, 9), 0).into())?;
    let mut stream = socket.connect(nginx).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost:").await?;
    stream.read_to_end(&mut Vec::new()).await?;
    Ok(())
}
