//! Compares a database with a million accounts and a million recoveries, live and expired, with an
//! empty one. Then measures what the sweeper and a checkpoint cost.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::PgPool;
use vos_auth::config::{CODE_LIFETIME, RESET_LIFETIME};

use super::load::Loaded;
use super::{Bench, header, row, schema, settles};
use crate::Failure;
use crate::replica::Replica;

const CONNECTIONS: usize = 64;
/// The number of rounds on the empty database, and of those on the full one, for each second of
/// `--seconds`. The two alternate. Rounds are short, because the speed of the machine changes
/// within seconds.
const ROUNDS: usize = 12;
const ROUND: Duration = Duration::from_secs(1);
/// The number of recoveries that become old enough to be deleted, and of rate limits that become
/// full, while the sweeper is measured. The sweeper runs several times meanwhile.
const AGED: i64 = 600_000;
/// How many recoveries become old enough, and how many rate limits become full, in a second.
const AGED_A_SECOND: i64 = 2000;
/// The age at which a recovery is deleted.
const AGE: Duration = Duration::from_hours(24).saturating_add(RESET_LIFETIME).saturating_add(CODE_LIFETIME);

pub async fn measure(bench: &Bench) -> Result<Value, Failure> {
    let full = full(bench).await?;
    let (empty_replica, full_replica) =
        (bench.serve(&bench.url, &[]).await?, bench.serve(&full.url, &[]).await?);
    let pairs = ROUNDS * bench.lasting.as_secs() as usize;
    println!("start at {CONNECTIONS} connections, {pairs} alternating rounds of a second; times in ms");
    header(&["rows", "starts/s", "p50", "p99", "p99.9"]);
    let (mut empty, mut million) = (Vec::new(), Vec::new());
    for round in 0..2 * pairs {
        // The order of the two databases changes from pair to pair, so that noise affects both
        // alike.
        let is_full = matches!(round % 4, 1 | 2);
        for pool in [&bench.pool, &full.pool] {
            settles(pool).await?;
        }
        let (replica, seen) =
            if is_full { (&full_replica, &mut million) } else { (&empty_replica, &mut empty) };
        if !is_full {
            // The outbox needs no TRUNCATE: `settles` has waited until it is empty in both
            // databases.
            sqlx::raw_sql("TRUNCATE recovery_session, throttle").execute(&bench.pool).await?;
        }
        seen.push(bench.starts(replica).closed(CONNECTIONS, ROUND).await?);
    }
    let by_pair = empty.iter().zip(&million).map(|(empty, million)| million.rate(200) / empty.rate(200));
    let (mean, error) = mean(&by_pair.collect::<Vec<_>>());
    let (empty, million) =
        (measurements(("rows", 0.0), &together(empty)), measurements(("rows", 1e6), &together(million)));
    let ratio = rate(&million) / rate(&empty);
    println!("{ratio:.2} of the empty one's rate; {mean:.3} in the mean pair of rounds, ± {error:.3}");
    let disturbed = json!({
        "checkpoint": full.flushed(bench, &full_replica).await?,
        "sweeper": full.swept(bench, &full_replica).await?,
    });
    Ok(json!({ "empty": empty, "million": million, "mean": mean, "error": error, "disturbed": disturbed }))
}

/// The mean, and its error with 95% confidence.
fn mean(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, 1.96 * (squares / (count - 1.0) / count).sqrt())
}

fn together(rounds: Vec<Loaded>) -> Loaded {
    let mut all = Loaded::default();
    for round in rounds {
        all.add(round);
    }
    all
}

struct Full {
    url: String,
    pool: PgPool,
}

async fn full(bench: &Bench) -> Result<Full, Failure> {
    sqlx::raw_sql("DROP DATABASE IF EXISTS million WITH (FORCE)").execute(&bench.pool).await?;
    sqlx::raw_sql("CREATE DATABASE million").execute(&bench.pool).await?;
    let url = bench.url.replacen("/vos_auth?", "/million?", 1);
    let pool = schema(&url).await?;
    eprintln!("filling a database with a million accounts and a million recoveries…");
    let accounts = "INSERT INTO account (id, email, created_at, updated_at)
        SELECT gen_random_uuid(), 'somebody-' || n || '@example.com', now(), now() FROM generate_series(1, 1000000) AS n";
    sqlx::raw_sql(accounts).execute(&pool).await?;
    // Half of the recoveries are live. The others have expired, but are not yet old enough to be
    // deleted.
    recoveries(&pool, 500_000, Duration::from_mins(5)).await?;
    recoveries(&pool, 500_000, Duration::from_hours(20)).await?;
    rate_limits(&pool, 500_000, Duration::from_hours(2)).await?;
    sqlx::raw_sql("VACUUM ANALYZE").execute(&pool).await?;
    sqlx::raw_sql("CHECKPOINT").execute(&pool).await?;
    Ok(Full { url, pool })
}

/// Inserts recoveries. The first began `ago` before now, and the others follow at a constant rate.
async fn recoveries(pool: &PgPool, rows: i64, ago: Duration) -> Result<(), Failure> {
    // The ids contain the time, as those of the service do, because the sweeper depends on it.
    let recoveries = "
        INSERT INTO recovery_session (id, token_hash, email, key_id, created_at, expires_at, client_ip, user_agent)
        SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7000'
                || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid,
            sha256((at::text || n)::bytea), 'somebody-' || n || '@example.com', 'test', at, at + interval '10 min',
            '203.0.113.9', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64)'
        FROM (SELECT n, now() - ($2 - n / $3::float8) * interval '1 s' AS at FROM generate_series(1, $1) AS n) AS times";
    sqlx::query(recoveries)
        .bind(rows)
        .bind(ago.as_secs_f64())
        .bind(AGED_A_SECOND as f64)
        .execute(pool)
        .await?;
    Ok(())
}

