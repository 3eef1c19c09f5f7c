//! Counts the stored hashes by kind in continuous rounds, so that addresses without a hash are
//! verified against each kind in the same proportion ([`crate::password::Decoys`]). The same scan
//! counts, for a metric, the accounts whose address bounces.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::account;
use crate::app::App;
use crate::config::STORAGE_DEADLINE;
use crate::database::{cause, in_time};
use crate::metrics::HashLabel;
use crate::password::{Counts, StoredHash};

/// The pages of `account` that one statement scans: a few hundred rows.
const PAGES: i64 = 64;
/// The pause between two statements: about 2 MB are read a second, whatever the table's size.
const REST: Duration = Duration::from_millis(250);
/// The minimum time between the starts of two rounds.
const ROUND: Duration = Duration::from_mins(1);
/// The maximum number of kinds, because an imported file decides which kinds there are.
const MAX_KINDS: usize = 1000;

/// The census, with the counts and position of the current round.
#[derive(Debug)]
pub struct Census {
    app: Arc<App>,
    counts: Counts,
    bouncing: u64,
    /// The page to continue with.
    next_page: i64,
    is_failing: bool,
}

impl Census {
    /// A census that starts at the first page.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self { app, counts: Counts::new(), bouncing: 0, next_page: 0, is_failing: false }
    }

    /// Counts without pauses before the service accepts requests, for at most `STORAGE_DEADLINE`.
    /// If the table is too large for that, decoys are made from the last stored counts until the
    /// first round ends; or from the part that was read, if there are no stored counts or accounts
    /// were imported since.
    pub async fn warm_up(&mut self) {
        // An alert compares this metric with the time. Until the first round ends, its value is the
        // time at which the service started.
        self.app.metrics.hashes_counted.set(self.app.clock.now().unix_timestamp());
        let read = timeout(STORAGE_DEADLINE, async {
            loop {
                match self.scan_pages().await {
                    Some(ScanStep::More) => {}
                    ended => break ended,
                }
            }
        });
        if let Ok(Some(_)) = read.await {
            return self.finish_round().await;
        }
        let own_kind = self.app.hasher.own_kind();
        match in_time(account::hashes::load_last(&self.app.pool)).await {
            Ok(Some(last)) if last.covers(&self.counts, &own_kind) => {
                self.app.hasher.update_decoys(&last.current, &last.after_import).await;
            }
            _ if self.counts.is_empty() => {}
            _ => self.app.hasher.update_decoys(&self.counts, &self.counts).await,
        }
    }

    /// Counts until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let counting = async {
            // While there are no decoys, every login is answered 502.
            while self.app.hasher.decoys().is_none() {
                sleep(REST).await;
                self.warm_up().await;
            }
            loop {
                let next = Instant::now() + ROUND;
                // A round that `warm_up` has begun continues at once.
                if self.next_page == 0 {
                    sleep_until(next).await;
                }
                self.round(REST).await;
            }
        };
        stop.run_until_cancelled(counting).await;
    }

    /// Counts the whole table, or the rest of a round that has begun, and updates the decoys.
    pub async fn round(&mut self, rest: Duration) {
        while self.scan_pages().await != Some(ScanStep::Done) {
            sleep(rest).await;
        }
        self.finish_round().await;
    }

    async fn finish_round(&mut self) {
        let counts = std::mem::take(&mut self.counts);
        let bouncing = std::mem::take(&mut self.bouncing);
        self.app.metrics.bouncing_accounts.set(i64::try_from(bouncing).unwrap_or(i64::MAX));
        let own_kind = self.app.hasher.own_kind();
        let kept = account::hashes::save(&self.app.pool, counts, &own_kind);
        match in_time(kept).await {
            Ok(counted) => {
                self.app.hasher.update_decoys(&counted.current, &counted.after_import).await;
                self.publish_metrics(&counted.current);
            }
            // The next round tries again.
            Err(error) => self.log_failure(&error),
        }
    }

    fn log_failure(&mut self, error: &sqlx::Error) {
        if !self.is_failing {
            let cause = cause(error);
            tracing::warn!(cause, "the stored hashes cannot be counted; retrying");
        }
        self.is_failing = true;
    }

    /// Runs one statement. Returns `None` if it failed; the caller tries again.
    async fn scan_pages(&mut self) -> Option<ScanStep> {
        let counted = in_time(account::hashes::count(&self.app.pool, self.next_page, PAGES)).await;
        let counted = match counted {
            Ok(counted) => counted,
            Err(error) => {
                self.log_failure(&error);
                return None;
            }
        };
        self.is_failing = false;
        self.bouncing += counted.bouncing;
        for (kind, count) in counted.kinds {
            if self.counts.len() < MAX_KINDS || self.counts.contains_key(&kind) {
                *self.counts.entry(kind).or_default() += count;
            }
        }
        self.next_page = counted.next.unwrap_or(0);
        Some(if counted.next.is_some() { ScanStep::More } else { ScanStep::Done })
    }

    fn publish_metrics(&self, counts: &Counts) {
        let metrics = &self.app.metrics;
        metrics.stored_hashes.clear();
        // The metric of Argon2id exists even while no account has a password.
        drop(metrics.stored_hashes.get_or_create(&HashLabel { scheme: "argon2id" }));
        for (kind, count) in counts {
            let scheme = StoredHash::parse(kind).map_or("unusable", |stored| stored.kind());
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            metrics.stored_hashes.get_or_create(&HashLabel { scheme }).inc_by(count);
        }
        metrics.hashes_counted.set(self.app.clock.now().unix_timestamp());
        let price = self.app.hasher.decoys().map_or(1, |decoys| decoys.price());
        metrics.login_price.set(price.into());
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ScanStep {
    /// More pages follow.
    More,
    /// The scan has reached the table's end.
    Done,
}
