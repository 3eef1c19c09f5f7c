//! Group commit: requests of many callers that share one commit, and so one flush to disk.
//!
//! - Requests that arrive while a batch is being committed form the next batch. One batch is in
//!   flight at a time.
//! - There is no timer. An idle service commits a single request at once; the slower the commits,
//!   the larger the batches.
//! - A task takes batches from [`Arrivals`] and commits them. Each caller of
//!   [`GroupCommit::submit`] gets its own result.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument as _, Span, info_span};

use crate::traces;

/// The callers' end of the queue. Clones share one queue.
#[derive(Debug)]
pub struct GroupCommit<T, R> {
    queue: mpsc::Sender<QueuedRequest<T, R>>,
    /// How many requests may wait now.
    max_waiting: Arc<AtomicUsize>,
}

/// The committing task's end of the queue.
#[derive(Debug)]
pub struct Arrivals<T, R> {
    queue: mpsc::Receiver<QueuedRequest<T, R>>,
    /// Requests that have left the queue and belong to no batch yet.
    arrived: Vec<QueuedRequest<T, R>>,
    max_waiting: Arc<AtomicUsize>,
    max_batch: usize,
    max_wait: Duration,
    /// When the last batch was taken.
    last_batch_at: Instant,
}

/// A request in the queue.
#[derive(Debug)]
struct QueuedRequest<T, R> {
    request: T,
    answer: oneshot::Sender<R>,
    span: Span,
}

/// Requests to commit together.
#[derive(Debug)]
pub struct Batch<T, R> {
    /// The requests in their order of arrival; never empty.
    pub requests: Vec<T>,
    answers: Vec<oneshot::Sender<R>>,
    spans: Vec<Span>,
}

/// The commit of the request is not confirmed: too many requests wait, or its batch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request was not committed")]
pub struct NotCommitted;

/// Creates a queue with these bounds:
///
/// - At most `queue` requests wait.
/// - A batch has at most `max_batch` requests.
/// - At most as many requests wait as are committed within `max_wait`, at the pace of the last
///   batch. A request that fits into the next batch may always wait: one slow flush is not yet
///   overload.
#[must_use]
pub fn channel<T, R>(
    queue: usize,
    max_batch: usize,
    max_wait: Duration,
) -> (GroupCommit<T, R>, Arrivals<T, R>) {
    let (sender, receiver) = mpsc::channel(queue);
    let max_waiting = Arc::new(AtomicUsize::new(queue));
    let arrivals = Arrivals {
        queue: receiver,
        arrived: Vec::new(),
        max_waiting: Arc::clone(&max_waiting),
        max_batch,
        max_wait,
        last_batch_at: Instant::now(),
    };
    (GroupCommit { queue: sender, max_waiting }, arrivals)
}

impl<T, R> GroupCommit<T, R> {
    /// Queues `request` and waits for the result of its batch. Dropping the future before the batch
    /// is taken withdraws the request.
    ///
    /// # Errors
    ///
    /// [`NotCommitted`], at once if too many requests wait, or when the batch has failed.
    pub async fn submit(&self, request: T) -> Result<R, NotCommitted> {
        let waiting = self.queue.max_capacity() - self.queue.capacity();
        if waiting >= self.max_waiting.load(Ordering::Relaxed) {
            return Err(NotCommitted);
        }
        let (answer, answered) = oneshot::channel();
        let span = info_span!("wait for commit");
        let request = QueuedRequest { request, answer, span: span.clone() };
        self.queue.try_send(request).map_err(|_| NotCommitted)?;
        answered.instrument(span).await.map_err(|_| NotCommitted)
    }
}

impl<T, R> Clone for GroupCommit<T, R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), max_waiting: Arc::clone(&self.max_waiting) }
    }
}

impl<T, R> Arrivals<T, R> {
    /// Waits for the next batch: all waiting requests, up to `max_batch`. `None` when every
    /// [`GroupCommit`] was dropped.
    pub async fn next(&mut self) -> Option<Batch<T, R>> {
        while self.arrive().await {
            if let Some(batch) = self.take() {
                return Some(batch);
            }
        }
        None
    }

    /// Waits until at least one request is queued. `false` when every [`GroupCommit`] was dropped.
    /// Dropping the future loses no request.
    pub async fn arrive(&mut self) -> bool {
        self.max_waiting.store(self.max_waiting(), Ordering::Relaxed);
        !self.arrived.is_empty() || self.queue.recv_many(&mut self.arrived, self.max_batch).await > 0
    }

    /// Takes the requests that wait now, up to `max_batch`. `None` if there are none.
    pub fn take(&mut self) -> Option<Batch<T, R>> {
        while self.arrived.len() < self.max_batch
            && let Ok(next) = self.queue.try_recv()
        {
            self.arrived.push(next);
        }
        self.last_batch_at = Instant::now();
        // A request whose caller has given up must not be committed: a `start` would send an email.
        let arrived = std::mem::take(&mut self.arrived).into_iter();
        let (requests, (answers, spans)): (Vec<_>, _) = arrived
            .filter(|request| !request.answer.is_closed())
            .map(|QueuedRequest { request, answer, span }| (request, (answer, span)))
            .unzip();
        (!requests.is_empty()).then_some(Batch { requests, answers, spans })
    }

    /// How many requests may wait: as many batches as fit into `max_wait`, if each takes as long as
    /// the last one. Without a bound while no request waits.
    fn max_waiting(&self) -> usize {
        if self.queue.is_empty() {
            return usize::MAX;
        }
        let batches = self.max_wait.as_nanos() / self.last_batch_at.elapsed().as_nanos().max(1);
        usize::try_from(batches).unwrap_or(usize::MAX).max(1).saturating_mul(self.max_batch)
    }
}

