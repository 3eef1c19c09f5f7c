//! Many callers, one flush: what has arrived while the last batch was being committed is committed as the next one.
//!
//! There is no timer. An idle service commits a single request at once; under load a batch is as large as the flush
//! before it was slow. One batch is in flight at a time. The mechanism knows nothing of what is committed: a task takes
//! batches from [`Arrivals`], and each caller of [`GroupCommit::submit`] gets its own result.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument as _, Span, info_span};

use crate::traces;

/// The callers' end. Clones share one queue.
#[derive(Debug)]
pub struct GroupCommit<T, R> {
    queue: mpsc::Sender<Waiting<T, R>>,
    /// How many may wait now.
    room: Arc<AtomicUsize>,
}

/// The committing task's end.
#[derive(Debug)]
pub struct Arrivals<T, R> {
    queue: mpsc::Receiver<Waiting<T, R>>,
    /// Out of the queue, and not taken yet.
    arrived: Vec<Waiting<T, R>>,
    room: Arc<AtomicUsize>,
    max_batch: usize,
    max_wait: Duration,
    /// When the last batch was.
    taken: Instant,
}

#[derive(Debug)]
struct Waiting<T, R> {
    request: T,
    answer: oneshot::Sender<R>,
    span: Span,
}

/// Requests that are committed together, in their order of arrival.
#[derive(Debug)]
pub struct Batch<T, R> {
    /// What is to be committed; never empty.
    pub requests: Vec<T>,
    answers: Vec<oneshot::Sender<R>>,
    spans: Vec<Span>,
}

/// The request was not committed as far as is known here: too many wait, or its batch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request was not committed")]
pub struct NotCommitted;

/// A queue of at most `queue` waiting requests, taken out at most `max_batch` at a time, and of no more than are committed
/// within `max_wait` at the last batch's pace. Whoever has room in the next batch may always wait: a disk that paused is
/// no load that it cannot bear.
#[must_use]
pub fn channel<T, R>(
    queue: usize,
    max_batch: usize,
    max_wait: Duration,
) -> (GroupCommit<T, R>, Arrivals<T, R>) {
    let (sender, receiver) = mpsc::channel(queue);
    let room = Arc::new(AtomicUsize::new(queue));
    let taken = Instant::now();
    let arrivals = Arrivals {
        queue: receiver,
        arrived: Vec::new(),
        room: Arc::clone(&room),
        max_batch,
        max_wait,
        taken,
    };
    (GroupCommit { queue: sender, room }, arrivals)
}

impl<T, R> GroupCommit<T, R> {
    /// Waits for the batch that takes `request` along. Dropping the future before its batch was taken withdraws it.
    ///
    /// # Errors
    ///
    /// [`NotCommitted`] at once if too many wait, or when the batch failed.
    pub async fn submit(&self, request: T) -> Result<R, NotCommitted> {
        let waiting = self.queue.max_capacity() - self.queue.capacity();
        if waiting >= self.room.load(Ordering::Relaxed) {
            return Err(NotCommitted);
        }
        let (answer, answered) = oneshot::channel();
        let span = info_span!("wait for commit");
        let waiting = Waiting { request, answer, span: span.clone() };
        self.queue.try_send(waiting).map_err(|_| NotCommitted)?;
        answered.instrument(span).await.map_err(|_| NotCommitted)
    }
}

impl<T, R> Clone for GroupCommit<T, R> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), room: Arc::clone(&self.room) }
    }
}

impl<T, R> Arrivals<T, R> {
    /// The next batch: everything that waits, up to the bound. `None` when every caller is gone.
    pub async fn next(&mut self) -> Option<Batch<T, R>> {
        while self.arrive().await {
            if let Some(batch) = self.take() {
                return Some(batch);
            }
        }
        None
    }

    /// Waits until there is something to take. `false` when every caller is gone. Dropping the future loses nothing.
    pub async fn arrive(&mut self) -> bool {
        self.room.store(self.room(), Ordering::Relaxed);
        !self.arrived.is_empty() || self.queue.recv_many(&mut self.arrived, self.max_batch).await > 0
    }

