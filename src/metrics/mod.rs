//! Metrics for operators. Names and units follow the conventions of Prometheus. Label sets are
//! small, and no label contains anything that a client sent.

mod labels;

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use strum::VariantArray as _;

pub use self::labels::{
    AnswerLabel, CodeLabel, CodeOutcome, GivenUpLabel, HashLabel, HookLabel, HookOutcome, HookOutcomeLabel,
    KindLabel, ListenerLabel, LoginLabel, LoginOutcome, MailLabel, MailOutcome, OperatorLabel, RelayLabel,
    StateLabel,
};

/// The metrics of one running service.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Open client connections.
    pub connections: Family<ListenerLabel, Gauge>,
    /// How often all connection slots were in use when a client connected, so that older
    /// connections were closed.
    pub connections_crowded: Family<ListenerLabel, Counter>,
    /// Answered requests, and requests that their clients aborted (499).
    pub http_answers: Family<AnswerLabel, Counter>,
    /// Requests with `X-Forwarded-For` from peers that are not in `TRUSTED_PROXIES`.
    pub untrusted_forwarded: Counter,
    /// Time from reading the headers of a request to its answer, in seconds.
    pub http_duration: Histogram,
    /// Starts committed in one batch.
    pub start_batch: Histogram,
    /// Emails by outcome.
    pub mails: Family<MailLabel, Counter>,
    /// Emails that were given up, by kind.
    pub mails_given_up: Family<GivenUpLabel, Counter>,
    /// Rounds of the courier. If it makes no round for a minute, it hangs.
    pub courier_rounds: Counter,
    /// 1 while the courier does not hold its liveness lock. If it died then, its emails would wait
    /// until their lease expires.
    pub courier_lock_lost: Gauge,
    /// Pending emails of all replicas together, without those that were given up.
    pub outbox_pending: Family<KindLabel, Gauge>,
    /// Notices that were given up and are kept for an operator.
    pub outbox_given_up: Family<KindLabel, Gauge>,
    /// Age of the oldest pending email, in seconds.
    pub outbox_oldest: Family<KindLabel, Gauge>,
    /// Time from the accepted request to the relay's reply 250, in seconds.
    pub mail_latency: Histogram,
    /// Attempts to deliver an event to a hook, by outcome.
    pub hook_deliveries: Family<HookOutcomeLabel, Counter>,
    /// Events that a hook has not got yet.
    pub hook_pending: Family<HookLabel, Gauge>,
    /// Age of the oldest event in `hook_pending`, in seconds.
    pub hook_oldest: Family<HookLabel, Gauge>,
    /// Events that were given up and can be replayed.
    pub hook_dead_letters: Family<HookLabel, Gauge>,
    /// Entered codes by outcome. Many wrong codes in total mean that an attacker guesses.
    pub codes: Family<CodeLabel, Counter>,
    /// Logins by outcome.
    pub logins: Family<LoginLabel, Counter>,
    /// Failed logins that took longer than `LOGIN_FAILURE_TIME`, so that their time may reveal why
    /// they failed.
    pub late_login_failures: Counter,
    /// Logins that wait for another login of the same address.
    pub logins_waiting: Gauge,
    /// Units that a failed login draws from the bucket of its network.
    pub login_price: Gauge,
    /// Tickets that were given, addresses that were set, and addresses that were asked for through
    /// the admin API, by operator.
    pub recoveries_helped: Family<OperatorLabel, Counter>,
    /// Calls of the admin API without a valid token or certificate.
    pub operators_unknown: Counter,
    /// Stored hashes by scheme, as last counted.
    pub stored_hashes: Family<HashLabel, Gauge>,
    /// When the last complete count of stored hashes ended, in Unix time.
    pub hashes_counted: Gauge,
    /// Accounts whose address bounces, as last counted.
    pub bouncing_accounts: Gauge,
    /// Passwords that are being hashed or verified.
    pub hashing_running: Gauge,
    /// Requests that were answered 503 because too many passwords waited to be hashed.
    pub hashing_refused: Counter,
    /// 1 while the folder of JWT keys cannot be read, and the keys that were read before are in
    /// use.
    pub jwt_keys_unreadable: Gauge,
    /// 1 while the certificate of the admin API cannot be read again.
    pub admin_certificate_unreadable: Gauge,
    /// 1 while the probe finds a relay usable.
    pub relay_up: Family<RelayLabel, Gauge>,
    /// 1 while the access token for relays cannot be renewed, and the previous one is used until it
    /// expires.
    pub relay_token_failing: Gauge,
    /// 1 while the courier tries a relay last, because it refuses emails by policy.
    pub relay_last: Family<RelayLabel, Gauge>,
    /// 1 while the service can work with PostgreSQL.
    pub database_up: Gauge,
    /// 1 for the state that the last health check found, 0 for every other.
    pub database_state: Family<StateLabel, Gauge>,
    /// Addresses of PostgreSQL's host name that neither accepted nor refused a connection in time
    /// when last checked.
    pub database_silent_addresses: Gauge,
    /// 1 while the clocks of this machine and of PostgreSQL differ by more than a second.
    pub clock_skewed: Gauge,
    /// Approved address changes of all replicas together that are due and not carried out.
    pub address_changes_overdue: Gauge,
    /// Networks whose buckets the rate limiter keeps in memory.
    pub throttled_networks: Gauge<i64>,
    /// Rows that the sweeper deleted because they had expired.
    pub swept_rows: Counter<u64, AtomicU64>,
}

