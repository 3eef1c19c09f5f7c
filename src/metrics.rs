//! What an operator can watch. Names and units follow Prometheus' conventions; label sets are small and fixed, and no
//! label holds anything that a client sent.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// An answered request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Answer {
    /// The route's pattern, or `none`.
    pub route: &'static str,
    /// The HTTP status.
    pub status: u16,
}

/// A mail that left the outbox, or that failed once more.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MailOutcome {
    /// `sent`, `retried`, `given_up`, `expired` or `no_recipient`.
    pub outcome: &'static str,
    /// Where the conversation ended ([`crate::mail::gateway::Stage`]), or `compose` if there was none because the mail
    /// could not be built; `none` if it ended well or was not needed.
    pub stage: &'static str,
}

/// A relay by its place in `SMTP_RELAYS`, from 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RelayLabel {
    /// The place.
    pub relay: usize,
}

/// Every figure of one running service.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Answered requests.
    pub http_answers: Family<Answer, Counter>,
    /// From a request's headers having been read to its answer.
    pub http_duration: Histogram,
    /// Starts that were committed together.
    pub start_batch: Histogram,
    /// Mails by what became of them.
    pub mails: Family<MailOutcome, Counter>,
    /// From the accepted start to the relay's 250.
    pub mail_latency: Histogram,
    /// 1 while the probe finds a relay usable.
    pub relay_up: Family<RelayLabel, Gauge>,
    /// Clock of this machine less clock of PostgreSQL is over a second: 1.
    pub clock_skewed: Gauge,
    /// Networks that the limiter in memory remembers.
    pub throttled_networks: Gauge<i64>,
    /// Rows that the sweeper deleted.
    pub swept_rows: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vos_auth");
        let metrics = Self {
            http_answers: Family::default(),
            http_duration: Histogram::new(exponential_buckets(0.000_25, 2.0, 15)),
            start_batch: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            mails: Family::default(),
            mail_latency: Histogram::new(exponential_buckets(0.002, 2.0, 19)),
            relay_up: Family::default(),
            clock_skewed: Gauge::default(),
            throttled_networks: Gauge::default(),
            swept_rows: Counter::default(),
            registry: Registry::default(),
        };
        registry.register("build", "What is running", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("http_answers", "Answered requests", metrics.http_answers.clone());
        registry.register_with_unit(
            "http_duration",
            "Time to answer",
            Unit::Seconds,
            metrics.http_duration.clone(),
        );
        registry.register("start_batch_size", "Starts committed together", metrics.start_batch.clone());
        registry.register("mails", "Mails by what became of them", metrics.mails.clone());
        let help = "Time from the accepted request to the relay's 250";
        registry.register_with_unit("mail_latency", help, Unit::Seconds, metrics.mail_latency.clone());
        registry.register("relay_up", "1 while the probe finds the relay usable", metrics.relay_up.clone());
        let help = "1 while the clock is over a second from PostgreSQL's";
        registry.register("clock_skewed", help, metrics.clock_skewed.clone());
        let help = "Networks in the limiter's memory";
        registry.register("throttled_networks", help, metrics.throttled_networks.clone());
        registry.register(
            "swept_rows",
            "Rows deleted because their time was over",
            metrics.swept_rows.clone(),
        );
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// Everything as OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }
}
