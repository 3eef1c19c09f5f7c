//! Two replicas of the program behind nginx, replaced one after the other as an operator does it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::PATIENCE;
use crate::client::Client;
use crate::nginx::Nginx;
use crate::place::free_port;
use crate::program::{Program, serve_environment};

pub struct Host {
    pub nginx: Arc<Nginx>,
    replicas: [Option<Program>; 2],
    addresses: [SocketAddr; 2],
    /// The binary of another release, instead of the built one.
    pub program: Option<PathBuf>,
    environment: Vec<(String, String)>,
}

impl Host {
    /// Starts both replicas behind a proxy, with the usual settings and these `changes`.
    pub async fn start(database_url: &str, relays: &str, changes: &[(&str, &str)]) -> Self {
        Self::start_of(None, database_url, relays, changes).await
    }

    pub async fn start_of(
        program: Option<&Path>,
        database_url: &str,
        relays: &str,
        changes: &[(&str, &str)],
    ) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let behind = [
            ("TRUSTED_PROXIES", "127.0.0.1/32"),
            ("NETWORK_BURST", "1000000"),
            ("NETWORK_PER_MINUTE", "1000000"),
            // Empty: the variable is not set. `deploy/nginx.conf` relies on the default.
            ("DRAIN_DELAY", ""),
        ];
        let environment = serve_environment(database_url, relays, &[&behind, changes].concat());
        let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let first = 20 + COUNT.fetch_add(1, Ordering::Relaxed) % 10 * 2;
        // A replica is restarted at its old address, so the port must be one that the kernel does
        // not assign to others.
        let addresses =
            [first, first + 1].map(|number| SocketAddr::from(([127, 0, 0, 1], free_port(number))));
        let mut host = Self {
            nginx: Arc::new(Nginx::before(addresses)),
            replicas: [None, None],
            addresses,
            program: program.map(Path::to_owned),
            environment,
        };
        host.replaces(0).await;
        host.replaces(1).await;
        host
    }

    /// Changes settings of the replicas that start from now on.
    pub fn has(&mut self, changes: &[(&str, &str)]) {
        for (name, value) in changes {
            self.environment.retain(|(known, _)| known != name);
            self.environment.push(((*name).into(), (*value).into()));
        }
    }

    /// Stops a replica with SIGTERM, starts another in its place, and waits until that one is
    /// ready.
    pub async fn replaces(&mut self, place: usize) {
        let (former, address) = (self.replicas[place].take(), self.addresses[place]);
        let (program, mut environment) = (self.program.clone(), self.environment.clone());
        environment.retain(|(name, _)| name != "HTTP_ADDR");
        environment.push(("HTTP_ADDR".into(), address.to_string()));
        let replacing = tokio::task::spawn_blocking(move || {
            if let Some(former) = former {
                former.signal("-TERM");
                let (log, well) = former.ends();
                assert!(well, "{}", log.join("\n"));
            }
            let environment: Vec<_> =
                environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let mut replica = match program {
                Some(program) => Program::start_of(&program, &["serve"], &environment),
                None => Program::start(&["serve"], &environment),
            };
            assert_eq!(replica.address(), address);
            replica
        });
        self.replicas[place] = Some(replacing.await.unwrap());
        let client = Client::new(address);
        let ready = async { while client.get("/readyz").await.status != 200 {} };
        tokio::time::timeout(PATIENCE, ready).await.expect("the new replica is ready");
    }

    /// Hands the replicas over to a test that ends them in its own way.
    pub fn replicas(&mut self) -> [Program; 2] {
        self.replicas.each_mut().map(|replica| replica.take().expect("it runs"))
    }
}
