//! Connections to PostgreSQL: their options, deadlines and errors. [`health`] checks whether the
//! service can work with the server.

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
pub use self::migration::{Beyond, MigrationFailure, beyond, migrate};
pub use self::options::options;
use crate::config::{OPERATOR_DEADLINE, STORAGE_DEADLINE};
use crate::error::{Error, Problem};

/// The migrations of the schema. Each file says why it is needed.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// The settings of every database session of the running service, as `current_setting` shows them.
/// A connection pooler may drop them, so [`health`] checks them.
fn settings() -> [(&'static str, String); 6] {
    let is = |value: &str| value.to_owned();
    [
        // The server cancels a statement when the service stops waiting for it.
        ("statement_timeout", format!("{}s", STORAGE_DEADLINE.as_secs())),
        // Every statement can use an index. A plan made while a table was empty would scan the
        // table when it has millions of rows, because a connection keeps its plans.
        ("enable_seqscan", is("off")),
        // A bitmap scan does not mark index entries of deleted rows as dead, so every scan would
        // visit them again.
        ("enable_bitmapscan", is("off")),
        ("jit", is("off")),
        // If a replica's machine dies in a transaction, the transaction must not lock an account's
        // row for hours.
        ("idle_in_transaction_session_timeout", is("5s")),
        // Planning the statement each time cost a fifth of a single `start` (docs/decisions/0001).
        ("plan_cache_mode", is("force_generic_plan")),
    ]
}

/// Adds the session settings of the running service, which include its statement timeout.
#[must_use]
pub fn with_session_settings(options: &PgConnectOptions) -> PgConnectOptions {
    options.clone().options(settings())
}

/// Adds the session settings of the admin API. Operators' statements may read a whole table, so
/// they have more time, and none of the service's restrictions on plans.
#[must_use]
pub fn with_operator_settings(options: &PgConnectOptions) -> PgConnectOptions {
    let deadline = format!("{}s", OPERATOR_DEADLINE.as_secs());
    options
        .clone()
        .options([("statement_timeout", deadline), ("idle_in_transaction_session_timeout", "5s".into())])
}

/// A pool that connects on first use, so that the service can start while PostgreSQL is down.
#[must_use]
pub fn pool(endpoint: &Endpoint, connections: u32) -> PgPool {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(STORAGE_DEADLINE)
        // No connection may stay with a former primary after a failover.
        .max_lifetime(Duration::from_mins(1))
        // sqlx pings a returned connection without a deadline: if the server's machine has died,
        // the connection would block a place of the pool until TCP gives up. A read-only server is
        // a former primary; the next connection may reach the new one.
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
    endpoint.manage(&pool);
    pool
}

/// A connection that one task keeps for itself, without the cost of a pool.
#[derive(Debug)]
pub struct KeptConnection {
    endpoint: Endpoint,
    open: Option<PgConnection>,
    opened_at: Instant,
    used_at: Instant,
    max_lifetime: Duration,
    /// Whether every new connection probes the server's addresses, even one that replaces a
    /// connection because of its age.
    probes_always: bool,
    /// Whether the last call of `take` has not finished connecting.
    is_connecting: bool,
}

impl KeptConnection {
    /// After this idle time, a connection is pinged before use: PostgreSQL may have been restarted,
    /// and the request should not fail for that.
    const PING_AFTER: Duration = Duration::from_millis(20);

    /// A connection that is opened on first use. After `max_lifetime` it is replaced, so that a new
    /// certificate or address of the server takes effect. It probes the server's addresses when
    /// it connects first, and when a connection was lost.
    #[must_use]
    pub fn new(endpoint: &Endpoint, max_lifetime: Duration) -> Self {
        let now = Instant::now();
        Self {
            endpoint: endpoint.clone(),
            open: None,
            opened_at: now,
            used_at: now,
            max_lifetime,
            probes_always: false,
            is_connecting: false,
        }
    }

    /// As [`KeptConnection::new`], but it probes the server's addresses whenever it connects. All
    /// connections use the result.
    #[must_use]
    pub fn probing(endpoint: &Endpoint, max_lifetime: Duration) -> Self {
        Self { probes_always: true, ..Self::new(endpoint, max_lifetime) }
    }

    /// Takes the connection for one statement. Give it back with [`KeptConnection::put`] after
    /// success. After an error or a cancelled statement, drop it: the next call opens another.
    pub async fn take(&mut self) -> Result<PgConnection, sqlx::Error> {
        self.is_connecting = false;
        let is_old = self.opened_at.elapsed() >= self.max_lifetime;
        let replaces_old = is_old && self.open.is_some();
        if let Some(mut connection) = self.open.take()
            && !is_old
            && (self.used_at.elapsed() < Self::PING_AFTER || connection.ping().await.is_ok())
        {
            return Ok(connection);
        }
        self.is_connecting = true;
        let connection = if replaces_old && !self.probes_always {
            PgConnection::connect_with(&self.endpoint.options()).await?
        } else {
            self.endpoint.connect().await?
        };
        self.is_connecting = false;
        self.opened_at = Instant::now();
        Ok(connection)
    }

    /// What the last use was waiting for when it was cancelled.
    fn stage(&self) -> String {
        if self.is_connecting { self.endpoint.stage() } else { "waiting for a statement".into() }
    }

    /// Gives back a connection whose last statement succeeded.
    pub fn put(&mut self, connection: PgConnection) {
        self.open = Some(connection);
        self.used_at = Instant::now();
    }
}

/// The `Retry-After` of responses while the relays or PostgreSQL are unavailable: about as long as
/// a probe needs to notice a recovery.
pub const OUTAGE_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Runs the database work of a request, with the deadline of a request. `what` names the work in
/// traces and in the log.
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

/// Like [`within_deadline`], for a call of the admin API.
///
/// # Errors
///
/// As [`within_deadline`].
pub async fn within_operator_deadline<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    let done = tokio::time::timeout(OPERATOR_DEADLINE, work).instrument(span_of(what)).await;
    done.unwrap_or(Err(sqlx::Error::PoolTimedOut)).map_err(|error| unavailable(what, &error))
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
    /// The transaction has read something that forbids the request.
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

/// Like [`within_deadline`], for a transaction that may refuse the request.
///
/// # Errors
///
/// Those of [`within_deadline`], and the refusal.
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

/// Runs database work with the deadline of a request and returns sqlx's own error, for tasks that
/// try again.
///
/// The server cancels a slow statement itself. Only a deadline on this side notices that the
/// server's machine has died.
///
/// # Errors
///
/// The error of `work`; `PoolTimedOut` if it takes longer than `STORAGE_DEADLINE`.
pub async fn in_time<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    let done = tokio::time::timeout(STORAGE_DEADLINE, work).await;
    done.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// Whether the statement or its data caused the error, and not the server, its disk or the
/// connection.
#[must_use]
pub fn is_statement_error(error: &sqlx::Error) -> bool {
    match error {
        // Classes of SQLSTATE: 08 connection, 25 a read-only server (a former primary), 28
        // authentication, 3D no such database, 53 out of resources, 57 cancelled or shutting down,
        // 58 system error. 42501 is a missing privilege.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            let class = &code[..2.min(code.len())];
            !["08", "25", "28", "3D", "53", "57", "58"].contains(&class) && code != "42501"
        }),
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => true,
        _ => false,
    }
}

