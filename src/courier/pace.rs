//! When the courier's next round is due, and how many rows it looks through.

use std::time::Duration;

use tokio::time::Instant;

use crate::outbox::{Claim, WINDOW};

/// Claims are at least this far apart. Each is a commit of its own; one after every commit of a start would have the two
/// wait for each other's flush (docs/decisions/0002).
const CALM: Duration = Duration::from_millis(30);
/// The same while more emails are pending than the relays have free slots: then emails wait for claims. Rounds are at least
/// this far apart, from the end of one to the next, so that one deletes what several slots have delivered.
pub(super) const BUSY: Duration = Duration::from_millis(2);
/// Rows that a claim looks through for each free slot, at first.
const ROWS_PER_SLOT: usize = 8;

/// What the rounds so far say about the next one.
#[derive(Debug)]
pub(super) struct Pace {
    claimed_at: Instant,
    rows_per_slot: usize,
    /// Rows that the last round could look through; 0 if it only deleted.
    window: usize,
    /// Due rows were left, and slots for them.
    more: bool,
    /// More emails are pending than slots are free.
    emails_wait: bool,
}

/// What a claim found, as far as the pace depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// Emails that were claimed.
    pub(super) claimed: usize,
    /// Rows that were finished without an email.
    pub(super) finished: usize,
    /// Whether the window was full, so that there may be more rows.
    pub(super) more: bool,
}

impl From<&Claim> for Found {
    fn from(claim: &Claim) -> Self {
        let finished = usize::try_from(claim.finished()).unwrap_or(WINDOW);
        Self { claimed: claim.mails.len(), finished, more: claim.more }
    }
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            claimed_at: now,
            rows_per_slot: ROWS_PER_SLOT,
            window: WINDOW,
            more: false,
            emails_wait: false,
        }
    }

    /// How many rows the next claim looks through, with so many slots free. Without a slot, rows that need no email are
    /// still finished.
    pub(super) const fn window(&self, free: usize) -> usize {
        let window = free * self.rows_per_slot;
        if free == 0 || window > WINDOW { WINDOW } else { window }
    }

    /// A round that claims begins.
    pub(super) fn begins_claim(&mut self, now: Instant) {
        self.claimed_at = now;
    }

    /// Takes a claim into account that had so many slots free, while others were `busy`.
    pub(super) fn learn(&mut self, found: Found, slots: usize, window: usize, busy: bool) {
        let full = slots > 0 && found.claimed == slots;
        // A small window may have held nothing but rows that another replica was claiming.
        let looked_through = found.finished == 0 && window == WINDOW;
        self.window = window;
        self.emails_wait = full || (slots == 0 && busy);
        self.more = found.more && !full && !looked_through;
        if full {
            self.rows_per_slot = (found.claimed + found.finished).div_ceil(found.claimed);
        } else if found.more {
            self.rows_per_slot = (self.rows_per_slot * 2).min(WINDOW);
        }
    }

    /// A round only deleted.
    pub(super) fn deleted(&mut self) {
        self.window = 0;
    }

    /// A round failed: the next poll looks everywhere.
    pub(super) fn fail(&mut self) {
        (self.more, self.emails_wait) = (false, false);
    }

    /// The earliest time of the next claim.
    pub(super) fn next_claim(&self) -> Instant {
        let busy = self.emails_wait || (self.more && self.window < WINDOW);
        self.claimed_at + if busy { BUSY } else { CALM }
    }

    /// Whether the next claim is due without being woken.
    pub(super) const fn has_more(&self) -> bool {
        self.more
    }

    /// Whether emails wait for a slot, so that a slot that becomes free is a reason to claim.
    pub(super) const fn emails_wait(&self) -> bool {
        self.emails_wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pace after one claim, with the time of that claim.
    fn after(claimed: usize, finished: usize, more: bool, slots: usize, busy: bool) -> (Pace, Instant) {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let window = pace.window(slots);
        pace.learn(Found { claimed, finished, more }, slots, window, busy);
        (pace, now)
    }

    #[test]
    fn a_claim_looks_through_as_many_rows_as_fill_the_slots() {
        let mut pace = Pace::new(Instant::now());
        let mut window_after = |claimed: usize, finished: usize, more: bool| {
            let window = pace.window(4);
            pace.learn(Found { claimed, finished, more }, 4, window, false);
            pace.window(4)
        };
        assert_eq!(window_after(4, 0, true), 4, "every row is an email");
        assert_eq!(window_after(0, 4, true), 8, "none was");
        assert_eq!(window_after(4, 9, true), 16, "one in four is");
        assert_eq!(window_after(0, 3, false), 16, "there were no more rows");
        for _ in 0..20 {
            window_after(0, 16, true);
        }
        assert_eq!(window_after(0, 16, true), WINDOW);
        assert_eq!(pace.window(0), WINDOW, "rows that need no email are finished without a slot");
    }

    #[test]
    fn full_slots_make_the_next_claim_wait_for_a_slot_and_come_soon() {
        let (pace, claimed_at) = after(4, 0, true, 4, true);
        assert!(pace.emails_wait() && !pace.has_more());
        assert_eq!(pace.next_claim(), claimed_at + BUSY);
        let (pace, _) = after(0, 0, false, 0, true);
        assert!(pace.emails_wait(), "no slot was free");
        let (pace, _) = after(0, 0, false, 0, false);
        assert!(!pace.emails_wait(), "no slot is taken, so none becomes free");
    }

    #[test]
    fn rows_beyond_a_small_window_are_claimed_soon_and_beyond_a_whole_one_calmly() {
        let (mut pace, claimed_at) = after(1, 31, true, 4, true);
        assert!(pace.has_more() && !pace.emails_wait());
        assert_eq!(pace.next_claim(), claimed_at + BUSY);
        pace.learn(Found { claimed: 1, finished: 1999, more: true }, 4, WINDOW, true);
        assert!(pace.has_more());
        assert_eq!(pace.next_claim(), claimed_at + CALM);
    }

    #[test]
    fn a_whole_window_of_rows_that_others_claim_is_not_looked_through_again_at_once() {
        let (mut pace, claimed_at) = after(0, 0, true, 4, false);
        assert!(pace.has_more(), "the window was small");
        pace.learn(Found { claimed: 0, finished: 0, more: true }, 4, WINDOW, false);
        assert!(!pace.has_more());
        assert_eq!(pace.next_claim(), claimed_at + CALM);
    }

    #[test]
    fn after_a_failure_nothing_is_expected() {
        let (mut pace, claimed_at) = after(4, 0, true, 4, true);
        pace.fail();
        assert!(!pace.has_more() && !pace.emails_wait());
        assert_eq!(pace.next_claim(), claimed_at + CALM);
    }
}
