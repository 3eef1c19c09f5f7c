//! The loop that delivers the events of one hook. Each hook has its own loop, so that a receiver
//! that fails or stalls does not delay other receivers.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request};
use rand::RngExt as _;
use time::OffsetDateTime;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Shared;
use super::cloud_event::{CloudEvent, MEDIA_TYPE};
use super::hook::Hook;
use super::queue::{self, Delivery, Horizon, RETRIED_FOR};
use crate::database::{failures, in_time};
use crate::http_client::Bounds;
use crate::metrics::{HookOutcome, HookOutcomeLabel};

/// The maximum number of concurrent requests of one replica to one hook.
const SLOTS: usize = 8;
/// A receiver that fails this often in a row is tried with one event at a time.
const FAILING_AFTER: u32 = 8;
/// How long a request may take, and the maximum length of its answer.
const ANSWER_BOUNDS: Bounds = Bounds { time: Duration::from_secs(15), octets: 1024 * 1024 };
/// How long a delivery is claimed: longer than its request and the statements around it.
const LEASE: Duration = Duration::from_mins(1);
/// The bounds of the pause between two attempts at one event, before jitter shortens it.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(10);
/// The longest pause between two requests to a receiver that has failed [`FAILING_AFTER`] times in
/// a row.
const MAX_PROBE_PAUSE: Duration = Duration::from_secs(30);
/// The shortest time between two rounds if the end of a request starts the second one.
const MIN_PAUSE: Duration = Duration::from_millis(20);
/// The shortest time between two moves of the horizon, unless the poll interval is shorter.
const HORIZON_INTERVAL: Duration = Duration::from_millis(100);
/// The pause between two rounds of a walk through many accounts, as a multiple of a round's
/// duration.
const REST: u32 = 14;

const _: () = assert!(ANSWER_BOUNDS.time.as_secs() * 3 < LEASE.as_secs());

/// The state of the loop of one hook.
pub(super) struct Sender {
    shared: Arc<Shared>,
    hook: Arc<Hook>,
    horizon: Horizon,
    advanced_at: Option<Instant>,
    has_rows: bool,
    /// The account after which the next claim begins.
    after: Uuid,
    requests: JoinSet<Result<(), NotDelivered>>,
    /// Requests that have failed since the last success.
    failed: u32,
    /// Until when a receiver that has failed [`FAILING_AFTER`] times in a row gets no request, by
    /// [`crate::clock::Clock::elapsed`].
    paused_until: Duration,
}

impl Sender {
    pub(super) fn new(shared: Arc<Shared>, hook: Arc<Hook>) -> Self {
        Self {
            shared,
            hook,
            horizon: Horizon::default(),
            advanced_at: None,
            has_rows: false,
            after: Uuid::nil(),
            requests: JoinSet::new(),
            failed: 0,
            paused_until: Duration::ZERO,
        }
    }

