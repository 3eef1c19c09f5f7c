//! The rounds of the courier: each deletes what was delivered and claims what is due.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::pace::{Found, Pace};
use super::{Courier, Lease, delivery, lease};
use crate::config::RelaySettings;
use crate::database::{KeptConnection, failures, in_time, is_statements_fault};
use crate::group_commit::{self, Arrivals, GroupCommit};
use crate::metrics::MailOutcome;
use crate::outbox::holder::ClaimPermit;
use crate::outbox::{Claim, Delivered, Round};

/// Delivered mails that one round deletes at most.
const DELETED_AT_ONCE: usize = 256;
/// How long the connection of the rounds lasts: after a switch to another primary none to the former one may.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);

/// What the next round does, beside deleting what was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Delete,
    /// Claims what is due: in the whole outbox, or from the first row on that the courier was woken for.
    Claim { everywhere: bool },
}

/// What goes on from round to round.
pub(super) struct Rounds {
    courier: Arc<Courier>,
    lease: Duration,
    connection: KeptConnection,
    pace: Pace,
    /// Emails under way.
    busy: JoinSet<()>,
    /// Notified when an attempt has failed, so that its slot is free.
    freed: Arc<Notify>,
    sender: GroupCommit<Delivered, ()>,
    delivered: Arrivals<Delivered, ()>,
    poll: Interval,
    stopped_at: Option<OffsetDateTime>,
}

impl Rounds {
    pub(super) fn new(courier: Arc<Courier>, settings: &RelaySettings) -> Self {
        // Every email that is under way has its place, so that the queue is never full.
        let (sender, delivered) =
            group_commit::channel(Semaphore::MAX_PERMITS, DELETED_AT_ONCE, Duration::MAX);
        let mut poll = tokio::time::interval(settings.outbox_poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            lease: lease(settings.smtp_deadline),
            connection: KeptConnection::new(&courier.database, CONNECTION_LIFETIME),
            pace: Pace::new(Instant::now()),
            busy: JoinSet::new(),
            freed: Arc::default(),
            sender,
            delivered,
            poll,
            stopped_at: None,
            courier,
        }
    }

    /// One round, in one statement; what it claimed is being sent when this returns.
    pub(super) async fn run(&mut self, next: Next) {
        while self.busy.try_join_next().is_some() {}
        self.courier.metrics.courier_rounds.inc();
        let claimed_at = Instant::now();
        let mut round = Round::just_deletes(self.courier.clock.now(), &[]);
        if let Next::Claim { everywhere } = next {
            self.pace.begins_claim(claimed_at);
            round = self.claim(everywhere).unwrap_or(round);
        }
        match self.execute(round).await {
            Ok(_) if next == Next::Delete => self.pace.deleted(),
            Ok(claim) => {
                self.courier.count(MailOutcome::NoRecipient, "none", claim.no_recipient);
                self.courier.count(MailOutcome::Expired, "none", claim.expired);
                self.pace.learn(Found::from(&claim), round.senders, round.window, !self.busy.is_empty());
                let lease = Lease { now: round.now, claimed_at, length: self.lease, holder: round.holder };
                self.send(claim, lease);
            }
            Err(error) => {
                self.pace.fail();
                self.courier.wakeup.remember(round.from);
                failures::note("read the outbox", &error);
            }
        }
    }

    /// Whether the courier was stopped and everything that was pending then is done, as far as it could be.
    pub(super) fn are_over(&self) -> bool {
        self.stopped_at.is_some() && self.busy.is_empty() && !self.pace.has_more()
    }

    /// Waits for a reason for the next round.
    pub(super) async fn next(&mut self, stop: &CancellationToken) -> Next {
        let Self { courier, pace, busy, freed, delivered, poll, stopped_at, .. } = self;
        let emails_wait = pace.emails_wait();
        let look = async {
            tokio::time::sleep_until(pace.next_claim()).await;
            pace.has_more()
                || tokio::select! {
                    () = stop.cancelled(), if stopped_at.is_none() => {
                        *stopped_at = Some(courier.clock.now());
                        true
                    }
                    () = freed.notified(), if emails_wait => true,
                    // An email whose task panicked stays pending: its lease will end.
                    Some(_) = busy.join_next(), if stopped_at.is_some() => true,
                    () = courier.wakeup.woken(), if stopped_at.is_none() && !emails_wait => false,
                    _ = poll.tick() => true,
                }
        };
        tokio::select! {
            // Delivered emails are deleted at once, with the next claim if emails wait for one.
            _ = delivered.arrive() => {
                if emails_wait { Next::Claim { everywhere: true } } else { Next::Delete }
            }
            everywhere = look => Next::Claim { everywhere },
        }
    }

    /// What the next round claims. While the clock is not trusted it is nothing, and what the courier was woken for is
    /// kept. With no slot free, rows that need no email are still finished.
    fn claim(&self, everywhere: bool) -> Option<Round<'static>> {
        let now = self.courier.clock.trusted_now()?;
        let woken_from = self.courier.wakeup.take();
        let permit = self.courier.holder.claim_permit();
        let senders = if permit == ClaimPermit::NotYet { 0 } else { self.courier.gateway.free() };
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
            let ways = (self.sender.clone(), Arc::clone(&self.freed));
            let courier = Arc::clone(&self.courier);
            self.busy.spawn(courier.deliver(slot, Arc::new(mail), lease, ways).instrument(span));
        }
    }

    /// A round that deletes what was delivered, too.
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
                // No row may fail another's: whichever the statement stumbled over is found one by one.
                let singles = is_statements_fault(&error).then(|| batch.split());
                for single in singles.into_iter().flatten() {
                    match run(Round::just_deletes(round.now, &single.requests), &mut self.connection).await {
                        Ok(_) => single.answer([()]),
                        Err(error) => failures::note("delete delivered mails", &error),
                    }
                }
                // Nor may it hold the claim back. Those who are not answered try again.
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