impl Default for Metrics {
    #[expect(clippy::too_many_lines, reason = "it is one list")]
    fn default() -> Self {
        let mut registry = Registry::with_prefix("vos_auth");
        let metrics = Self {
            connections: Family::default(),
            connections_crowded: Family::default(),
            http_answers: Family::default(),
            untrusted_forwarded: Counter::default(),
            http_duration: Histogram::new(exponential_buckets(0.000_25, 2.0, 15)),
            start_batch: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            mails: Family::default(),
            mails_given_up: Family::default(),
            courier_rounds: Counter::default(),
            courier_lock_lost: Gauge::default(),
            outbox_pending: Family::default(),
            outbox_given_up: Family::default(),
            outbox_oldest: Family::default(),
            mail_latency: Histogram::new(exponential_buckets(0.002, 2.0, 19)),
            hook_deliveries: Family::default(),
            hook_pending: Family::default(),
            hook_oldest: Family::default(),
            hook_dead_letters: Family::default(),
            codes: Family::default(),
            logins: Family::default(),
            late_login_failures: Counter::default(),
            logins_waiting: Gauge::default(),
            login_price: Gauge::default(),
            recoveries_helped: Family::default(),
            operators_unknown: Counter::default(),
            stored_hashes: Family::default(),
            hashes_counted: Gauge::default(),
            bouncing_accounts: Gauge::default(),
            hashing_running: Gauge::default(),
            hashing_refused: Counter::default(),
            jwt_keys_unreadable: Gauge::default(),
            admin_certificate_unreadable: Gauge::default(),
            relay_up: Family::default(),
            relay_token_failing: Gauge::default(),
            relay_last: Family::default(),
            database_up: Gauge::default(),
            database_state: Family::default(),
            database_silent_addresses: Gauge::default(),
            clock_skewed: Gauge::default(),
            address_changes_overdue: Gauge::default(),
            throttled_networks: Gauge::default(),
            swept_rows: Counter::default(),
            registry: Registry::default(),
        };
        registry.register("build", "What is running", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register("connections", "Open client connections", metrics.connections.clone());
        let help = "Times that older connections were closed to make room for a new one";
        registry.register("connections_crowded", help, metrics.connections_crowded.clone());
        let help = "Answered requests; 499 means aborted by the client";
        registry.register("http_answers", help, metrics.http_answers.clone());
        let help =
            "Requests whose X-Forwarded-For was ignored, because TRUSTED_PROXIES does not name the sender";
        registry.register("untrusted_forwarded", help, metrics.untrusted_forwarded.clone());
        registry.register_with_unit(
            "http_duration",
            "Time to answer",
            Unit::Seconds,
            metrics.http_duration.clone(),
        );
        registry.register("start_batch_size", "Starts committed in one batch", metrics.start_batch.clone());
        registry.register("mails", "Emails by outcome", metrics.mails.clone());
        let help = "Emails that were given up: no attempt can help, or none is left in time";
        registry.register("mails_given_up", help, metrics.mails_given_up.clone());
        let help = "Rounds of the courier; it hangs if the count does not grow";
        registry.register("courier_rounds", help, metrics.courier_rounds.clone());
        let help = "1 while the courier does not hold its liveness lock; if it died, its emails would wait until their lease expires";
        registry.register("courier_lock_lost", help, metrics.courier_lock_lost.clone());
        let help = "Pending emails of all replicas together";
        registry.register("outbox_pending", help, metrics.outbox_pending.clone()); // dialect: quotes the metric's name
        let help = "Notices that were given up and are kept for an operator";
        registry.register("outbox_given_up", help, metrics.outbox_given_up.clone());
        let help = "Age of the oldest pending email";
        registry.register_with_unit("outbox_oldest", help, Unit::Seconds, metrics.outbox_oldest.clone());
        let help = "Time from the accepted request to the relay's 250";
        registry.register_with_unit("mail_latency", help, Unit::Seconds, metrics.mail_latency.clone());
        let help = "Attempts to deliver an event to a hook, by outcome";
        registry.register("hook_deliveries", help, metrics.hook_deliveries.clone());
        let help = "Events that a hook has not got yet";
        registry.register("hook_pending", help, metrics.hook_pending.clone());
        let help = "Age of the oldest event that a hook has not got yet";
        registry.register_with_unit("hook_oldest", help, Unit::Seconds, metrics.hook_oldest.clone());
        let help = "Events that were given up and can be replayed";
        registry.register("hook_dead_letters", help, metrics.hook_dead_letters.clone());
        registry.register("codes", "Entered codes by outcome", metrics.codes.clone());
        registry.register("logins", "Logins by outcome", metrics.logins.clone());
        let help = "Failed logins that took longer than LOGIN_FAILURE_TIME";
        registry.register("late_login_failures", help, metrics.late_login_failures.clone());
        let help = "Logins that wait for another login of the same address";
        registry.register("logins_waiting", help, metrics.logins_waiting.clone());
        let help = "Units that a failed login draws from the bucket of its network";
        registry.register("login_price", help, metrics.login_price.clone());
        let help =
            "Tickets that an operator gave and other addresses that one asked for, through the admin API";
        registry.register("recoveries_helped", help, metrics.recoveries_helped.clone());
        let help = "Calls of the admin API without a valid token or certificate";
        registry.register("operators_unknown", help, metrics.operators_unknown.clone());
        let help = "Stored hashes by scheme, as last counted";
        registry.register("stored_hashes", help, metrics.stored_hashes.clone());
        let help = "Unix time at which the stored hashes were last counted";
        registry.register_with_unit(
            "hashes_counted_timestamp",
            help,
            Unit::Seconds,
            metrics.hashes_counted.clone(),
        );
        let help = "Accounts whose address bounces, as last counted";
        registry.register("bouncing_accounts", help, metrics.bouncing_accounts.clone());
        registry.register(
            "hashing_running",
            "Passwords being hashed or verified",
            metrics.hashing_running.clone(),
        );
        let help = "Requests answered 503 because too many passwords waited to be hashed";
        registry.register("hashing_refused", help, metrics.hashing_refused.clone());
        let help = "1 while the folder of JWT keys cannot be read";
        registry.register("jwt_keys_unreadable", help, metrics.jwt_keys_unreadable.clone());
        let help = "1 while the certificate of the admin API cannot be read again";
        registry.register("admin_certificate_unreadable", help, metrics.admin_certificate_unreadable.clone());
        registry.register("relay_up", "1 while the probe finds the relay usable", metrics.relay_up.clone());
        let help = "1 while the access token for relays cannot be renewed";
        registry.register("relay_token_failing", help, metrics.relay_token_failing.clone());
        let help = "1 while the relay is tried last, because it refuses emails by policy";
        registry.register("relay_last", help, metrics.relay_last.clone());
        let help = "1 while the service can work with PostgreSQL";
        registry.register("database_up", help, metrics.database_up.clone());
        let help = "1 for the state of PostgreSQL that the last health check found, 0 for the others";
        registry.register("database_state", help, metrics.database_state.clone());
        let help = "Addresses of PostgreSQL's host name that neither accept nor refuse a connection in time";
        registry.register("database_silent_addresses", help, metrics.database_silent_addresses.clone());
        let help = "1 while the clock differs from PostgreSQL's by more than a second";
        registry.register("clock_skewed", help, metrics.clock_skewed.clone());
        let help = "Approved address changes that are due and not carried out";
        registry.register("address_changes_overdue", help, metrics.address_changes_overdue.clone());
        let help = "Networks whose buckets the rate limiter keeps in memory";
        registry.register("throttled_networks", help, metrics.throttled_networks.clone());
        let help = "Rows that the sweeper deleted because they had expired";
        registry.register("swept_rows", help, metrics.swept_rows.clone());
        metrics.export_zeros();
        Self { registry, ..metrics }
    }
}

impl Metrics {
    /// Exports the counters of emails, codes and logins at 0 from the start. A counter that appears
    /// only with its first event shows no increase, so no alert would fire.
    fn export_zeros(&self) {
        for outcome in [MailOutcome::Sent, MailOutcome::Expired, MailOutcome::NoRecipient] {
            drop(self.mails.get_or_create(&MailLabel { outcome, stage: "none" }));
        }
        for &outcome in CodeOutcome::VARIANTS {
            drop(self.codes.get_or_create(&CodeLabel { outcome }));
        }
        for &outcome in LoginOutcome::VARIANTS {
            drop(self.logins.get_or_create(&LoginLabel { outcome }));
        }
    }

