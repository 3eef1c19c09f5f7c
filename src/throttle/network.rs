//! The budget of a network or a browser, in memory: governor's, with a bound on what it remembers.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use governor::clock::Clock as GovernorClock;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::{Quota, RateLimiter};

use crate::clock::Clock;
use crate::known_device::DeviceId;

/// What a client's address counts as: an IPv4 address, or the /64 that an IPv6 customer is given.
#[must_use]
pub fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// Whose budget a request draws on: its network's, or that of a browser that has signed in before, as carriers put
/// thousands of people behind one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A client's address.
    Network(IpAddr),
    /// A device cookie that was issued here.
    Device(DeviceId),
}

type Limiter = RateLimiter<Source, DashMapStateStore<Source>, Clock, NoOpMiddleware<Duration>>;

/// Sources that are remembered at most, in some 10 MB.
const MAX_SOURCES: usize = 100_000;

/// The budget of each source, in memory and therefore of one replica.
#[derive(Debug)]
pub struct NetworkLimiter {
    limiter: Option<Limiter>,
    clock: Clock,
    /// Requests since the last sweep: no more sources can be new since.
    since_sweep: AtomicUsize,
    /// Whether half of the room was still taken after it.
    is_full: AtomicBool,
}

impl NetworkLimiter {
    /// `burst` requests at once and `per_minute` in the long run, both at least 1.
    #[must_use]
    pub fn new(burst: u32, per_minute: u32, clock: Clock) -> Self {
        let at_least_one = |n| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_minute(at_least_one(per_minute)).allow_burst(at_least_one(burst));
        Self::of(Some(RateLimiter::dashmap_with_clock(quota, clock.clone())), clock)
    }

    /// A limiter that lets everything pass, for `DEV_NO_LIMITS=1`.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::of(None, Clock::system())
    }

    fn of(limiter: Option<Limiter>, clock: Clock) -> Self {
        Self { limiter, clock, since_sweep: AtomicUsize::new(0), is_full: AtomicBool::new(false) }
    }

    /// Counts a request. While tens of thousands of sources ask at once, everybody passes: the budget would have to
    /// forget somebody or to refuse strangers, and the bound on codes does not rest on it.
    ///
    /// # Errors
    ///
    /// How long to wait, if the budget is spent; the refused request costs nothing.
    pub fn admit(&self, source: Source) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else {
            return Ok(());
        };
        if self.since_sweep.fetch_add(1, Ordering::Relaxed) == MAX_SOURCES / 2 {
            let _ = self.sweep();
        }
        if self.is_full.load(Ordering::Relaxed) {
            return Ok(());
        }
        let source = match source {
            Source::Network(ip) => Source::Network(network_of(ip)),
            device @ Source::Device(_) => device,
        };
        limiter.check_key(&source).map_err(|refused| refused.wait_time_from(GovernorClock::now(&self.clock)))
    }

    /// Forgets the networks whose budget is full again, and says how many are left.
    #[must_use]
    pub fn sweep(&self) -> usize {
        let Some(limiter) = &self.limiter else { return 0 };
        self.since_sweep.store(0, Ordering::Relaxed);
        limiter.retain_recent();
        limiter.shrink_to_fit();
        self.is_full.store(limiter.len() >= MAX_SOURCES / 2, Ordering::Relaxed);
        limiter.len()
    }
}

impl GovernorClock for Clock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::clock::ManualClock;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn a_network_has_a_burst_and_then_its_rate() {
        let clock = ManualClock::at(OffsetDateTime::UNIX_EPOCH + DAY);
        let limiter = NetworkLimiter::new(30, 60, Clock::Manual(clock.clone()));
        let client = Source::Network(IpAddr::from([203, 0, 113, 7]));
        assert_eq!((0..40).filter(|_| limiter.admit(client).is_ok()).count(), 30);
        assert_eq!(limiter.admit(client), Err(Duration::from_secs(1)));
        assert!(limiter.admit(Source::Network(IpAddr::from([203, 0, 113, 8]))).is_ok());
        clock.advance(Duration::from_secs(5));
        assert_eq!((0..40).filter(|_| limiter.admit(client).is_ok()).count(), 5);
        assert_eq!(limiter.sweep(), 1);
        clock.advance(Duration::from_mins(1));
        assert_eq!(limiter.sweep(), 0);
    }

    #[test]
    fn so_many_networks_that_memory_would_run_out_are_let_through() {
        let clock = ManualClock::at(OffsetDateTime::UNIX_EPOCH + DAY);
        let limiter = NetworkLimiter::new(1, 60, Clock::Manual(clock.clone()));
        let source = |n: u32| Source::Network(IpAddr::from(n.to_be_bytes()));
        assert!((0..300_000).all(|n| limiter.admit(source(n)).is_ok()));
        assert!(limiter.sweep() <= MAX_SOURCES);
        assert!((0..100).all(|_| limiter.admit(source(0)).is_ok()), "it counts nobody while it is full");
        clock.advance(Duration::from_secs(2));
        assert_eq!(limiter.sweep(), 0);
        assert!(limiter.admit(source(0)).is_ok());
        assert_eq!(limiter.admit(source(0)), Err(Duration::from_secs(1)));
    }

    #[test]
    fn an_ipv6_customer_is_one_network() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3::4"), network("2001:db8:1:2:ffff::1"));
        assert_ne!(network("2001:db8:1:2::"), network("2001:db8:1:3::"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
