//! Whether the service can work with PostgreSQL, and why it cannot: asked by the service itself all the time, and by
//! `/readyz`. The log, the metrics and `/readyz` say the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};
use strum::{IntoStaticStr, VariantArray};
use tokio::sync::Mutex;

use super::endpoint::{Endpoint, Found};
use super::{DISK_FULL, KeptConnection, MIGRATOR, cause, failures, in_time, settings, sqlstate};
use crate::clock::{Clock, MAX_SKEW};
use crate::metrics::{Metrics, StateLabel};

/// How long the connection of the health check lasts. A new one soon meets a changed password or certificate.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(1);

/// How long after the last pass it is tried whether PostgreSQL can still store.
const STORING_TRIED: Duration = Duration::from_mins(1);
/// For how long a statement that met a full disk counts.
const FULL_DISK_COUNTS: Duration = Duration::from_secs(10);
/// What the role of the service needs; `deploy/grants.sql` grants it. Of a table, a right to some of its columns will do, but a
/// column that came later is named: its right is missing until `deploy/grants.sql` is run again.
const RIGHTS: [(&str, &[&str]); 10] = [
    ("account", &["SELECT", "UPDATE"]),
    ("account.bouncing_since", &["UPDATE"]),
    ("audit_event", &["SELECT", "INSERT", "DELETE"]),
    ("hash_census", &["SELECT", "INSERT", "UPDATE"]),
    ("outbox", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("recovery_number", &["USAGE"]),
    ("recovery_session", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("session", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("throttle", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ("_sqlx_migrations", &["SELECT"]),
];

/// What keeps the service from working, by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Health {
    /// It works.
    Ok,
    /// PostgreSQL does not answer in time.
    Unreachable,
    /// PostgreSQL does not let the service in, or not at a table: password, role, database, grants.
    Refused,
    /// The connection cannot be encrypted as `DATABASE_URL` asks: the server's certificate, or the file to check it by.
    Certificate,
    /// PostgreSQL answers, but only reads: a standby, or a former primary.
    ReadOnly,
    /// The disk is full: PostgreSQL reads, and cannot store.
    Full,
    /// The schema lacks a migration of this program: run `vos-auth migrate`.
    MigrationsMissing,
    /// The clocks of this machine and of PostgreSQL are more than a second apart.
    ClockSkewed,
    /// The session lacks settings that the service relies on, as behind a connection pooler.
    Settings,
}

impl Health {
    /// What an error says of PostgreSQL. A socket that is not there and an `sslrootcert` that is not there are the same
    /// error: `networked` says that there is no socket.
    fn of(error: &sqlx::Error, networked: bool) -> Self {
        use std::io::ErrorKind::{InvalidData, NotFound, PermissionDenied};
        match error {
            sqlx::Error::Database(error) => match error.code().unwrap_or_default().as_ref() {
                "25006" => Self::ReadOnly,
                "3D000" | "42501" => Self::Refused,
                // The table of migrations is not there, so none has run.
                "42P01" => Self::MigrationsMissing,
                DISK_FULL => Self::Full,
                code if code.starts_with("28") => Self::Refused,
                _ => Self::Unreachable,
            },
            sqlx::Error::Tls(_) | sqlx::Error::Configuration(_) => Self::Certificate,
            // So says rustls what it refuses.
            sqlx::Error::Io(error) if error.kind() == InvalidData => Self::Certificate,
            sqlx::Error::Io(error) if networked && [NotFound, PermissionDenied].contains(&error.kind()) => {
                Self::Certificate
            }
            _ => Self::Unreachable,
        }
    }

    /// What an operator should know, and do.
    const fn advice(self) -> &'static str {
        match self {
            Self::Ok => "PostgreSQL can be worked with again",
            Self::Unreachable => {
                "PostgreSQL does not answer: check the server, the network, and host and port of DATABASE_URL"
            }
            Self::Refused => {
                "PostgreSQL refuses the service: check user, password and database of DATABASE_URL, pg_hba.conf, and the role's grants"
            }
            Self::Certificate => {
                "the connection to PostgreSQL cannot be encrypted: check the server's certificate, and sslmode and sslrootcert of DATABASE_URL"
            }
            Self::Full => "PostgreSQL cannot store: its disk is full",
            Self::ReadOnly => "PostgreSQL only reads: DATABASE_URL has to lead to the primary",
            Self::MigrationsMissing => "the schema lacks migrations of this program: run `vos-auth migrate`",
            Self::ClockSkewed => {
                "this machine's clock is over a second from PostgreSQL's: check NTP on both machines"
            }
            Self::Settings => {
                "the database session lacks settings that the service relies on: run the statements in `fix`"
            }
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    health: Health,
    /// Why, for the log: nothing of a row, of a client, of a secret.
    cause: String,
    /// Statements that an administrator of the database can run against it.
    fix: String,
}

impl Finding {
    fn just(health: Health) -> Self {
        Self { health, cause: String::new(), fix: String::new() }
    }

    fn of(error: &sqlx::Error, networked: bool) -> Self {
        Self { cause: cause(error), ..Self::just(Health::of(error, networked)) }
    }

    /// Names the settings that differ, and how the role gets them in every session.
    fn other_settings(names: &[String], role: &str) -> Self {
        let wanted = settings().into_iter().filter(|(name, _)| names.iter().any(|other| other == name));
        let fix = wanted.map(|(name, value)| format!("ALTER ROLE {role} SET {name} = '{value}';"));
        let (cause, fix) = (names.join(", "), fix.collect::<Vec<_>>().join(" "));
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

/// Checks PostgreSQL over a connection of its own, and says what changes.
#[derive(Debug)]
pub struct Monitor {
    clock: Clock,
    metrics: Arc<Metrics>,
    endpoint: Endpoint,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    kept: KeptConnection,
    found: Finding,
    /// When the check began that found it.
    asked: Option<Instant>,
    /// When PostgreSQL last showed that it can store.
    stored: Option<Instant>,
}

impl Monitor {
    /// Connects when it is first asked.
    #[must_use]
    pub fn new(endpoint: &Endpoint, clock: Clock, metrics: Arc<Metrics>) -> Self {
        let kept = KeptConnection::watching(endpoint, CONNECTION_LIFETIME);
        let state = State { kept, found: Finding::just(Health::Ok), asked: None, stored: None };
        Self { clock, metrics, endpoint: endpoint.clone(), state: Mutex::new(state) }
    }

    /// Asks PostgreSQL how it is, and compares its clock with this machine's. Callers that come while a check is under way
    /// share the next one.
    pub async fn check(&self) -> Health {
        let came = Instant::now();
        let mut state = self.state.lock().await;
        if state.asked.is_some_and(|asked| asked >= came) {
            return state.found.health;
        }
        state.asked = Some(Instant::now());
        // On the heap: connecting is a part of it.
        let found = in_time(Box::pin(look(&mut state, &self.clock))).await;
        let found = found.unwrap_or_else(|error| {
            let Finding { health, cause, fix } = Finding::of(&error, self.endpoint.is_networked());
            // Any other error says by itself what was being done.
            let cause = match error {
                sqlx::Error::PoolTimedOut => format!("{cause}, while {}", state.kept.stage()),
                _ => cause,
            };
            Finding { health, cause, fix }
        });
        self.show(found.health);
        if found != state.found {
            found.log();
        }
        state.found = found;
        state.found.health
    }

    fn show(&self, found: Health) {
        self.metrics.database_up.set(i64::from(found == Health::Ok));
        self.metrics.clock_skewed.set(i64::from(found == Health::ClockSkewed));
        let Found { addresses, silent, .. } = self.endpoint.found();
        // A name's only address is the database itself.
        let silent = if addresses > 1 { silent } else { 0 };
        self.metrics.database_silent_addresses.set(i64::try_from(silent).unwrap_or(i64::MAX));
        for &health in Health::VARIANTS {
            let label = StateLabel { state: health.into() };
            self.metrics.database_state.get_or_create(&label).set(i64::from(found == health));
        }
    }

    /// Asks a question over the connection of the health check.
    ///
    /// # Errors
    ///
    /// What PostgreSQL answers; `PoolTimedOut` if it does not in time.
    pub async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, sqlx::Error> {
        let mut state = self.state.lock().await;
        in_time(async {
            let mut connection = state.kept.take().await?;
            let answer = question(&mut connection).await?;
            state.kept.put(connection);
            Ok(answer)
        })
        .await
    }
}

/// Reads what the service relies on, in the order in which one hides the next, and tells `clock` whether the two clocks
/// agree. The one statement that reads the server's time.
async fn look(state: &mut State, clock: &Clock) -> Result<Finding, sqlx::Error> {
    let mut connection = state.kept.take().await?;
    let (settings_names, settings_values): (Vec<_>, Vec<_>) = settings().into_iter().unzip();
    let rights = RIGHTS.iter().flat_map(|(on, rights)| rights.iter().map(|right| (*on, *right)));
    let (rights_on, rights): (Vec<_>, Vec<_>) = rights.unzip();
    let versions: Vec<_> = MIGRATOR.iter().map(|step| step.version).collect();
    let (now, asked) = (clock.now(), Instant::now());
    // A column that is not there yet is the business of the migrations.
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
    .fetch_one(&mut connection)
    .await?;
    let skewed = (row.clock - now).abs() - asked.elapsed() > MAX_SKEW;
    clock.was_compared(now, asked, !skewed);
    let found = |health, cause: String| Ok(Finding { cause, ..Finding::just(health) });
    if skewed {
        return Ok(Finding::just(Health::ClockSkewed));
    }
    if row.read_only {
        return found(Health::ReadOnly, "transaction_read_only is on".into());
    }
    // A newer schema serves this release, too: what it has beside these versions does not matter.
    if !row.missing_versions.is_empty() {
        let missing: Vec<_> = row.missing_versions.iter().map(i64::to_string).collect();
        let cause = format!("not applied: migration {}", missing.join(", "));
        return found(Health::MigrationsMissing, cause);
    }
    if !row.missing_rights.is_empty() {
        let lacks = row.missing_rights.join(", ");
        return found(Health::Refused, format!("the role {} lacks {lacks}", row.role));
    }
    if failures::met_full_disk_within(FULL_DISK_COUNTS) {
        state.stored = None;
        return found(Health::Full, sqlstate(DISK_FULL));
    }
    if state.stored.is_none_or(|stored| stored.elapsed() >= STORING_TRIED) {
        state.stored = None;
        store(&mut connection).await?;
        state.stored = Some(Instant::now());
    }
    if !row.other_settings.is_empty() {
        return Ok(Finding::other_settings(&row.other_settings, &row.role));
    }
    // A session in which something is wrong is closed: the next may lead to another server, or have what was changed.
    state.kept.put(connection);
    Ok(Finding::just(Health::Ok))
}

/// Has PostgreSQL write about a megabyte where its tables are: a temporary file, which it deletes at once. It needs no
/// right, and nothing of it is flushed, kept or replicated.
async fn store(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let here = sqlx::query!(
        "SELECT set_config('work_mem', '64kB', true) AS memory, set_config('temp_tablespaces', '', true) AS place"
    );
    here.fetch_one(&mut *transaction).await?;
    // More than fits into that memory, so that it is written.
    sqlx::query!("SELECT count(*) FROM generate_series(1, 40000)").fetch_one(&mut *transaction).await?;
    transaction.rollback().await
}
