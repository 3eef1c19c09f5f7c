//! `make courier`: how the courier bears load, measured with the release binary, a real PostgreSQL and a relay that takes
//! everything: mails a second beside lettre alone; two and four replicas on one outbox; a relay that stalls on every tenth mail; what an outage of two hours
//! has left. Prints what it saw, and fails if a mail was lost or sent twice.

mod alone;
#[path = "../chaos/postfix.rs"]
#[expect(dead_code, reason = "`make chaos` uses more of it")]
mod postfix;
#[expect(dead_code, reason = "other measurements use more of it")]
mod replica;
mod sink;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use self::alone::Given;
use self::postfix::Postfix;
use self::replica::Replica;
use self::sink::{Seen, Sink};

type Failure = Box<dyn std::error::Error>;

/// Mails that the replicas find owed.
const OWED: u32 = 20_000;
/// Starts of each half of the measurement with a stalling relay, and how many a second.
const STARTS: u32 = 1_200;
const STARTS_A_SECOND: u32 = 20;
/// Rows that the outage has left, one every 72 ms for two hours.
const LEFT: u32 = 100_000;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let url = std::env::var("DATABASE_URL").map_err(|_| "DATABASE_URL is missing: run `make courier`")?;
    let pool = PgPoolOptions::new().max_connections(2).connect(&url).await?;
    sqlx::raw_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public").execute(&pool).await?;
    vos_auth::database::MIGRATOR.run(&pool).await?;
    let (sink, at) = Sink::start().await;
    let relay = format!("smtp://{at}?tls=none");
    let keys = replica::keys()?;
    let bench = Bench { url, pool, sink, relay, keys };
    let given = Given { name: "a relay that is a task", port: at.port(), mails: 10_000, postfix: None };
    bench.beside_lettre(&given).await?;
    let postfix = Postfix::start()?;
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
    sink: Arc<Sink>,
    relay: String,
    keys: String,
}

impl Bench {
    async fn serve(&self, settings: &[(&str, &str)]) -> Result<Replica, Failure> {
        let environment =
            [("DATABASE_URL", self.url.as_str()), ("SMTP_RELAYS", &self.relay), ("JWT_KEYS", &self.keys)];
        Replica::start(&[&environment, settings].concat()).await
    }

    async fn is_empty(&self) -> Result<(), Failure> {
        sqlx::raw_sql("TRUNCATE account, recovery_session, outbox, throttle, audit_event CASCADE")
            .execute(&self.pool)
            .await?;
        sqlx::raw_sql("VACUUM ANALYZE outbox").execute(&self.pool).await?;
        self.sink.empty();
        Ok(())
    }

    /// As many owed mails, each of an account of its own, the first owed `seconds` ago and the last now.
    async fn owes(&self, mails: u32, seconds: f64) -> Result<(), Failure> {
        // Ids carry the time, as those of the service do: the courier and the sweeper go by it.
        let owed = "
            WITH owed AS MATERIALIZED (
                SELECT n, 'owed' || n || '@chaos.test' AS email,
                    clock_timestamp() - make_interval(secs => $2 * (1 - n / $1::float)) AS at
                FROM generate_series(1, $1) AS n
            ), named AS MATERIALIZED (
                SELECT *, lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7000'
                        || right(replace(gen_random_uuid()::text, '-', ''), 16) AS id
                FROM owed
            ), accounts AS (
                INSERT INTO account (id, email, created_at, updated_at) SELECT id::uuid, email, at, at FROM named
            ), sessions AS (
                INSERT INTO recovery_session (id, token_hash, email, key_id, created_at, expires_at, client_ip, user_agent)
                SELECT id::uuid, sha256(id::bytea), email, 'bench', at, at + interval '10 minutes', '127.0.0.1', ''
                FROM named
            )
            INSERT INTO outbox (id, kind, recovery_session_id, next_attempt_at, expires_at, created_at)
            SELECT id::uuid, 'recovery_code', id::uuid, at, at + interval '10 minutes', at FROM named";
        sqlx::query(owed).bind(i64::from(mails)).bind(seconds).execute(&self.pool).await?;
        sqlx::raw_sql("VACUUM ANALYZE").execute(&self.pool).await?;
        Ok(())
    }

