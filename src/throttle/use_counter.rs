//! Counts the uses of tokens that this service issued, in the memory of one replica.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::secret::TokenHash;

/// The maximum number of tokens in each generation, in about 5 MB.
const MAX_TOKENS: usize = 50_000;

/// A count for each token, which never decreases. It is kept for one to two times `lifetime`.
#[derive(Debug)]
pub struct UseCounter {
    limit: u32,
    lifetime: Duration,
    clock: Clock,
    counts: Mutex<Generations>,
}

/// Two generations of counts. The previous one is dropped as a whole, so that nothing has to be
/// scanned.
#[derive(Debug, Default)]
struct Generations {
    started_at: Duration,
    current: HashMap<TokenHash, u32>,
    previous: HashMap<TokenHash, u32>,
}

impl UseCounter {
    /// Allows each token `limit` uses. A token must be invalid after `lifetime`, because its count
    /// may then restart.
    #[must_use]
    pub fn new(limit: u32, lifetime: Duration, clock: Clock) -> Self {
        Self { limit, lifetime, clock, counts: Mutex::default() }
    }

    /// Counts one use. Returns false if the token is used up or cannot be tracked. A token
    /// that was not seen before is counted only if `may_start` returns true.
    pub fn count(&self, token: &TokenHash, may_start: impl FnOnce() -> bool) -> bool {
        let mut counts = self.counts();
        if !counts.current.contains_key(token) {
            let before = counts.previous.remove(token);
            if counts.current.len() >= MAX_TOKENS || !(before.is_some() || may_start()) {
                return false;
            }
            counts.current.insert(*token, before.unwrap_or_default());
        }
        let Some(count) = counts.current.get_mut(token).filter(|count| **count < self.limit) else {
            return false;
        };
        *count += 1;
        true
    }

    /// Whether the token is used up, or cannot be tracked.
    #[must_use]
    pub fn is_spent(&self, token: &TokenHash) -> bool {
        let counts = self.counts();
        let is_full = counts.current.len() >= MAX_TOKENS;
        counts
            .current
            .get(token)
            .or_else(|| counts.previous.get(token))
            .map_or(is_full, |count| *count >= self.limit)
    }

    fn counts(&self) -> MutexGuard<'_, Generations> {
        let now = self.clock.elapsed();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(counts.started_at) >= self.lifetime {
            counts.started_at = now;
            counts.previous = std::mem::take(&mut counts.current);
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::clock::ManualClock;
    use crate::secret::{Key, Token};

    const LIFETIME: Duration = Duration::from_mins(15);

    fn token(key: &Key) -> TokenHash {
        Token::issue(key, "test/1", OffsetDateTime::UNIX_EPOCH).hash()
    }

    #[test]
    fn a_token_has_a_number_of_uses_for_its_lifetime() {
        let clock = ManualClock::at(OffsetDateTime::UNIX_EPOCH);
        let presented = UseCounter::new(12, LIFETIME, Clock::Manual(clock.clone()));
        let (key, token_of) = (Key::random("a"), token);
        let one = token_of(&key);
        let counted = |n: usize| (0..n).filter(|_| presented.count(&one, || true)).count();
        assert_eq!(counted(5), 5);
        clock.advance(LIFETIME);
        assert_eq!(counted(2), 2);
        assert!(!presented.is_spent(&one));
        clock.advance(LIFETIME * 9 / 10);
        assert_eq!(counted(9), 5, "uses in the previous generation count");
        assert!(presented.is_spent(&one) && !presented.is_spent(&token_of(&key)));
        assert!(!presented.count(&token_of(&key), || false), "it may not start");
    }

    #[test]
    fn memory_is_bounded() {
        let clock = ManualClock::at(OffsetDateTime::UNIX_EPOCH);
        let presented = UseCounter::new(12, LIFETIME, Clock::Manual(clock.clone()));
        let key = Key::random("a");
        let begun = (0..MAX_TOKENS + 10).filter(|_| presented.count(&token(&key), || true)).count();
        assert_eq!(begun, MAX_TOKENS);
        assert!(presented.is_spent(&token(&key)), "a token that cannot be tracked counts as used up");
        clock.advance(LIFETIME);
        assert!(presented.count(&token(&key), || true), "the next generation has room");
    }
}