    /// Delivers events until `stop`. Then it claims nothing more, and ends when its requests have
    /// ended.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let began = Instant::now();
            let more = match self.round().await {
                Ok(more) => more,
                Err(error) => {
                    failures::note("claim events", &error);
                    (self.horizon, self.advanced_at) = (Horizon::default(), None);
                    false
                }
            };
            let pause = if more { began.elapsed() * REST } else { self.shared.poll_interval };
            let ended = tokio::select! {
                () = stop.cancelled() => None,
                () = tokio::time::sleep(pause.min(self.shared.poll_interval)) => None,
                Some(ended) = self.requests.join_next() => Some(ended),
            };
            if let Some(ended) = ended {
                self.record(ended);
                tokio::time::sleep_until(began + MIN_PAUSE).await;
            }
            while let Some(ended) = self.requests.try_join_next() {
                self.record(ended);
            }
        }
        while self.requests.join_next().await.is_some() {}
    }

    /// Claims at most as many deliveries as slots are free, and starts to send them. Returns
    /// whether there are accounts that it did not look at.
    async fn round(&mut self) -> Result<bool, sqlx::Error> {
        let Some(claimed_at) = self.shared.clock.trusted_now() else { return Ok(false) };
        let time = Time { claimed_at, read_at: self.shared.clock.elapsed() };
        if self.advanced_at.is_none_or(|at| at.elapsed() >= HORIZON_INTERVAL.min(self.shared.poll_interval)) {
            self.has_rows = in_time(self.horizon.advance(&self.shared.pool)).await?;
            self.advanced_at = Some(Instant::now());
        }
        let limit = self.free_slots();
        if !self.has_rows || limit == 0 {
            return Ok(false);
        }
        let (hook, settled) = (&self.hook.name, self.horizon.settled());
        let limit = i64::try_from(limit).unwrap_or(1);
        let claim = queue::claim(&self.shared.pool, hook, self.after, settled, claimed_at, LEASE, limit);
        let claim = in_time(claim).await?;
        self.after = claim.after;
        for delivery in claim.deliveries {
            let (shared, hook) = (Arc::clone(&self.shared), Arc::clone(&self.hook));
            self.requests.spawn(async move { deliver(&shared, &hook, delivery, time).await });
        }
        Ok(claim.more)
    }

    /// How many deliveries to claim. If a receiver has failed [`FAILING_AFTER`] times in a row, one
    /// request at a time finds out whether it works again, and the other events stay in the queue.
    fn free_slots(&self) -> usize {
        let running = self.requests.len();
        if self.failed < FAILING_AFTER {
            SLOTS.saturating_sub(running)
        } else {
            usize::from(running == 0 && self.shared.clock.elapsed() >= self.paused_until)
        }
    }

    /// Records how a request ended. A panic, or an event that cannot be sent, says nothing about
    /// the receiver.
    fn record(&mut self, ended: Result<Result<(), NotDelivered>, JoinError>) {
        let hook = &self.hook.name;
        match ended {
            Ok(Ok(())) => {
                if self.failed >= FAILING_AFTER {
                    tracing::info!(hook, "a receiver of events works again");
                }
                self.failed = 0;
                return;
            }
            Ok(Err(failure)) if !failure.is_final => {}
            Ok(Err(_)) | Err(_) => return,
        }
        self.failed = self.failed.saturating_add(1);
        if self.failed == FAILING_AFTER {
            tracing::warn!(hook, "a receiver of events fails: it is tried with one event at a time");
        }
        let doublings = self.failed.saturating_sub(FAILING_AFTER).min(5);
        let pause = Duration::from_secs(1 << doublings).min(MAX_PROBE_PAUSE);
        self.paused_until = self.shared.clock.elapsed() + pause;
    }
}

/// The time during a delivery: the time of the claim plus the time elapsed since. If the clock is
/// set meanwhile, the event must not become a dead letter too early.
#[derive(Clone, Copy)]
struct Time {
    claimed_at: OffsetDateTime,
    /// The same moment by [`crate::clock::Clock::elapsed`].
    read_at: Duration,
}

impl Time {
    fn now(self, shared: &Shared) -> OffsetDateTime {
        self.claimed_at + shared.clock.elapsed().saturating_sub(self.read_at)
    }
}

/// Sends one event and finishes its row. If the row cannot be finished, the event is sent again
/// after its lease.
async fn deliver(shared: &Shared, hook: &Hook, delivery: Delivery, time: Time) -> Result<(), NotDelivered> {
    let sent = send(shared, hook, &delivery, time.now(shared)).await;
    let now = time.now(shared);
    let outcome = match &sent {
        Ok(()) => HookOutcome::Delivered,
        Err(failure) if failure.is_final || now - delivery.enqueued_at >= RETRIED_FOR => HookOutcome::Dead,
        Err(_) => HookOutcome::Retried,
    };
    let label = HookOutcomeLabel { hook: hook.name.clone(), outcome };
    shared.metrics.hook_deliveries.get_or_create(&label).inc();
    let finished = match (outcome, &sent) {
        (HookOutcome::Retried, Err(failure)) => {
            let next = now + backoff(now - delivery.enqueued_at, rand::rng().random());
            in_time(queue::retry_at(&shared.pool, next, &delivery, &failure.why)).await
        }
        (_, Err(failure)) => {
            let (hook, event) = (&hook.name, delivery.event_id);
            tracing::warn!(hook, %event, why = failure.why, "an event was given up: it is a dead letter");
            in_time(queue::give_up(&shared.pool, now, &delivery, &failure.why)).await
        }
        (_, Ok(())) => in_time(queue::delivered(&shared.pool, &delivery)).await,
    };
    if let Err(error) = finished {
        failures::note("finish an event's delivery", &error);
    }
    sent
}

