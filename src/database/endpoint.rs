//! Where PostgreSQL is: the addresses of its name, and the one that connections go to while another is silent.
//!
//! A connection by name tries the addresses in the resolver's order, and waits for a silent one until TCP gives up: longer
//! than any request does (docs/decisions/0028). So the addresses are asked beside the first connection, beside one that
//! follows a lost one, and by the health check every minute.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long an address may take to accept a connection before it counts as silent. All are asked at once.
const ANSWER_TIME: Duration = Duration::from_millis(500);

/// A PostgreSQL, as `DATABASE_URL` names it. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Endpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// As the URL has them.
    options: PgConnectOptions,
    found: Mutex<Found>,
    /// Whether the resolver has not answered yet.
    resolving: AtomicBool,
    pools: Mutex<Vec<PgPool>>,
}

/// What the last look at the addresses found. All is 0 for a socket and for an IP address, which are not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// How many addresses the name has.
    pub addresses: usize,
    /// How many of them are silent.
    pub silent: usize,
    /// Where connections go in place of the name.
    instead: Option<IpAddr>,
}

impl Endpoint {
    /// With these options. Nothing is looked up yet.
    #[must_use]
    pub fn new(options: PgConnectOptions) -> Self {
        let (found, resolving, pools) = (Mutex::default(), AtomicBool::default(), Mutex::default());
        Self(Arc::new(Inner { options, found, resolving, pools }))
    }

    /// How to connect now: by name, or by the address of it that answers.
    #[must_use]
    pub fn options(&self) -> PgConnectOptions {
        let options = self.0.options.clone();
        match self.found().instead {
            Some(address) => options.host(&address.to_string()),
            None => options,
        }
    }

    /// Connects, and looks at the addresses meanwhile: if connections have to go elsewhere, so does this one, half a second
    /// after the resolver's answer at the latest.
    pub async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        let (endpoint, options) = (self.clone(), self.options());
        // It goes on when the connection is there first: others have to know, too.
        let looking = tokio::spawn(async move { endpoint.look().await });
        let mut connecting = Box::pin(PgConnection::connect_with(&options));
        tokio::select! {
            biased;
            connected = &mut connecting => return connected,
            _ = looking => {}
        }
        let now = self.options();
        if now.get_host() == options.get_host() {
            return connecting.await;
        }
        Box::pin(PgConnection::connect_with(&now)).await
    }

    /// Has a pool go where the next look says.
    pub(super) fn leads(&self, pool: &PgPool) {
        self.pools().push(pool.clone());
    }

    /// What the last look found.
    #[must_use]
    pub fn found(&self) -> Found {
        *self.0.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a network leads there, and no socket.
    #[must_use]
    pub fn is_networked(&self) -> bool {
        self.0.options.get_socket().is_none() && !self.0.options.get_host().starts_with('/')
    }

    /// What a connection that is not there yet waits for, with how many addresses were tried.
    pub(super) fn stage(&self) -> String {
        let Found { addresses, silent, .. } = self.found();
        if self.0.resolving.load(Ordering::Relaxed) {
            "looking its name up".into()
        } else if addresses == 0 {
            "connecting".into()
        } else {
            format!("connecting to a name with {addresses} addresses, {silent} of them silent")
        }
    }

    /// Looks the name up and asks its addresses. While one of them is silent, connections go to one that accepts; otherwise
    /// by name, as ever.
    async fn look(&self) {
        let host = self.0.options.get_host();
        if !self.is_networked() || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return;
        }
        self.0.resolving.store(true, Ordering::Relaxed);
        let resolved = lookup_host((host, self.0.options.get_port())).await;
        self.0.resolving.store(false, Ordering::Relaxed);
        // A name that is not found is the connection's own error.
        let Ok(addresses) = resolved.map(Vec::from_iter) else { return };
        let (accepting, silent) = ask(&addresses).await;
        let before = self.found();
        let kept = before.instead.filter(|kept| accepting.contains(kept));
        // TLS checks and names what is connected to, so that a name has to stay one.
        let by_name = silent == 0 || matches!(self.0.options.get_ssl_mode(), PgSslMode::VerifyFull);
        let instead = if by_name { None } else { kept.or(accepting.first().copied()) };
        let found = Found { addresses: addresses.len(), silent, instead };
        if found != before {
            self.goes_by(found, before);
        }
    }

    fn goes_by(&self, found: Found, before: Found) {
        *self.0.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
        let options = self.options();
        for pool in self.pools().iter().filter(|_| found.instead != before.instead) {
            pool.set_connect_options(options.clone());
        }
        let Found { addresses, silent, instead } = found;
        match (silent, instead) {
            (0, _) if before.silent == 0 => {}
            // The health check says it.
            _ if addresses == 1 => {}
            (0, _) => tracing::info!(addresses, "every address of PostgreSQL's name answers again"),
            (_, Some(instead)) => {
                let message =
                    "an address of PostgreSQL's name is silent: connections go to another one of it";
                tracing::warn!(addresses, silent, %instead, "{message}");
            }
            (_, None) => {
                let message = "an address of PostgreSQL's name is silent, and connections may wait for it";
                tracing::warn!(addresses, silent, "{message}");
            }
        }
    }

    fn pools(&self) -> MutexGuard<'_, Vec<PgPool>> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of them accept a connection, in their order, and how many say nothing. One that refuses costs no time: the next
/// is tried at once.
async fn ask(addresses: &[SocketAddr]) -> (Vec<IpAddr>, usize) {
    let mut asked = JoinSet::new();
    for (place, address) in addresses.iter().copied().enumerate() {
        asked.spawn(async move { (place, timeout(ANSWER_TIME, TcpStream::connect(address)).await) });
    }
    let (mut accepting, mut silent) = (Vec::new(), 0);
    while let Some(Ok((place, answer))) = asked.join_next().await {
        match answer {
            Ok(Ok(_)) => accepting.push(place),
            Ok(Err(_)) => {}
            Err(_) => silent += 1,
        }
    }
    accepting.sort_unstable();
    (accepting.into_iter().map(|place| addresses[place].ip()).collect(), silent)
}
