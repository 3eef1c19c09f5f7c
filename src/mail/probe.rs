//! Asks each relay, again and again, whether it is usable. What it finds is all that `start` sees of the relays.
//!
//! A relay that was usable has to answer soon, so that an outage shows. One that was not has as long as a mail has, because
//! its greeting may be slow on purpose, and is asked again meanwhile, so that the end of an outage shows as soon
//! (docs/decisions/0027).

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
use crate::mail::oauth::Asker;
use crate::mail::relay::Relay;
use crate::metrics::{Metrics, RelayLabel};

/// How long a connection that was kept may take to answer, before a new one is tried.
const KEPT_DEADLINE: Duration = Duration::from_secs(1);
/// How long that may take, at most.
const NEW_DEADLINE: Duration = Duration::from_secs(5);
/// At most so far apart probes of a relay begin that is not usable.
const WHILE_DOWN: Duration = Duration::from_secs(1);
/// NOOPs that one connection is asked. Postfix takes the 101st for junk, and ends the conversation some later
/// (`smtpd_junk_command_limit`).
const NOOPS: u32 = 90;
/// How often connections are looked through for those that have idled for too long.
const IDLE_LOOK: Duration = Duration::from_secs(1);

impl Gateway {
    /// Probes every relay once, and then again and again, and keeps the access token fresh, until `stop`. The tasks that are
    /// returned do so, and end with QUIT; whatever they do ends at once when they are dropped.
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
                let _: Option<()> = stop.run_until_cancelled(tokens.keep(&metrics)).await;
            });
        }
        // Nothing is sent: the channel is closed once every probe has let go of its end.
        let (unknown, mut all_known) = mpsc::channel(1);
        for place in 0..self.relays.len() {
            let probe = Probe {
                gateway: Arc::clone(self),
                place,
                interval: settings.smtp_probe_interval,
                deadline: settings.smtp_deadline,
                at_once: settings.smtp_probes_while_down.into(),
                metrics: Arc::clone(metrics),
            };
            let (unknown, stop) = (unknown.clone(), stop.clone());
            tasks.spawn(async move {
                let mut kept = None;
                stop.run_until_cancelled(Box::pin(Arc::new(probe).run(&mut kept, unknown))).await;
                if let Some(connection) = kept {
                    connection.quit().await;
                }
            });
        }
        let (gateway, stop) = (Arc::clone(self), stop.clone());
        tasks.spawn(async move {
            while stop.run_until_cancelled(sleep(IDLE_LOOK)).await.is_some() {
                gateway.relays.iter().for_each(Relay::leave_stale);
            }
        });
        drop(unknown);
        let _: Option<()> = all_known.recv().await;
        tasks
    }
}

/// The probe of one relay.
struct Probe {
    gateway: Arc<Gateway>,
    place: usize,
    interval: Duration,
    deadline: Duration,
    at_once: usize,
    metrics: Arc<Metrics>,
}

impl Probe {
    /// `unknown` is dropped when it is known whether the relay is usable.
    async fn run(self: Arc<Self>, kept: &mut Option<Connection>, unknown: mpsc::Sender<()>) {
        let mut unknown = Some(unknown);
        loop {
            let asked = self.ask(kept.take()).await;
            self.note(asked.as_ref().err());
            unknown.take();
            *kept = Some(match asked {
                Ok(connection) => connection,
                Err(why) => self.until_usable(why).await,
            });
            sleep(self.interval).await;
        }
    }

    /// Asks on the connection that was kept, or else on one new connection.
    async fn ask(&self, kept: Option<Connection>) -> Result<Connection, NotSent> {
        let Some(mut kept) = kept else { return self.connect(NEW_DEADLINE).await };
        // Silence may be a lost connection, and says nothing of the relay.
        if kept.noop(Instant::now() + KEPT_DEADLINE).await.is_err() {
            return self.connect(NEW_DEADLINE).await;
        }
        if kept.uses >= NOOPS
            && let Ok(new) = self.connect(NEW_DEADLINE).await
        {
            self.relay().leave(std::mem::replace(&mut kept, new));
        }
        Ok(kept)
    }

    /// Asks until one of the probes under way finds the relay usable; the others are dropped.
    async fn until_usable(self: &Arc<Self>, mut why: NotSent) -> Connection {
        let mut under_way = JoinSet::new();
        let often = WHILE_DOWN.min(self.interval);
        loop {
            let next = Instant::now() + if is_refused(&why) { self.interval } else { often };
            loop {
                tokio::select! {
                    Some(ended) = under_way.join_next() => match ended {
                        Ok(Some(Ok(connection))) => {
                            self.note(None);
                            return connection;
                        }
                        Ok(Some(Err(trouble))) => {
                            self.note(Some(&trouble));
                            why = trouble;
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
            if under_way.len() < self.at_once {
                // Those that began first have the time that a slow greeting takes. The last is given up before the next
                // begins, so that a relay which greets at once is found at once, though nothing answers the others any more.
                let last = self.at_once > 1 && under_way.len() + 1 == self.at_once;
                let probe = Arc::clone(self);
                under_way.spawn(async move {
                    let whole = probe.connect(probe.deadline);
                    if last { timeout(often * 9 / 10, whole).await.ok() } else { Some(whole.await) }
                });
            }
        }
    }

    async fn connect(&self, within: Duration) -> Result<Connection, NotSent> {
        let deadline = Instant::now() + within.min(self.deadline);
        let mut connection = self.relay().connect(&self.gateway.hello, deadline, Asker::Probe).await?;
        connection.noop(deadline).await?;
        self.relay().prefers(connection.address);
        Ok(connection)
    }

    fn note(&self, trouble: Option<&NotSent>) {
        let relay = self.place;
        if self.relay().record_probe(trouble) {
            match trouble {
                None => tracing::info!(relay, "relay is usable"),
                Some(why) => tracing::warn!(relay, %why, "relay is not usable"),
            }
        }
        self.metrics.relay_up.get_or_create(&RelayLabel { relay }).set(trouble.is_none().into());
        let is_last = self.gateway.is_last(relay, Instant::now());
        self.metrics.relay_last.get_or_create(&RelayLabel { relay }).set(is_last.into());
    }

    fn relay(&self) -> &Relay {
        &self.gateway.relays[self.place]
    }
}

/// Whether the relay refuses the password, or the access token, for good: providers shut out who tries a wrong one often.
fn is_refused(why: &NotSent) -> bool {
    why.stage == Stage::Auth && why.code.is_some_and(|code| code >= 500)
}