impl<T, R> Batch<T, R> {
    /// Sends each caller its result, in the order of `requests`. Dropping the batch instead makes
    /// every request fail.
    pub fn answer(self, results: impl IntoIterator<Item = R>) {
        for (answer, result) in self.answers.into_iter().zip(results) {
            // A caller that has given up needs no result.
            let _ = answer.send(result);
        }
    }

    /// Whether at least one caller still waits for its result.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.answers.iter().any(|answer| !answer.is_closed())
    }

    /// A span for the commit. A commit belongs to many traces, but a span to one. So the span is
    /// part of the first caller's trace that is sampled, and the other sampled traces link to it. A
    /// trace of its own would rarely be sampled when theirs are.
    pub fn span(&self) -> Span {
        let mut sampled = self.spans.iter().filter(|span| traces::is_sampled(span));
        let Some(first) = sampled.next() else { return Span::none() };
        let commit = info_span!(parent: first, "commit", batch.size = self.requests.len());
        for other in sampled {
            other.follows_from(&commit);
        }
        commit
    }

    /// Splits the batch into batches of one request, so that no request can make another fail.
    pub fn split(self) -> impl Iterator<Item = Self> {
        self.requests.into_iter().zip(self.answers).zip(self.spans).map(|((request, answer), span)| Self {
            requests: vec![request],
            answers: vec![answer],
            spans: vec![span],
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;

    const MAX_WAIT: Duration = Duration::from_mins(1);

    fn spawn_submit(commit: &GroupCommit<u32, u32>, n: u32) -> JoinHandle<Result<u32, NotCommitted>> {
        let commit = commit.clone();
        tokio::spawn(async move { commit.submit(n).await })
    }

    #[tokio::test]
    async fn what_arrives_together_is_committed_together_and_each_gets_its_own() {
        let (commit, mut arrivals) = channel(16, 3, MAX_WAIT);
        let callers: Vec<_> = (0..5).map(|n| spawn_submit(&commit, n)).collect();
        tokio::task::yield_now().await;
        let mut sizes = Vec::new();
        while sizes.iter().sum::<usize>() < 5 {
            let batch = arrivals.next().await.unwrap();
            sizes.push(batch.requests.len());
            let results: Vec<_> = batch.requests.iter().map(|n| n * 10).collect();
            batch.answer(results);
        }
        assert_eq!(sizes, [3, 2]);
        for (n, caller) in (0..).zip(callers) {
            assert_eq!(caller.await.unwrap(), Ok(n * 10));
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_dropped_batch_fails() {
        let (commit, mut arrivals) = channel(1, 8, MAX_WAIT);
        let first = spawn_submit(&commit, 1);
        tokio::task::yield_now().await;
        assert_eq!(commit.submit(2).await, Err(NotCommitted));
        drop(arrivals.next().await);
        assert_eq!(first.await.unwrap(), Err(NotCommitted));
    }

    #[tokio::test]
    async fn no_more_wait_than_are_committed_in_time_unless_the_next_batch_holds_them() {
        let (commit, mut arrivals) = channel(64, 2, Duration::ZERO);
        let callers: Vec<_> = (0..5).map(|n| spawn_submit(&commit, n)).collect();
        tokio::task::yield_now().await;
        arrivals.next().await.unwrap().answer([0, 1]);
        let refused = tokio::time::timeout(MAX_WAIT, commit.submit(5)).await;
        assert_eq!(refused, Ok(Err(NotCommitted)));
        arrivals.next().await.unwrap().answer([2, 3]);
        let late = spawn_submit(&commit, 6);
        tokio::task::yield_now().await;
        arrivals.next().await.unwrap().answer([4, 6]);
        assert_eq!(late.await.unwrap(), Ok(6));
        for (n, caller) in (0..).zip(callers) {
            assert_eq!(caller.await.unwrap(), Ok(n));
        }
    }

    #[tokio::test]
    async fn a_slow_batch_after_which_nobody_waits_refuses_nobody() {
        let (commit, mut arrivals) = channel(64, 2, Duration::ZERO);
        let first = spawn_submit(&commit, 0);
        tokio::task::yield_now().await;
        arrivals.next().await.unwrap().answer([0]);
        assert_eq!(first.await.unwrap(), Ok(0));
        let (batch, callers) = tokio::join!(arrivals.next(), async {
            let callers: Vec<_> = (1..=5).map(|n| spawn_submit(&commit, n)).collect();
            tokio::task::yield_now().await;
            callers
        });
        batch.unwrap().answer([1, 2]);
        drop(commit);
        while let Some(batch) = arrivals.next().await {
            let results = batch.requests.clone();
            batch.answer(results);
        }
        for (n, caller) in (1..).zip(callers) {
            assert_eq!(caller.await.unwrap(), Ok(n));
        }
    }

    #[tokio::test]
    async fn who_stopped_waiting_is_not_committed() {
        let (commit, mut arrivals) = channel(8, 8, MAX_WAIT);
        let gone = spawn_submit(&commit, 1);
        tokio::task::yield_now().await;
        gone.abort();
        assert!(gone.await.is_err());
        let stays = tokio::spawn(async move { commit.submit(2).await });
        let batch = arrivals.next().await.unwrap();
        assert_eq!(batch.requests, [2]);
        batch.split().for_each(|one| one.answer([7]));
        assert_eq!(stays.await.unwrap(), Ok(7));
        assert!(arrivals.next().await.is_none());
    }
}