/// Why an event was not delivered. It quotes no answer and no URL.
struct NotDelivered {
    why: String,
    /// Whether no attempt can help.
    is_final: bool,
}

impl NotDelivered {
    fn for_now(why: String) -> Self {
        Self { why, is_final: false }
    }

    fn for_good(why: &str) -> Self {
        Self { why: why.to_owned(), is_final: true }
    }
}

async fn send(
    shared: &Shared,
    hook: &Hook,
    delivery: &Delivery,
    now: OffsetDateTime,
) -> Result<(), NotDelivered> {
    let Some(event) = &delivery.event else {
        return Err(NotDelivered::for_good("the event was deleted after AUDIT_RETENTION"));
    };
    let body = CloudEvent {
        id: delivery.event_id,
        source: &shared.source,
        kind: &event.kind,
        account_id: event.account_id,
        at: event.at,
        seq: delivery.seq,
        gap: delivery.gap,
    };
    let unusable = || NotDelivered::for_now("the request cannot be built".to_owned());
    let body = body.to_json().map_err(|_| unusable())?;
    let (id, timestamp) = (delivery.event_id.to_string(), now.unix_timestamp());
    let signature = hook.secrets.sign(&id, timestamp, &body);
    let request = Request::builder()
        .method(Method::POST)
        .uri(hook.url.clone())
        .header(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp)
        .header("webhook-signature", signature)
        .body(Full::from(body))
        .map_err(|_| unusable())?;
    let Some(http) = &shared.http else { return Err(unusable()) };
    let answer = http.send(request, ANSWER_BOUNDS).await;
    let status = answer.map_err(|error| NotDelivered::for_now(error.to_string()))?.status();
    if status.is_success() {
        Ok(())
    } else {
        Err(NotDelivered::for_now(format!("the receiver answered {}", status.as_u16())))
    }
}

/// The pause before the next attempt: about half the time that the event has waited. `jitter`,
/// uniform in 0 to 1, shortens it, so that events which failed together are not retried together.
fn backoff(waited: time::Duration, jitter: f64) -> Duration {
    let half = Duration::try_from(waited / 2).unwrap_or_default();
    half.clamp(MIN_BACKOFF, MAX_BACKOFF).mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_with_the_time_that_an_event_has_waited() {
        for (waited, longest) in [(0, 1), (2, 1), (10, 5), (600, 300), (86_400, 600)] {
            let waited = time::Duration::seconds(waited);
            assert_eq!(backoff(waited, 0.0), Duration::from_secs(longest));
            assert_eq!(backoff(waited, 1.0), Duration::from_secs(longest) / 2);
        }
        assert_eq!(backoff(time::Duration::seconds(-5), 0.0), MIN_BACKOFF);
    }

    /// An event that always fails is tried a few hundred times in a day, not thousands of times.
    #[test]
    fn a_day_has_about_two_hundred_attempts() {
        let (mut waited, mut attempts) = (Duration::ZERO, 0);
        while waited < RETRIED_FOR {
            waited += backoff(time::Duration::try_from(waited).unwrap(), 0.5);
            attempts += 1;
        }
        assert!((150..300).contains(&attempts), "{attempts}");
    }
}
