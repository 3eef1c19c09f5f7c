//! Demotion: a relay that refuses emails by policy is tried last for a while. A demotion has no
//! other effect, because sends must not change what `start` can see.

use std::time::Duration;

use tokio::time::Instant;

/// The number of recipient domains that a relay must refuse by policy, without accepting an email
/// in between, to be demoted. If fewer are refused, the cause may be the domains, not the relay.
const DOMAINS: usize = 3;
/// The first demotion's duration. It doubles with each demotion, until the relay accepts an email.
const MIN_DURATION: Duration = Duration::from_secs(30);
/// The longest duration of a demotion.
const MAX_DURATION: Duration = Duration::from_mins(5);

/// Whether one relay is demoted, and the refusals that lead to that.
#[derive(Debug, Default)]
pub(super) struct Demotion {
    /// The recipient domains that the relay has refused since it last accepted an email or was
    /// demoted; fewer than [`DOMAINS`].
    refused: Vec<String>,
    until: Option<Instant>,
    /// How often the relay was demoted since it last accepted an email.
    times: u32,
}

impl Demotion {
    /// Records that the relay refused an email to this domain by policy. Returns the duration if
    /// that demotes the relay.
    pub(super) fn record_refusal(&mut self, domain: &str, now: Instant) -> Option<Duration> {
        if self.is_active(now) || self.refused.iter().any(|refused| refused == domain) {
            return None;
        }
        self.refused.push(domain.to_owned());
        if self.refused.len() < DOMAINS {
            return None;
        }
        self.refused.clear();
        let duration = MIN_DURATION.saturating_mul(1 << self.times.min(8)).min(MAX_DURATION);
        self.times = self.times.saturating_add(1);
        self.until = Some(now + duration);
        Some(duration)
    }

    /// Records that the relay accepted an email, which ends a demotion and resets the counts.
    /// Returns whether the relay was demoted.
    pub(super) fn record_acceptance(&mut self) -> bool {
        std::mem::take(self).until.is_some()
    }

    /// Whether the relay is demoted.
    pub(super) fn is_active(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Ends a demotion whose time has passed. Returns whether there was one.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        self.until.take_if(|until| *until <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuse_three_domains(demotion: &mut Demotion, now: Instant) -> Option<u64> {
        assert_eq!(demotion.record_refusal("a.example", now), None);
        assert_eq!(demotion.record_refusal("b.example", now), None);
        demotion.record_refusal("c.example", now).map(|time| time.as_secs())
    }

    #[test]
    fn three_refused_domains_demote_for_a_time_that_doubles_to_its_bound() {
        let (mut demotion, mut now) = (Demotion::default(), Instant::now());
        for seconds in [30, 60, 120, 240, 300, 300] {
            assert_eq!(refuse_three_domains(&mut demotion, now), Some(seconds));
            now += Duration::from_secs(seconds - 1);
            assert!(demotion.is_active(now) && !demotion.expire(now));
            // Refusals of a demoted relay do not prolong the demotion.
            assert_eq!(refuse_three_domains(&mut demotion, now), None);
            now += Duration::from_secs(1);
            assert!(!demotion.is_active(now) && demotion.expire(now) && !demotion.expire(now));
        }
        demotion.times = u32::MAX - 1;
        assert_eq!(refuse_three_domains(&mut demotion, now), Some(300));
    }

    #[test]
    fn an_accepted_email_clears_everything() {
        let (mut demotion, now) = (Demotion::default(), Instant::now());
        assert_eq!(refuse_three_domains(&mut demotion, now), Some(30));
        assert!(demotion.record_acceptance() && !demotion.is_active(now));
        assert_eq!(demotion.record_refusal("a.example", now), None);
        assert_eq!(demotion.record_refusal("b.example", now), None);
        assert!(!demotion.record_acceptance(), "it was not demoted");
        assert_eq!(refuse_three_domains(&mut demotion, now), Some(30), "from the beginning");
    }

    #[test]
    fn one_domain_is_counted_once() {
        let (mut demotion, now) = (Demotion::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(demotion.record_refusal("a.example", now), None);
            assert_eq!(demotion.record_refusal("b.example", now), None);
        }
        assert!(demotion.record_refusal("c.example", now).is_some());
    }
}
