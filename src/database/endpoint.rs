//! The addresses of PostgreSQL's host name, and the one to use while another does not answer.
//!
//! A connection by name tries the addresses in the resolver's order. It waits for a silent address
//! until TCP gives up, which takes longer than any request (docs/decisions/0028). So the addresses
//! are probed:
//!
//! - during the first connection, and during one that replaces a lost connection;
//! - every minute, by the health check.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long an address may take to accept or refuse a connection before it counts as silent. All
/// addresses are probed at once.
const PROBE_DEADLINE: Duration = Duration::from_millis(500);

/// The PostgreSQL server of `DATABASE_URL`. Clones share what the probes found.
#[derive(Clone, Debug)]
pub struct Endpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The options of the URL.
    options: PgConnectOptions,
    addresses: Mutex<AddressStatus>,
    /// Whether a name look-up is waiting for the resolver.
    resolving: AtomicBool,
    pools: Mutex<Vec<PgPool>>,
}

/// What the last probe of the addresses found. The numbers are 0 before the first probe, and for a
/// socket or an IP address, which is not probed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressStatus {
    /// How many addresses the name has.
    pub total: usize,
    /// How many of them are silent.
    pub silent: usize,
    /// The address to connect to in place of the name.
    replacement: Option<IpAddr>,
}

impl Endpoint {
    /// An endpoint with these options. It resolves no name yet.
    #[must_use]
    pub fn new(options: PgConnectOptions) -> Self {
        let (addresses, resolving, pools) = (Mutex::default(), AtomicBool::default(), Mutex::default());
        Self(Arc::new(Inner { options, addresses, resolving, pools }))
    }

    /// The options to connect with now: by name, or to one of its addresses while another is
    /// silent.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        let options = self.0.options.clone();
        match self.addresses().replacement {
            Some(address) => options.host(&address.to_string()),
            None => options,
        }
    }

    /// Connects, and probes the addresses at the same time. If the probe selects another address,
    /// the connection starts anew there, at most half a second after the resolver's answer.
    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let (endpoint, options) = (self.clone(), self.options());
        // The probe continues even if the connection succeeds first: other connections use its
        // result.
        let probing = tokio::spawn(async move { endpoint.probe().await });
        let mut connecting = Box::pin(PgConnection::connect_with(&options));
        tokio::select! {
            biased;
            connected = &mut connecting => return connected,
            _ = probing => {}
        }
        let now = self.options();
        if now.get_host() == options.get_host() {
            return connecting.await;
        }
        Box::pin(PgConnection::connect_with(&now)).await
    }

    /// Registers a pool: when a later probe selects another address, the pool's new connections use
    /// it.
    pub(super) fn manage(&self, pool: &PgPool) {
        self.pools().push(pool.clone());
    }

    /// What the last probe found.
    #[must_use]
    pub fn addresses(&self) -> AddressStatus {
        *self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the server is reached over a network, and not by a Unix socket.
    #[must_use]
    pub fn is_networked(&self) -> bool {
        self.0.options.get_socket().is_none() && !self.0.options.get_host().starts_with('/')
    }

    /// What a connection attempt is waiting for, for operators.
    #[must_use]
    pub fn stage(&self) -> String {
        let AddressStatus { total, silent, .. } = self.addresses();
        if self.0.resolving.load(Ordering::Relaxed) {
            "resolving the host name".into()
        } else if total == 0 {
            "connecting".into()
        } else {
            format!("connecting to a name with {total} addresses, {silent} of them silent")
        }
    }

    /// Resolves the name and probes its addresses. While one is silent, new connections go to an
    /// address that accepts; otherwise, and always with `verify-full`, they go by name.
    async fn probe(&self) {
        let host = self.0.options.get_host();
        if !self.is_networked() || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return;
        }
        self.0.resolving.store(true, Ordering::Relaxed);
        let resolved = lookup_host((host, self.0.options.get_port())).await;
        self.0.resolving.store(false, Ordering::Relaxed);
        // If the name is not found, the connection attempt reports it.
        let Ok(addresses) = resolved.map(Vec::from_iter) else { return };
        let (accepting, silent) = probe_all(&addresses).await;
        let before = self.addresses();
        let kept = before.replacement.filter(|kept| accepting.contains(kept));
        // TLS checks the certificate against the host name, so `verify-full` must connect by name.
        let by_name = silent == 0 || matches!(self.0.options.get_ssl_mode(), PgSslMode::VerifyFull);
        let replacement = if by_name { None } else { kept.or(accepting.first().copied()) };
        let status = AddressStatus { total: addresses.len(), silent, replacement };
        if status != before {
            self.apply(status, before);
        }
    }

    fn apply(&self, status: AddressStatus, before: AddressStatus) {
        *self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner) = status;
        let options = self.options();
        for pool in self.pools().iter().filter(|_| status.replacement != before.replacement) {
            pool.set_connect_options(options.clone());
        }
        let AddressStatus { total: addresses, silent, replacement } = status;
        match (silent, replacement) {
            (0, _) if before.silent == 0 => {}
            // The health check logs that the server does not answer.
            _ if addresses == 1 => {}
            (0, _) => tracing::info!(addresses, "every address of PostgreSQL's name answers again"),
            (_, Some(instead)) => {
                let message =
                    "an address of PostgreSQL's name does not answer: new connections use another address";
                tracing::warn!(addresses, silent, %instead, "{message}");
            }
            (_, None) => {
                let message =
                    "an address of PostgreSQL's name does not answer: new connections may wait for it";
                tracing::warn!(addresses, silent, "{message}");
            }
        }
    }

    fn pools(&self) -> MutexGuard<'_, Vec<PgPool>> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the addresses that accept a connection, in their order, and the number of silent ones.
/// An address that refuses is not silent: a connection by name tries the next one at once.
async fn probe_all(addresses: &[SocketAddr]) -> (Vec<IpAddr>, usize) {
    let mut probes = JoinSet::new();
    for (place, address) in addresses.iter().copied().enumerate() {
        probes.spawn(async move { (place, timeout(PROBE_DEADLINE, TcpStream::connect(address)).await) });
    }
    let (mut accepting, mut silent) = (Vec::new(), 0);
    while let Some(Ok((place, answer))) = probes.join_next().await {
        match answer {
            Ok(Ok(_)) => accepting.push(place),
            Ok(Err(_)) => {}
            Err(_) => silent += 1,
        }
    }
    accepting.sort_unstable();
    (accepting.into_iter().map(|place| addresses[place].ip()).collect(), silent)
}
