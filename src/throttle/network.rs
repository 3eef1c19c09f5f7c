//! Rate limits of networks and browsers, in the memory of one replica: the generic cell rate
//! algorithm with bounded memory.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::known_device::OwnerTag;

/// The network of a client's address: an IPv4 address, or the /64 prefix that an IPv6 customer is
/// given.
#[must_use]
pub fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
    }
}

/// The source of a request, which decides its bucket: its network, or the known browsers of one
/// account, because carriers put thousands of users behind one IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A client's IP address.
    Network(IpAddr),
    /// A tag of the email address that a device cookie or ticket counts for, and the client's IP
    /// address. The IP address is included, so that a holder of an old cookie cannot drain the
    /// owner's bucket from elsewhere.
    Owner(OwnerTag, IpAddr),
}

impl Source {
    /// The key of its bucket: the IP address is replaced by its network.
    fn bucket(self) -> Self {
        match self {
            Self::Network(ip) => Self::Network(network_of(ip)),
            Self::Owner(tag, ip) => Self::Owner(tag, network_of(ip)),
        }
    }
}

/// The maximum number of sources that one limiter tracks at once, in about 10 MB.
const MAX_SOURCES: usize = 100_000;

/// A bucket for each source.
#[derive(Debug)]
pub struct Limiter {
    /// `None` disables the limit, for `DEV_NO_LIMITS=1`.
    quota: Option<Quota>,
    clock: Clock,
    buckets: Mutex<Buckets>,
}

#[derive(Clone, Copy, Debug)]
struct Quota {
    burst: u32,
    refill: Duration,
}

#[derive(Debug, Default)]
struct Buckets {
    /// When the bucket of each source will be full again.
    full_at: HashMap<Source, Duration>,
    /// When full buckets were last removed.
    swept_at: Duration,
}

impl Limiter {
    /// A limiter of `burst` units at once and `per_minute` in the long run, both at least 1.
    #[must_use]
    pub fn new(burst: u32, per_minute: u32, clock: Clock) -> Self {
        let quota = Quota { burst: burst.max(1), refill: Duration::from_mins(1) / per_minute.max(1) };
        Self { quota: Some(quota), clock, buckets: Mutex::default() }
    }

    /// A limiter that admits everything, for `DEV_NO_LIMITS=1`.
    #[must_use]
    pub fn unlimited() -> Self {
        Self { quota: None, clock: Clock::system(), buckets: Mutex::default() }
    }

    /// Draws one unit. While 100,000 sources are tracked, requests of other sources are admitted
    /// without being counted: otherwise the limiter would have to forget some sources or to refuse
    /// unknown clients. The bound on guesses does not depend on this limiter.
    ///
    /// # Errors
    ///
    /// The time to wait if the bucket is empty. A refused request draws nothing.
    pub fn admit(&self, source: Source) -> Result<(), Duration> {
        self.draw(source, 1).map(|_| ())
    }

    /// Draws the rest of the price of a request that [`Limiter::admit`] has counted as one unit,
    /// and returns the units drawn. A price above the capacity is reduced to the capacity.
    ///
    /// # Errors
    ///
    /// The time to wait if too few units are left. A refused request draws nothing: the unit of
    /// [`Limiter::admit`] is refunded.
    pub fn charge(&self, source: Source, price: u32) -> Result<u32, Duration> {
        let Some(quota) = self.quota else { return Ok(0) };
        let rest = price.min(quota.burst).saturating_sub(1);
        match self.draw(source, rest) {
            Ok(drawn) => Ok(drawn),
            Err(wait) => {
                self.refund(source, 1);
                Err(wait)
            }
        }
    }

    /// Returns units to a bucket, because the request turned out to cost less.
    pub fn refund(&self, source: Source, units: u32) {
        let Some(quota) = self.quota else { return };
        // A missing bucket is full.
        if let Some(full_at) = self.buckets().full_at.get_mut(&source.bucket()) {
            *full_at = full_at.saturating_sub(quota.refill * units);
        }
    }

