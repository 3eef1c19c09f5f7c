//! Probes: check each relay periodically. Their result is all that `start` sees of the relays.
//!
//! - A relay that is usable must answer within seconds, so that an outage is noticed.
//! - A relay that is not usable has as much time as an email, because some relays greet slowly on
//!   purpose. Further probes start meanwhile, so that the end of an outage is noticed within seconds
//!   too (docs/decisions/0027).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::config::RelaySettings;
use crate::mail::conversation::Connection;
use crate::mail::gateway::Gateway;
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::oauth::Requester;
use crate::mail::relay::Relay;
use crate::metrics::{Metrics, RelayLabel};

/// How long the kept connection may take to answer before a new one is tried.
const KEPT_DEADLINE: Duration = Duration::from_secs(1);
/// How long a new connection may take while the relay counts as usable.
const NEW_DEADLINE: Duration = Duration::from_secs(5);
/// The longest time between the starts of two probes while the relay is not usable, unless it
/// refuses the credentials or the maximum number of probes is running.
const DOWN_INTERVAL: Duration = Duration::from_secs(1);
/// NOOPs that one connection sends at most. From the 101st on, Postfix counts each as an error, and
/// soon disconnects (`smtpd_junk_command_limit`).
const MAX_NOOPS: u32 = 90;
/// How often connections that have been idle for too long are closed.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

impl Gateway {
    /// Probes every relay once, and then returns the tasks that probe them periodically and keep
    /// the access token valid. After `stop`, the tasks close their connections with QUIT and end.
    /// Dropping the set aborts the tasks.
    pub async fn watch(
        self: &Arc<Self>,
        settings: &RelaySettings,
        metrics: &Arc<Metrics>,
        stop: &CancellationToken,
    ) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        if let Some(tokens) = self.tokens.clone() {
            let (metrics, stop) = (Arc::clone(metrics), stop.clone());
            tasks.spawn(async move {
                let _: Option<()> = stop.run_until_cancelled(tokens.keep_valid(&metrics)).await;
            });
        }
        // Nothing is sent. The channel closes when every probe has dropped its sender.
        let (first_probe, mut all_probed) = mpsc::channel(1);
        for place in 0..self.relays.len() {
            let probe = Probe {
                gateway: Arc::clone(self),
                place,
                interval: settings.smtp_probe_interval,
                deadline: settings.smtp_deadline,
                max_probes: settings.smtp_probes_while_down.into(),
                metrics: Arc::clone(metrics),
            };
            let (first_probe, stop) = (first_probe.clone(), stop.clone());
            tasks.spawn(async move {
                let mut kept = None;
                stop.run_until_cancelled(Box::pin(Arc::new(probe).run(&mut kept, first_probe))).await;
                if let Some(connection) = kept {
                    connection.quit().await;
                }
            });
        }
        let (gateway, stop) = (Arc::clone(self), stop.clone());
        tasks.spawn(async move {
            while stop.run_until_cancelled(sleep(IDLE_CHECK_INTERVAL)).await.is_some() {
                gateway.relays.iter().for_each(Relay::quit_stale);
            }
        });
        drop(first_probe);
        let _: Option<()> = all_probed.recv().await;
        tasks
    }
}

/// The probe of one relay.
struct Probe {
    gateway: Arc<Gateway>,
    place: usize,
    interval: Duration,
    deadline: Duration,
    max_probes: usize,
    metrics: Arc<Metrics>,
}

impl Probe {
    /// Probes the relay for ever. Drops `first_probe` when the first result is known.
    async fn run(self: Arc<Self>, kept: &mut Option<Connection>, first_probe: mpsc::Sender<()>) {
        let mut first_probe = Some(first_probe);
        loop {
            let result = self.check(kept.take()).await;
            self.record(result.as_ref().err());
            first_probe.take();
            *kept = Some(match result {
                Ok(connection) => connection,
                Err(why) => self.wait_until_usable(why).await,
            });
            sleep(self.interval).await;
        }
    }

    /// Checks the relay on the kept connection, or on a new one if the kept one does not answer.
    async fn check(&self, kept: Option<Connection>) -> Result<Connection, NotSent> {
        let Some(mut kept) = kept else { return self.connect(NEW_DEADLINE).await };
        // If the relay does not answer, perhaps only this connection was lost.
        if kept.noop(Instant::now() + KEPT_DEADLINE).await.is_err() {
            return self.connect(NEW_DEADLINE).await;
        }
        if kept.uses >= MAX_NOOPS
            && let Ok(new) = self.connect(NEW_DEADLINE).await
        {
            self.relay().quit(std::mem::replace(&mut kept, new));
        }
        Ok(kept)
    }

    /// Starts probes until one finds the relay usable, and drops the others.
    async fn wait_until_usable(self: &Arc<Self>, mut why: NotSent) -> Connection {
        let mut probes = JoinSet::new();
        let down_interval = DOWN_INTERVAL.min(self.interval);
        loop {
            let next = Instant::now() + if is_refused(&why) { self.interval } else { down_interval };
            loop {
                tokio::select! {
                    Some(ended) = probes.join_next() => match ended {
                        Ok(Some(Ok(connection))) => {
                            self.record(None);
                            return connection;
                        }
                        Ok(Some(Err(failure))) => {
                            self.record(Some(&failure));
                            why = failure;
                        }
                        Ok(None) => {}
                        Err(error) => if let Ok(panic) = error.try_into_panic() {
                            std::panic::resume_unwind(panic);
                        }
                    },
                    () = self.relay().url.sign_in.renewed(), if is_refused(&why) => break,
                    () = sleep_until(next) => break,
                }
            }
            if probes.len() < self.max_probes {
                // Earlier probes wait for a slow greeting. The probe that reaches `max_probes`
                // gives up before the next one is due. So a relay that greets at once is found
                // within seconds, even if the earlier probes' connections are dead.
                let is_last = self.max_probes > 1 && probes.len() + 1 == self.max_probes;
                let probe = Arc::clone(self);
                probes.spawn(async move {
                    let connecting = probe.connect(probe.deadline);
                    if is_last {
                        timeout(down_interval * 9 / 10, connecting).await.ok()
                    } else {
                        Some(connecting.await)
                    }
                });
            }
        }
    }

    async fn connect(&self, within: Duration) -> Result<Connection, NotSent> {
        let deadline = Instant::now() + within.min(self.deadline);
        let mut connection =
            self.relay().connect(&self.gateway.ehlo_name, deadline, Requester::Probe).await?;
        connection.noop(deadline).await?;
        self.relay().set_preferred(connection.address);
        Ok(connection)
    }

    fn record(&self, failure: Option<&NotSent>) {
        let relay = self.place;
        if self.relay().record_probe(failure) {
            match failure {
                None => tracing::info!(relay, "relay is usable"),
                Some(why) => tracing::warn!(relay, %why, "relay is not usable"),
            }
        }
        self.metrics.relay_up.get_or_create(&RelayLabel { relay }).set(failure.is_none().into());
        let is_demoted = self.gateway.is_demoted(relay, Instant::now());
        self.metrics.relay_last.get_or_create(&RelayLabel { relay }).set(is_demoted.into());
    }

    fn relay(&self) -> &Relay {
        &self.gateway.relays[self.place]
    }
}

/// Whether the relay permanently refuses the password or the access token. Providers lock out
/// clients that retry too often.
fn is_refused(why: &NotSent) -> bool {
    why.stage == Stage::Auth && why.code.is_some_and(|code| code >= 500)
}
