//! The rate limits in PostgreSQL, compared with two token buckets in plain arithmetic.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sqlx::PgPool;
use time::OffsetDateTime;
use vos_auth::email_address::EmailAddress;
use vos_auth::throttle::{self, Draw, RateLimit};

use super::{BUSY, holds};
use crate::harness::Service;

/// The two buckets of a rate limit. Each content is the time that refilling it takes, in
/// microseconds.
#[derive(Clone, Debug)]
pub struct Buckets {
    limit: RateLimit,
    short: i128,
    long: i128,
    at: OffsetDateTime,
}

fn drawn(draw: Draw) -> Result<(), OffsetDateTime> {
    match draw {
        Draw::Drawn => Ok(()),
        Draw::EmptyUntil(at) => Err(at),
    }
}

impl Buckets {
    pub fn full(limit: RateLimit, at: OffsetDateTime) -> Self {
        Self { limit, short: i128::MAX / 2, long: i128::MAX / 2, at }
    }

    /// Takes a unit from both buckets. If one is empty, gives the time of the next unit.
    pub fn spend(&mut self, now: OffsetDateTime) -> Result<(), OffsetDateTime> {
        self.fill(now, (now - self.at).whole_microseconds(), (now - self.at).whole_microseconds());
        let (short, long) = self.units();
        let lacking = i64::try_from((short - self.short).max(long - self.long)).unwrap();
        if lacking > 0 {
            return Err(now + time::Duration::microseconds(lacking));
        }
        (self.short, self.long) = (self.short - short, self.long - long);
        Ok(())
    }

    pub fn refund(&mut self) {
        let (short, long) = self.units();
        self.fill(self.at, short, long);
    }

    fn fill(&mut self, now: OffsetDateTime, short: i128, long: i128) {
        let (short_unit, long_unit) = self.units();
        self.short = (self.short + short).min(short_unit * i128::from(self.limit.short_burst));
        self.long = (self.long + long).min(long_unit * i128::from(self.limit.long_burst));
        self.at = now;
    }

    fn units(&self) -> (i128, i128) {
        let micros = |refill: Duration| i128::try_from(refill.as_micros()).unwrap();
        (micros(self.limit.short_refill), micros(self.limit.long_refill))
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// The number of parallel starts. All or some of them share a statement.
    Start(usize),
    Spend,
    Refund,
    /// The time of a number of refills of the long or short bucket, exact or one microsecond off.
    Pass(bool, u32, i64),
}

/// The duration of a step under a rate limit.
fn passes(limit: RateLimit, long: bool, units: u32, micros: i64) -> Duration {
    let refill = if long { limit.long_refill } else { limit.short_refill };
    (refill * units).saturating_add_signed(micros)
}

trait SaturatingAddSigned {
    fn saturating_add_signed(self, micros: i64) -> Self;
}

impl SaturatingAddSigned for Duration {
    fn saturating_add_signed(self, micros: i64) -> Self {
        let change = Self::from_micros(micros.unsigned_abs());
        if micros < 0 { self.saturating_sub(change) } else { self + change }
    }
}

fn pass() -> impl Strategy<Value = Step> {
    // Rarely waits for refills of the long bucket: otherwise that bucket would never be empty.
    (prop::bool::weighted(0.15), 0..4u32, -1..=1i64)
        .prop_map(|(long, units, micros)| Step::Pass(long, units, micros))
}

fn limits() -> impl Strategy<Value = RateLimit> {
    (1..5u32, 1..9_999_999u64, 1..9u32, 1..60_000_000u64).prop_map(
        |(short_burst, short, long_burst, long)| {
            let (short_refill, long_refill) = (Duration::from_micros(short), Duration::from_micros(long));
            RateLimit { short_burst, short_refill, long_burst, long_refill }
        },
    )
}

/// Draws and refunds match the model for any rate limit, exact to the microsecond.
#[sqlx::test]
async fn spending_matches_two_token_buckets(pool: PgPool) {
    let steps = vec(prop_oneof![5 => Just(Step::Spend), 1 => Just(Step::Refund), 3 => pass()], 1..60);
    let subjects = AtomicU32::new(0);
    let (begin, database) = (crate::harness::now().replace_nanosecond(0).unwrap(), pool.clone());
    holds((limits(), steps), 40, async move |(limit, steps)| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&subjects.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let (mut now, mut model) = (begin, Buckets::full(limit, begin));
        for step in steps {
            match step {
                Step::Refund => {
                    throttle::refund(&database, &key, limit).await.unwrap();
                    model.refund();
                }
                Step::Pass(long, units, micros) => now += passes(limit, long, units, micros),
                Step::Spend | Step::Start(_) => {
                    let spent = drawn(throttle::try_draw(&database, now, &key, limit).await.unwrap());
                    assert_eq!(spent, model.spend(now));
                }
            }
        }
    })
    .await;
}

/// The statement of `start` draws on a row as `throttle::try_draw` does, with any number of starts.
#[sqlx::test]
async fn starts_match_two_token_buckets(pool: PgPool) {
    let service = Arc::new(Service::start_with_settings(&pool, BUSY).await);
    let step = prop_oneof![
        4 => (1..6usize).prop_map(Step::Start),
        1 => Just(Step::Spend),
        1 => Just(Step::Refund),
        4 => pass(),
    ];
    let (addresses, tested) = (AtomicU32::new(0), Arc::clone(&service));
    holds(vec(step, 1..40), 15, async move |steps| {
        let (service, limit) = (&tested, tested.app.address_limit);
        let email = format!("trader{}@example.com", addresses.fetch_add(1, Ordering::Relaxed));
        let key = throttle::recovery_key(&EmailAddress::parse(&email).unwrap(), None);
        let mut model = Buckets::full(limit, service.app.clock.now());
        for step in steps {
            let now = service.app.clock.now();
            match step {
                Step::Start(count) => {
                    let waits = start(service, &email, count).await;
                    assert_eq!(waits, expected(&mut model, now, count));
                }
                Step::Spend => {
                    let spent = drawn(throttle::try_draw(&service.pool, now, &key, limit).await.unwrap());
                    assert_eq!(spent, model.spend(now));
                }
                Step::Refund => {
                    throttle::refund(&service.pool, &key, limit).await.unwrap();
                    model.refund();
                }
                Step::Pass(long, units, micros) => {
                    service.clock.advance(passes(limit, long, units, micros));
                }
            }
        }
    })
    .await;
    Arc::into_inner(service).unwrap().stops().await;
}

/// Starts `count` recoveries at once. Returns the Retry-After of each, 0 if accepted, sorted.
async fn start(service: &Service, email: &str, count: usize) -> Vec<u64> {
    let mut starting = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (mut client, email) = (service.client(), email.to_owned());
        starting.spawn(async move {
            let answer = client.starts_recovery(&email).await;
            if answer.is_code_sent() {
                return 0;
            }
            assert_eq!(answer.error(), (429, "address_throttled"));
            answer.retry_after()
        });
    }
    let mut waits = starting.join_all().await;
    waits.sort_unstable();
    waits
}

fn expected(model: &mut Buckets, now: OffsetDateTime, count: usize) -> Vec<u64> {
    (0..count).map(|_| model.spend(now).map_or_else(|at| whole_seconds(at - now), |()| 0)).collect()
}

/// Seconds, rounded up as in Retry-After.
pub fn whole_seconds(wait: time::Duration) -> u64 {
    u64::try_from(wait.whole_microseconds()).unwrap().div_ceil(1_000_000)
}
