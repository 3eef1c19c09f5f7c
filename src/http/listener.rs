//! Client connections: their maximum number, eviction of idle ones, and their end.

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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::stream::ClientStream;
use super::tls::{PeerIdentity, Tls};
use crate::config::{ConfigError, ConnectionSettings};
use crate::http::guard::Peer;
use crate::metrics::{ListenerLabel, Metrics};

/// The kernel's buffer of a connection in each direction, in octets (Linux doubles it). By default
/// the buffer grows to megabytes for a client that does not read. No request or usual answer needs
/// more than this.
const SOCKET_BUFFER: u32 = 64 * 1024;
/// Connections that the kernel may queue until they are accepted. Linux uses somaxconn if that is
/// less.
const BACKLOG: u32 = 4096;
/// How long a new connection is safe from eviction, so that it can send a request.
const MIN_STAY: Duration = Duration::from_secs(1);
/// How long a TLS handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The age at which a connection with a client certificate is closed. The handshake of the client's
/// next connection checks whether the certificate has expired or its authority was removed.
const CERTIFICATE_AGE: Duration = Duration::from_mins(5);
/// How often further connections are evicted while a new connection waits for a slot.
const EVICTION_INTERVAL: Duration = Duration::from_millis(100);
/// The smallest buffer that hyper accepts, in octets.
const MIN_BUFFER: usize = 8 * 1024;
/// File descriptors that are reserved for PostgreSQL, relays, listeners and files.
const RESERVED_DESCRIPTORS: u64 = 512;
/// The minimum number of client connections, however few file descriptors there are.
const MIN_CONNECTIONS: u64 = 16;

/// A bound socket that accepts client connections.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    label: ListenerLabel,
    connections: u32,
    tls: Option<Arc<Tls>>,
}

impl Listener {
    /// Binds the address of the setting `variable`. At most `connections` are open at once.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable if its address cannot be bound.
    pub fn bind(
        variable: &'static str,
        address: SocketAddr,
        label: ListenerLabel,
        connections: u32,
    ) -> Result<Self, ConfigError> {
        let socket = listen(address).map_err(|error| {
            ConfigError::new(variable, format!("is {address}, where the service cannot listen: {error}"))
        })?;
        Ok(Self { socket, label, connections, tls: None })
    }

    /// The same listener, with TLS if `tls` is given.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// The address, with the port that was chosen for port 0.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Accepts connections until `stop`, then waits for their requests to finish.
    ///
    /// When all slots are in use, a new connection evicts those older than a second. A connection
    /// whose request is in progress is closed after its answer; idle connections, and those of
    /// clients that read an answer slowly, are closed at once. So idle clients do not block new
    /// ones.
    pub async fn accept(
        self,
        routes: Router,
        config: &ConnectionSettings,
        metrics: &Metrics,
        stop: CancellationToken,
    ) {
        let Self { socket, label, connections, tls } = self;
        let (http, answer_timeout) = (http(config), config.answer_timeout);
        let open = metrics.connections.get_or_create_owned(&label);
        let crowded = metrics.connections_crowded.get_or_create_owned(&label);
        let slots = Arc::new(Semaphore::new(connections as usize));
        // Connections that were accepted before this time are evicted; all of them once the sender
        // is dropped.
        let (evict, evicted_before) = watch::channel(Instant::now());
        let mut queued = 0;
        while let Some(accepted) = next(&socket, &stop, &mut queued).await {
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Usually the process has no file descriptor left: wait until connections
                    // close.
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let permit = if let Ok(free) = Arc::clone(&slots).try_acquire_owned() {
                free
            } else {
                crowded.inc();
                evict.send_replace(Instant::now() - MIN_STAY);
                let Some(permit) = stop.run_until_cancelled(acquire_slot(&slots, &evict)).await else {
                    break;
                };
                permit
            };
            let slot = ConnectionSlot::new(permit, open.clone());
            let stream = ClientStream::new(stream, answer_timeout);
            let (http, routes, mut evicted_before) = (http.clone(), routes.clone(), evicted_before.clone());
            let tls = tls.clone();
            tokio::spawn(async move {
                if let Some(tls) = tls {
                    let (accepted_at, handshake) = (Instant::now(), tls.accept(stream));
                    let shaken = tokio::select! {
                        shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake) => shaken.ok().flatten(),
                        // This also ends the wait when the listener stops, because it drops the
                        // sender.
                        _ = evicted_before.wait_for(|before| accepted_at < *before) => None,
                    };
                    if let Some((stream, identity)) = shaken {
                        serve(&http, stream, (peer, identity), routes, evicted_before).await;
                    }
                } else {
                    serve(&http, stream, (peer, None), routes, evicted_before).await;
                }
                drop(slot);
            });
        }
        drop((socket, evict));
        let _ = slots.acquire_many(connections).await;
    }
}

