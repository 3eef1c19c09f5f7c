//! What clients saw of one loss.

use std::time::Duration;

use vos_auth_lab::ledger::{Kept, Verdict, Window};
use vos_auth_lab::starts::Start;

use super::PENDING;
use super::faults::Kind;

pub struct Row {
    window: Window<Kind>,
    /// The time from the loss to the end of the longest pause between two accepted starts. Zero if
    /// that pause was shorter than a second.
    served_again: Duration,
    /// The longest time that a client waited for a start that was not answered 200.
    longest: Duration,
    verdict: Verdict<Kind>,
}

impl Row {
    /// Evaluates the starts that ended between the moment when the relay was frozen and the moment
    /// when the lost machine was a synchronous standby again.
    pub fn of(window: Window<Kind>, starts: &[Start], kept: &[Kept]) -> Self {
        let is_in = |start: &&Start| (window.from - PENDING..window.to).contains(&start.ended_at);
        let mut starts: Vec<_> = starts.iter().filter(is_in).cloned().collect();
        starts.sort_by_key(|start| start.ended_at);
        let asked: std::collections::HashSet<_> = starts.iter().map(|start| start.number).collect();
        let is_asked = |mail: &&Kept| mail.number().is_some_and(|number| asked.contains(&number));
        let kept: Vec<_> = kept.iter().filter(is_asked).cloned().collect();
        let accepted = starts.iter().filter(|start| start.status == Some(200)).map(|start| start.ended_at);
        // The pause is the longest time between two accepted starts.
        let times: Vec<_> = std::iter::once(window.from).chain(accepted).collect();
        let longest = times.windows(2).map(|pair| (pair[1] - pair[0], pair[1])).max();
        let served_again =
            longest.filter(|(pause, _)| pause.whole_seconds() > 0).map(|(_, end)| end - window.from);
        let failed = starts.iter().filter(|start| start.status != Some(200));
        Self {
            window,
            served_again: served_again.and_then(|time| time.try_into().ok()).unwrap_or_default(),
            longest: failed.map(|start| start.took).max().unwrap_or_default(),
            verdict: Verdict::of(&starts, &kept, &[window]),
        }
    }

    pub fn head() {
        println!(
            "\nloss            serves again   redundant again   accepted   502   other   none   longest   mails   lost   twice"
        );
    }

    pub fn is_told(&self) {
        let verdict = &self.verdict;
        let (accepted, failed, none) =
            (verdict.answered("200"), verdict.answered("502"), verdict.answered("none"));
        let other = verdict.answers.values().sum::<usize>() - accepted - failed - none;
        println!(
            "{:15} {:>10.1} s {:>15.0} s {accepted:10} {failed:5} {other:7} {none:6} {:>7.1} s {:7} {:6} {:7}",
            format!("{:?}", self.window.kind),
            self.served_again.as_secs_f64(),
            (self.window.to - self.window.from).as_seconds_f64(),
            self.longest.as_secs_f64(),
            verdict.mails,
            verdict.lost.len(),
            verdict.twice(),
        );
    }
}
