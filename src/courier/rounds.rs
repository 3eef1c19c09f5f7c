//! The rounds of the courier. Each deletes the rows of delivered emails and claims emails that are
//! due.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::pace::{ClaimCounts, Pace};
use super::{Courier, Lease, delivery, lease};
use crate::config::RelaySettings;
use crate::database::{KeptConnection, failures, in_time, is_statement_error};
use crate::group_commit::{self, Arrivals, GroupCommit};
use crate::metrics::MailOutcome;
use crate::outbox::holder::ClaimPermit;
use crate::outbox::{Claim, Delivered, Round};

/// Rows of delivered emails that one round deletes at most.
const MAX_DELETED: usize = 256;
/// How long the rounds keep a connection: after a failover, it must not stay with the former
/// primary.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);

/// What the next round does. Every round deletes the rows of delivered emails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Only deletes the rows of delivered emails.
    Delete,
    /// Also claims emails that are due: in the whole outbox, or from the lowest id that the courier
    /// was woken for.
    Claim { everywhere: bool },
}

/// The state that the rounds share.
pub(super) struct Rounds {
    courier: Arc<Courier>,
    lease: Duration,
    connection: KeptConnection,
    pace: Pace,
    /// The emails that are being sent.
    sending: JoinSet<()>,
    /// Notified when an attempt has failed and its slot is free.
    slot_freed: Arc<Notify>,
    sender: GroupCommit<Delivered, ()>,
    delivered: Arrivals<Delivered, ()>,
    poll: Interval,
    stopped_at: Option<OffsetDateTime>,
}

impl Rounds {
    pub(super) fn new(courier: Arc<Courier>, settings: &RelaySettings) -> Self {
        // There is room for every email that is being sent, so the queue is never full.
        let (sender, delivered) = group_commit::channel(Semaphore::MAX_PERMITS, MAX_DELETED, Duration::MAX);
        let mut poll = tokio::time::interval(settings.outbox_poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            lease: lease(settings.smtp_deadline),
            connection: KeptConnection::new(&courier.database, CONNECTION_LIFETIME),
            pace: Pace::new(Instant::now()),
            sending: JoinSet::new(),
            slot_freed: Arc::default(),
            sender,
            delivered,
            poll,
            stopped_at: None,
            courier,
        }
    }

    /// Runs one round, in one statement. When this returns, the claimed emails are being sent.
    pub(super) async fn run(&mut self, next: Next) {
        while self.sending.try_join_next().is_some() {}
        self.courier.metrics.courier_rounds.inc();
        let claimed_at = Instant::now();
        let mut round = Round::delete_only(self.courier.clock.now(), &[]);
        if let Next::Claim { everywhere } = next {
            self.pace.start_claim(claimed_at);
            round = self.claim(everywhere).unwrap_or(round);
        }
        match self.execute(round).await {
            Ok(_) if next == Next::Delete => self.pace.record_deletion(),
            Ok(claim) => {
                self.courier.count(MailOutcome::NoRecipient, "none", claim.no_recipient);
                self.courier.count(MailOutcome::Expired, "none", claim.expired);
                let counts = ClaimCounts::from(&claim);
                self.pace.record_claim(counts, round.senders, round.window, !self.sending.is_empty());
                let lease =
                    Lease { claim_time: round.now, claimed_at, duration: self.lease, holder: round.holder };
                self.send(claim, lease);
            }
            Err(error) => {
                self.pace.record_failure();
                self.courier.wakeup.remember(round.from);
                failures::note("read the outbox", &error);
            }
        }
    }

    /// Whether the courier was stopped, and every email that was due by then has been tried.
    pub(super) fn are_finished(&self) -> bool {
        self.stopped_at.is_some() && self.sending.is_empty() && !self.pace.has_more()
    }