/// Log targets of sqlx that quote PostgreSQL's messages. The service never logs these targets,
/// because a message can quote a row.
pub const QUOTING_TARGETS: [&str; 2] = ["sqlx::postgres::notice", "sqlx_core::pool"];

/// The error as a log may show it. PostgreSQL's messages can quote a row; its SQLSTATE cannot.
#[must_use]
pub fn cause(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::PoolTimedOut => "no answer in time".to_owned(),
        sqlx::Error::Database(error) => sqlstate(&error.code().unwrap_or_default()),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The SQLSTATE `disk_full`.
const DISK_FULL: &str = "53100";

fn sqlstate(code: &str) -> String {
    meaning(code).map_or_else(|| format!("SQLSTATE {code}"), |meaning| format!("SQLSTATE {code} ({meaning})"))
}

/// The meaning of a SQLSTATE, for those that an operator can fix.
fn meaning(code: &str) -> Option<&'static str> {
    Some(match code {
        "25006" => "the server is read-only",
        "28000" => "no such role, or pg_hba.conf does not allow it to connect from here",
        "28P01" => "wrong password",
        "3D000" => "no such database",
        "42501" => "a privilege is missing",
        "42P01" => "no such table",
        DISK_FULL => "the disk is full",
        "53300" => "too many connections",
        "57014" => "cancelled at the time limit",
        "57P03" => "the server is starting or stopping",
        _ => return None,
    })
}
