//! Sends `start` requests at a constant rate, whether or not earlier ones were answered, with at
//! most `CLIENTS` in progress. Each is for a new address, and is sent to a replica that is ready.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::now;

/// The timeout of a request: longer than the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(6);
/// The largest number of starts at the same time.
const CLIENTS: u32 = 48;

/// One start, and what its client saw.
#[derive(Clone, Debug)]
pub struct Start {
    pub number: usize,
    pub ended_at: OffsetDateTime,
    pub ended: Instant,
    pub took: Duration,
    /// `None`: no answer.
    pub status: Option<u16>,
}

/// The addresses of the replicas that are ready, as a load balancer knows them.
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

/// The starts of a load, and what their clients saw.
#[derive(Clone, Default)]
pub struct Starts {
    seen: Arc<Mutex<Vec<Start>>>,
    accepted: Arc<AtomicUsize>,
}

impl Starts {
    /// The starts that have ended, in the order in which they ended.
    pub fn seen(&self) -> Vec<Start> {
        self.seen.lock().expect("no task panicked").clone()
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Runs until the future is dropped, or until a start for each of `addresses` addresses has
    /// ended.
    pub async fn run(&self, ready: Ready, a_second: u32, addresses: usize) {
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        let free = Arc::new(Semaphore::new(CLIENTS as usize));
        let mut tick = tokio::time::interval(Duration::from_secs(1) / a_second);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut number = 0;
        while number < addresses {
            tick.tick().await;
            let Ok(place) = Arc::clone(&free).acquire_owned().await else { return };
            let Some(address) = ready.one(number) else { continue };
            let (starts, client) = (self.clone(), client.clone());
            tokio::spawn(async move {
                starts.start(&client, address, number).await;
                drop(place);
            });
            number += 1;
        }
        let _all = free.acquire_many(CLIENTS).await;
    }

    async fn start(&self, client: &reqwest::Client, address: SocketAddr, number: usize) {
        let body = serde_json::json!({ "email": address_of(number) }).to_string();
        let url = format!("http://{address}/api/auth/recovery/start");
        let began = Instant::now();
        let answer = client.post(url).header("content-type", "application/json").body(body).send().await;
        let status = answer.ok().map(|answer| answer.status().as_u16());
        if status == Some(200) {
            self.accepted.fetch_add(1, Ordering::Relaxed);
        }
        let start = Start { number, ended_at: now(), ended: Instant::now(), took: began.elapsed(), status };
        self.seen.lock().expect("no task panicked").push(start);
    }
}

/// Creates an account for each address of the load.
pub async fn have_accounts(connection: &mut PgConnection, addresses: usize) -> Result<(), sqlx::Error> {
    let accounts = "INSERT INTO account (id, email, created_at, updated_at)
        SELECT gen_random_uuid(), 'trader' || n || '@example.com', $2, $2 FROM generate_series(0, $1) AS n";
    let last = i64::try_from(addresses).unwrap_or(i64::MAX);
    sqlx::query(accounts).bind(last).bind(now()).execute(connection).await?;
    Ok(())
}

pub fn address_of(number: usize) -> String {
    format!("trader{number}@example.com")
}

/// The number in an address: the inverse of [`address_of`].
pub fn number_of(address: &str) -> Option<usize> {
    address.strip_prefix("trader")?.strip_suffix("@example.com")?.parse().ok()
}
