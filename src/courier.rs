//! The courier: takes mails out of the outbox and hands them to a relay.
//!
//! It wakes at once after a commit of this process, and looks through the whole outbox at every poll interval for what
//! another process left. A mail is never sent inside a transaction. Senders are counted before mails are claimed, so a
//! claimed mail starts at once and its lease covers its conversation three times over.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use sqlx::PgPool;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::database::cause;
use crate::locale::Locale;
use crate::mail::gateway::{Gateway, Sender};
use crate::mail::message::{Composer, Mail, RecoveryCode};
use crate::metrics::{MailOutcome, Metrics};
use crate::outbox::{self, ClaimedCode, Reach};
use crate::secret::CodeKeys;

/// Claims are at least this far apart. Each is a commit of its own; one after every commit of a start would have the two
/// wait for each other's flush.
const PACE: Duration = Duration::from_millis(10);

/// Tells the courier that something was committed. Ringing costs nothing; rings that come together are one.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<Notify>);

impl Bell {
    /// Wakes the courier, now or when it next listens.
    pub fn ring(&self) {
        self.0.notify_one();
    }
}

/// What the courier works with.
#[derive(Debug)]
pub struct Courier {
    /// Its own small pool: requests must not wait for mails, nor mails for requests.
    pub pool: PgPool,
    /// The time.
    pub clock: Clock,
    /// What codes are derived from.
    pub code_keys: CodeKeys,
    /// The way to the relays.
    pub gateway: Arc<Gateway>,
    /// What mails say.
    pub composer: Composer,
    /// Its figures.
    pub metrics: Arc<Metrics>,
    /// Rings after a commit.
    pub bell: Bell,
}

