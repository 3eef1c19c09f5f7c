//! Connections to PostgreSQL: how they are opened, how long they may take, when one is beyond repair. [`health`] says
//! whether the service can work with it.

mod endpoint;
pub mod failures;
pub mod health;
mod migration;
mod options;

use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::time::Instant;
use tracing::{Instrument as _, Span, info_span};

pub use self::endpoint::Endpoint;
pub use self::migration::{MigrationFailure, migrate};
pub use self::options::options;
use crate::config::STORAGE_DEADLINE;
use crate::error::{Error, Problem};

/// The schema, step by step; the files say why.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// The settings that every session of the running service has, written as `current_setting` shows them. [`health`]
/// checks that a session really has them: a connection pooler may drop them.
fn settings() -> [(&'static str, String); 6] {
    let is = |value: &str| value.to_owned();
    [
        // The server gives up on a statement when its client has.
        ("statement_timeout", format!("{}s", STORAGE_DEADLINE.as_secs())),
        // Every statement of the service has an index to go by. A plan is kept as long as its connection, and one that
        // was made while a table was empty would scan it when it holds millions.
        ("enable_seqscan", is("off")),
        // A bitmap scan does not mark the entries of deleted rows, so it meets them again every time.
        ("enable_bitmapscan", is("off")),
        ("jit", is("off")),
        // A machine that is lost in the middle of a transaction must not hold an account's row for hours.
        ("idle_in_transaction_session_timeout", is("5s")),
        // Planning the statement of `start` anew cost a fifth of a lone start (docs/decisions/0001).
        ("plan_cache_mode", is("force_generic_plan")),
    ]
}

/// The same options for the running service: with its settings.
#[must_use]
pub fn with_deadline(options: &PgConnectOptions) -> PgConnectOptions {
    options.clone().options(settings())
}

/// A pool that connects when it is first used, so that the service starts while PostgreSQL is down.
#[must_use]
pub fn pool(endpoint: &Endpoint, connections: u32) -> PgPool {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(STORAGE_DEADLINE)
        // After a switch to another primary no connection to the former one lasts.
        .max_lifetime(Duration::from_mins(1))
        // The pool asks a returned connection itself whether it lives, and would wait for the answer of a machine that is
        // gone until TCP gives up, with the connection's place taken. One to a server that only reads is closed: it is a
        // former primary, and the next connection may lead to the new one.
        .after_release(|connection, _| {
            Box::pin(async move {
                let writes = sqlx::query_scalar!(
                    r#"SELECT current_setting('transaction_read_only') = 'off' AS "writes!""#
                );
                in_time(writes.fetch_one(connection))
                    .await
                    .inspect_err(|error| failures::note("return a connection", error))
            })
        })
        .connect_lazy_with(endpoint.options());
    endpoint.leads(&pool);
    pool
}

/// One connection that is kept for one task: no pool stands between a statement and the server.
#[derive(Debug)]
pub struct KeptConnection {
    endpoint: Endpoint,
    open: Option<PgConnection>,
    opened: Instant,
    used: Instant,
    max_lifetime: Duration,
    /// Whether the addresses are looked at before every new connection, and not only after one that was lost.
    watches: bool,
    /// Whether the last use was connecting when it was ended.
    connecting: bool,
}

impl KeptConnection {
    /// A connection that idled this long is asked whether it still lives before it is used: PostgreSQL may have been
    /// restarted meanwhile, and a trader should not be the one who finds out.
    const TRUSTED_IDLE: Duration = Duration::from_millis(20);

    /// Opened on first use. After `max_lifetime` another takes its place, so that a new certificate or a new address of the
    /// server is met. What leads to the server is looked at only when a connection was lost.
    #[must_use]
    pub fn new(endpoint: &Endpoint, max_lifetime: Duration) -> Self {
        let now = Instant::now();
        let endpoint = endpoint.clone();
        Self { endpoint, open: None, opened: now, used: now, max_lifetime, watches: false, connecting: false }
    }

    /// The same; it looks at the server's addresses each time it is opened, so that all learn of a silent one.
    #[must_use]
    pub fn watching(endpoint: &Endpoint, max_lifetime: Duration) -> Self {
        Self { watches: true, ..Self::new(endpoint, max_lifetime) }
    }

    /// Takes the connection for one statement. Give it back with [`KeptConnection::put`] if it is still good; otherwise
    /// (an error, a cancelled statement) drop it, and the next call opens another.
    pub async fn take(&mut self) -> Result<PgConnection, sqlx::Error> {
        self.connecting = false;
        let is_old = self.opened.elapsed() >= self.max_lifetime;
        let outlived = is_old && self.open.is_some();
        if let Some(mut connection) = self.open.take()
            && !is_old
            && (self.used.elapsed() < Self::TRUSTED_IDLE || connection.ping().await.is_ok())
        {
            return Ok(connection);
        }
        self.connecting = true;
        let connection = if outlived && !self.watches {
            PgConnection::connect_with(&self.endpoint.options()).await?
        } else {
            self.endpoint.connect().await?
        };
        self.connecting = false;
        self.opened = Instant::now();
        Ok(connection)
    }

    /// What the last use was doing when it was ended.
    fn stage(&self) -> String {
        if self.connecting { self.endpoint.stage() } else { "waiting for a statement".into() }
    }

    /// Gives back a connection whose last statement ended well.
    pub fn put(&mut self, connection: PgConnection) {
        self.open = Some(connection);
        self.used = Instant::now();
    }
}

/// What a client is told to wait when mail or storage is away: about as long as a probe takes to notice a change.
pub const OUTAGE_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Waits for what a request needs of the database, as long as a request may. `what` is its name in traces and in the log.
///
/// # Errors
///
/// `StorageUnavailable` if PostgreSQL fails or does not answer in time; the log says why.
pub async fn within_deadline<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    in_time(work).instrument(span_of(what)).await.map_err(|error| unavailable(what, &error))
}

