//! Connections of clients: how many there are at once, who makes room for one more, and how each ends.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::stream::ClientStream;
use crate::config::{ConfigError, ConnectionSettings};
use crate::http::guard::Peer;
use crate::metrics::{ListenerLabel, Metrics};

/// What the kernel may hold of a connection in each direction, in octets (Linux takes twice as many). Left to itself it
/// grows to megabytes for a client that does not read, and no request or usual answer needs more.
const SOCKET_BUFFER: u32 = 64 * 1024;
/// Connections that the kernel may hold until they are accepted; Linux takes its somaxconn if that is less.
const BACKLOG: u32 = 4096;
/// What every connection has to send a request, however many others come.
const LEAST_STAY: Duration = Duration::from_secs(1);
/// How often those that have stayed so long are asked again while all places are taken.
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// The least that hyper takes for its buffer, in octets.
const LEAST_BUFFER: usize = 8 * 1024;
/// Descriptors for all but the clients: connections to PostgreSQL and to the relays, listeners, files.
const OWN_DESCRIPTORS: u64 = 512;
/// The fewest connections that are worth listening for, whatever the descriptors are.
const FEWEST_CONNECTIONS: u64 = 16;

/// An address that is listened on.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    label: ListenerLabel,
    connections: u32,
}

impl Listener {
    /// Binds the address of the setting `variable`, for at most so many connections at once.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable whose address cannot be had.
    pub fn bind(
        variable: &'static str,
        address: SocketAddr,
        label: ListenerLabel,
        connections: u32,
    ) -> Result<Self, ConfigError> {
        let socket = listen(address).map_err(|error| {
            ConfigError::new(variable, format!("is {address}, which cannot be listened on: {error}"))
        })?;
        Ok(Self { socket, label, connections })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts connections until `stop`, then waits for their requests to finish.
    ///
    /// Whoever comes when all places are taken is let in all the same: those that wait for a request leave at once, and
    /// those that are being answered after their answer. So clients that only sit there keep nobody out, and nobody
    /// loses an answer.
    pub async fn accept(
        self,
        routes: Router,
        config: &ConnectionSettings,
        metrics: &Metrics,
        stop: CancellationToken,
    ) {
        let Self { socket, label, connections } = self;
        let (http, answer_timeout) = (http(config), config.answer_timeout);
        let open = metrics.connections.get_or_create_owned(&label);
        let crowded = metrics.connections_crowded.get_or_create_owned(&label);
        let places = Arc::new(Semaphore::new(connections as usize));
        // Who came before that time may leave; all, when the sender is gone.
        let (leave, leaving) = watch::channel(Instant::now());
        let mut late = 0;
        while let Some(accepted) = next(&socket, &stop, &mut late).await {
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: connections that end give some back.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let permit = if let Ok(free) = Arc::clone(&places).try_acquire_owned() {
                free
            } else {
                crowded.inc();
                leave.send_replace(Instant::now() - LEAST_STAY);
                let Some(permit) = stop.run_until_cancelled(acquire_place(&places, &leave)).await else {
                    break;
                };
                permit
            };
            let place = Place::take(permit, open.clone());
            let stream = ClientStream::new(stream, answer_timeout);
            let (http, routes, leaving) = (http.clone(), routes.clone(), leaving.clone());
            tokio::spawn(async move {
                serve(&http, stream, peer, routes, leaving).await;
                drop(place);
            });
        }
        drop((socket, leave));
        let _ = places.acquire_many(connections).await;
    }
}

/// The next connection. After `stop`, those alone that clients believe to have already: closing the socket would reset them.
async fn next(
    socket: &TcpListener,
    stop: &CancellationToken,
    late: &mut u32,
) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    if let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
        return Some(accepted);
    }
    *late += 1;
    let accepted = tokio::time::timeout(Duration::ZERO, socket.accept()).await.ok();
    accepted.filter(|_| *late <= BACKLOG)
}

/// Waits for a place, while those who have stayed long enough leave.
async fn acquire_place(places: &Arc<Semaphore>, leave: &watch::Sender<Instant>) -> OwnedSemaphorePermit {
    loop {
        let place = tokio::time::timeout(ASK_AGAIN, Arc::clone(places).acquire_owned());
        if let Ok(Ok(place)) = place.await {
            return place;
        }
        leave.send_replace(Instant::now() - LEAST_STAY);
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Or a restart would wait until the connections of the process before are forgotten.
    socket.set_reuseaddr(true)?;
    // Every connection inherits them.
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// As many connections as the setting says, or as the process has descriptors for: it takes all that it may have.
pub fn affordable_connections(wanted: u32) -> u32 {
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    let affordable = descriptors.saturating_sub(OWN_DESCRIPTORS).max(FEWEST_CONNECTIONS);
    if affordable >= u64::from(wanted) {
        return wanted;
    }
    tracing::warn!(
        wanted,
        affordable,
        "RLIMIT_NOFILE leaves fewer descriptors than MAX_CONNECTIONS asks for: raise it"
    );
    u32::try_from(affordable).unwrap_or(wanted)
}

fn http(config: &ConnectionSettings) -> http1::Builder {
    let max_header = config.max_header as usize;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_header_size(max_header)
        .max_buf_size(max_header.max(LEAST_BUFFER));
    http
}

/// One of the connections that there may be.
struct Place {
    open: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    fn take(permit: OwnedSemaphorePermit, open: Gauge) -> Self {
        open.inc();
        Self { open, _permit: permit }
    }
}

/// However the connection ends, by a panic too.
impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// Answers the requests of one connection, one after the other, until it ends or is asked to leave.
async fn serve(
    http: &http1::Builder,
    stream: ClientStream,
    peer: SocketAddr,
    routes: Router,
    mut leaving: watch::Receiver<Instant>,
) {
    let came = Instant::now();
    let is_asked = Arc::new(AtomicBool::new(false));
    let (asked, answered) = (Arc::clone(&is_asked), Arc::clone(&is_asked));
    let service = routes
        .map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(Peer(peer));
            request.map(axum::body::Body::new)
        })
        .map_response(move |response| {
            answered.store(false, Ordering::Relaxed);
            response
        });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    tokio::select! {
        // First, so that a request that has arrived is under way when the other is looked at.
        biased;
        // It ends with an error whenever a client goes away; that is its business.
        _ = connection.as_mut() => return,
        _ = leaving.wait_for(|before| came < *before) => {}
    }
    // A client that has just connected may be sending its request: hyper would close on it.
    if tokio::time::timeout_at(came + LEAST_STAY, connection.as_mut()).await.is_ok() {
        return;
    }
    // What it waits for else is a request, or that a slow client reads: that may end here.
    if is_asked.load(Ordering::Relaxed) {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}
