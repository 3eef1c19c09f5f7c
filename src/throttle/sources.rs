//! The limits that one replica keeps in memory, for networks and for the known browsers of an
//! account.

use std::time::Duration;

use super::network::{Limiter, Source};
use super::use_counter::UseCounter;
use crate::clock::Clock;
use crate::config::{RESET_LIFETIME, RateLimitSettings};
use crate::secret::TokenHash;

/// The number of requests that a recovery cookie admits by itself: five codes, refused passwords,
/// and reads of the progress.
const REQUESTS_A_COOKIE: u32 = 12;
/// How often a session token that this service issued may be refused before it counts as a forged
/// one. Open tabs of a browser may all present the token of a session that has ended.
const REFUSALS_A_TOKEN: u32 = 3;
/// How many calls of the admin API without a valid credential a network may make at once, and how
/// many a minute in the long run. A low limit is enough, because operators are few.
const UNKNOWN_OPERATORS: (u32, u32) = (10, 6);

/// A bucket for each source and kind of request, so that one kind does not drain the bucket of
/// another.
#[derive(Debug)]
pub struct SourceLimits {
    /// Requests that cost an email or one of this service's own hashes: start, a new password while
    /// signed in, the stop of an address change.
    pub requests: Limiter,
    /// Logins, which may cost a slower hash. They have their own bucket, so that a few failures do
    /// not block every other request of a network.
    pub logins: Limiter,
    /// Requests of a recovery that its cookie does not admit by itself.
    pub recoveries: Limiter,
    /// Look-ups of session tokens that are forged, or whose session has ended.
    pub unknown_tokens: Limiter,
    /// Calls of the admin API without a valid credential.
    pub unknown_operators: Limiter,
    /// Recovery cookies that are presented for the first time.
    new_cookies: Limiter,
    cookies: UseCounter,
    refused_tokens: UseCounter,
}

impl SourceLimits {
    /// The limits of the settings.
    #[must_use]
    pub fn new(settings: &RateLimitSettings, clock: &Clock) -> Self {
        let (burst, per_minute) = (settings.network_burst, settings.network_per_minute);
        let limiter = |burst| Limiter::new(burst, per_minute, clock.clone());
        let operators = Limiter::new(UNKNOWN_OPERATORS.0, UNKNOWN_OPERATORS.1, clock.clone());
        Self::of(|| limiter(burst), limiter(per_minute), operators, clock)
    }

    /// No limits, for `DEV_NO_LIMITS=1`.
    #[must_use]
    pub fn unlimited(clock: &Clock) -> Self {
        Self::of(Limiter::unlimited, Limiter::unlimited(), Limiter::unlimited(), clock)
    }

    fn of(
        limiter: impl Fn() -> Limiter,
        new_cookies: Limiter,
        unknown_operators: Limiter,
        clock: &Clock,
    ) -> Self {
        // No recovery token lives longer than this. The refusals of a session token may be counted
        // from zero again.
        let counter = |limit| UseCounter::new(limit, RESET_LIFETIME, clock.clone());
        Self {
            requests: limiter(),
            logins: limiter(),
            recoveries: limiter(),
            unknown_tokens: limiter(),
            unknown_operators,
            new_cookies,
            cookies: counter(REQUESTS_A_COOKIE),
            refused_tokens: counter(REFUSALS_A_TOKEN),
        }
    }

    /// Admits a request of a recovery that has begun. A recovery cookie that this service issued
    /// admits 12 requests, regardless of who else shares the client's address. A network may begin
    /// to use `NETWORK_PER_MINUTE` cookies a minute, so that collecting cookies does not evade the
    /// limits. Any other request draws from the bucket of its source.
    ///
    /// # Errors
    ///
    /// The time to wait if the bucket is empty.
    pub fn admit_recovery(
        &self,
        cookie: Option<&TokenHash>,
        network: Source,
        source: Source,
    ) -> Result<(), Duration> {
        let may_start = || self.new_cookies.admit(network).is_ok();
        if cookie.is_some_and(|cookie| self.cookies.count(cookie, may_start)) {
            return Ok(());
        }
        self.recoveries.admit(source)
    }

    /// Whether a session token that this service issued may be looked up at no charge: it was not
    /// refused too often.
    #[must_use]
    pub fn is_free(&self, token: &TokenHash) -> bool {
        !self.refused_tokens.is_spent(token)
    }

    /// Counts a refusal of a session token that this service issued.
    pub fn was_refused(&self, token: &TokenHash) {
        let _ = self.refused_tokens.count(token, || true);
    }

    /// Removes the sources whose buckets are full and returns how many are left.
    #[must_use]
    pub fn sweep(&self) -> usize {
        [
            &self.requests,
            &self.logins,
            &self.recoveries,
            &self.unknown_tokens,
            &self.unknown_operators,
            &self.new_cookies,
        ]
        .map(Limiter::sweep)
        .iter()
        .sum()
    }
}
