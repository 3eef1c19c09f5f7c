//! A line now and then on standard error, so that a long command shows it is alive: often for eyes, seldom for a log.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use crate::terminal;

pub(super) struct Progress {
    began: Instant,
    told: Instant,
    every: Duration,
}

impl Progress {
    pub(super) fn begin() -> Self {
        let every = Duration::from_secs(if std::io::stderr().is_terminal() { 1 } else { 10 });
        Self { began: Instant::now(), told: Instant::now(), every }
    }

    /// Prints a line if it is time for one. `line` is given how many are done in a second.
    pub(super) fn tell(&mut self, done: u64, line: impl FnOnce(u128) -> String) {
        if self.told.elapsed() < self.every {
            return;
        }
        self.told = Instant::now();
        terminal::error_line(line(u128::from(done) * 1000 / self.began.elapsed().as_millis().max(1)));
    }
}
