//! Brings the schema to this version while the previous release serves.

use std::borrow::Cow;
use std::time::Duration;

use sqlx::migrate::{Migrate as _, MigrateError, Migration, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, PgConnection};

use super::{Endpoint, MIGRATOR};

/// How long a step waits for the lock of a table, as a value of `lock_timeout`. Meanwhile later
/// statements on the table queue behind the step, and the service gives up a request after 2 s.
const LOCK_TIMEOUT: &str = "500ms";
/// How often `migrate` tries to apply the steps while one of them gets no lock: for about five
/// minutes.
const TRIES: usize = 200;
/// The pause between two tries, in which the queued statements can run.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the migration failed, as a sentence for an operator.
#[derive(Debug, thiserror::Error)]
pub enum MigrationFailure {
    /// PostgreSQL refuses the connection, or does not answer.
    #[error("DATABASE_URL cannot be connected to: {0}")]
    Connect(#[source] sqlx::Error),
    /// The role may not change the schema. The roles of the service and of operators may not.
    #[error(
        "DATABASE_URL connects as a role that may not change the schema: give `migrate` the URL of the database's owner"
    )]
    NotOwner,
    /// The database has migrations from before the baseline, which is the first step.
    #[error(
        "DATABASE_URL leads to a database from before 0.1.0, which cannot be migrated: write its accounts to a file with the \
         program that made it (`vos-auth account export`), and import them into a new database; one for development you can drop"
    )]
    BeforeBaseline,
    /// A step failed, or got no lock in any try.
    #[error(transparent)]
    Step(#[from] MigrateError),
}

/// Applies the `steps` that the database lacks, and reports the progress to `say`. A step that gets
/// no lock in time is tried again. A schema that is newer than the last step is left as it is.
///
/// # Errors
///
/// [`MigrationFailure`].
pub async fn migrate(
    options: &PgConnectOptions,
    steps: &[Migration],
    say: impl Fn(&str),
) -> Result<(), MigrationFailure> {
    // A step may take long. The role may have the service's `statement_timeout` as its default, as
    // behind a pooler.
    let settings = [("lock_timeout", LOCK_TIMEOUT), ("statement_timeout", "0")];
    let endpoint = Endpoint::new(options.clone().options(settings));
    let mut tries = 1;
    loop {
        let connection = endpoint.connect().await.map_err(MigrationFailure::Connect)?;
        match apply(connection, steps, &say).await {
            Err(MigrationFailure::Step(error)) if is_blocked(&error) && tries < TRIES => {
                say("another session holds a table that the next step changes: trying again");
                tokio::time::sleep(PAUSE).await;
                tries += 1;
            }
            Err(MigrationFailure::Step(error)) if is_refused(&error) => {
                return Err(MigrationFailure::NotOwner);
            }
            result => return result,
        }
    }
}

async fn apply(
    mut connection: PgConnection,
    steps: &[Migration],
    say: impl Fn(&str),
) -> Result<(), MigrationFailure> {
    let mut migrator = Migrator::with_migrations(steps.to_vec());
    connection.ensure_migrations_table(&migrator.table_name).await?;
    let applied = connection.list_applied_migrations(&migrator.table_name).await?;
    let baseline = steps.iter().map(|step| step.version).min();
    if applied.iter().any(|applied| Some(applied.version) < baseline) {
        return Err(MigrationFailure::BeforeBaseline);
    }
    let missing: Vec<_> =
        steps.iter().filter(|step| applied.iter().all(|applied| applied.version != step.version)).collect();
    say(&format!("{} migrations are applied, {} to go", applied.len(), missing.len()));
    // A newer schema serves this release, too: after a return to this release, `migrate` must not
    // fail.
    migrator.set_ignore_missing(true);
    let indexes: Vec<_> = missing.iter().filter_map(|step| index_of(step.sql.as_str())).collect();
    drop_unfinished_indexes(&mut connection, &indexes, &say).await?;
    migrator.run(&mut connection).await?;
    say("the schema is up to date");
    Ok(())
}

/// Drops the indexes of unfinished `CREATE INDEX CONCURRENTLY` steps. If such a step gets no lock
/// in time or is interrupted, it leaves an invalid index. Or PostgreSQL finishes the index after
/// `migrate` has ended, so that the step is not recorded. This function takes the lock of
/// migrations, so that it drops no index that another `migrate` is building.
async fn drop_unfinished_indexes(
    connection: &mut PgConnection,
    missing: &[&str],
    say: impl Fn(&str),
) -> Result<(), MigrateError> {
    connection.lock().await?;
    let unfinished = "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class t ON t.oid = indrelid
        JOIN pg_class i ON i.oid = indexrelid
        WHERE (NOT indisvalid OR i.relname = ANY($1)) AND t.relnamespace = current_schema()::regnamespace";
    for index in sqlx::query_scalar::<_, String>(unfinished).bind(missing).fetch_all(&mut *connection).await?
    {
        sqlx::raw_sql(AssertSqlSafe(format!("DROP INDEX CONCURRENTLY {index}")))
            .execute(&mut *connection)
            .await?;
        say(&format!("{index} was not finished: it is dropped"));
    }
    connection.unlock().await
}

/// What the schema has beyond the migrations of this program.
#[derive(Debug)]
pub struct Beyond {
    /// How many migrations of a newer release are applied. The newer schema serves this release,
    /// too.
    pub newer: i64,
    /// Indexes that an interrupted `CREATE INDEX CONCURRENTLY` left, or that one is building now.
    pub unfinished_indexes: Vec<String>,
}

/// Reads what the schema has beyond the migrations of this program.
pub async fn beyond(connection: &mut PgConnection) -> Result<Beyond, sqlx::Error> {
    let versions: Vec<_> = MIGRATOR.iter().map(|step| step.version).collect();
    sqlx::query_as!(
        Beyond,
        r#"SELECT (SELECT count(*) FROM _sqlx_migrations WHERE version <> ALL($1)) AS "newer!",
            ARRAY(SELECT i.relname::text FROM pg_index JOIN pg_class t ON t.oid = indrelid
                JOIN pg_class i ON i.oid = indexrelid
                WHERE NOT indisvalid AND t.relnamespace = current_schema()::regnamespace
                ORDER BY 1) AS "unfinished_indexes!""#,
        &versions,
    )
    .fetch_one(connection)
    .await
}

/// The index that a step builds with `CREATE INDEX CONCURRENTLY`, if it is such a step.
fn index_of(sql: &str) -> Option<&str> {
    sql.split_once("\nCREATE INDEX CONCURRENTLY ")?.1.split_whitespace().next()
}

/// Whether the step failed because of a lock: it waited too long, or there was a deadlock.
fn is_blocked(error: &MigrateError) -> bool {
    matches!(sqlstate(error).as_deref(), Some("55P03" | "40P01"))
}

/// Whether the role lacks a right.
fn is_refused(error: &MigrateError) -> bool {
    sqlstate(error).as_deref() == Some("42501")
}

fn sqlstate(error: &MigrateError) -> Option<Cow<'_, str>> {
    let (MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) = error else {
        return None;
    };
    cause.as_database_error()?.code()
}