    /// Draws `units` at once, or none. Returns the units drawn: 0 if the source cannot be tracked.
    fn draw(&self, source: Source, units: u32) -> Result<u32, Duration> {
        let Some(quota) = self.quota else { return Ok(0) };
        let now = self.clock.elapsed();
        let mut buckets = self.buckets();
        let Some(full_at) = buckets.of(source, now) else { return Ok(0) };
        let next = (*full_at).max(now) + quota.refill * units;
        let wait = next.saturating_sub(now + quota.refill * quota.burst);
        if !wait.is_zero() {
            return Err(wait);
        }
        *full_at = next;
        Ok(units)
    }

    /// Removes the sources whose bucket is full and returns how many are left.
    #[must_use]
    pub fn sweep(&self) -> usize {
        let now = self.clock.elapsed();
        let mut buckets = self.buckets();
        buckets.sweep(now);
        buckets.full_at.len()
    }

    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    /// When the bucket of a source will be full; `None` if the source is not tracked and no more
    /// sources can be.
    fn of(&mut self, source: Source, now: Duration) -> Option<&mut Duration> {
        const SWEEP_EVERY: Duration = Duration::from_secs(1);
        let source = source.bucket();
        if self.full_at.len() >= MAX_SOURCES && now.saturating_sub(self.swept_at) >= SWEEP_EVERY {
            self.sweep(now);
        }
        if self.full_at.len() >= MAX_SOURCES {
            return self.full_at.get_mut(&source);
        }
        Some(self.full_at.entry(source).or_default())
    }

    fn sweep(&mut self, now: Duration) {
        self.swept_at = now;
        self.full_at.retain(|_, full_at| *full_at > now);
        self.full_at.shrink_to_fit();
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
        let limiter = Limiter::new(30, 60, Clock::Manual(clock.clone()));
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
    fn a_higher_price_is_drawn_in_full_or_not_at_all_and_can_be_refunded() {
        let clock = ManualClock::at(OffsetDateTime::UNIX_EPOCH + DAY);
        let limiter = Limiter::new(30, 60, Clock::Manual(clock.clone()));
        let client = Source::Network(IpAddr::from([203, 0, 113, 7]));
        let draws = |price| limiter.admit(client).and_then(|()| limiter.charge(client, price));
        assert_eq!(draws(1), Ok(0));
        assert_eq!(draws(12), Ok(11));
        assert_eq!(draws(12), Ok(11));
        assert_eq!(draws(12), Err(Duration::from_secs(7)), "5 of 30 are left");
        assert_eq!(draws(12), Err(Duration::from_secs(7)), "a refused one costs nothing");
        limiter.refund(client, 11);
        assert_eq!(draws(12), Ok(11));
        clock.advance(Duration::from_mins(1));
        assert_eq!(draws(1000), Ok(29), "one always passes");
        limiter.refund(client, 1000);
        assert_eq!(
            (0..40).filter(|_| limiter.admit(client).is_ok()).count(),
            30,
            "a bucket never holds more"
        );
    }

    #[test]
    fn networks_beyond_the_memory_bound_are_admitted() {
        let clock = ManualClock::at(OffsetDateTime::UNIX_EPOCH + DAY);
        let limiter = Limiter::new(1, 60, Clock::Manual(clock.clone()));
        let source = |n: u32| Source::Network(IpAddr::from(n.to_be_bytes()));
        assert!((0..300_000).all(|n| limiter.admit(source(n)).is_ok()));
        assert_eq!(limiter.sweep(), MAX_SOURCES);
        assert!((0..100).all(|_| limiter.admit(source(300_000)).is_ok()), "no room to count one more");
        assert!(limiter.admit(source(0)).is_err(), "those that are counted go on to be");
        clock.advance(Duration::from_secs(2));
        assert!(limiter.admit(source(300_000)).is_ok());
        assert_eq!(limiter.admit(source(300_000)), Err(Duration::from_secs(1)));
        assert_eq!(limiter.sweep(), 1);
    }

    #[test]
    fn an_ipv6_customer_is_one_network() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3::4"), network("2001:db8:1:2:ffff::1"));
        assert_ne!(network("2001:db8:1:2::"), network("2001:db8:1:3::"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
