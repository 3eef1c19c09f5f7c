//! `vos-auth migrate`: brings the schema to this version while the release before is at work.

use std::borrow::Cow;
use std::time::Duration;

use sqlx::migrate::{Migrate as _, MigrateError, Migrator};
use sqlx::{AssertSqlSafe, PgConnection};

use super::{Failure, connect_to};
use crate::config::ConfigError;
use crate::database::Endpoint;
use crate::{config, database, terminal};

/// How long a step waits for a lock, in PostgreSQL's words. Every statement on that table queues behind it meanwhile, and a
/// request is given up after 2 s.
const LOCK_TIMEOUT: &str = "500ms";
/// How often a step that got no lock is tried: for about five minutes.
const TRIES: usize = 200;
/// Between two tries, so that those who have queued get through.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn run() -> Result<(), Failure> {
    // A step may take long; its role may have the service's timeout, as behind a pooler.
    let settings = [("lock_timeout", LOCK_TIMEOUT), ("statement_timeout", "0")];
    let endpoint = Endpoint::new(database::options(&config::database_url()?)?.options(settings));
    for _ in 1..TRIES {
        match migrate(connect_to(&endpoint).await?).await {
            Err(error) if is_refused(&error) => {
                let why = "connects as a role that may not change the schema: give `migrate` the URL of the database's owner";
                return Err(ConfigError::new("DATABASE_URL", why).into());
            }
            Err(error) if is_in_the_way(&error) => {
                terminal::line("somebody holds a table that the next step changes: trying again");
                tokio::time::sleep(PAUSE).await;
            }
            ended => return Ok(ended?),
        }
    }
    Ok(migrate(connect_to(&endpoint).await?).await?)
}

async fn migrate(mut connection: PgConnection) -> Result<(), MigrateError> {
    let table = &database::MIGRATOR.table_name;
    connection.ensure_migrations_table(table).await?;
    let applied = connection.list_applied_migrations(table).await?;
    let mut migrator = Migrator::with_migrations(database::MIGRATOR.iter().cloned().collect());
    let waiting: Vec<_> = database::MIGRATOR
        .iter()
        .filter(|step| applied.iter().all(|applied| applied.version != step.version))
        .collect();
    terminal::line(format_args!("{} migrations are applied, {} to go", applied.len(), waiting.len()));
    // A newer schema serves this release, too: whoever goes back to it must not be stopped here.
    migrator.set_ignore_missing(true);
    let indexes: Vec<_> = waiting.iter().filter_map(|step| index_of(step.sql.as_str())).collect();
    drop_unfinished_indexes(&mut connection, &indexes).await?;
    migrator.run(&mut connection).await?;
    terminal::line("the schema is up to date");
    Ok(())
}

/// An index that was being built with nothing locked, and got no lock in time or was interrupted, is still there and of no
/// use; or PostgreSQL finished it when nobody was there any more to note its step. Under the lock of migrations, so that
/// none is dropped which somebody is building.
async fn drop_unfinished_indexes(
    connection: &mut PgConnection,
    waiting: &[&str],
) -> Result<(), MigrateError> {
    connection.lock().await?;
    let unfinished = "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class t ON t.oid = indrelid
        JOIN pg_class i ON i.oid = indexrelid
        WHERE (NOT indisvalid OR i.relname = ANY($1)) AND t.relnamespace = current_schema()::regnamespace";
    for index in sqlx::query_scalar::<_, String>(unfinished).bind(waiting).fetch_all(&mut *connection).await?
    {
        sqlx::raw_sql(AssertSqlSafe(format!("DROP INDEX CONCURRENTLY {index}")))
            .execute(&mut *connection)
            .await?;
        terminal::line(format_args!("{index} was not finished: it is dropped"));
    }
    connection.unlock().await
}

/// The index that a step builds with nothing locked, if it is such a step.
fn index_of(sql: &str) -> Option<&str> {
    sql.split_once("\nCREATE INDEX CONCURRENTLY ")?.1.split_whitespace().next()
}

/// Whether a lock was not to be had in time, or in any order (a deadlock).
fn is_in_the_way(error: &MigrateError) -> bool {
    matches!(sqlstate(error).as_deref(), Some("55P03" | "40P01"))
}

/// Whether the role lacks a right, as those of the service and of an operator do.
fn is_refused(error: &MigrateError) -> bool {
    sqlstate(error).as_deref() == Some("42501")
}

fn sqlstate(error: &MigrateError) -> Option<Cow<'_, str>> {
    let (MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _)) = error else {
        return None;
    };
    cause.as_database_error()?.code()
}
