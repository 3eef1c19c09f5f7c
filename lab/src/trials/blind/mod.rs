//! `make blind`: does the time of an answer reveal who has an account?
//!
//! It makes calls for known, disabled, passwordless and unknown addresses in random order: on 1 to
//! 16 connections, without and with load, with an idle relay and with one that holds mails. Each
//! combination is a cell. The trial ends with an error if two measurements of a cell both reveal a
//! difference, or are both too imprecise to exclude one.
//!
//! `--leak` adds a look-up of accounts to `start`, and inserts imported hashes that the service has
//! not counted. Then the trial must end with an error.

mod auc;
mod calls;
mod parallel;

use std::time::Duration;

use clap::Args;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use sqlx::PgPool;
use vos_auth::password::{Cost, Password};
use vos_auth_lab::relay::{Mood, Relay};
use vos_auth_lab::replica::Replica;
use vos_auth_lab::webhook::{self, Webhook};
use vos_auth_lab::{Failure, backlog, database};

use self::auc::{Auc, median};
use self::calls::{Call, KINDS, Subject, UNKNOWN, begins, in_parallel, one_by_one, prefix, strangers};

/// Trial: whether the time of an answer tells who has an account
#[derive(Args, Default)]
pub struct Options {
    /// Calls of each kind in each cell of start and verify; the other cells have a share of it
    #[arg(long, default_value = "20000")]
    calls: usize,
    /// Default: a random one
    #[arg(long)]
    seed: Option<u64>,
    /// Measure only these calls; may be given several times
    #[arg(long)]
    call: Vec<Call>,
    /// Measure only on this many connections
    #[arg(long)]
    connections: Option<usize>,
    /// Measure only without load and with a relay that does not stall
    #[arg(long)]
    quiet: bool,
    /// With a webhook that gets every event
    #[arg(long)]
    hook: bool,
    /// Plant two leaks, to check that the trial finds them: `start` looks accounts up for 200 µs,
    /// and parallel logins verify hashes that were not counted
    #[arg(long)]
    leak: bool,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    call: Call,
    connections: usize,
    loaded: bool,
    stalled: bool,
}

impl Options {
    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for call in Call::ALL {
            for &connections in call.connections() {
                for (loaded, stalled) in [(false, false), (true, false), (false, true), (true, true)] {
                    cells.push(Cell { call, connections, loaded, stalled });
                }
            }
        }
        cells.retain(|cell| {
            (self.call.is_empty() || self.call.contains(&cell.call))
                && self.connections.is_none_or(|only| only == cell.connections)
                && !(self.quiet && (cell.loaded || cell.stalled))
                // Load would hide the effect of an earlier call on the measured one.
                && !(cell.loaded && matches!(cell.call, Call::Resend | Call::Later | Call::AtOnce))
                && !(cell.stalled && cell.call == Call::AtOnce)
        });
        cells
    }
}

pub async fn run(options: Options) -> Result<(), Failure> {
    let seed = options.seed.unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let url = database::of_program("blind", "")?;
    let pool = database::anew(&url).await?;
    if options.leak {
        sqlx::raw_sql(LEAK).execute(&pool).await?;
    }
    let cells = options.cells();
    println!(
        "seed {seed}; {} calls of each kind in each of {} cells, of a resend a quarter, of a late or next call and of login a tenth; medians in ms",
        options.calls,
        cells.len()
    );
    println!("call    conns  load   relay     unknown  kind             median    AUC  interval");
    // Counts all cells, also those that this run does not measure, because another run may measure
    // them.
    let comparisons = Options::default().cells().len() * (KINDS.len() - 1);
    let webhook = options.hook.then(|| Webhook::start(webhook::Mood::Takes));
    let blind = Blind { url, pool, calls: options.calls, comparisons, webhook };
    let mut tells = 0;
    for (number, cell) in cells.into_iter().enumerate() {
        let seed = seed + number as u64 * 2;
        // By chance an interval sometimes excludes 0.5, but hardly ever in two measurements.
        if blind.tells(cell, seed).await? && blind.tells(cell, seed + 1).await? {
            tells += 1;
        }
    }
    if options.call.is_empty() || options.call.contains(&Call::ParallelLogin) {
        let trials = (options.calls / Call::ParallelLogin.share()).max(2);
        println!(
            "parallel logins: {trials} bursts of each kind in each cell; medians in ms, means of counts"
        );
        println!("scheme  load   seen     unknown  kind         here     AUC  interval");
        let cells = parallel::Cell::all().into_iter().filter(|cell| !(options.quiet && cell.loaded));
        for (number, cell) in cells.enumerate() {
            let seed = seed + 1000 + number as u64 * 2;
            if parallel::tells(&blind, cell, trials, options.leak, seed).await?
                && parallel::tells(&blind, cell, trials, options.leak, seed + 1).await?
            {
                tells += 1;
            }
        }
    }
    println!("cells that tell, or are too wide to say: {tells}");
    if tells == 0 { Ok(()) } else { Err("time may tell who has an account".into()) }
}

