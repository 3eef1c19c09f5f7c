//! One login at a time for each key, in memory and therefore of one replica: what an address occupies of the hashing threads
//! is the same for a known and an unknown one, and however many requests name it at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use super::Key;

/// Who has the turn of each key, and who waits for it. A key is in memory as long as a request has it or waits.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<HashMap<Key, Arc<AsyncMutex<()>>>>>);

/// The turn of a key. The next request has it once this is dropped.
#[derive(Debug)]
pub struct Turn {
    // Before the seat: fields are dropped in their order, and the last seat forgets the key.
    _holding: OwnedMutexGuard<()>,
    _seat: Seat,
}

impl Turns {
    /// Waits for the turn of a key, first come, first served. `None` if it has not come by `until`.
    pub async fn take(&self, key: Key, until: Instant) -> Option<Turn> {
        let seat = self.seat(key);
        let holding = timeout_at(until, Arc::clone(&seat.turn).lock_owned()).await.ok()?;
        Some(Turn { _holding: holding, _seat: seat })
    }

    /// Keys that a request has or waits for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no request has or waits for any key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn seat(&self, key: Key) -> Seat {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Seat { turns: self.clone(), key, turn: Arc::clone(keys.entry(key).or_default()) }
    }
}

/// A request that has a turn or waits for it.
#[derive(Debug)]
struct Seat {
    turns: Turns,
    key: Key,
    turn: Arc<AsyncMutex<()>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut keys = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and ours: a new seat is only taken under this lock.
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
        // One that gives up leaves the others their places.
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
