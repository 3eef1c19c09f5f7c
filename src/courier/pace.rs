//! When the courier's next round is due, and how many rows it looks through.

use std::time::Duration;

use tokio::time::Instant;

use crate::outbox::{Claim, WINDOW};

/// The shortest time between two claims. Each claim is a commit; with one after every commit of a
/// start, the two would wait for each other's flush (docs/decisions/0002).
const CLAIM_INTERVAL: Duration = Duration::from_millis(30);
/// The shortest time between two claims while more emails are due than the relays have free slots,
/// because emails then wait for claims. It is also the shortest pause between two rounds, so that
/// one round deletes the rows of several slots.
pub(super) const MIN_PAUSE: Duration = Duration::from_millis(2);
/// Rows that the first claim looks through for each free slot.
const ROWS_PER_SLOT: usize = 8;

/// The pace of the rounds, from the results of the rounds so far.
#[derive(Debug)]
pub(super) struct Pace {
    claimed_at: Instant,
    rows_per_slot: usize,
    /// The most rows that the last round may have looked through; 0 if it only deleted.
    window: usize,
    /// Whether the last claim left due rows and free slots.
    more: bool,
    /// Whether more emails are due than slots are free.
    needs_slot: bool,
}

/// What the pace needs to know of a claim.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClaimCounts {
    /// Emails claimed.
    pub(super) claimed: usize,
    /// Rows deleted because they need no email.
    pub(super) finished: usize,
    /// Whether the window was full, so that there may be more rows.
    pub(super) more: bool,
}

impl From<&Claim> for ClaimCounts {
    fn from(claim: &Claim) -> Self {
        let finished = usize::try_from(claim.finished()).unwrap_or(WINDOW);
        Self { claimed: claim.mails.len(), finished, more: claim.more }
    }
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { claimed_at: now, rows_per_slot: ROWS_PER_SLOT, window: WINDOW, more: false, needs_slot: false }
    }

    /// How many rows the next claim looks through when `free` slots are free. With none free, it
    /// looks through a whole [`WINDOW`] for rows that need no email.
    pub(super) const fn window(&self, free: usize) -> usize {
        let window = free * self.rows_per_slot;
        if free == 0 || window > WINDOW { WINDOW } else { window }
    }

    /// Records that a round starts to claim.
    pub(super) fn start_claim(&mut self, now: Instant) {
        self.claimed_at = now;
    }

    /// Records a claim that had `slots` free slots. `is_sending` says whether other emails were
    /// being sent.
    pub(super) fn record_claim(
        &mut self,
        counts: ClaimCounts,
        slots: usize,
        window: usize,
        is_sending: bool,
    ) {
        let full = slots > 0 && counts.claimed == slots;
        // If a whole window had no row to delete, other replicas are claiming its remaining rows.
        // After a small window, the next claim looks through a larger one.
        let window_is_claimed = counts.finished == 0 && window == WINDOW;
        self.window = window;
        self.needs_slot = full || (slots == 0 && is_sending);
        self.more = counts.more && !full && !window_is_claimed;
        if full {
            self.rows_per_slot = (counts.claimed + counts.finished).div_ceil(counts.claimed);
        } else if counts.more {
            self.rows_per_slot = (self.rows_per_slot * 2).min(WINDOW);
        }
    }

    /// Records a round that only deleted.
    pub(super) fn record_deletion(&mut self) {
        self.window = 0;
    }

    /// Records a failed round. The next poll looks through the whole outbox.
    pub(super) fn record_failure(&mut self) {
        (self.more, self.needs_slot) = (false, false);
    }

    /// The earliest time of the next claim.
    pub(super) fn next_claim(&self) -> Instant {
        let busy = self.needs_slot || (self.more && self.window < WINDOW);
        self.claimed_at + if busy { MIN_PAUSE } else { CLAIM_INTERVAL }
    }

    /// Whether the next claim is due without a wakeup.
    pub(super) const fn has_more(&self) -> bool {
        self.more
    }

    /// Whether emails wait for a slot. If so, a slot that becomes free makes the next claim due.
    pub(super) const fn needs_slot(&self) -> bool {
        self.needs_slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pace after one claim, and the time of that claim.
    fn after(claimed: usize, finished: usize, more: bool, slots: usize, is_sending: bool) -> (Pace, Instant) {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        let window = pace.window(slots);
        pace.record_claim(ClaimCounts { claimed, finished, more }, slots, window, is_sending);
        (pace, now)
    }

    #[test]
    fn a_claim_looks_through_as_many_rows_as_fill_the_slots() {
        let mut pace = Pace::new(Instant::now());
        let mut window_after = |claimed: usize, finished: usize, more: bool| {
            let window = pace.window(4);
            pace.record_claim(ClaimCounts { claimed, finished, more }, 4, window, false);
            pace.window(4)
        };
        assert_eq!(window_after(4, 0, true), 4, "every row needs an email");
        assert_eq!(window_after(0, 4, true), 8, "no row did");
        assert_eq!(window_after(4, 9, true), 16, "one row in four does");
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
        assert!(pace.needs_slot() && !pace.has_more());
        assert_eq!(pace.next_claim(), claimed_at + MIN_PAUSE);
        let (pace, _) = after(0, 0, false, 0, true);
        assert!(pace.needs_slot(), "no slot was free");
        let (pace, _) = after(0, 0, false, 0, false);
        assert!(!pace.needs_slot(), "no slot is in use, so none becomes free");
    }

    #[test]
    fn rows_beyond_a_small_window_are_claimed_soon_and_beyond_a_whole_one_calmly() {
        let (mut pace, claimed_at) = after(1, 31, true, 4, true);
        assert!(pace.has_more() && !pace.needs_slot());
        assert_eq!(pace.next_claim(), claimed_at + MIN_PAUSE);
        pace.record_claim(ClaimCounts { claimed: 1, finished: 1999, more: true }, 4, WINDOW, true);
        assert!(pace.has_more());
        assert_eq!(pace.next_claim(), claimed_at + CLAIM_INTERVAL);
    }

    #[test]
    fn a_whole_window_of_rows_that_others_claim_is_not_looked_through_again_at_once() {
        let (mut pace, claimed_at) = after(0, 0, true, 4, false);
        assert!(pace.has_more(), "the window was small");
        pace.record_claim(ClaimCounts { claimed: 0, finished: 0, more: true }, 4, WINDOW, false);
        assert!(!pace.has_more());
        assert_eq!(pace.next_claim(), claimed_at + CLAIM_INTERVAL);
    }

    #[test]
    fn after_a_failure_nothing_is_expected() {
        let (mut pace, claimed_at) = after(4, 0, true, 4, true);
        pace.record_failure();
        assert!(!pace.has_more() && !pace.needs_slot());
        assert_eq!(pace.next_claim(), claimed_at + CLAIM_INTERVAL);
    }
}