impl Courier {
    /// Works until `stop`; then sends what this service owed at that time, as far as it can be sent at once, and ends.
    /// Dropping the future drops the connections of mails under way; their leases end by themselves.
    pub async fn run(self, config: &Config, stop: CancellationToken) {
        let lease = 3 * config.smtp_deadline;
        let courier = Arc::new(self);
        let senders = (0..config.smtp_connections).map(|_| Sender::new(&courier.gateway));
        let mut idle: Vec<Sender> = senders.collect();
        let mut busy: JoinSet<Sender> = JoinSet::new();
        // A sender that panicked took its connection with it; its mail's lease will end.
        let back = |sender: Result<Sender, _>| sender.unwrap_or_else(|_| Sender::new(&courier.gateway));
        let mut poll = tokio::time::interval(config.outbox_poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reach = Reach::All;
        let mut stopped_at = None;
        loop {
            while let Some(sender) = busy.try_join_next() {
                idle.push(back(sender));
            }
            // With no sender idle or no relay up, rows that need no mail are still finished.
            let free = if courier.gateway.is_up() { idle.len() } else { 0 };
            let (claimed_at, now) = (Instant::now(), courier.clock.now());
            let mut more = false;
            match outbox::claim(&courier.pool, now, reach, stopped_at, free, lease).await {
                Ok(claim) => {
                    courier.count("no_recipient", "none", claim.no_recipient);
                    courier.count("expired", "none", claim.expired);
                    more = claim.more && claim.no_recipient + claim.expired > 0;
                    for code in claim.codes {
                        let sender = idle.pop().unwrap_or_else(|| Sender::new(&courier.gateway));
                        busy.spawn(Arc::clone(&courier).deliver(sender, code, lease));
                    }
                }
                Err(error) => {
                    tracing::warn!(cause = cause(&error), "the outbox cannot be read; it is tried again");
                }
            }
            if stopped_at.is_some() && busy.is_empty() && !more {
                return courier.pool.close().await;
            }
            tokio::time::sleep_until(claimed_at + PACE).await;
            if more {
                reach = Reach::All;
                continue;
            }
            reach = tokio::select! {
                () = stop.cancelled(), if stopped_at.is_none() => {
                    stopped_at = Some(courier.clock.now());
                    Reach::All
                }
                Some(sender) = busy.join_next() => {
                    idle.push(back(sender));
                    Reach::All
                }
                () = courier.bell.0.notified(), if stopped_at.is_none() => Reach::Recent,
                _ = poll.tick() => Reach::All,
            };
        }
    }

    async fn deliver(self: Arc<Self>, mut sender: Sender, code: ClaimedCode, lease: Duration) -> Sender {
        let lease_ends = Instant::now() + lease;
        tracing::trace!(outbox_id = %code.id, attempts = code.attempts, "mail is claimed");
        let Some(mail) = self.compose(&code) else {
            // Another replica may have the secret that this one lacks, in the middle of a rotation.
            tracing::error!(outbox_id = %code.id, key_id = code.key_id, "the mail cannot be built; is its secret gone?");
            let next = outbox::backoff(self.clock.now(), code.attempts, 1.0, code.expires_at);
            self.count(if next.is_some() { "retried" } else { "given_up" }, "compose", 1);
            self.finish(
                &code,
                lease_ends,
                next.map_or(Finish::GiveUp, |at| Finish::Retry(at, "compose".into())),
            )
            .await;
            return sender;
        };
        let outcome = sender.send(&mail).await;
        let now = self.clock.now();
        match outcome {
            Ok(()) => {
                self.count("sent", "none", 1);
                self.metrics.mail_latency.observe((now - code.created_at).as_seconds_f64());
                self.finish(&code, lease_ends, Finish::Sent).await;
            }
            Err(why) => {
                let next = outbox::backoff(now, code.attempts, rand::rng().random(), code.expires_at);
                let finish = next
                    .filter(|_| !why.is_final())
                    .map_or(Finish::GiveUp, |at| Finish::Retry(at, why.to_string()));
                let outcome = if matches!(finish, Finish::GiveUp) { "given_up" } else { "retried" };
                tracing::warn!(outbox_id = %code.id, attempts = code.attempts, %why, outcome, "mail was not taken");
                self.count(outcome, why.stage.as_str(), 1);
                self.finish(&code, lease_ends, finish).await;
            }
        }
        sender
    }

    /// `None` if the session's secret has been rotated away, or the stored address fits no mail.
    fn compose(&self, claimed: &ClaimedCode) -> Option<Mail> {
        let code = self.code_keys.by_id(&claimed.key_id)?.code(claimed.recovery_session_id);
        let locale = [&claimed.account_locale, &claimed.session_locale].into_iter().flatten().next();
        let mail = RecoveryCode {
            id: claimed.id,
            to: &claimed.account_email,
            locale: locale.and_then(|tag| tag.parse().ok()).unwrap_or(Locale::Vi),
            code: &code,
            asked_at: claimed.asked_at,
            valid_until: claimed.expires_at,
            user_agent: &claimed.user_agent,
        };
        self.composer.recovery_code(&mail, self.clock.now()).ok()
    }

    /// Writes down what became of a mail. While PostgreSQL is away it is tried again until the lease ends: a mail that
    /// was taken and not struck off is sent twice.
    async fn finish(&self, code: &ClaimedCode, lease_ends: Instant, finish: Finish) {
        loop {
            let written = match &finish {
                Finish::Sent => outbox::sent(&self.pool, self.clock.now(), code).await,
                Finish::Retry(at, why) => outbox::retry_at(&self.pool, *at, code, why).await,
                Finish::GiveUp => outbox::give_up(&self.pool, code).await,
            };
            let Err(error) = written else { return };
            tracing::warn!(cause = cause(&error), outbox_id = %code.id, "the outbox cannot be written");
            let pause = Duration::from_millis(500);
            if Instant::now() + pause >= lease_ends {
                return;
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn count(&self, outcome: &'static str, stage: &'static str, mails: u64) {
        if mails > 0 {
            self.metrics.mails.get_or_create(&MailOutcome { outcome, stage }).inc_by(mails);
        }
    }
}

#[derive(Clone, Debug)]
enum Finish {
    Sent,
    /// When, and why as the outbox notes it.
    Retry(time::OffsetDateTime, String),
    GiveUp,
}