    /// Waits until the next round is due.
    pub(super) async fn next(&mut self, stop: &CancellationToken) -> Next {
        let Self { courier, pace, sending, slot_freed, delivered, poll, stopped_at, .. } = self;
        let needs_slot = pace.needs_slot();
        let claim_due = async {
            tokio::time::sleep_until(pace.next_claim()).await;
            pace.has_more()
                || tokio::select! {
                    () = stop.cancelled(), if stopped_at.is_none() => {
                        *stopped_at = Some(courier.clock.now());
                        true
                    }
                    () = slot_freed.notified(), if needs_slot => true,
                    // When the courier stops, the end of a delivery starts a round, even if its
                    // task panicked. The email of such a task stays claimed until its lease ends.
                    Some(_) = sending.join_next(), if stopped_at.is_some() => true,
                    () = courier.wakeup.woken(), if stopped_at.is_none() && !needs_slot => false,
                    _ = poll.tick() => true,
                }
        };
        tokio::select! {
            // The rows of delivered emails are deleted at once. If emails wait for a slot, the same
            // round also claims.
            _ = delivered.arrive() => {
                if needs_slot { Next::Claim { everywhere: true } } else { Next::Delete }
            }
            everywhere = claim_due => Next::Claim { everywhere },
        }
    }

    /// The round that claims; `None` while the clock is not trusted, and then the wakeup is kept.
    /// With no slot free, the round still deletes rows that need no email.
    fn claim(&self, everywhere: bool) -> Option<Round<'static>> {
        let now = self.courier.clock.trusted_now()?;
        let woken_from = self.courier.wakeup.take();
        let permit = self.courier.holder.claim_permit();
        let senders = if permit == ClaimPermit::NotYet { 0 } else { self.courier.gateway.free_slots() };
        Some(Round {
            now,
            delivered: &[],
            from: if everywhere { Uuid::nil() } else { woken_from },
            enqueued_by: self.stopped_at,
            senders,
            window: self.pace.window(senders),
            lease: self.lease,
            holder: permit.holder(),
        })
    }

    /// Sends each claimed email in a task of its own.
    fn send(&mut self, claim: Claim, lease: Lease) {
        for mail in claim.mails {
            let slot = self.courier.gateway.slot(mail.attempts);
            let span = delivery::span_of(&mail);
            let (delivered, slot_freed) = (self.sender.clone(), Arc::clone(&self.slot_freed));
            let delivery =
                Arc::clone(&self.courier).deliver(slot, Arc::new(mail), lease, delivered, slot_freed);
            self.sending.spawn(delivery.instrument(span));
        }
    }

    /// Runs `round`, which also deletes the rows of emails delivered since the last one.
    async fn execute(&mut self, round: Round<'_>) -> Result<Claim, sqlx::Error> {
        let Some(batch) = self.delivered.take() else { return run(round, &mut self.connection).await };
        match run(Round { delivered: &batch.requests, ..round }, &mut self.connection).await {
            Ok(claim) => {
                let size = batch.requests.len();
                batch.answer(std::iter::repeat_n((), size));
                Ok(claim)
            }
            Err(error) => {
                failures::note("delete delivered mails", &error);
                // One bad row must not make the others fail, so the rows are deleted one by one.
                let singles = is_statement_error(&error).then(|| batch.split());
                for single in singles.into_iter().flatten() {
                    match run(Round::delete_only(round.now, &single.requests), &mut self.connection).await {
                        Ok(_) => single.answer([()]),
                        Err(error) => failures::note("delete delivered mails", &error),
                    }
                }
                // Nor may a bad row stop the claim. `Courier::finish` submits the unanswered rows
                // again.
                if round.window > 0 { run(round, &mut self.connection).await } else { Ok(Claim::default()) }
            }
        }
    }
}

async fn run(round: Round<'_>, rounds: &mut KeptConnection) -> Result<Claim, sqlx::Error> {
    in_time(async {
        let mut connection = rounds.take().await?;
        let claim = round.run(&mut connection).await?;
        rounds.put(connection);
        Ok(claim)
    })
    .await
}