    /// Everything that waits now, up to the bound.
    pub fn take(&mut self) -> Option<Batch<T, R>> {
        while self.arrived.len() < self.max_batch
            && let Ok(next) = self.queue.try_recv()
        {
            self.arrived.push(next);
        }
        self.taken = Instant::now();
        // A caller that stopped waiting must not get a mail for it.
        let waiting =
            std::mem::take(&mut self.arrived).into_iter().filter(|waiting| !waiting.answer.is_closed());
        let (requests, (answers, spans)): (Vec<_>, _) =
            waiting.map(|w: Waiting<T, R>| (w.request, (w.answer, w.span))).unzip();
        (!requests.is_empty()).then_some(Batch { requests, answers, spans })
    }

    /// How many may wait: as many batches as fit into the longest wait if each takes what the last one took, and any number
    /// if nobody does.
    fn room(&self) -> usize {
        if self.queue.is_empty() {
            return usize::MAX;
        }
        let batches = self.max_wait.as_nanos() / self.taken.elapsed().as_nanos().max(1);
        usize::try_from(batches).unwrap_or(usize::MAX).max(1).saturating_mul(self.max_batch)
    }
}

impl<T, R> Batch<T, R> {
    /// Gives each caller its result, in the order of `requests`. Dropping a batch instead fails all of it.
    pub fn answer(self, results: impl IntoIterator<Item = R>) {
        for (answer, result) in self.answers.into_iter().zip(results) {
            // A caller that is gone misses nothing: only an answer promises.
            let _ = answer.send(result);
        }
    }

    /// Whether any caller still waits.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.answers.iter().any(|answer| !answer.is_closed())
    }

    /// The span of its flush. A flush is of many traces and a span of one: it stands in that of the first caller whose
    /// trace is kept, and the others' lead to it by a link. Beginning a trace of its own, it would be missing from nearly
    /// all of theirs when few traces are kept.
    pub fn span(&self) -> Span {
        let mut sampled = self.spans.iter().filter(|span| traces::is_sampled(span));
        let Some(first) = sampled.next() else { return Span::none() };
        let flush = info_span!(parent: first, "commit", batch.size = self.requests.len());
        for other in sampled {
            other.follows_from(&flush);
        }
        flush
    }

    /// The same requests as batches of one, so that none can fail another.
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

    const PATIENCE: Duration = Duration::from_mins(1);

    fn submits(commit: &GroupCommit<u32, u32>, n: u32) -> JoinHandle<Result<u32, NotCommitted>> {
        let commit = commit.clone();
        tokio::spawn(async move { commit.submit(n).await })
    }

    #[tokio::test]
    async fn what_arrives_together_is_committed_together_and_each_gets_its_own() {
        let (commit, mut arrivals) = channel(16, 3, PATIENCE);
        let callers: Vec<_> = (0..5).map(|n| submits(&commit, n)).collect();
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
        let (commit, mut arrivals) = channel(1, 8, PATIENCE);
        let first = submits(&commit, 1);
        tokio::task::yield_now().await;
        assert_eq!(commit.submit(2).await, Err(NotCommitted));
        drop(arrivals.next().await);
        assert_eq!(first.await.unwrap(), Err(NotCommitted));
    }

    #[tokio::test]
    async fn no_more_wait_than_are_committed_in_time_unless_the_next_batch_holds_them() {
        let (commit, mut arrivals) = channel(64, 2, Duration::ZERO);
        let callers: Vec<_> = (0..5).map(|n| submits(&commit, n)).collect();
        tokio::task::yield_now().await;
        arrivals.next().await.unwrap().answer([0, 1]);
        let refused = tokio::time::timeout(PATIENCE, commit.submit(5)).await;
        assert_eq!(refused, Ok(Err(NotCommitted)));
        arrivals.next().await.unwrap().answer([2, 3]);
        let late = submits(&commit, 6);
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
        let first = submits(&commit, 0);
        tokio::task::yield_now().await;
        arrivals.next().await.unwrap().answer([0]);
        assert_eq!(first.await.unwrap(), Ok(0));
        let (batch, callers) = tokio::join!(arrivals.next(), async {
            let callers: Vec<_> = (1..=5).map(|n| submits(&commit, n)).collect();
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
        let (commit, mut arrivals) = channel(8, 8, PATIENCE);
        let gone = submits(&commit, 1);
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
