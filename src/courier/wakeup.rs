//! What wakes the courier.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use uuid::Uuid;

/// Tells the courier that something was committed. Shared costs nothing; rings that come together are one.
#[derive(Clone, Debug, Default)]
pub struct Wakeup(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    notify: Notify,
    /// The first half of the first id that has to be looked at; past all of them, if it is none.
    from: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self { notify: Notify::default(), from: AtomicU64::new(u64::MAX) }
    }
}

impl Wakeup {
    /// Wakes the courier, now or when it next listens: mails may be owed that were not before, none with an id below `from`.
    pub fn wake(&self, from: Uuid) {
        self.remember(from);
        self.0.notify.notify_one();
    }

    /// Waits until it is rung, or was since the last wait.
    pub(super) async fn woken(&self) {
        self.0.notify.notified().await;
    }

    /// Keeps what was rung for, for the next look.
    pub(super) fn remember(&self, from: Uuid) {
        self.0.from.fetch_min(from.as_u64_pair().0, Ordering::Relaxed);
    }

    /// Where to look from, for what was rung for since this was asked last.
    pub(super) fn take(&self) -> Uuid {
        Uuid::from_u64_pair(self.0.from.swap(u64::MAX, Ordering::Relaxed), 0)
    }
}
