//! `vos-auth migrate`, and older and newer schemas while the service runs. Tests that need a
//! migration of the next release append it.

use std::cell::RefCell;
use std::process::Command;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{PgPool, SqlSafeStr as _};
use vos_auth::database::MIGRATOR;

use crate::harness::program::{Program, run};
use crate::harness::{PATIENCE, Service, database};

/// A migration that locks a table, and one that builds an index without blocking writes.
const ADDS_A_COLUMN: &str = "ALTER TABLE account ADD COLUMN of_the_next_release text;";
const BUILDS_AN_INDEX: &str = "-- no-transaction\n-- Of the next release.\n\
    CREATE INDEX CONCURRENTLY audit_event_account_id_idx ON audit_event (account_id);";

/// The migrations of this release, and one of the next.
fn steps_and(sql: &'static str) -> Vec<Migration> {
    let mut steps = MIGRATOR.iter().cloned().collect::<Vec<_>>();
    let version = steps.last().unwrap().version + 1;
    let without_transaction = sql.starts_with("-- no-transaction");
    let simple = MigrationType::Simple;
    steps.push(Migration::new(version, "next".into(), simple, sql.into_sql_str(), without_transaction));
    steps
}

/// Applies all migrations, and runs `then` after an output line with `part`. Returns every line.
async fn migrate_through(
    pool: &PgPool,
    steps: &[Migration],
    part: &str,
    then: impl Future<Output = ()>,
) -> Vec<String> {
    let lines = RefCell::new(Vec::new());
    let found = tokio::sync::Notify::new();
    let options = vos_auth::database::options(&database::url(pool)).unwrap();
    let migrating = vos_auth::database::migrate(&options, steps, |line| {
        lines.borrow_mut().push(line.to_owned());
        if line.contains(part) {
            found.notify_one();
        }
    });
    let reacted = async {
        found.notified().await;
        then.await;
        Ok(())
    };
    let both = async { tokio::try_join!(migrating, reacted) };
    tokio::time::timeout(PATIENCE, both).await.expect(part).unwrap();
    lines.into_inner()
}

#[sqlx::test(migrations = false)]
async fn migrate_can_be_repeated_and_prints_what_it_did(pool: PgPool) {
    let url = database::url(&pool);
    let environment = [("DATABASE_URL", url.as_str())];
    let first = String::from_utf8(run(&["migrate"], &environment).stdout).unwrap();
    let second = String::from_utf8(run(&["migrate"], &environment).stdout).unwrap();
    let all = vos_auth::database::MIGRATOR.iter().count();
    assert!(first.contains(&format!("0 migrations are applied, {all} to go")), "{first}");
    assert!(second.contains(&format!("{all} migrations are applied, 0 to go")), "{second}");
}

#[sqlx::test]
async fn migrate_applies_only_the_missing_steps(pool: PgPool) {
    let all = MIGRATOR.iter().count();
    let lines = migrate_through(&pool, &steps_and(ADDS_A_COLUMN), "up to date", async {}).await;
    assert_eq!(lines, [&*format!("{all} migrations are applied, 1 to go"), "the schema is up to date"]);
    sqlx::query("SELECT of_the_next_release FROM account").execute(&pool).await.unwrap();
}

/// An operator's shell usually has the URL of a role that cannot change the schema.
#[sqlx::test]
async fn migrate_asks_for_the_owners_url(pool: PgPool) {
    let migrated = run(&["migrate"], &[("DATABASE_URL", &database::operator_url(&pool))]);
    let output = String::from_utf8(migrated.stderr).unwrap();
    assert!(!migrated.status.success() && output.contains("the URL of the database's owner"), "{output}");
}