/// Breaks invariant 1 of docs/architecture.md: `start` reads `account`, and takes 200 µs longer if
/// the account exists.
const LEAK: &str = "
    CREATE FUNCTION looks_accounts_up() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE began timestamptz := clock_timestamp();
    BEGIN
        IF EXISTS (SELECT FROM account WHERE email = NEW.email) THEN
            WHILE clock_timestamp() < began + interval '200 microseconds' LOOP END LOOP;
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER looks_accounts_up BEFORE INSERT ON recovery_session
        FOR EACH ROW EXECUTE FUNCTION looks_accounts_up()";

struct Blind {
    url: String,
    pool: PgPool,
    calls: usize,
    comparisons: usize,
    webhook: Option<Webhook>,
}

impl Blind {
    /// Measures one cell and prints its rows. Returns whether the times reveal a difference or are
    /// too imprecise to exclude one.
    async fn tells(&self, cell: Cell, seed: u64) -> Result<bool, Failure> {
        let calls = self.calls / cell.call.share();
        self.has_accounts(calls).await?;
        let relay = Relay::counting().await;
        if cell.stalled {
            relay.is_in_mood(Mood::HoldsOneIn(1));
        }
        let hook: Vec<_> = self.webhook.iter().flat_map(Webhook::environment).collect();
        let hook: Vec<_> = hook.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let replica = Replica::start(&self.url, &relay.url(), &hook).await?;
        let base = format!("http://{}/api/auth", replica.address);
        let mut random = SmallRng::seed_from_u64(seed);
        let mut order: Vec<_> = (0..KINDS.len() * calls).collect();
        order.shuffle(&mut random);
        let load = tokio::spawn(strangers(base.clone(), cell.loaded, |_| None));
        let mut calls: Vec<_> =
            order.into_iter().map(|n| Subject::new(n % KINDS.len(), n / KINDS.len())).collect();
        if matches!(cell.call, Call::Verify | Call::Progress | Call::Resend) {
            calls = in_parallel(16, &calls, |share| begins(base.clone(), share)).await?;
            // Sending mails to known addresses uses CPU, which is measurable: see docs/security.md.
            self.until_mails_are_sent(cell.stalled).await?;
        }
        let mut took: [Vec<f64>; 4] = Default::default();
        for (kind, seconds) in
            in_parallel(cell.connections, &calls, |share| one_by_one(cell.call, base.clone(), share)).await?
        {
            took[kind].push(seconds);
        }
        load.abort();
        Ok(self.is_told(cell, &took, &mut random))
    }

    fn is_told(&self, cell: Cell, took: &[Vec<f64>; 4], random: &mut SmallRng) -> bool {
        let bound = if cell.call.share() > 1 { 0.05 } else { 0.02 };
        let is_residual = cell.call == Call::AtOnce;
        let mut tells = false;
        for kind in 1..KINDS.len() {
            let auc = Auc::of(&took[kind], &took[UNKNOWN], errors(self.comparisons), random);
            tells |= !is_residual && (auc.tells() || auc.is_wide(bound));
            println!(
                "{:7} {:5}  {:5}  {:7}  {:8.3}  {:14} {:8.3}  {:.3}  {:.3} to {:.3}{}",
                format!("{:?}", cell.call).to_lowercase(),
                cell.connections,
                if cell.loaded { "load" } else { "quiet" },
                if cell.stalled { "stalls" } else { "idle" },
                median(&took[UNKNOWN]) * 1e3,
                KINDS[kind],
                median(&took[kind]) * 1e3,
                auc.at,
                auc.low,
                auc.high,
                if is_residual {
                    "  (left over)"
                } else if auc.tells() {
                    "  TELLS"
                } else if auc.is_wide(bound) {
                    "  too wide"
                } else {
                    ""
                },
            );
        }
        tells
    }

    /// Waits until no mail is pending. Does not wait if the relay stalls, because the mails then
    /// stay pending.
    async fn until_mails_are_sent(&self, stalled: bool) -> Result<(), Failure> {
        while !stalled && backlog::count(&self.pool).await? > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    async fn has_no_accounts(&self) -> Result<(), Failure> {
        Ok(backlog::clear(&self.pool).await?)
    }

    async fn has_accounts(&self, calls: usize) -> Result<(), Failure> {
        self.has_no_accounts().await?;
        let hash = Password::new("a password that nobody guesses").hash(Cost {
            memory_kib: 19456,
            passes: 2,
            lanes: 1,
        });
        let accounts = "INSERT INTO account (id, email, state, password_hash, created_at, updated_at)
            SELECT gen_random_uuid(), $2 || n || '@example.com', $3, $4, clock_timestamp(), clock_timestamp()
            FROM generate_series(0, $1) AS n";
        for (kind, (state, hash)) in
            (UNKNOWN + 1..).zip([("active", Some(&hash)), ("disabled", Some(&hash)), ("active", None)])
        {
            let insert = sqlx::query(accounts).bind(i64::try_from(calls)?).bind(prefix(kind));
            insert.bind(state).bind(hash).execute(&self.pool).await?;
        }
        sqlx::raw_sql("VACUUM ANALYZE").execute(&self.pool).await?;
        Ok(())
    }
}

/// The half-width of an interval in standard errors, so that all comparisons together have 95%
/// confidence (Bonferroni).
fn errors(comparisons: usize) -> f64 {
    // Quantiles of the normal distribution at 1 - 0.05 / (2 n).
    match comparisons {
        0..=20 => 3.02,
        21..=40 => 3.23,
        41..=60 => 3.34,
        _ => 3.48,
    }
}
