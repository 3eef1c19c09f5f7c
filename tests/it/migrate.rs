//! `vos-auth migrate`, older and newer schemas, while the service runs.

use sqlx::PgPool;
use sqlx::migrate::Migrator;
use vos_auth::database::MIGRATOR;

use crate::harness::program::{Program, run};
use crate::harness::{Service, database};

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

/// A step that waits for its lock would block every request on that table.
#[sqlx::test(migrations = false)]
async fn migrate_releases_a_table_that_is_in_use_and_retries(pool: PgPool) {
    let before = MIGRATOR.iter().filter(|step| step.version < 8).cloned().collect();
    Migrator::with_migrations(before).run(&pool).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM account").execute(&mut *reader).await.unwrap();
    let url = database::url(&pool);
    let mut program = Program::start(&["migrate"], &[("DATABASE_URL", &url)]);
    program.line_with("trying again");
    reader.commit().await.unwrap();
    let (output, ok) = program.ends();
    assert!(ok && output.iter().any(|line| line.contains("up to date")), "{output:?}");
    sqlx::query("SELECT imported_at FROM account").execute(&pool).await.unwrap();
}

/// An index build that is interrupted or gets no lock leaves an invalid index.
#[sqlx::test(migrations = false)]
async fn migrate_rebuilds_an_unfinished_index(pool: PgPool) {
    let before = MIGRATOR.iter().filter(|step| step.version < 11).cloned().collect();
    Migrator::with_migrations(before).run(&pool).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *reader).await.unwrap();
    sqlx::query("SELECT FROM account").execute(&mut *reader).await.unwrap();
    let url = database::url(&pool);
    let mut program = Program::start(&["migrate"], &[("DATABASE_URL", &url)]);
    program.line_with("recovery_session_token_hash_idx was not finished");
    reader.commit().await.unwrap();
    let (output, ok) = program.ends();
    assert!(ok && output.iter().any(|line| line.contains("up to date")), "{output:?}");
    let unfinished = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pg_index WHERE NOT indisvalid");
    assert_eq!(unfinished.fetch_one(&pool).await.unwrap(), 0);
}

/// PostgreSQL continues when `migrate` is killed, and the step is not recorded as done.
#[sqlx::test(migrations = false)]
async fn migrate_continues_when_an_index_was_finished_after_it_was_killed(pool: PgPool) {
    let before = MIGRATOR.iter().filter(|step| step.version < 11).cloned().collect();
    Migrator::with_migrations(before).run(&pool).await.unwrap();
    let eleventh = MIGRATOR.iter().find(|step| step.version == 11).unwrap().sql.clone();
    sqlx::raw_sql(eleventh).execute(&pool).await.unwrap();
    let migrated = run(&["migrate"], &[("DATABASE_URL", &database::url(&pool))]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let output = String::from_utf8(migrated.stdout).unwrap();
    assert!(output.contains("recovery_session_token_hash_idx was not finished"), "{output}");
    assert!(output.contains("up to date"), "{output}");
}

#[sqlx::test]
async fn the_program_works_on_a_newer_schema_and_leaves_it_unchanged(pool: PgPool) {
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
        VALUES (9999, 'of a later release', true, '', 0)";
    sqlx::query(newer).execute(&pool).await.unwrap();
    let url = database::url(&pool);
    let migrated = run(&["migrate"], &[("DATABASE_URL", &url)]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let service = Service::start(&pool).await;
    assert_eq!(service.client().get("/readyz").await.status, 200);
    service.stops().await;
}