/// The role may have the service's settings, from docs/operate/poolers.md.
#[sqlx::test(migrations = false)]
async fn migrate_ignores_the_statement_timeout_of_its_role(pool: PgPool) {
    let database = pool.connect_options().get_database().unwrap().to_owned();
    let timeout = format!("ALTER DATABASE \"{database}\" SET statement_timeout = '1ms'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(timeout)).execute(&pool).await.unwrap();
    let migrated = run(&["migrate"], &[("DATABASE_URL", &database::url(&pool))]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
}

/// A migration that waits for its lock would block every request on that table.
#[sqlx::test]
async fn migrate_releases_a_table_that_is_in_use_and_retries(pool: PgPool) {
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM account").execute(&mut *reader).await.unwrap();
    let reads = async { reader.commit().await.unwrap() };
    let output = migrate_through(&pool, &steps_and(ADDS_A_COLUMN), "trying again", reads).await;
    assert!(output.iter().any(|line| line.contains("up to date")), "{output:?}");
    sqlx::query("SELECT of_the_next_release FROM account").execute(&pool).await.unwrap();
}

/// The built program tries again, too, while `_sqlx_migrations` is locked.
#[sqlx::test(migrations = false)]
async fn the_program_releases_a_table_that_is_in_use_and_retries(pool: PgPool) {
    Migrator::with_migrations(Vec::new()).run(&pool).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE _sqlx_migrations IN SHARE MODE").execute(&mut *reader).await.unwrap();
    let url = database::url(&pool);
    let mut program = Program::start(&["migrate"], &[("DATABASE_URL", &url)]);
    program.line_with("trying again");
    reader.commit().await.unwrap();
    let (output, ok) = program.ends();
    assert!(ok && output.iter().any(|line| line.contains("up to date")), "{output:?}");
    sqlx::query("SELECT FROM account").execute(&pool).await.unwrap();
}

/// An index build that is interrupted or gets no lock leaves an invalid index.
#[sqlx::test]
async fn migrate_rebuilds_an_unfinished_index(pool: PgPool) {
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *reader).await.unwrap();
    sqlx::query("SELECT FROM account").execute(&mut *reader).await.unwrap();
    let reads = async { reader.commit().await.unwrap() };
    let unfinished = "audit_event_account_id_idx was not finished";
    let output = migrate_through(&pool, &steps_and(BUILDS_AN_INDEX), unfinished, reads).await;
    assert!(output.iter().any(|line| line.contains("up to date")), "{output:?}");
    let valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'audit_event_account_id_idx'::regclass";
    assert!(sqlx::query_scalar::<_, bool>(valid).fetch_one(&pool).await.unwrap());
    let unfinished = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pg_index WHERE NOT indisvalid");
    assert_eq!(unfinished.fetch_one(&pool).await.unwrap(), 0);
}

/// PostgreSQL may finish an index after `migrate` was killed. The migration is then not recorded as
/// done.
#[sqlx::test]
async fn migrate_continues_when_an_index_was_finished_after_it_was_killed(pool: PgPool) {
    sqlx::raw_sql(BUILDS_AN_INDEX).execute(&pool).await.unwrap();
    let unfinished = "audit_event_account_id_idx was not finished";
    let output = migrate_through(&pool, &steps_and(BUILDS_AN_INDEX), unfinished, async {}).await;
    assert!(output.iter().any(|line| line.contains("up to date")), "{output:?}");
    let applied = "SELECT success FROM _sqlx_migrations ORDER BY version DESC LIMIT 1";
    assert!(sqlx::query_scalar::<_, bool>(applied).fetch_one(&pool).await.unwrap());
}

#[sqlx::test]
async fn the_program_works_on_a_newer_schema_and_leaves_it_unchanged(pool: PgPool) {
    record_version(&pool, 9999).await;
    let url = database::url(&pool);
    let migrated = run(&["migrate"], &[("DATABASE_URL", &url)]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let service = Service::start(&pool).await;
    assert_eq!(service.client().get("/readyz").await.status, 200);
    service.stops().await;
}

/// The baseline (migration 17) replaced the migrations of the development before 0.1.0.
#[sqlx::test(migrations = false)]
async fn migrate_and_dev_refuse_a_database_from_before_the_baseline(pool: PgPool) {
    Migrator::with_migrations(Vec::new()).run(&pool).await.unwrap();
    record_version(&pool, MIGRATOR.iter().next().unwrap().version - 1).await;
    let url = database::url(&pool);
    for command in ["migrate", "dev"] {
        let refused = run(&[command], &[("DATABASE_URL", &url), ("PORT", "0")]);
        let output = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success(), "{command}");
        for part in ["from before 0.1.0", "`vos-auth account export`", "a new database", "drop"] {
            assert!(output.contains(part), "{command}: {part} in {output}");
        }
        assert_eq!(output.lines().count(), 1, "{command}: {output}");
    }
    let tables =
        "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace";
    assert_eq!(sqlx::query_scalar::<_, i64>(tables).fetch_one(&pool).await.unwrap(), 1, "nothing is made");
}

/// Records a version as applied.
async fn record_version(pool: &PgPool, version: i64) {
    let applied = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES ($1, 'of another release', true, '', 0)";
    sqlx::query(applied).bind(version).execute(pool).await.unwrap();
}

/// `make run` and `make test` keep their clusters, except those from before the baseline.
#[test]
fn with_postgres_recreates_a_cluster_from_before_the_baseline() {
    let name = format!("old-{}", std::process::id());
    let with_postgres = |lines: &str| {
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/with-postgres"))
            .args([&name, "bash", "-euc", lines])
            .env_remove("DATABASE_URL")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (home, _) = with_postgres("createdb kept && printf %s \"$PGHOST\"");
    let ready = format!("{home}/ready");
    let has_kept = "psql -d postgres -Atc \"SELECT count(*) FROM pg_database WHERE datname = 'kept'\"";
    let (kept, output) = with_postgres(has_kept);
    assert_eq!((kept.trim(), output.as_str()), ("1", ""), "the cluster is kept");
    // A cluster from before the baseline, and one from before another baseline.
    for stamp in ["", "0001"] {
        std::fs::write(&ready, stamp).unwrap();
        let (kept, output) = with_postgres(&format!("{has_kept}; createdb kept"));
        assert_eq!(kept.trim(), "0", "{output}");
        assert!(output.contains("0017_baseline.sql") && output.contains("made anew"), "{output}");
    }
    let (kept, output) = with_postgres(has_kept);
    assert_eq!((kept.trim(), output.as_str()), ("1", ""), "the cluster is kept");
    std::fs::remove_dir_all(home).unwrap();
}