fn span_of(what: &'static str) -> Span {
    info_span!("database", otel.name = what, otel.kind = "client", db.system.name = "postgresql")
}

fn unavailable(what: &'static str, error: &sqlx::Error) -> Error {
    failures::note(what, error);
    Error::retry_after(Problem::StorageUnavailable, OUTAGE_RETRY_AFTER)
}

/// Why a transaction was not committed.
#[derive(Debug)]
pub enum Aborted {
    /// PostgreSQL failed.
    Database(sqlx::Error),
    /// What the transaction read forbids what the request asks for.
    Refused(Error),
}

impl From<sqlx::Error> for Aborted {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<Error> for Aborted {
    fn from(refusal: Error) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Problem> for Aborted {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem.into())
    }
}

/// As [`within_deadline`], for a transaction that may refuse the request.
///
/// # Errors
///
/// As [`within_deadline`], and the refusal.
pub async fn transact<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, Aborted>>,
) -> Result<T, Error> {
    // Not by `within_deadline`, which would double the size of the future.
    let done = tokio::time::timeout(STORAGE_DEADLINE, work).instrument(span_of(what)).await;
    match done.unwrap_or(Err(Aborted::Database(sqlx::Error::PoolTimedOut))) {
        Ok(done) => Ok(done),
        Err(Aborted::Refused(refusal)) => Err(refusal),
        Err(Aborted::Database(error)) => Err(unavailable(what, &error)),
    }
}

/// The same with PostgreSQL's own error, for tasks that try again. The server gives up on a statement by itself, but only a
/// deadline on this side notices a machine that is gone.
///
/// # Errors
///
/// What PostgreSQL answers; `PoolTimedOut` if it does not in time.
pub async fn in_time<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let done = tokio::time::timeout(STORAGE_DEADLINE, work).await;
    done.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Whether the statement itself is to blame, and not the server, its disk or the way to it.
#[must_use]
pub fn is_statements_fault(error: &sqlx::Error) -> bool {
    match error {
        // Classes of SQLSTATE: 08 connection, 25 a server that only reads (a former primary), 28 authentication, 3D no
        // such database, 53 out of resources, 57 cancelled or shutting down, 58 system error; 42501 is a missing right.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            let class = &code[..2.min(code.len())];
            !["08", "25", "28", "3D", "53", "57", "58"].contains(&class) && code != "42501"
        }),
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => true,
        _ => false,
    }
}

/// What sqlx logs under these targets quotes PostgreSQL, whose words can quote a row: no log may have it.
pub const QUOTING_TARGETS: [&str; 2] = ["sqlx::postgres::notice", "sqlx_core::pool"];

/// An error as a log may say it: PostgreSQL's own words can quote a row, its SQLSTATE cannot.
#[must_use]
pub fn cause(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::PoolTimedOut => "no answer in time".to_owned(),
        sqlx::Error::Database(error) => sqlstate(&error.code().unwrap_or_default()),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The SQLSTATE with which PostgreSQL cannot make a file longer.
const DISK_FULL: &str = "53100";

fn sqlstate(code: &str) -> String {
    meaning(code).map_or_else(|| format!("SQLSTATE {code}"), |meaning| format!("SQLSTATE {code} ({meaning})"))
}

/// What a SQLSTATE means that an operator can do something about.
fn meaning(code: &str) -> Option<&'static str> {
    Some(match code {
        "25006" => "the server only reads",
        "28000" => "no such role, or pg_hba.conf lets it in from nowhere",
        "28P01" => "wrong password",
        "3D000" => "no such database",
        "42501" => "a right is missing",
        "42P01" => "no such table",
        DISK_FULL => "the disk is full",
        "53300" => "too many connections",
        "57014" => "cancelled at the time limit",
        "57P03" => "the server is starting or stopping",
        _ => return None,
    })
}