    async fn until_nothing_is_owed(&self, what: &str) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let owed: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&self.pool).await?;
            if owed == 0 {
                return Ok(());
            }
            if began.elapsed() > Duration::from_mins(5) {
                return Err(format!("{owed} mails are still owed after 5 minutes").into());
            }
            eprint!("\r{what}: {owed} mails are owed…        ");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn replicas(&self, replicas: usize) -> Result<bool, Failure> {
        self.is_empty().await?;
        self.owes(OWED, 1.0).await?;
        let began = Instant::now();
        let mut running = Vec::new();
        for _ in 0..replicas {
            running.push(self.serve(&[("SMTP_CONNECTIONS", "16")]).await?);
        }
        self.until_nothing_is_owed("replicas").await?;
        let seen = self.sink.empty();
        let (last, twice) = (last(&seen), twice(&seen));
        let seconds = (last - began).as_secs_f64();
        let a_second = f64::from(OWED) / seconds;
        println!(
            "\r{replicas} replicas: {} of {OWED} mails in {seconds:.1} s, {a_second:.0} a second, sent twice {twice}",
            seen.len()
        );
        Ok(twice == 0 && seen.len() == OWED as usize)
    }

    async fn stalls(&self) -> Result<bool, Failure> {
        let mut well = true;
        for stalls in [false, true] {
            self.is_empty().await?;
            self.owes(0, 1.0).await?;
            self.sink.stall_every.store(10, Ordering::Relaxed);
            self.sink.stalls.store(stalls, Ordering::Relaxed);
            let replica = self.serve(&[("SMTP_CONNECTIONS", "64")]).await?;
            let accounts = "INSERT INTO account (id, email, created_at, updated_at)
                SELECT gen_random_uuid(), 'trader' || n || '@example.com', clock_timestamp(), clock_timestamp()
                FROM generate_series(0, $1) AS n";
            sqlx::query(accounts).bind(i64::from(STARTS)).execute(&self.pool).await?;
            let accepted = self.starts(&replica).await?;
            self.until_nothing_is_owed("stalls").await?;
            self.sink.stalls.store(false, Ordering::Relaxed);
            let seen = self.sink.empty();
            let mut waits: Vec<_> = accepted
                .iter()
                .filter_map(|(email, at)| {
                    let seen = seen.get(email)?;
                    (!seen.stalled)
                        .then(|| seen.taken_at.map(|taken| taken.saturating_duration_since(*at)))?
                })
                .collect();
            waits.sort();
            let lost =
                accepted.keys().filter(|email| seen.get(*email).is_none_or(|seen| seen.taken == 0)).count();
            let stalled = seen.values().filter(|seen| seen.stalled).count();
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

    /// Open loop: one start every 50 ms, whatever became of the one before. When each was accepted, by address.
    async fn starts(&self, replica: &Replica) -> Result<HashMap<String, Instant>, Failure> {
        let client = reqwest::Client::new();
        let mut tick = tokio::time::interval(Duration::from_secs(1) / STARTS_A_SECOND);
        let mut starts = tokio::task::JoinSet::new();
        for n in 0..STARTS {
            tick.tick().await;
            let email = format!("trader{n}@example.com");
            let body = serde_json::json!({ "email": email }).to_string();
            let url = format!("http://{}/api/auth/recovery/start", replica.address);
            let start = client.post(url).header("content-type", "application/json").body(body);
            starts.spawn(async move {
                let answer = start.send().await.ok()?;
                (answer.status() == 200).then(|| (email, Instant::now()))
            });
            if n % 20 == 0 {
                eprint!("\rstalls: {n} starts…        ");
            }
        }
        Ok(starts.join_all().await.into_iter().flatten().collect())
    }

    async fn outage(&self) -> Result<bool, Failure> {
        self.is_empty().await?;
        self.owes(LEFT, 7200.0).await?;
        let replica = self.serve(&[]).await?;
        let before = replica.memory();
        let mut most = before;
        let began = Instant::now();
        loop {
            most = most.max(replica.memory());
            let owed: i64 = sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&self.pool).await?;
            if owed == 0 {
                break;
            }
            eprint!("\routage: {owed} mails are owed…        ");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (drained, expired) =
            (began.elapsed(), replica.metric("vos_auth_mails_total{outcome=\"expired\"").await?);
        let seen = self.sink.empty();
        let number = |email: &str| {
            email.trim_start_matches("owed").split('@').next().and_then(|n| n.parse::<u32>().ok())
        };
        let mut order: Vec<_> =
            seen.iter().filter_map(|(email, seen)| Some((seen.place, number(email)?))).collect();
        order.sort_unstable();
        // Mails that are under way together may overtake each other.
        let farthest =
            order.iter().enumerate().map(|(place, (_, n))| ((LEFT - n) as usize).abs_diff(place)).max();
        let twice = twice(&seen);
        println!(
            "\routage of 2 h: {LEFT} rows gone in {drained:.1?}; sent {}, expired and counted {expired}, sent twice {twice}; youngest first, no mail more than {} places from its turn; memory {before} -> {most} KiB",
            seen.len(),
            farthest.unwrap_or_default(),
        );
        Ok(twice == 0 && seen.len() + expired == LEFT as usize)
    }
}

fn last(seen: &HashMap<String, Seen>) -> Instant {
    seen.values().filter_map(|seen| seen.taken_at).max().unwrap_or_else(Instant::now)
}

fn twice(seen: &HashMap<String, Seen>) -> usize {
    seen.values().filter(|seen| seen.taken > 1).count()
}
