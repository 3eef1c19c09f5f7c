//! The limits that one replica keeps in memory: what a network, or an account's known browsers, may ask of it.

use std::time::Duration;

use super::network::{Limiter, Source};
use super::presented::Presentations;
use crate::clock::Clock;
use crate::config::{RESET_LIFETIME, RateLimitSettings};
use crate::secret::TokenHash;

/// Requests that a recovery cookie is good for by itself: five codes, passwords that are refused, and what it is waiting for.
const REQUESTS_A_COOKIE: u32 = 12;
/// How often a session token that was issued here may be refused before it counts as a made-up one: as often as the open tabs of
/// a browser ask.
const REFUSALS_A_TOKEN: u32 = 3;

/// A bucket for each source and kind of request, so that one kind does not use up another's.
#[derive(Debug)]
pub struct SourceLimits {
    /// Requests that cost an email or a hash of ours: start, a new password while signed in.
    pub requests: Limiter,
    /// Logins, which may cost a slower hash. Apart, or a few wrong ones would keep the others of a network from all of it.
    pub logins: Limiter,
    /// Requests of a recovery without a cookie of their own.
    pub recoveries: Limiter,
    /// Look-ups of session tokens that are made up or have ended.
    pub unknown_tokens: Limiter,
    /// Recovery cookies that are presented for the first time.
    new_cookies: Limiter,
    cookies: Presentations,
    refused_tokens: Presentations,
}

impl SourceLimits {
    /// As the settings say.
    #[must_use]
    pub fn new(settings: &RateLimitSettings, clock: &Clock) -> Self {
        let (burst, per_minute) = (settings.network_burst, settings.network_per_minute);
        let limiter = |burst| Limiter::new(burst, per_minute, clock.clone());
        Self::of(|| limiter(burst), limiter(per_minute), clock)
    }

    /// No limits, for `DEV_NO_LIMITS=1`.
    #[must_use]
    pub fn unlimited(clock: &Clock) -> Self {
        Self::of(Limiter::unlimited, Limiter::unlimited(), clock)
    }

    fn of(limiter: impl Fn() -> Limiter, new_cookies: Limiter, clock: &Clock) -> Self {
        // Nothing that was issued for a recovery lives longer than this.
        let presented = |most| Presentations::new(most, RESET_LIFETIME, clock.clone());
        Self {
            requests: limiter(),
            logins: limiter(),
            recoveries: limiter(),
            unknown_tokens: limiter(),
            new_cookies,
            cookies: presented(REQUESTS_A_COOKIE),
            refused_tokens: presented(REFUSALS_A_TOKEN),
        }
    }

    /// Admits a request of a recovery that has begun. A recovery cookie that was issued here is good for 12 requests, no matter
    /// who else is behind the same address; a network may begin to use `NETWORK_PER_MINUTE` of them a minute, so that collecting them
    /// gains nothing. Any other request draws on a bucket of its source.
    ///
    /// # Errors
    ///
    /// How long to wait, if nothing is left.
    pub fn admit_recovery(
        &self,
        cookie: Option<&TokenHash>,
        network: Source,
        source: Source,
    ) -> Result<(), Duration> {
        let may_begin = || self.new_cookies.admit(network).is_ok();
        if cookie.is_some_and(|cookie| self.cookies.count(cookie, may_begin)) {
            return Ok(());
        }
        self.recoveries.admit(source)
    }

    /// Whether a session token may be looked up at no charge: it was issued here, and was not refused many times.
    #[must_use]
    pub fn is_free(&self, token: &TokenHash) -> bool {
        !self.refused_tokens.is_spent(token)
    }

    /// Counts a session token that was issued here and has ended.
    pub fn was_refused(&self, token: &TokenHash) {
        let _ = self.refused_tokens.count(token, || true);
    }

    /// Forgets the sources whose buckets are full, and says how many are left.
    #[must_use]
    pub fn sweep(&self) -> usize {
        [&self.requests, &self.logins, &self.recoveries, &self.unknown_tokens, &self.new_cookies]
            .map(Limiter::sweep)
            .iter()
            .sum()
    }
}
