//! `make cost`: what one start and one delivered code cost, in counts that noise does not change.
//!
//! It counts the instructions of the service under callgrind, and the statements, octets of WAL and
//! used buffers of PostgreSQL. It ends with an error if a count exceeds its bound.
//!
//! A start is for an unknown address, so the courier only deletes the row of its mail. A delivered
//! code is the work after a start for a known address: the courier claims the mail from a backlog,
//! a relay accepts it, and the courier deletes the row. A code that a user receives costs both.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use vos_auth_lab::benchmarks::start::load::{Connection, post};
use vos_auth_lab::program::{Program, serve_environment};
use vos_auth_lab::relay::Relay;
use vos_auth_lab::webhook::{Mood, Webhook};
use vos_auth_lab::{Failure, PATIENCE, backlog, database, now, place};

/// The starts or codes of the short run; the long run has `STARTS` or `CODES` more. Only the
/// difference counts, so the cost of starting and stopping the service cancels out.
const FEW: u32 = 200;
const STARTS: u32 = 1000;
const CODES: u32 = 400;

/// Trial: what a start and a delivered code cost, against bounds
#[derive(Args)]
pub struct Options {
    /// Print what each statement for a code costs PostgreSQL
    #[arg(long)]
    by_statement: bool,
    /// With a webhook that gets every event: the cost of a delivered code includes that of its
    /// event
    #[arg(long)]
    hook: bool,
    /// Count no instructions, which takes most of the time
    #[arg(long, conflicts_with_all = ["start_instructions", "code_instructions"])]
    storage_only: bool,
    /// The most instructions of a start
    #[arg(long)]
    start_instructions: Option<f64>,
    /// The most statements of a start
    #[arg(long)]
    start_statements: Option<f64>,
    /// The most octets of WAL of a start
    #[arg(long)]
    start_wal: Option<f64>,
    /// The most touched buffers of a start
    #[arg(long)]
    start_buffers: Option<f64>,
    /// The most instructions of a delivered code
    #[arg(long)]
    code_instructions: Option<f64>,
    /// The most statements of a delivered code
    #[arg(long)]
    code_statements: Option<f64>,
    /// The most octets of WAL of a delivered code
    #[arg(long)]
    code_wal: Option<f64>,
    /// The most touched buffers of a delivered code
    #[arg(long)]
    code_buffers: Option<f64>,
}

/// What the service does in a run: this many starts, and this many mails of a backlog.
#[derive(Clone, Copy)]
struct Work {
    starts: u32,
    mails: u32,
}

/// Statements, octets of WAL, buffers and instructions, in this order.
type Counts = [f64; 4];
const NAMES: [&str; 4] = ["statements", "wal", "buffers", "instructions"];

pub async fn run(options: Options) -> Result<(), Failure> {
    let preloaded = "-c shared_preload_libraries=pg_stat_statements -c autovacuum=off";
    let url = database::of_program("cost", preloaded)?;
    database::anew(&url).await?.close().await;
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::raw_sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").execute(&mut connection).await?;
    let webhook = options.hook.then(|| Webhook::start(Mood::Takes));
    let relay = Relay::counting().await;
    let mut bench = Bench { url, connection, relay, webhook, storage_only: options.storage_only };
    let start = bench.cost(|starts| Work { starts, mails: 0 }, STARTS).await?;
    let code = bench.cost(|mails| Work { starts: 0, mails }, CODES).await?;
    if options.by_statement {
        println!("{}", bench.by_statement().await?);
    }
    let bounds = [
        options.start_statements,
        options.start_wal,
        options.start_buffers,
        options.start_instructions,
        options.code_statements,
        options.code_wal,
        options.code_buffers,
        options.code_instructions,
    ];
    let costs = [("start", start), ("code", code)];
    let rows = costs
        .iter()
        .flat_map(|(what, counts)| NAMES.iter().zip(counts).map(move |(name, cost)| (*what, *name, *cost)));
    let mut over = 0;
    for ((what, name, cost), bound) in rows.zip(bounds) {
        let exceeds = bound.is_some_and(|bound| cost > bound);
        let bound = bound.map_or(String::new(), |bound| format!("  bound {}", grouped(bound, 0)));
        println!(
            "{name:>12} a {what}: {:>12}{bound}{}",
            grouped(cost, 1),
            if exceeds { "  OVER" } else { "" }
        );
        over += usize::from(exceeds);
    }
    let by_name = |counts: &Counts| -> Value {
        NAMES.iter().zip(counts).map(|(name, cost)| ((*name).to_owned(), json!(cost))).collect()
    };
    println!("{}", json!({ "start": by_name(&start), "code": by_name(&code) }));
    if over == 0 { Ok(()) } else { Err(format!("{over} counts are over their bounds").into()) }
}

struct Bench {
    url: String,
    connection: PgConnection,
    relay: Relay,
    webhook: Option<Webhook>,
    storage_only: bool,
}

impl Bench {
    async fn cost(&mut self, work: impl Fn(u32) -> Work, count: u32) -> Result<Counts, Failure> {
        let few = self.counts(work(FEW)).await?;
        let many = self.counts(work(FEW + count)).await?;
        Ok(std::array::from_fn(|place| (many[place] - few[place]) / f64::from(count)))
    }

