//! Clients: a start every so often, each for an address of its own, by whichever replica is ready.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::Semaphore;

/// Longer than any answer of the service may take.
const PATIENCE: Duration = Duration::from_secs(6);
/// Starts under way at once.
const CLIENTS: usize = 48;

/// One start, and what its client saw.
#[derive(Clone, Debug)]
pub struct Start {
    pub number: usize,
    pub ended_at: OffsetDateTime,
    pub took: Duration,
    /// `None`: no answer.
    pub status: Option<u16>,
}

/// The balancer's view of the replicas: where each is, if it is ready.
#[derive(Clone, Default)]
pub struct Ready(Arc<Mutex<[Option<SocketAddr>; 2]>>);

impl Ready {
    pub fn is(&self, place: usize, address: Option<SocketAddr>) {
        self.0.lock().expect("no task panicked")[place] = address;
    }

    fn one(&self, turn: usize) -> Option<SocketAddr> {
        let ready = self.0.lock().expect("no task panicked");
        ready[turn % 2].or(ready[(turn + 1) % 2])
    }
}

#[derive(Clone)]
pub struct Load {
    pub starts: Arc<Mutex<Vec<Start>>>,
    pub accepted: Arc<AtomicUsize>,
}

impl Load {
    pub fn new() -> Self {
        Self { starts: Arc::default(), accepted: Arc::default() }
    }

    /// Goes on until it is dropped.
    pub async fn run(&self, ready: Ready, a_second: u32, addresses: usize) {
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        let free = Arc::new(Semaphore::new(CLIENTS));
        let mut tick = tokio::time::interval(Duration::from_secs(1) / a_second);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut number = 0;
        while number < addresses {
            tick.tick().await;
            let Ok(place) = Arc::clone(&free).acquire_owned().await else { return };
            let Some(address) = ready.one(number) else { continue };
            let (load, client) = (self.clone(), client.clone());
            tokio::spawn(async move {
                load.start(&client, address, number).await;
                drop(place);
            });
            number += 1;
        }
    }

    async fn start(&self, client: &reqwest::Client, address: SocketAddr, number: usize) {
        let body = serde_json::json!({ "email": address_of(number) }).to_string();
        let url = format!("http://{address}/api/auth/recovery/start");
        let began = tokio::time::Instant::now();
        let answer = client.post(url).header("content-type", "application/json").body(body).send().await;
        let status = answer.ok().map(|answer| answer.status().as_u16());
        if status == Some(200) {
            self.accepted.fetch_add(1, Ordering::Relaxed);
        }
        let start = Start { number, ended_at: crate::now(), took: began.elapsed(), status };
        self.starts.lock().expect("no task panicked").push(start);
    }
}

pub fn address_of(number: usize) -> String {
    format!("trader{number}@chaos.test")
}

/// The other way round.
pub fn number_of(address: &str) -> Option<usize> {
    address.strip_prefix("trader")?.strip_suffix("@chaos.test")?.parse().ok()
}
