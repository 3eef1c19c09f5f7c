//! A relay's place in the courier's order. One that refuses mails by policy is asked last for a while; nothing else
//! depends on it (promise 6).

use std::time::Duration;

use tokio::time::Instant;

/// So many recipient domains refused, with no mail taken in between, put a relay last. One domain alone may be the reason
/// itself.
const DOMAINS: usize = 3;
/// For how long at first; it doubles each time that no mail was taken in between.
const SHORTEST: Duration = Duration::from_secs(30);
/// And at most.
const LONGEST: Duration = Duration::from_mins(5);

/// What mails have met with at one relay. As new: in its place.
#[derive(Debug, Default)]
pub(super) struct Demotion {
    /// The domains that it has refused in its place since it last took a mail; fewer than [`DOMAINS`].
    refused: Vec<String>,
    last_until: Option<Instant>,
    /// How often it was put last since it last took a mail.
    times: u32,
}

impl Demotion {
    /// It refused a mail to this domain by policy. Gives for how long it is asked last, if this puts it there.
    pub(super) fn refuses(&mut self, domain: &str, now: Instant) -> Option<Duration> {
        if self.is_last(now) || self.refused.iter().any(|refused| refused == domain) {
            return None;
        }
        self.refused.push(domain.to_owned());
        if self.refused.len() < DOMAINS {
            return None;
        }
        self.refused.clear();
        let time = SHORTEST.saturating_mul(1 << self.times.min(8)).min(LONGEST);
        self.times = self.times.saturating_add(1);
        self.last_until = Some(now + time);
        Some(time)
    }

    /// It took a mail, so that nothing is held against it any more. Gives whether it was last until now.
    pub(super) fn takes(&mut self) -> bool {
        std::mem::take(self).last_until.is_some()
    }

    /// Whether it is asked last.
    pub(super) fn is_last(&self, now: Instant) -> bool {
        self.last_until.is_some_and(|until| now < until)
    }

    /// Whether its time as the last one is over; true once.
    pub(super) fn returns(&mut self, now: Instant) -> bool {
        self.last_until.take_if(|until| *until <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_put_last(demotion: &mut Demotion, now: Instant) -> Option<u64> {
        assert_eq!(demotion.refuses("a.example", now), None);
        assert_eq!(demotion.refuses("b.example", now), None);
        demotion.refuses("c.example", now).map(|time| time.as_secs())
    }

    #[test]
    fn three_domains_put_it_last_for_a_time_that_doubles_to_its_bound() {
        let (mut demotion, mut now) = (Demotion::default(), Instant::now());
        for seconds in [30, 60, 120, 240, 300, 300] {
            assert_eq!(is_put_last(&mut demotion, now), Some(seconds));
            now += Duration::from_secs(seconds - 1);
            assert!(demotion.is_last(now) && !demotion.returns(now));
            // What it refuses as the last one makes it no later.
            assert_eq!(is_put_last(&mut demotion, now), None);
            now += Duration::from_secs(1);
            assert!(!demotion.is_last(now) && demotion.returns(now) && !demotion.returns(now));
        }
        demotion.times = u32::MAX - 1;
        assert_eq!(is_put_last(&mut demotion, now), Some(300));
    }

    #[test]
    fn a_mail_that_it_takes_clears_everything() {
        let (mut demotion, now) = (Demotion::default(), Instant::now());
        assert_eq!(is_put_last(&mut demotion, now), Some(30));
        assert!(demotion.takes() && !demotion.is_last(now));
        assert_eq!(demotion.refuses("a.example", now), None);
        assert_eq!(demotion.refuses("b.example", now), None);
        assert!(!demotion.takes(), "it was in its place");
        assert_eq!(is_put_last(&mut demotion, now), Some(30), "from the beginning");
    }

    #[test]
    fn one_domain_is_counted_once() {
        let (mut demotion, now) = (Demotion::default(), Instant::now());
        for _ in 0..10 {
            assert_eq!(demotion.refuses("a.example", now), None);
            assert_eq!(demotion.refuses("b.example", now), None);
        }
        assert!(demotion.refuses("c.example", now).is_some());
    }
}
