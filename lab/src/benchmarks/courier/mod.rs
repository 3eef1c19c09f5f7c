//! `make courier`: how fast the courier is, with the release binary, a real PostgreSQL and a relay
//! that accepts every mail.
//!
//! It measures four things:
//!
//! - mails a second, compared with lettre alone;
//! - one, two and four replicas with one outbox;
//! - a relay that delays every tenth mail;
//! - the backlog of an outage of two hours.
//!
//! It ends with an error if a mail was lost or sent twice.

mod alone;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clap::Args;
use sqlx::PgPool;

use self::alone::Given;
use crate::postfix::{self, Postfix};
use crate::relay::{Arrival, Mood, Relay};
use crate::replica::Replica;
use crate::starts::{Ready, Starts, address_of, have_accounts};
use crate::{Failure, backlog, database};

/// The number of mails that are pending when the replicas start.
const PENDING: u32 = 20_000;
/// The number of starts that are sent while the relay does not stall, and again while it does; and
/// their rate.
const STARTS: usize = 1_200;
const STARTS_A_SECOND: u32 = 20;
/// The number of outbox rows that the simulated outage leaves: one every 72 ms for two hours.
const LEFT: u32 = 100_000;

/// Benchmark: how the courier performs beside lettre alone, with replicas, a slow relay and a
/// backlog
#[derive(Args)]
pub struct Options {}

pub async fn run(_: Options) -> Result<(), Failure> {
    let url = database::of_program("courier", "")?;
    let pool = database::anew(&url).await?;
    let bench = Bench { url, pool, relay: Relay::counting().await };
    let given =
        Given { name: "a relay that is a task", port: bench.relay.port(), mails: 10_000, postfix: None };
    bench.beside_lettre(&given).await?;
    let postfix = Postfix::start(postfix::Setup { is_open: true, ..postfix::Setup::default() });
    let given = Given { name: "Postfix", port: postfix.port, mails: 3_000, postfix: Some(&postfix) };
    bench.beside_lettre(&given).await?;
    drop(postfix);
    let mut well = true;
    for replicas in [1, 2, 4] {
        well &= bench.replicas(replicas).await?;
    }
    well &= bench.stalls().await?;
    well &= bench.outage().await?;
    if well { Ok(()) } else { Err("a mail was lost or sent twice".into()) }
}

struct Bench {
    url: String,
    pool: PgPool,
    relay: Relay,
}

impl Bench {
    async fn serve(&self, settings: &[(&str, &str)]) -> Result<Replica, Failure> {
        Replica::start(&self.url, &self.relay.url(), settings).await
    }

    async fn is_empty(&self) -> Result<(), Failure> {
        backlog::clear(&self.pool).await?;
        sqlx::raw_sql("VACUUM ANALYZE outbox").execute(&self.pool).await?;
        self.relay.takes_arrivals();
        Ok(())
    }

    async fn has_backlog(&self, mails: u32, seconds: f64) -> Result<(), Failure> {
        backlog::insert(&self.pool, mails, seconds).await?;
        sqlx::raw_sql("VACUUM ANALYZE").execute(&self.pool).await?;
        Ok(())
    }

    async fn until_nothing_is_pending(&self, what: &str) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let pending = backlog::count(&self.pool).await?;
            if pending == 0 {
                return Ok(());
            }
            if began.elapsed() > Duration::from_mins(5) {
                return Err(format!("{pending} mails are still pending after 5 minutes").into());
            }
            eprint!("\r{what}: {pending} mails are pending…        ");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn replicas(&self, replicas: usize) -> Result<bool, Failure> {
        self.is_empty().await?;
        self.has_backlog(PENDING, 1.0).await?;
        let began = Instant::now();
        let mut running = Vec::new();
        for _ in 0..replicas {
            running.push(self.serve(&[("SMTP_CONNECTIONS", "16")]).await?);
        }
        self.until_nothing_is_pending("replicas").await?;
        let seen = self.relay.takes_arrivals();
        let (last, twice) = (last(&seen), twice(&seen));
        let seconds = (last - began).as_secs_f64();
        let a_second = f64::from(PENDING) / seconds;
        println!(
            "\r{replicas} replicas: {} of {PENDING} mails in {seconds:.1} s, {a_second:.0} a second, sent twice {twice}",
            seen.len()
        );
        Ok(twice == 0 && seen.len() == PENDING as usize)
    }

