//! Asks each relay, again and again, whether it is usable. What it finds is all that `start` sees of the relays.

use std::sync::Arc;
use std::time::Duration;

use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::Noop;

use crate::mail::gateway::Gateway;
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::oauth::Asker;
use crate::metrics::{Metrics, RelayLabel};

/// How long a probe may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// How much of that a connection that was kept may take to answer, before a new one is tried.
const KEPT_PROBE_DEADLINE: Duration = Duration::from_secs(1);

impl Gateway {
    /// Probes every relay once, and then each at every interval, and keeps the access token fresh, until the returned
    /// tasks are dropped.
    pub async fn watch(
        self: &Arc<Self>,
        interval: Duration,
        metrics: &Arc<Metrics>,
    ) -> tokio::task::JoinSet<()> {
        let mut probes = tokio::task::JoinSet::new();
        if let Some(tokens) = self.tokens.clone() {
            let metrics = Arc::clone(metrics);
            probes.spawn(async move { tokens.keep(&metrics).await });
        }
        let (report, mut first) = tokio::sync::mpsc::channel(self.relays.len());
        for place in 0..self.relays.len() {
            let (gateway, metrics, report) = (Arc::clone(self), Arc::clone(metrics), report.clone());
            probes.spawn(async move {
                let mut kept = None;
                loop {
                    gateway.probe(place, &mut kept, &metrics).await;
                    let _ = report.try_send(());
                    tokio::time::sleep(interval).await;
                }
            });
        }
        for _ in 0..self.relays.len() {
            first.recv().await;
        }
        probes
    }

    async fn probe(&self, place: usize, kept: &mut Option<AsyncSmtpConnection>, metrics: &Metrics) {
        let relay = &self.relays[place];
        relay.drop_stale();
        let asked = tokio::time::timeout(PROBE_DEADLINE, async {
            if let Some(mut connection) = kept.take() {
                // Silence may be a lost connection, and says nothing of the relay.
                let answer = tokio::time::timeout(KEPT_PROBE_DEADLINE, connection.command(Noop)).await;
                if matches!(answer, Ok(Ok(_))) {
                    return Ok(connection);
                }
            }
            let mut connection = relay.connect(&self.hello, PROBE_DEADLINE, Asker::Probe).await?;
            connection.command(Noop).await.map_err(NotSent::at(Stage::Connect))?;
            Ok(connection)
        });
        let found = asked.await.unwrap_or(Err(NotSent::just(Stage::Deadline)));
        let up = found.is_ok();
        if relay.is_found(found.as_ref().err()) {
            match &found {
                Ok(_) => tracing::info!(relay = place, "relay is usable"),
                Err(why) => tracing::warn!(relay = place, %why, "relay is not usable"),
            }
        }
        metrics.relay_up.get_or_create(&RelayLabel { relay: place }).set(i64::from(up));
        *kept = found.ok();
    }
}
