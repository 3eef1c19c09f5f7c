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
use crate::config::{Config, STORAGE_DEADLINE};
use crate::database::{cause, in_time};
use crate::locale::Locale;
use crate::mail::gateway::{Gateway, Sender};
use crate::mail::message::{About, Composer, Mail};
use crate::metrics::{MailOutcome, Metrics};
use crate::outbox::{self, ClaimedMail, Content, Reach};
use crate::secret::Keys;

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
    pub code_keys: Keys,
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
            let claiming = outbox::claim(&courier.pool, now, reach, stopped_at, free, lease);
            match in_time(claiming).await {
                Ok(claim) => {
                    courier.count("no_recipient", "none", claim.no_recipient);
                    courier.count("expired", "none", claim.expired);
                    more = claim.more && claim.no_recipient + claim.expired > 0;
                    for mail in claim.mails {
                        let sender = idle.pop().unwrap_or_else(|| Sender::new(&courier.gateway));
                        busy.spawn(Arc::clone(&courier).deliver(sender, mail, lease));
                    }
                }
                Err(error) => {
                    tracing::warn!(cause = cause(&error), "the outbox cannot be read; it is tried again");
                }
            }
            if stopped_at.is_some() && busy.is_empty() && !more {
                let _ = tokio::time::timeout(STORAGE_DEADLINE, courier.pool.close()).await;
                return;
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

    async fn deliver(self: Arc<Self>, mut sender: Sender, owed: ClaimedMail, lease: Duration) -> Sender {
        let lease_ends = Instant::now() + lease;
        tracing::trace!(outbox_id = %owed.id, attempts = owed.attempts, "mail is claimed");
        let Some(mail) = self.compose(&owed) else {
            // Another replica may have the secret that this one lacks, in the middle of a rotation.
            tracing::error!(outbox_id = %owed.id, "the mail cannot be built; is its secret gone?");
            let next = outbox::backoff(self.clock.now(), &owed, 1.0);
            self.put_off(&owed, lease_ends, next, "compose", "compose").await;
            return sender;
        };
        let outcome = sender.send(&mail).await;
        let now = self.clock.now();
        match outcome {
            Ok(()) => {
                self.count("sent", "none", 1);
                self.metrics.mail_latency.observe((now - owed.created_at).as_seconds_f64());
                self.finish(&owed, lease_ends, Finish::Sent).await;
            }
            Err(why) => {
                let next = outbox::backoff(now, &owed, rand::rng().random()).filter(|_| !why.is_final());
                let outcome = if next.is_some() { "retried" } else { "given_up" };
                tracing::warn!(outbox_id = %owed.id, attempts = owed.attempts, %why, outcome, "mail was not taken");
                self.put_off(&owed, lease_ends, next, why.stage.as_str(), &why.to_string()).await;
            }
        }
        sender
    }

    async fn put_off(
        &self,
        owed: &ClaimedMail,
        lease_ends: Instant,
        next: Option<time::OffsetDateTime>,
        stage: &'static str,
        why: &str,
    ) {
        self.count(if next.is_some() { "retried" } else { "given_up" }, stage, 1);
        let finish = next.map_or(Finish::GiveUp(why), |at| Finish::Retry(at, why));
        self.finish(owed, lease_ends, finish).await;
    }

    /// `None` if the code's secret has been rotated away, or the stored address fits no mail.
    fn compose(&self, owed: &ClaimedMail) -> Option<Mail> {
        let locale = [&owed.account_locale, &owed.request_locale].into_iter().flatten().next();
        let about = About {
            id: owed.id,
            to: &owed.account_email,
            locale: locale.and_then(|tag| tag.parse().ok()).unwrap_or(Locale::Vi),
            user_agent: &owed.user_agent,
        };
        let now = self.clock.now();
        match &owed.content {
            Content::RecoveryCode { recovery_session_id, key_id, asked_at, .. } => {
                let code = self.code_keys.by_id(key_id)?.code(*recovery_session_id);
                self.composer.recovery_code(&about, &code, *asked_at, owed.expires_at, now)
            }
            Content::PasswordChanged => self.composer.password_changed(&about, owed.created_at, now),
        }
        .ok()
    }

    /// Writes down what became of a mail. While PostgreSQL is away it is tried again until the lease ends: a mail that
    /// was taken and not struck off is sent twice.
    async fn finish(&self, owed: &ClaimedMail, lease_ends: Instant, finish: Finish<'_>) {
        loop {
            let written = match finish {
                Finish::Sent => in_time(outbox::sent(&self.pool, self.clock.now(), owed)).await,
                Finish::Retry(at, why) => in_time(outbox::retry_at(&self.pool, at, owed, why)).await,
                Finish::GiveUp(why) => in_time(outbox::give_up(&self.pool, owed, why)).await,
            };
            let Err(error) = written else { return };
            tracing::warn!(cause = cause(&error), outbox_id = %owed.id, "the outbox cannot be written");
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

/// What became of a mail; why, as the outbox notes it.
#[derive(Clone, Copy, Debug)]
enum Finish<'a> {
    Sent,
    Retry(time::OffsetDateTime, &'a str),
    GiveUp(&'a str),
}