    async fn stalls(&self) -> Result<bool, Failure> {
        let mut well = true;
        for stalls in [false, true] {
            self.is_empty().await?;
            self.has_backlog(0, 1.0).await?;
            self.relay.is_in_mood(if stalls { Mood::HoldsOneIn(10) } else { Mood::Takes });
            let replica = self.serve(&[("SMTP_CONNECTIONS", "64")]).await?;
            have_accounts(&mut *self.pool.acquire().await?, STARTS).await?;
            let accepted = self.starts(&replica).await;
            self.until_nothing_is_pending("stalls").await?;
            self.relay.is_in_mood(Mood::Takes);
            let seen = self.relay.takes_arrivals();
            let mut waits: Vec<_> = accepted
                .iter()
                .filter_map(|(email, at)| {
                    let seen = seen.get(email)?;
                    (!seen.held).then(|| seen.taken_at.map(|taken| taken.saturating_duration_since(*at)))?
                })
                .collect();
            waits.sort();
            let lost =
                accepted.keys().filter(|email| seen.get(*email).is_none_or(|seen| seen.taken == 0)).count();
            let stalled = seen.values().filter(|seen| seen.held).count();
            let (at, twice) = (|percent: usize| waits[(waits.len() - 1) * percent / 100], twice(&seen));
            println!(
                "\r{} at {STARTS_A_SECOND} a second, 64 senders: accepted {}, lost {lost}, sent twice {twice}; from accepted to handed over (the {} that never met a stall): p50 {:.1?}, p99 {:.1?}, most {:.1?}",
                if stalls {
                    format!("a relay that held {stalled} mails for 30 s")
                } else {
                    "no stall".into()
                },
                accepted.len(),
                waits.len(),
                at(50),
                at(99),
                at(100),
            );
            well &= lost == 0 && twice == 0;
        }
        Ok(well)
    }

    /// Sends `STARTS` starts. Returns when each accepted one was answered, by address.
    async fn starts(&self, replica: &Replica) -> HashMap<String, Instant> {
        let (starts, ready) = (Starts::default(), Ready::default());
        ready.is(0, Some(replica.address));
        eprint!("\rstalls: {STARTS} starts…        ");
        starts.run(ready, STARTS_A_SECOND, STARTS).await;
        let accepted = starts.seen().into_iter().filter(|start| start.status == Some(200));
        accepted.map(|start| (address_of(start.number), start.ended)).collect()
    }

    async fn outage(&self) -> Result<bool, Failure> {
        self.is_empty().await?;
        self.has_backlog(LEFT, 7200.0).await?;
        let replica = self.serve(&[]).await?;
        let before = replica.memory();
        let mut most = before;
        let began = Instant::now();
        loop {
            most = most.max(replica.memory());
            let pending = backlog::count(&self.pool).await?;
            if pending == 0 {
                break;
            }
            eprint!("\routage: {pending} mails are pending…        ");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (drained, expired) =
            (began.elapsed(), replica.metric("vos_auth_mails_total{outcome=\"expired\"").await?);
        let seen = self.relay.takes_arrivals();
        let in_order = |(email, seen): (&String, &Arrival)| Some((seen.place, backlog::number_of(email)?));
        let mut order: Vec<_> = seen.iter().filter_map(in_order).collect();
        order.sort_unstable();
        // Mails that are sent at the same time may overtake each other.
        let farthest =
            order.iter().enumerate().map(|(place, (_, n))| ((LEFT - n) as usize).abs_diff(place)).max();
        let twice = twice(&seen);
        println!(
            "\routage of 2 h: {LEFT} rows deleted within {drained:.1?}; sent {}, expired and counted {expired}, sent twice {twice}; youngest first, no mail more than {} places from its turn; memory {before} -> {most} KiB",
            seen.len(),
            farthest.unwrap_or_default(),
        );
        Ok(twice == 0 && seen.len() + expired == LEFT as usize)
    }
}

fn last(seen: &HashMap<String, Arrival>) -> Instant {
    seen.values().filter_map(|seen| seen.taken_at).max().unwrap_or_else(Instant::now)
}

fn twice(seen: &HashMap<String, Arrival>) -> usize {
    seen.values().filter(|seen| seen.taken > 1).count()
}
