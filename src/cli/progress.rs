//! Progress of long commands on standard error: a line every second on a terminal, otherwise every
//! ten seconds.

use std::convert::Infallible;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::terminal;

/// Prints `text` when `stop` is cancelled, and never returns: the command first finishes its
/// current step.
pub(super) async fn announce_stop(stop: &CancellationToken, text: &str) -> Infallible {
    stop.cancelled().await;
    terminal::error_line(text);
    std::future::pending().await
}

pub(super) struct Progress {
    began: Instant,
    printed: Instant,
    interval: Duration,
}

impl Progress {
    pub(super) fn begin() -> Self {
        let interval = Duration::from_secs(if std::io::stderr().is_terminal() { 1 } else { 10 });
        Self { began: Instant::now(), printed: Instant::now(), interval }
    }

    /// Prints the line that `line` makes of the rate (items a second), at most once per interval.
    pub(super) fn report(&mut self, done: u64, line: impl FnOnce(u128) -> String) {
        if self.printed.elapsed() < self.interval {
            return;
        }
        self.printed = Instant::now();
        terminal::error_line(line(u128::from(done) * 1000 / self.began.elapsed().as_millis().max(1)));
    }
}
