//! `vos-auth migrate` and schemas of other ages, while the service is at work.

use sqlx::PgPool;
use sqlx::migrate::Migrator;
use vos_auth::database::MIGRATOR;

use crate::harness::program::{Program, run};
use crate::harness::{Service, database};

#[sqlx::test(migrations = false)]
async fn migrate_can_be_run_again_and_says_what_it_did(pool: PgPool) {
    let url = database::url(&pool);
    let environment = [("DATABASE_URL", url.as_str())];
    let first = String::from_utf8(run(&["migrate"], &environment).stdout).unwrap();
    let second = String::from_utf8(run(&["migrate"], &environment).stdout).unwrap();
    let all = vos_auth::database::MIGRATOR.iter().count();
    assert!(first.contains(&format!("0 migrations are applied, {all} to go")), "{first}");
    assert!(second.contains(&format!("{all} migrations are applied, 0 to go")), "{second}");
}

/// The URL that an operator's shell has is of a role that changes no schema.
#[sqlx::test]
async fn migrate_says_that_it_wants_the_owners_url(pool: PgPool) {
    let migrated = run(&["migrate"], &[("DATABASE_URL", &database::operator_url(&pool))]);
    let said = String::from_utf8(migrated.stderr).unwrap();
    assert!(!migrated.status.success() && said.contains("the URL of the database's owner"), "{said}");
}

/// The role may have the settings of the service, as docs/operate/poolers.md gives them.
#[sqlx::test(migrations = false)]
async fn migrate_takes_its_time_whatever_the_timeout_of_its_role(pool: PgPool) {
    let database = pool.connect_options().get_database().unwrap().to_owned();
    let timeout = format!("ALTER DATABASE \"{database}\" SET statement_timeout = '1ms'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(timeout)).execute(&pool).await.unwrap();
    let migrated = run(&["migrate"], &[("DATABASE_URL", &database::url(&pool))]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
}

/// A step that waited on would have every request on that table wait behind it.
#[sqlx::test(migrations = false)]
async fn migrate_lets_go_of_a_table_that_is_in_use_and_tries_again(pool: PgPool) {
    let before = MIGRATOR.iter().filter(|step| step.version < 8).cloned().collect();
    Migrator::with_migrations(before).run(&pool).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SELECT FROM account").execute(&mut *reader).await.unwrap();
    let url = database::url(&pool);
    let mut program = Program::start(&["migrate"], &[("DATABASE_URL", &url)]);
    program.line_with("trying again");
    reader.commit().await.unwrap();
    let (said, well) = program.ends();
    assert!(well && said.iter().any(|line| line.contains("up to date")), "{said:?}");
    sqlx::query("SELECT imported_at FROM account").execute(&pool).await.unwrap();
}

/// One that waits for the transactions that are older than it, and is interrupted or gets no lock, is left half built.
#[sqlx::test(migrations = false)]
async fn migrate_builds_an_index_that_was_not_finished_anew(pool: PgPool) {
    let before = MIGRATOR.iter().filter(|step| step.version < 11).cloned().collect();
    Migrator::with_migrations(before).run(&pool).await.unwrap();
    let mut reader = pool.begin().await.unwrap();
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *reader).await.unwrap();
    sqlx::query("SELECT FROM account").execute(&mut *reader).await.unwrap();
    let url = database::url(&pool);
    let mut program = Program::start(&["migrate"], &[("DATABASE_URL", &url)]);
    program.line_with("recovery_session_token_hash_idx was not finished");
    reader.commit().await.unwrap();
    let (said, well) = program.ends();
    assert!(well && said.iter().any(|line| line.contains("up to date")), "{said:?}");
    let unfinished = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pg_index WHERE NOT indisvalid");
    assert_eq!(unfinished.fetch_one(&pool).await.unwrap(), 0);
}

/// PostgreSQL builds on when `migrate` is killed, and nobody notes that the step is done.
#[sqlx::test(migrations = false)]
async fn migrate_goes_on_when_an_index_was_finished_after_its_end(pool: PgPool) {
    let before = MIGRATOR.iter().filter(|step| step.version < 11).cloned().collect();
    Migrator::with_migrations(before).run(&pool).await.unwrap();
    let eleventh = MIGRATOR.iter().find(|step| step.version == 11).unwrap().sql.clone();
    sqlx::raw_sql(eleventh).execute(&pool).await.unwrap();
    let migrated = run(&["migrate"], &[("DATABASE_URL", &database::url(&pool))]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    let said = String::from_utf8(migrated.stdout).unwrap();
    assert!(said.contains("recovery_session_token_hash_idx was not finished"), "{said}");
    assert!(said.contains("up to date"), "{said}");
}

#[sqlx::test]
async fn a_schema_newer_than_the_program_serves_it_and_is_left_as_it_is(pool: PgPool) {
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