    /// Everything as OpenMetrics text, version 1.0.0.
    #[must_use]
    pub fn open_metrics(&self) -> String {
        let mut page = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }

    /// Everything in the text format of Prometheus, version 0.0.4.
    #[must_use]
    pub fn text(&self) -> String {
        let mut page = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_text::encode(&mut page, &self.registry);
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The snapshot has every name with its type and help, and the labels, but no value.
    #[test]
    fn names_and_labels_are_as_in_the_snapshot() {
        let metrics = Metrics::default();
        drop(metrics.connections.get_or_create(&ListenerLabel { listener: "api" }));
        drop(metrics.connections_crowded.get_or_create(&ListenerLabel { listener: "api" }));
        drop(metrics.http_answers.get_or_create(&AnswerLabel { route: "/readyz".into(), status: 200 }));
        for family in [&metrics.outbox_pending, &metrics.outbox_given_up, &metrics.outbox_oldest] {
            drop(family.get_or_create(&KindLabel { kind: "recovery_code" }));
        }
        for family in [&metrics.relay_up, &metrics.relay_last] {
            drop(family.get_or_create(&RelayLabel { relay: 0 }));
        }
        drop(metrics.stored_hashes.get_or_create(&HashLabel { scheme: "argon2id" }));
        drop(metrics.mails_given_up.get_or_create(&GivenUpLabel { kind: "recovery_code", verdict: "relay" }));
        drop(metrics.database_state.get_or_create(&StateLabel { state: "ok" }));
        let (hook, outcome) = ("rest".to_owned(), HookOutcome::Delivered);
        for family in [&metrics.hook_pending, &metrics.hook_oldest, &metrics.hook_dead_letters] {
            drop(family.get_or_create(&HookLabel { hook: hook.clone() }));
        }
        drop(metrics.hook_deliveries.get_or_create(&HookOutcomeLabel { hook, outcome }));
        drop(metrics.recoveries_helped.get_or_create(&OperatorLabel { operator: "alice".into() }));
        let page = metrics.text().replace(env!("CARGO_PKG_VERSION"), "[version]");
        let without_value = |line: &str| match line.rsplit_once(' ') {
            Some((sample, _)) if !line.starts_with('#') => sample.to_owned(),
            _ => line.to_owned(),
        };
        let mut shown: Vec<_> =
            page.lines().filter(|line| !line.contains("le=\"")).map(without_value).collect();
        // The samples of a family are in no fixed order.
        for metric in shown.chunk_by_mut(|_, next| !next.starts_with("# HELP ")) {
            let comments = metric.iter().take_while(|line| line.starts_with('#')).count();
            metric[comments..].sort_unstable();
        }
        insta::assert_snapshot!("metrics", shown.join("\n"));
    }
}