/// Inserts rate limits. The first is full again `after` from now, and the others follow at a
/// constant rate.
async fn rate_limits(pool: &PgPool, rows: i64, after: Duration) -> Result<(), Failure> {
    let rate_limits = "
        INSERT INTO throttle (key, short_at, long_at, admitted)
        SELECT sha256(gen_random_uuid()::text::bytea), at, at, 1
        FROM (SELECT now() + ($2 + n / $3::float8) * interval '1 s' AS at FROM generate_series(1, $1) AS n) AS times";
    sqlx::query(rate_limits)
        .bind(rows)
        .bind(after.as_secs_f64())
        .bind(AGED_A_SECOND as f64)
        .execute(pool)
        .await?;
    Ok(())
}

impl Full {
    /// Runs one load while recoveries become old enough to be deleted and rate limits become full.
    /// The sweeper deletes these rows in several sweeps, and rests between them.
    async fn swept(&self, bench: &Bench, replica: &Replica) -> Result<Value, Failure> {
        let lasting = Duration::from_secs((AGED / AGED_A_SECOND).unsigned_abs());
        recoveries(&self.pool, AGED, AGE).await?;
        rate_limits(&self.pool, AGED, Duration::ZERO).await?;
        settles(&self.pool).await?;
        println!(
            "start while the sweeper has nothing to do, and while it is at work; one run of {lasting:?}"
        );
        header(&["seconds", "starts/s", "p50", "p99", "p99.9"]);
        let load = bench.starts(replica);
        let (seen, sweeps) = tokio::join!(load.closed(CONNECTIONS, lasting), sweeps(replica, lasting));
        let (seen, sweeps) = (seen?, sweeps?);
        let rests: Vec<_> = sweeps.windows(2).map(|two| seen.within(&(two[0].end..two[1].start))).collect();
        let works: Vec<_> = sweeps.windows(3).map(|three| seen.within(&three[1])).collect();
        // Each sweep is compared with the rests before and after it, because the tables grow
        // meanwhile.
        let ratio = |(work, rests): (&Loaded, &[Loaded])| {
            2.0 * work.rate(200) / (rests[0].rate(200) + rests[1].rate(200))
        };
        let ratios: Vec<_> = works.iter().zip(rests.windows(2)).map(ratio).collect();
        let (apart, during) = (part(&together(rests)), part(&together(works)));
        println!(
            "{:.2} of the undisturbed rate; by each time at work and the rests before and after it {ratios:.2?}; {} rows swept in all",
            rate(&during) / rate(&apart),
            rows_swept(replica).await?,
        );
        Ok(json!({ "apart": apart, "during": during, "ratios": ratios }))
    }

    /// Runs one load, and a checkpoint that begins after a third of it.
    async fn flushed(&self, bench: &Bench, replica: &Replica) -> Result<Value, Failure> {
        println!("start before and after a checkpoint, and during it; one run");
        header(&["seconds", "starts/s", "p50", "p99", "p99.9"]);
        let load = bench.starts(replica);
        let began = Instant::now();
        let (seen, span) =
            tokio::join!(load.closed(CONNECTIONS, bench.lasting * 3), self.checkpoint(bench.lasting));
        let (seen, span) = (seen?, span?);
        let mut apart = seen.within(&(began..span.start));
        apart.add(seen.within(&(span.end..Instant::now())));
        let (apart, during) = (part(&apart), part(&seen.within(&span)));
        println!("{:.2} of the undisturbed rate", rate(&during) / rate(&apart));
        Ok(json!({ "apart": apart, "during": during }))
    }

    async fn checkpoint(&self, after: Duration) -> Result<Range<Instant>, Failure> {
        tokio::time::sleep(after).await;
        let began = Instant::now();
        sqlx::raw_sql("CHECKPOINT").execute(&self.pool).await?;
        Ok(began..Instant::now())
    }
}

/// The periods in which the sweeper deletes rows. Deletions less than 10 s apart belong to the same
/// period.
async fn sweeps(replica: &Replica, lasting: Duration) -> Result<Vec<Range<Instant>>, Failure> {
    let (began, mut before) = (Instant::now(), rows_swept(replica).await?);
    let mut sweeps: Vec<Range<Instant>> = Vec::new();
    let mut looked = began;
    while began.elapsed() < lasting {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let (rows, now) = (rows_swept(replica).await?, Instant::now());
        if rows > before {
            match sweeps.last_mut() {
                Some(sweep) if now - sweep.end < Duration::from_secs(10) => sweep.end = now,
                _ => sweeps.push(looked..now),
            }
        }
        (before, looked) = (rows, now);
    }
    Ok(sweeps)
}

/// The number of rows that the sweeper has deleted.
async fn rows_swept(replica: &Replica) -> Result<usize, Failure> {
    replica.metric("vos_auth_swept_rows_total").await
}

fn part(seen: &Loaded) -> Value {
    measurements(("seconds", seen.seconds), seen)
}

fn measurements(first: (&str, f64), seen: &Loaded) -> Value {
    row(&[
        first,
        ("starts/s", seen.rate(200)),
        ("p50", seen.quantile(200, 0.5)),
        ("p99", seen.quantile(200, 0.99)),
        ("p99.9", seen.quantile(200, 0.999)),
    ])
}

fn rate(row: &Value) -> f64 {
    row["starts/s"].as_f64().unwrap_or(f64::NAN)
}
