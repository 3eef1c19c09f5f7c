//! One request at a time for each key: a keyed lock in the memory of one replica. So an address
//! occupies the same number of hashing threads whether or not it has an account, however many
//! requests name it at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use super::BucketKey;

/// The keys that requests hold or wait for. A key stays in memory while a request holds it or waits
/// for it.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<HashMap<BucketKey, Arc<AsyncMutex<()>>>>>);

/// The turn of a key. Dropping it passes the turn to the next request.
#[derive(Debug)]
pub struct Turn {
    // Fields are dropped in order: the guard first, because the last waiter removes the key.
    _guard: OwnedMutexGuard<()>,
    _waiter: Waiter,
}

impl Turns {
    /// Waits for the turn of a key, first come, first served. Returns `None` if it has not come by
    /// `until`.
    pub async fn take(&self, key: BucketKey, until: Instant) -> Option<Turn> {
        let waiter = self.waiter(key);
        let guard = timeout_at(until, Arc::clone(&waiter.turn).lock_owned()).await.ok()?;
        Some(Turn { _guard: guard, _waiter: waiter })
    }

    /// The number of keys that requests hold or wait for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no request holds or waits for a key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn waiter(&self, key: BucketKey) -> Waiter {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Waiter { turns: self.clone(), key, turn: Arc::clone(keys.entry(key).or_default()) }
    }
}

/// A request that holds a turn or waits for it.
#[derive(Debug)]
struct Waiter {
    turns: Turns,
    key: BucketKey,
    turn: Arc<AsyncMutex<()>>,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut keys = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Two references: the map's and this one. A new waiter is only added under this lock.
        if Arc::strong_count(&self.turn) <= 2 {
            keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_has_one_turn_and_is_forgotten_with_the_last_request() {
        let (turns, now) = (Turns::default(), Instant::now());
        let soon = now + Duration::from_secs(1);
        let first = turns.take([1; 32], soon).await.expect("it is free");
        assert!(turns.take([2; 32], soon).await.is_some(), "another key is free");
        assert!(turns.take([1; 32], soon).await.is_none(), "it is taken");
        assert_eq!(Instant::now(), soon, "it was waited for");
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take([1; 32], soon + Duration::from_secs(1)).await }
        });
        // A request that gives up does not change the order of the others.
        let gone = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take([1; 32], soon + Duration::from_secs(9)).await }
        });
        tokio::task::yield_now().await;
        gone.abort();
        assert!(gone.await.is_err());
        assert_eq!(turns.len(), 1);
        drop(first);
        let second = waiting.await.unwrap().expect("its turn has come");
        assert_eq!(turns.len(), 1);
        drop(second);
        assert!(turns.is_empty());
    }
}
