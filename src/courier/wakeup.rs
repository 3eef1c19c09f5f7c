//! The signal that wakes the courier.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use uuid::Uuid;

/// Tells the courier that a commit has enqueued emails. Clones are cheap and share one signal.
/// Several wakes before the courier reacts count as one.
#[derive(Clone, Debug, Default)]
pub struct Wakeup(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    notify: Notify,
    /// The upper half of the lowest id that may be due; `u64::MAX` if the courier was not woken
    /// since the last claim.
    from: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self { notify: Notify::default(), from: AtomicU64::new(u64::MAX) }
    }
}

impl Wakeup {
    /// Wakes the courier now, or as soon as it waits again. New emails may be pending, all with ids
    /// of at least `from`.
    pub fn wake(&self, from: Uuid) {
        self.remember(from);
        self.0.notify.notify_one();
    }

    /// Waits for a wake. Returns at once if there was one since the last wait.
    pub(super) async fn woken(&self) {
        self.0.notify.notified().await;
    }

    /// Keeps `from` for the next claim, without waking the courier.
    pub(super) fn remember(&self, from: Uuid) {
        self.0.from.fetch_min(from.as_u64_pair().0, Ordering::Relaxed);
    }

    /// The lowest id of all wakes since the last call.
    pub(super) fn take(&self) -> Uuid {
        Uuid::from_u64_pair(self.0.from.swap(u64::MAX, Ordering::Relaxed), 0)
    }
}
