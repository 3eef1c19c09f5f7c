//! How often a token that was issued here is presented, in memory and therefore of one replica.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::secret::TokenHash;

/// Tokens that are remembered at most in each half, in some 5 MB.
const MAX_TOKENS: usize = 50_000;

/// A count for each token, which never goes down. It is kept for one to two times `life`.
#[derive(Debug)]
pub struct Presentations {
    most: u32,
    life: Duration,
    clock: Clock,
    counts: Mutex<Counts>,
}

/// The older half is dropped as a whole, so that nothing has to be looked through.
#[derive(Debug, Default)]
struct Counts {
    begun_at: Duration,
    young: HashMap<TokenHash, u32>,
    old: HashMap<TokenHash, u32>,
}

impl Presentations {
    /// Each token is good for `most`; it has to be of no use after `life`, or it begins anew.
    #[must_use]
    pub fn new(most: u32, life: Duration, clock: Clock) -> Self {
        Self { most, life, clock, counts: Mutex::default() }
    }

    /// Counts one, unless the token has had all of them or there is no room for it. A token that was not seen before is
    /// counted only if `may_begin` says so.
    pub fn count(&self, token: &TokenHash, may_begin: impl FnOnce() -> bool) -> bool {
        let mut counts = self.counts();
        if !counts.young.contains_key(token) {
            let before = counts.old.remove(token);
            if counts.young.len() >= MAX_TOKENS || !(before.is_some() || may_begin()) {
                return false;
            }
            counts.young.insert(*token, before.unwrap_or_default());
        }
        let Some(count) = counts.young.get_mut(token).filter(|count| **count < self.most) else {
            return false;
        };
        *count += 1;
        true
    }

    /// Whether the token has had all of them, or none can be counted: there is no room for it.
    #[must_use]
    pub fn is_spent(&self, token: &TokenHash) -> bool {
        let counts = self.counts();
        let is_full = counts.young.len() >= MAX_TOKENS;
        counts.young.get(token).or_else(|| counts.old.get(token)).map_or(is_full, |count| *count >= self.most)
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        let now = self.clock.elapsed();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(counts.begun_at) >= self.life {
            counts.begun_at = now;
            counts.old = std::mem::take(&mut counts.young);
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

    const LIFE: Duration = Duration::from_mins(15);

    fn token(key: &Key) -> TokenHash {
        Token::issue(key, "test/1", OffsetDateTime::UNIX_EPOCH).hash()
    }

    #[test]
    fn a_token_has_so_many_for_its_whole_life() {
        let clock = ManualClock::at(OffsetDateTime::UNIX_EPOCH);
        let presented = Presentations::new(12, LIFE, Clock::Manual(clock.clone()));
        let (key, token_of) = (Key::random("a"), token);
        let one = token_of(&key);
        let counted = |n: usize| (0..n).filter(|_| presented.count(&one, || true)).count();
        assert_eq!(counted(5), 5);
        clock.advance(LIFE);
        assert_eq!(counted(2), 2);
        assert!(!presented.is_spent(&one));
        clock.advance(LIFE * 9 / 10);
        assert_eq!(counted(9), 5, "what was counted in the half before counts");
        assert!(presented.is_spent(&one) && !presented.is_spent(&token_of(&key)));
        assert!(!presented.count(&token_of(&key), || false), "it may not begin");
    }

    #[test]
    fn memory_is_bounded() {
        let clock = ManualClock::at(OffsetDateTime::UNIX_EPOCH);
        let presented = Presentations::new(12, LIFE, Clock::Manual(clock.clone()));
        let key = Key::random("a");
        let begun = (0..MAX_TOKENS + 10).filter(|_| presented.count(&token(&key), || true)).count();
        assert_eq!(begun, MAX_TOKENS);
        assert!(presented.is_spent(&token(&key)), "one that cannot be counted is worth nothing");
        clock.advance(LIFE);
        assert!(presented.count(&token(&key), || true), "the next half has room");
    }
}
