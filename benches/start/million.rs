//! A million accounts and a million recoveries, live and over, beside an empty database; and what the sweeper and a
//! checkpoint cost meanwhile.

use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::load::{Answer, Loaded, quantile};
use crate::replica::Replica;
use crate::{Bench, Failure, header, row, schema, settles};

const CONNECTIONS: usize = 64;
/// Rounds on the empty and on the full database, by turns, for each second that a measurement lasts. They are short, as
/// what the machine can changes within seconds.
const ROUNDS: usize = 12;
const ROUND: Duration = Duration::from_secs(1);
/// How long the loads without and with the sweeper last, so that many of its rests are in the latter.
const SWEEPS: Duration = Duration::from_secs(40);

pub async fn measure(bench: &Bench) -> Result<Value, Failure> {
    let full = full(bench).await?;
    let (empty_replica, full_replica) =
        (bench.serve(&bench.url, &[]).await?, bench.serve(&full.url, &[]).await?);
    let pairs = ROUNDS * bench.lasting.as_secs() as usize;
    full.is_swept().await?;
    println!("start at {CONNECTIONS} connections, {pairs} rounds of a second by turns; times in ms");
    header(&["rows", "starts/s", "p50", "p99", "p99.9"]);
    let (mut empty, mut million) = (Vec::new(), Vec::new());
    for round in 0..2 * pairs {
        // Which of the two is first changes from round to round: the machine's mood does, too.
        let is_full = matches!(round % 4, 1 | 2);
        for pool in [&bench.pool, &full.pool] {
            settles(pool).await?;
        }
        let (replica, seen) =
            if is_full { (&full_replica, &mut million) } else { (&empty_replica, &mut empty) };
        if !is_full {
            // The outbox is as full in one as in the other.
            sqlx::raw_sql("TRUNCATE recovery_session, throttle").execute(&bench.pool).await?;
        }
        seen.push(bench.starts(replica).closed(CONNECTIONS, ROUND).await?);
    }
    let by_pair = empty.iter().zip(&million).map(|(empty, million)| million.rate(200) / empty.rate(200));
    let (mean, error) = mean(&by_pair.collect::<Vec<_>>());
    let (empty, million) = (rounds(0.0, &empty), rounds(1e6, &million));
    let ratio = rate(&million) / rate(&empty);
    println!("{ratio:.2} of the empty one's rate; {mean:.3} in the mean pair of rounds, ± {error:.3}");
    let disturbed = json!({
        "checkpoint": full.flushed(bench, &full_replica).await?,
        "sweeper": full.swept(bench, &full_replica).await?,
    });
    Ok(json!({ "empty": empty, "million": million, "mean": mean, "error": error, "disturbed": disturbed }))
}

/// The mean, and the error that it has at most in nineteen of twenty runs.
fn mean(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, 1.96 * (squares / (count - 1.0) / count).sqrt())
}

fn rounds(rows: f64, rounds: &[Loaded]) -> Value {
    let seconds: f64 = rounds.iter().map(|round| round.seconds).sum();
    let answers = || rounds.iter().flat_map(|round| round.of(200));
    let at = |share| quantile(answers().map(|answer| answer.took), share);
    let rate = answers().count() as f64 / seconds;
    row(&[("rows", rows), ("starts/s", rate), ("p50", at(0.5)), ("p99", at(0.99)), ("p99.9", at(0.999))])
}

struct Full {
    url: String,
    pool: PgPool,
}

async fn full(bench: &Bench) -> Result<Full, Failure> {
    sqlx::raw_sql("DROP DATABASE IF EXISTS million WITH (FORCE)").execute(&bench.pool).await?;
    sqlx::raw_sql("CREATE DATABASE million").execute(&bench.pool).await?;
    let url = bench.url.replacen("/vos_auth?", "/million?", 1);
    let pool = PgPool::connect(&url).await?;
    schema(&pool).await?;
    eprintln!("filling a database with a million accounts and a million recoveries…");
    let accounts = "INSERT INTO account (id, email, created_at, updated_at)
        SELECT gen_random_uuid(), 'somebody-' || n || '@example.com', now(), now() FROM generate_series(1, 1000000) AS n";
    sqlx::raw_sql(accounts).execute(&pool).await?;
    // Half of them live, half over, and not yet old enough to be swept.
    recoveries(&pool, 500_000, 0.0).await?;
    recoveries(&pool, 500_000, 20.0).await?;
    sqlx::raw_sql("VACUUM ANALYZE").execute(&pool).await?;
    sqlx::raw_sql("CHECKPOINT").execute(&pool).await?;
    Ok(Full { url, pool })
}

