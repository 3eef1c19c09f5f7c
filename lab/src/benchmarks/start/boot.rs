//! Measures the time from exec to the first 200 of `/readyz`, with a migrated database.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::load::{Connection, quantile};
use super::{Bench, header, row};
use crate::Failure;
use crate::replica::Replica;

const BOOTS: usize = 20;

/// A 200 of `/readyz` means that the service can work with PostgreSQL. It does not mean that a
/// relay is usable.
pub async fn measure(bench: &Bench) -> Result<Value, Failure> {
    println!("from exec to the first 200 of /readyz, {BOOTS} times; in ms");
    header(&["p50", "most"]);
    let mut took = Vec::new();
    for _ in 0..BOOTS {
        let began = Instant::now();
        let replica = Replica::start_unheard(&bench.url, &bench.relay.url(), &[]).await?;
        until_ready(replica.address).await?;
        took.push(began.elapsed());
    }
    let at = |share| quantile(took.iter().copied(), share);
    Ok(row(&[("p50", at(0.5)), ("most", at(1.0))]))
}

async fn until_ready(address: SocketAddr) -> Result<(), Failure> {
    let mut connection = Connection::open(address)?;
    let request = b"GET /readyz HTTP/1.1\r\nhost: bench\r\n\r\n";
    while connection.asks(request)? != 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
