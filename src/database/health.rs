//! The health check of PostgreSQL: whether the service can work with it, and why not. The service
//! runs it periodically, and `/readyz` runs it too. The log, the metrics and `/readyz` show the
//! same result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};
use strum::{IntoStaticStr, VariantArray};
use tokio::sync::Mutex;

use super::endpoint::{AddressStatus, Endpoint};
use super::{DISK_FULL, KeptConnection, MIGRATOR, cause, failures, in_time, settings, sqlstate};
use crate::clock::{Clock, MAX_SKEW};
use crate::metrics::{Metrics, StateLabel};

/// How long the connection of the health check lasts. A new connection detects a changed password
/// or certificate.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);

/// How long a successful write test is valid.
const WRITE_TEST_LIFETIME: Duration = Duration::from_mins(1);
/// How long the disk counts as full after a statement failed because it was full.
const DISK_FULL_LIFETIME: Duration = Duration::from_secs(10);
/// The privileges that the service's role needs; `deploy/grants.sql` grants them. A privilege on
/// any column of a table is enough for the table. A column that a later migration added is listed
/// itself, to detect that `deploy/grants.sql` must be run again.
const PRIVILEGES: [(&str, &[&str]); 14] = [
    ("account", &["SELECT", "UPDATE"]),
    ("account.bouncing_since", &["UPDATE"]),
    ("audit_event", &["SELECT", "INSERT", "DELETE"]),
    ("audit_event.what", &["SELECT"]),
    ("event_delivery", &["SELECT", "UPDATE", "DELETE"]),
    ("event_hook", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("hash_census", &["SELECT", "INSERT", "UPDATE"]),
    ("operator_request", &["SELECT", "UPDATE", "DELETE"]),
    ("outbox", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("recovery_number", &["USAGE"]),
    ("recovery_session", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("session", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("throttle", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("_sqlx_migrations", &["SELECT"]),
];

/// The result of a health check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Health {
    /// The service can work with PostgreSQL.
    Ok,
    /// PostgreSQL does not answer in time.
    Unreachable,
    /// PostgreSQL refuses the service, or access to a table: password, role, database, grants.
    Refused,
    /// The connection cannot be encrypted as `DATABASE_URL` requires: the server's certificate or
    /// the file to check it with.
    Certificate,
    /// The server is read-only: a standby, or a former primary.
    ReadOnly,
    /// The disk is full: PostgreSQL can read and cannot write.
    Full,
    /// The schema lacks a migration of this program: run `vos-auth migrate`.
    MigrationsMissing,
    /// The clocks of this machine and of PostgreSQL are more than a second apart.
    ClockSkewed,
    /// The database session lacks settings that the service relies on, as behind a connection
    /// pooler.
    Settings,
}

impl Health {
    /// The state that an error shows. `networked` tells a missing `sslrootcert` from a missing Unix
    /// socket: both are the same error.
    #[must_use]
    pub fn of(error: &sqlx::Error, networked: bool) -> Self {
        use std::io::ErrorKind::{InvalidData, NotFound, PermissionDenied};
        match error {
            sqlx::Error::Database(error) => match error.code().unwrap_or_default().as_ref() {
                "25006" => Self::ReadOnly,
                "3D000" | "42501" => Self::Refused,
                // The table of migrations is missing, so no migration has run.
                "42P01" => Self::MigrationsMissing,
                DISK_FULL => Self::Full,
                code if code.starts_with("28") => Self::Refused,
                _ => Self::Unreachable,
            },
            sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Self::Certificate,
            // rustls reports a refused certificate as this kind of error.
            sqlx::Error::Io(error) if error.kind() == InvalidData => Self::Certificate,
            sqlx::Error::Io(error) if networked && [NotFound, PermissionDenied].contains(&error.kind()) => {
                Self::Certificate
            }
            _ => Self::Unreachable,
        }
    }

    /// The state and what to do about it, for operators.
    const fn advice(self) -> &'static str {
        match self {
            Self::Ok => "PostgreSQL works again",
            Self::Unreachable => {
                "PostgreSQL does not answer: check the server, the network, and host and port of DATABASE_URL"
            }
            Self::Refused => {
                "PostgreSQL refuses the service: check user, password and database of DATABASE_URL, pg_hba.conf, and the role's grants"
            }
            Self::Certificate => {
                "the connection to PostgreSQL cannot be encrypted: check the server's certificate, and sslmode and sslrootcert of DATABASE_URL"
            }
            Self::Full => "PostgreSQL cannot write: its disk is full",
            Self::ReadOnly => "PostgreSQL is read-only: DATABASE_URL must lead to the primary",
            Self::MigrationsMissing => "the schema lacks migrations of this program: run `vos-auth migrate`",
            Self::ClockSkewed => {
                "this machine's clock and PostgreSQL's differ by more than a second: check NTP on both machines"
            }
            Self::Settings => {
                "the database session lacks settings that the service relies on: run the statements in `fix`"
            }
        }
    }
}

/// What a check found, with details for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    health: Health,
    /// The cause. It contains no row, client or secret.
    cause: String,
    /// Statements with which a database administrator can fix it.
    fix: String,
}

impl Finding {
    fn just(health: Health) -> Self {
        Self { health, cause: String::new(), fix: String::new() }
    }

    fn of(error: &sqlx::Error, networked: bool) -> Self {
        Self { cause: cause(error), ..Self::just(Health::of(error, networked)) }
    }

    /// For sessions that lack settings: names them, and the statements that set them.
    fn wrong_settings(facts: &Facts) -> Self {
        let (cause, fix) = (facts.other_settings.join(", "), facts.fix_of_settings());
        Self { health: Health::Settings, cause, fix }
    }

    fn log(&self) {
        let Self { health, cause, fix } = self;
        let (state, advice) = (<&str>::from(health), health.advice());
        match health {
            Health::Ok => tracing::info!(database = state, "{advice}"),
            Health::Settings => tracing::warn!(database = state, cause, fix, "{advice}"),
            _ => tracing::warn!(database = state, cause, "{advice}"),
        }
    }
}

/// Runs the health check on a connection of its own, and logs changes.
#[derive(Debug)]
pub struct Monitor {
    clock: Clock,
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    state: Mutex<MonitorState>,
}

#[derive(Debug)]
struct MonitorState {
    connection: KeptConnection,
    finding: Finding,
    /// When the check with this finding started.
    checked_at: Option<Instant>,
    /// When a write test last succeeded.
    written_at: Option<Instant>,
}

impl Monitor {
    /// A monitor that connects at its first check.
    #[must_use]
    pub fn new(endpoint: &Endpoint, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let connection = KeptConnection::probing(endpoint, CONNECTION_LIFETIME);
        let finding = Finding::just(Health::Ok);
        let state = MonitorState { connection, finding, checked_at: None, written_at: None };
        Self { clock, metrics, endpoint: endpoint.clone(), state: Mutex::new(state) }
    }

    /// Checks PostgreSQL, and compares its clock with this machine's. Callers that arrive during a
    /// check share the next one.
    pub async fn check(&self) -> Health {
        let arrived_at = Instant::now();
        let mut state = self.state.lock().await;
        if state.checked_at.is_some_and(|checked_at| checked_at >= arrived_at) {
            return state.finding.health;
        }
        state.checked_at = Some(Instant::now());
        // Boxed, because the future includes connecting and is large.
        let finding = in_time(Box::pin(examine(&mut state, &self.clock))).await;
        let finding = finding.unwrap_or_else(|error| {
            let Finding { health, cause, fix } = Finding::of(&error, self.endpoint.is_networked());
            // Only a timeout does not say at which step it happened.
            let cause = match error {
                sqlx::Error::PoolTimedOut => format!("{cause}, while {}", state.connection.stage()),
                _ => cause,
            };
            Finding { health, cause, fix }
        });
        self.update_metrics(finding.health);
        if finding != state.finding {
            finding.log();
        }
        state.finding = finding;
        state.finding.health
    }

    fn update_metrics(&self, current: Health) {
        self.metrics.database_up.set(i64::from(current == Health::Ok));
        self.metrics.clock_skewed.set(i64::from(current == Health::ClockSkewed));
        let AddressStatus { total, silent, .. } = self.endpoint.addresses();
        // If the only address is silent, `database_up` shows it.
        let silent = if total > 1 { silent } else { 0 };
        self.metrics.database_silent_addresses.set(i64::try_from(silent).unwrap_or(i64::MAX));
        for &health in Health::VARIANTS {
            let label = StateLabel { state: health.into() };
            self.metrics.database_state.get_or_create(&label).set(i64::from(current == health));
        }
    }

    /// Runs a query on the connection of the health check.
    ///
    /// # Errors
    ///
    /// The error of `query`; `PoolTimedOut` if it takes longer than `STORAGE_DEADLINE`.
    pub async fn query<T>(
        &self,
        query: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut state = self.state.lock().await;
        in_time(async {
            let mut connection = state.connection.take().await?;
            let result = query(&mut connection).await?;
            state.connection.put(connection);
            Ok(result)
        })
        .await
    }
}

/// What [`Facts::ask`] learns about a server by one statement.
#[derive(Debug)]
pub struct Facts {
    /// By how much the server's clock is ahead of this machine's, if the answer took no time.
    pub clock_ahead: time::Duration,
    /// How long the answer took. `clock_ahead` is uncertain by as much.
    pub took: Duration,
    /// Whether transactions are read-only.
    pub read_only: bool,
    /// The role, quoted for SQL.
    pub role: String,
    /// Session settings that are not as requested.
    pub other_settings: Vec<String>,
    /// Privileges that the role lacks: `DELETE on outbox`.
    pub missing_rights: Vec<String>,
    /// Migrations of this program that are not applied.
    pub missing_versions: Vec<i64>,
}

impl Facts {
    /// Asks the server, and tells `clock` whether the two clocks agree. This is the only statement
    /// that reads the server's time.
    pub async fn ask(connection: &mut PgConnection, clock: &Clock) -> Result<Self, sqlx::Error> {
        let (settings_names, settings_values): (Vec<_>, Vec<_>) = settings().into_iter().unzip();
        let rights = PRIVILEGES.iter().flat_map(|(on, rights)| rights.iter().map(|right| (*on, *right)));
        let (rights_on, rights): (Vec<_>, Vec<_>) = rights.unzip();
        let versions: Vec<_> = MIGRATOR.iter().map(|step| step.version).collect();
        let (now, asked) = (clock.now(), Instant::now());
        // A missing column or table is no missing privilege here: the check of the migrations
        // reports it.
        let row = sqlx::query!(
            r#"SELECT clock_timestamp() AS "clock!",
            current_setting('transaction_read_only') = 'on' AS "read_only!", quote_ident(session_user) AS "role!",
            ARRAY(SELECT name FROM unnest($1::text[], $2::text[]) AS wanted (name, value)
                WHERE current_setting(name) <> value) AS "other_settings!",
            ARRAY(SELECT needed || ' on ' || name FROM unnest($3::text[], $4::text[]) AS needed (name, needed)
                WHERE NOT CASE
                    WHEN name LIKE '%.%' THEN (SELECT has_column_privilege(attrelid, attnum, needed) FROM pg_attribute
                        WHERE attrelid = to_regclass(split_part(name, '.', 1)) AND attname = split_part(name, '.', 2))
                    WHEN needed = 'USAGE' THEN has_sequence_privilege(to_regclass(name), needed)
                    WHEN needed = 'DELETE' THEN has_table_privilege(to_regclass(name), needed)
                    ELSE has_any_column_privilege(to_regclass(name), needed) END) AS "missing_rights!",
            ARRAY(SELECT wanted.version FROM unnest($5::bigint[]) AS wanted (version)
                WHERE (SELECT success FROM _sqlx_migrations AS applied WHERE applied.version = wanted.version)
                    IS NOT TRUE) AS "missing_versions!""#,
            &settings_names as _,
            &settings_values,
            &rights_on as _,
            &rights as _,
            &versions,
        )
        .fetch_one(connection)
        .await?;
        let facts = Self {
            clock_ahead: row.clock - now,
            took: asked.elapsed(),
            read_only: row.read_only,
            role: row.role,
            other_settings: row.other_settings,
            missing_rights: row.missing_rights,
            missing_versions: row.missing_versions,
        };
        clock.record_comparison(now, asked, !facts.is_skewed());
        Ok(facts)
    }

    /// Whether the clocks certainly differ by more than allowed.
    #[must_use]
    pub fn is_skewed(&self) -> bool {
        self.clock_ahead.abs() - self.took > MAX_SKEW
    }

    /// Statements with which a database administrator sets `other_settings` for every session of
    /// the role.
    #[must_use]
    pub fn fix_of_settings(&self) -> String {
        let is_other = |name: &str| self.other_settings.iter().any(|other| other == name);
        let wanted = settings().into_iter().filter(|(name, _)| is_other(name));
        let fix = wanted.map(|(name, value)| format!("ALTER ROLE {} SET {name} = '{value}';", self.role));
        fix.collect::<Vec<_>>().join(" ")
    }
}

/// Checks what the service relies on. A cause that explains others comes first.
async fn examine(state: &mut MonitorState, clock: &Clock) -> Result<Finding, sqlx::Error> {
    let mut connection = state.connection.take().await?;
    let facts = Facts::ask(&mut connection, clock).await?;
    let finding = |health, cause: String| Ok(Finding { cause, ..Finding::just(health) });
    if facts.is_skewed() {
        return Ok(Finding::just(Health::ClockSkewed));
    }
    if facts.read_only {
        return finding(Health::ReadOnly, "transaction_read_only is on".into());
    }
    // A newer schema serves this release, too: further versions do not matter.
    if !facts.missing_versions.is_empty() {
        let missing: Vec<_> = facts.missing_versions.iter().map(i64::to_string).collect();
        let cause = format!("not applied: migration {}", missing.join(", "));
        return finding(Health::MigrationsMissing, cause);
    }
    if !facts.missing_rights.is_empty() {
        let missing = facts.missing_rights.join(", ");
        return finding(Health::Refused, format!("the role {} lacks {missing}", facts.role));
    }
    if failures::met_full_disk_within(DISK_FULL_LIFETIME) {
        state.written_at = None;
        return finding(Health::Full, sqlstate(DISK_FULL));
    }
    if state.written_at.is_none_or(|written_at| written_at.elapsed() >= WRITE_TEST_LIFETIME) {
        state.written_at = None;
        test_write(&mut connection).await?;
        state.written_at = Some(Instant::now());
    }
    if !facts.other_settings.is_empty() {
        return Ok(Finding::wrong_settings(&facts));
    }
    // After a problem the connection is closed: the next one may reach another server or have the
    // changed settings.
    state.connection.put(connection);
    Ok(Finding::just(Health::Ok))
}

/// Makes PostgreSQL write about a megabyte to the disk of its tables, as a temporary file that it
/// deletes at once. It needs no privilege. PostgreSQL does not flush, keep or replicate the file.
pub async fn test_write(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let settings = sqlx::query!(
        "SELECT set_config('work_mem', '64kB', true) AS memory, set_config('temp_tablespaces', '', true) AS place"
    );
    settings.fetch_one(&mut *transaction).await?;
    // More rows than fit into `work_mem`, so that PostgreSQL writes them to the file.
    sqlx::query!("SELECT count(*) FROM generate_series(1, 40000)").fetch_one(&mut *transaction).await?;
    transaction.rollback().await
}