/// The next connection. After `stop`, only those in the kernel's queue: to their clients they are
/// open already, and closing the socket would reset them.
async fn next(
    socket: &TcpListener,
    stop: &CancellationToken,
    queued: &mut u32,
) -> Option<io::Result<(TcpStream, SocketAddr)>> {
    if let Some(accepted) = stop.run_until_cancelled(socket.accept()).await {
        return Some(accepted);
    }
    *queued += 1;
    let accepted = tokio::time::timeout(Duration::ZERO, socket.accept()).await.ok();
    accepted.filter(|_| *queued <= BACKLOG)
}

/// Evicts connections until a slot is free.
async fn acquire_slot(slots: &Arc<Semaphore>, evict: &watch::Sender<Instant>) -> OwnedSemaphorePermit {
    loop {
        let slot = tokio::time::timeout(EVICTION_INTERVAL, Arc::clone(slots).acquire_owned());
        if let Ok(Ok(slot)) = slot.await {
            return slot;
        }
        evict.send_replace(Instant::now() - MIN_STAY);
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without it, a restart could not bind while connections of the previous process are in
    // TIME_WAIT.
    socket.set_reuseaddr(true)?;
    // Accepted connections inherit both sizes.
    socket.set_send_buffer_size(SOCKET_BUFFER)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// The file descriptors that the process needs for this number of client connections.
#[must_use]
pub fn descriptors_for(connections: u32) -> u64 {
    u64::from(connections) + RESERVED_DESCRIPTORS
}

/// The number of client connections: `wanted`, or fewer if the process has too few file
/// descriptors. Raises the soft limit of descriptors to the hard one.
pub fn affordable_connections(wanted: u32) -> u32 {
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    let affordable = descriptors.saturating_sub(RESERVED_DESCRIPTORS).max(MIN_CONNECTIONS);
    if affordable >= u64::from(wanted) {
        return wanted;
    }
    tracing::warn!(
        wanted,
        affordable,
        "RLIMIT_NOFILE allows fewer file descriptors than MAX_CONNECTIONS needs: raise it"
    );
    u32::try_from(affordable).unwrap_or(wanted)
}

fn http(config: &ConnectionSettings) -> http1::Builder {
    let max_header = config.max_header as usize;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_header_size(max_header)
        .max_buf_size(max_header.max(MIN_BUFFER));
    http
}

/// The slot of an open connection. Dropping it frees the slot and updates the metric, also after a
/// panic.
struct ConnectionSlot {
    open: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionSlot {
    fn new(permit: OwnedSemaphorePermit, open: Gauge) -> Self {
        open.inc();
        Self { open, _permit: permit }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// Serves the requests of one connection until it ends or is evicted.
async fn serve(
    http: &http1::Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    (peer, identity): (SocketAddr, Option<PeerIdentity>),
    routes: Router,
    mut evicted_before: watch::Receiver<Instant>,
) {
    let accepted_at = Instant::now();
    let is_certified = identity.is_some();
    let has_request = Arc::new(AtomicBool::new(false));
    let (on_request, on_response) = (Arc::clone(&has_request), Arc::clone(&has_request));
    let service = routes
        .map_request(move |mut request: hyper::Request<hyper::body::Incoming>| {
            on_request.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(Peer(peer));
            if let Some(identity) = &identity {
                request.extensions_mut().insert(identity.clone());
            }
            request.map(axum::body::Body::new)
        })
        .map_response(move |response| {
            on_response.store(false, Ordering::Relaxed);
            response
        });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    tokio::select! {
        // The connection is polled first, so that a request that has arrived is seen before an
        // eviction.
        biased;
        // An error concerns this client only: a lost connection, a timeout or malformed HTTP.
        _ = connection.as_mut() => return,
        _ = evicted_before.wait_for(|before| accepted_at < *before) => {}
        () = tokio::time::sleep(CERTIFICATE_AGE), if is_certified => {}
    }
    // An immediate close would lose a request that a new client is still sending.
    if tokio::time::timeout_at(accepted_at + MIN_STAY, connection.as_mut()).await.is_ok() {
        return;
    }
    // Without a request, the connection is idle or a slow client is reading an answer. In both
    // cases it is closed at once.
    if has_request.load(Ordering::Relaxed) {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}