    /// The counts of a normal run, and the instructions of another one under callgrind.
    async fn counts(&mut self, work: Work) -> Result<Counts, Failure> {
        let [statements, wal, buffers] = self.storage(work).await?;
        if self.storage_only {
            return Ok([statements, wal, buffers, 0.0]);
        }
        self.has_backlog(work.mails).await?;
        let file = place::temporary("callgrind");
        let output = format!("--callgrind-out-file={file}");
        self.runs(&["/usr/bin/valgrind", "--tool=callgrind", &output], work).await?;
        let counted = std::fs::read_to_string(file)?;
        let total = |line: &str| {
            line.strip_prefix("totals: ").or(line.strip_prefix("summary: "))?.trim().parse::<f64>().ok()
        };
        let instructions = counted.lines().find_map(total).ok_or("callgrind counted nothing")?;
        Ok([statements, wal, buffers, instructions])
    }

    async fn storage(&mut self, work: Work) -> Result<[f64; 3], Failure> {
        self.has_backlog(work.mails).await?;
        sqlx::query("SELECT pg_stat_statements_reset()").execute(&mut self.connection).await?;
        let before = self.wal().await?;
        self.runs(&[], work).await?;
        let counted = "SELECT sum(calls)::float8, sum(shared_blks_hit + shared_blks_read)::float8
            FROM pg_stat_statements WHERE query !~ 'pg_stat_statements|^SELECT count'";
        let (statements, buffers): (f64, f64) =
            sqlx::query_as(counted).fetch_one(&mut self.connection).await?;
        Ok([statements, self.wal().await? - before, buffers])
    }

    async fn wal(&mut self) -> Result<f64, sqlx::Error> {
        let written = "SELECT (pg_current_wal_insert_lsn() - '0/0')::float8";
        sqlx::query_scalar(written).fetch_one(&mut self.connection).await
    }

    async fn has_backlog(&mut self, mails: u32) -> Result<(), Failure> {
        // The first change of a page after a checkpoint writes the whole page into the WAL. So
        // begin with new pages.
        backlog::clear(&mut self.connection).await?;
        sqlx::raw_sql("CHECKPOINT").execute(&mut self.connection).await?;
        if mails > 0 {
            backlog::insert(&mut self.connection, mails, 0.0).await?;
        }
        Ok(())
    }

    /// Runs the service under a tool until it has done its work.
    async fn runs(&mut self, tool: &[&str], work: Work) -> Result<(), Failure> {
        let hook: Vec<_> = self.webhook.iter().flat_map(Webhook::environment).collect();
        let mut changes = vec![
            ("NETWORK_BURST", "1000000"),
            // One thread, because how often further threads are woken is noise.
            ("TOKIO_WORKER_THREADS", "1"),
        ];
        changes.extend(hook.iter().map(|(name, value)| (*name, value.as_str())));
        let relay = self.relay.url();
        let environment = serve_environment(&self.url, &relay, &changes);
        let mut service = Program::start_under(tool, &["serve"], &environment);
        // A client that uses hardly any CPU time, so that the service determines the pace of the
        // starts.
        let mut connection = Connection::open(service.address())?;
        let began = Instant::now();
        while connection.asks(b"GET /readyz HTTP/1.1\r\nhost: cost\r\n\r\n")? != 200 {
            waits(began).await?;
        }
        // Numbers that no earlier run has used, so that no rate limit of an address refuses a
        // start.
        let first = now().unix_timestamp_nanos();
        for number in (first..).take(work.starts as usize) {
            let body = json!({ "email": format!("unknown-{number}@example.org") }).to_string();
            let status = connection.asks(&post("/api/auth/recovery/start", "", &body))?;
            if status != 200 {
                return Err(format!("a start was answered {status}").into());
            }
        }
        let began = Instant::now();
        let pending = "SELECT count(*) FROM event_delivery";
        while backlog::count(&mut self.connection).await? > 0
            || sqlx::query_scalar::<_, i64>(pending).fetch_one(&mut self.connection).await? > 0
        {
            waits(began).await?;
        }
        service.signal("-TERM");
        match service.ends() {
            (_, true) => Ok(()),
            (log, false) => Err(log.join("\n").into()),
        }
    }

    async fn by_statement(&mut self) -> Result<String, Failure> {
        let statements = r"
            SELECT format('%s calls, %s buffers, %s octets of WAL, %s ms: %s', calls, shared_blks_hit + shared_blks_read, wal_bytes,
                round(total_exec_time), left(regexp_replace(query, '\s+', ' ', 'g'), 100))
            FROM pg_stat_statements WHERE calls > 20 ORDER BY total_exec_time DESC";
        let lines: Vec<String> = sqlx::query_scalar(statements).fetch_all(&mut self.connection).await?;
        Ok(lines.join("\n"))
    }
}

async fn waits(since: Instant) -> Result<(), Failure> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    if since.elapsed() > PATIENCE { Err("waited for a minute in vain".into()) } else { Ok(()) }
}

/// Formats a number with commas between thousands.
fn grouped(number: f64, decimals: usize) -> String {
    let text = format!("{number:.decimals$}");
    let (whole, fraction) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (place, digit) in whole.char_indices() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let _ = write!(grouped, "{fraction}");
    grouped
}
