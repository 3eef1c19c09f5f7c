//! Counts the stored hashes by kind, round after round, so that addresses without one are verified against as many of each
//! kind ([`crate::password::Decoys`]); and the accounts whose address bounces, on the same way, for a metric.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::account;
use crate::app::App;
use crate::config::STORAGE_DEADLINE;
use crate::database::{cause, in_time};
use crate::metrics::HashLabel;
use crate::password::{Counts, Stored};

/// Pages of accounts that one statement looks through: a few hundred rows.
const PAGES: i64 = 64;
/// How long it rests between two statements: 2 MB a second, whatever the size of the table.
const REST: Duration = Duration::from_millis(250);
/// How often a round begins at most.
const ROUND: Duration = Duration::from_mins(1);
/// How many kinds are told apart: an import writes what a file says.
const MAX_KINDS: usize = 1000;

/// Counts, and remembers how far it came.
#[derive(Debug)]
pub struct Census {
    app: Arc<App>,
    counts: Counts,
    bouncing: u64,
    /// The page to go on with.
    next_page: i64,
    fails: bool,
}

impl Census {
    /// Begins at the beginning.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self { app, counts: Counts::new(), bouncing: 0, next_page: 0, fails: false }
    }

    /// Counts without a rest before the service listens, for as long as a request would wait. For a table that is larger, what
    /// was counted last has to do until the first round is over, or the part that was read if nothing was, or an import came since.
    pub async fn begin(&mut self) {
        // An alert asks for how long it was not: before the first end, since the start.
        self.app.metrics.hashes_counted.set(self.app.clock.now().unix_timestamp());
        let read = timeout(STORAGE_DEADLINE, async {
            loop {
                match self.step().await {
                    Some(Step::Taken) => {}
                    ended => break ended,
                }
            }
        });
        if let Ok(Some(_)) = read.await {
            return self.end().await;
        }
        let ours = self.app.hasher.own_kind();
        match in_time(account::hashes::counted(&self.app.pool)).await {
            Ok(Some(last)) if last.covers(&self.counts, &ours) => {
                self.app.hasher.learn(&last.now, &last.most).await;
            }
            _ if self.counts.is_empty() => {}
            _ => self.app.hasher.learn(&self.counts, &self.counts).await,
        }
    }

    /// Counts until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let counting = async {
            // Every login is answered 502 meanwhile.
            while self.app.hasher.decoys().is_none() {
                sleep(REST).await;
                self.begin().await;
            }
            loop {
                let next = Instant::now() + ROUND;
                // A round that `begin` has not ended goes on at once.
                if self.next_page == 0 {
                    sleep_until(next).await;
                }
                self.round(REST).await;
            }
        };
        stop.run_until_cancelled(counting).await;
    }

    /// Counts all of the table, or what is left of a round that was begun, and makes the decoys of it.
    pub async fn round(&mut self, rest: Duration) {
        while self.step().await != Some(Step::Last) {
            sleep(rest).await;
        }
        self.end().await;
    }

    async fn end(&mut self) {
        let counts = std::mem::take(&mut self.counts);
        let bouncing = std::mem::take(&mut self.bouncing);
        self.app.metrics.bouncing_accounts.set(i64::try_from(bouncing).unwrap_or(i64::MAX));
        let ours = self.app.hasher.own_kind();
        let kept = account::hashes::keep(&self.app.pool, counts, &ours);
        match in_time(kept).await {
            Ok(counted) => {
                self.app.hasher.learn(&counted.now, &counted.most).await;
                self.show(&counted.now);
            }
            // The next round does.
            Err(error) => self.note(&error),
        }
    }

    fn note(&mut self, error: &sqlx::Error) {
        if !self.fails {
            let cause = cause(error);
            tracing::warn!(cause, "the stored hashes cannot be counted; it is tried again");
        }
        self.fails = true;
    }

    /// One statement. `None` if it failed: it is tried again.
    async fn step(&mut self) -> Option<Step> {
        let counted = in_time(account::hashes::count(&self.app.pool, self.next_page, PAGES)).await;
        let counted = match counted {
            Ok(counted) => counted,
            Err(error) => {
                self.note(&error);
                return None;
            }
        };
        self.fails = false;
        self.bouncing += counted.bouncing;
        for (kind, count) in counted.kinds {
            if self.counts.len() < MAX_KINDS || self.counts.contains_key(&kind) {
                *self.counts.entry(kind).or_default() += count;
            }
        }
        self.next_page = counted.next.unwrap_or(0);
        Some(if counted.next.is_some() { Step::Taken } else { Step::Last })
    }

    fn show(&self, counts: &Counts) {
        let metrics = &self.app.metrics;
        metrics.stored_hashes.clear();
        // There even while nobody has a password.
        drop(metrics.stored_hashes.get_or_create(&HashLabel { scheme: "argon2id" }));
        for (kind, count) in counts {
            let scheme = Stored::parse(kind).map_or("unusable", |stored| stored.kind());
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            metrics.stored_hashes.get_or_create(&HashLabel { scheme }).inc_by(count);
        }
        metrics.hashes_counted.set(self.app.clock.now().unix_timestamp());
        let price = self.app.hasher.decoys().map_or(1, |decoys| decoys.price());
        metrics.login_price.set(price.into());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is more.
    Taken,
    /// It came to the table's end.
    Last,
}