/// Recoveries that began so many hours ago, and the budgets that they drew on.
async fn recoveries(pool: &PgPool, rows: i64, hours_ago: f64) -> Result<(), Failure> {
    // Ids carry the time, as those of the service do: the sweeper goes by it.
    let recoveries = "
        WITH named AS MATERIALIZED (
            SELECT n, at, encode(sha256((at::text || n)::bytea), 'hex') AS hash,
                (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7000'
                    || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid AS id
            FROM (SELECT n, clock_timestamp() - $2 * interval '1 hour' AS at FROM generate_series(1, $1) AS n) AS times
        ), drawn AS (
            INSERT INTO throttle (key, short_at, long_at, admitted)
            SELECT sha256(hash::bytea), at + interval '300 s', at + interval '8640 s', 1 FROM named
        )
        INSERT INTO recovery_session (id, token_hash, email, key_id, created_at, expires_at, client_ip, user_agent)
        SELECT id, decode(hash, 'hex'), 'somebody-' || n || '@example.com', 'bench', at, at + interval '10 min',
            '203.0.113.9', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64)'
        FROM named";
    sqlx::query(recoveries).bind(rows).bind(hours_ago).execute(pool).await?;
    Ok(())
}

impl Full {
    /// Waits until the sweeper has deleted the budgets that are full again and the recoveries that are long over.
    async fn is_swept(&self) -> Result<(), Failure> {
        eprintln!("waiting for the sweeper, which looks every 30 s…");
        let left = "SELECT EXISTS (SELECT FROM throttle WHERE greatest(short_at, long_at) < now())
            OR (SELECT created_at FROM recovery_session ORDER BY id LIMIT 1) < now() - interval '30 hours'";
        while sqlx::query_scalar(left).fetch_one(&self.pool).await? {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// Writes all there is, so that no load has the checkpoint of what was done before it.
    async fn is_written(&self) -> Result<(), Failure> {
        settles(&self.pool).await?;
        sqlx::raw_sql("CHECKPOINT").execute(&self.pool).await?;
        Ok(())
    }

    /// A load while the sweeper deletes 500,000 recoveries and their budgets, and before and after it one of half the length
    /// while it has nothing to do.
    async fn swept(&self, bench: &Bench, replica: &Replica) -> Result<Value, Failure> {
        println!("start while the sweeper has nothing to do, and while it is at work, its rests among it");
        header(&["seconds", "starts/s", "p50", "p99", "p99.9"]);
        let load = bench.starts(replica);
        self.is_written().await?;
        let mut apart = load.closed(CONNECTIONS, SWEEPS / 2).await?;
        recoveries(&self.pool, 500_000, 48.0).await?;
        self.is_written().await?;
        eprintln!("waiting for the sweeper, which looks every 30 s…");
        while rows_swept(replica, Duration::from_millis(100)).await? == 0 {}
        let (during, rows) = tokio::join!(load.closed(CONNECTIONS, SWEEPS), rows_swept(replica, SWEEPS));
        let during = during?;
        self.is_swept().await?;
        self.is_written().await?;
        apart.add(load.closed(CONNECTIONS, SWEEPS / 2).await?);
        let [apart, during] =
            [apart, during].map(|seen| part(seen.seconds, &seen.of(200).collect::<Vec<_>>()));
        println!("{} rows swept; {:.2} of the undisturbed rate", rows?, rate(&during) / rate(&apart));
        Ok(json!({ "apart": apart, "during": during }))
    }

    /// One load, and a checkpoint in the midst of it.
    async fn flushed(&self, bench: &Bench, replica: &Replica) -> Result<Value, Failure> {
        println!("start before and after a checkpoint, and during it; one run");
        header(&["seconds", "starts/s", "p50", "p99", "p99.9"]);
        let load = bench.starts(replica);
        let (seen, span) =
            tokio::join!(load.closed(CONNECTIONS, bench.lasting * 3), self.checkpoint(bench.lasting));
        let (seen, span) = (seen?, span?);
        let is_during = |answer: &&Answer| span.contains(&answer.at);
        let (during, apart): (Vec<&Answer>, Vec<_>) = seen.of(200).partition(is_during);
        let length = (span.end - span.start).as_secs_f64();
        let (apart, during) = (part(seen.seconds - length, &apart), part(length, &during));
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

/// How many rows the sweeper deletes meanwhile.
async fn rows_swept(replica: &Replica, meanwhile: Duration) -> Result<usize, Failure> {
    let before = replica.metric("vos_auth_swept_rows_total").await?;
    tokio::time::sleep(meanwhile).await;
    Ok(replica.metric("vos_auth_swept_rows_total").await? - before)
}

fn part(seconds: f64, answers: &[&Answer]) -> Value {
    let at = |share| quantile(answers.iter().map(|answer| answer.took), share);
    let a_second = answers.len() as f64 / seconds;
    row(&[
        ("seconds", seconds),
        ("starts/s", a_second),
        ("p50", at(0.5)),
        ("p99", at(0.99)),
        ("p99.9", at(0.999)),
    ])
}

fn rate(row: &Value) -> f64 {
    row["starts/s"].as_f64().unwrap_or(f64::NAN)
}
