//! The plan of every statement in `.sqlx`, on the service's connections: by index, even while every
//! table is empty (docs/decisions/0001). `make versions` checks it on each PostgreSQL version.

use std::fs;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use vos_auth::database::with_session_settings;

/// Statements that read a whole table: of operators' commands and `dev`, about event hooks, and the
/// counts of pending emails and events.
const READ_A_WHOLE_TABLE: [&str; 14] = [
    "DELETE FROM event_hook WHERE registered_at < $1",
    "DELETE FROM outbox WHERE account_id = $1 OR recovery_session_id = ANY($2)",
    "DELETE FROM recovery_session WHERE email = $1 RETURNING id",
    "DELETE FROM throttle WHERE true",
    "SELECT (SELECT count(*) FROM _sqlx_migrations WHERE version",
    "SELECT count(*) AS \"sessions!\", count(DISTINCT account_id) AS \"accounts!\" FROM session",
    "SELECT account_id AS \"account_id!\" FROM audit_event WHERE what = 'account_erased'",
    "SELECT hook, count(*) FILTER (WHERE died_at IS NULL)",
    "SELECT id, email, state, locale, traits, password_hash, password_changed_at, created_at, updated_at, imported_at, \
     bouncing_since FROM account WHERE id = $1 OR email = $2",
    "SELECT kind AS \"kind: MailKind\", count(*)",
    "SELECT name, role AS \"role: Role\", created_at, expires_at, revoked_at FROM operator",
    "UPDATE event_delivery SET died_at = NULL,",
    "UPDATE outbox SET next_attempt_at = $1 WHERE kind <> 'recovery_code'",
    "UPDATE recovery_session SET state = CASE state WHEN 'verified' THEN 'consumed' ELSE 'revoked' END WHERE email = $1",
];

/// The statements checked at compile time, with their number of parameters.
fn statements() -> Vec<(String, usize)> {
    let files = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx")).unwrap();
    let checked = files.map(|file| {
        let checked: Value =
            serde_json::from_str(&fs::read_to_string(file.unwrap().path()).unwrap()).unwrap();
        let parameters = checked["describe"]["parameters"]["Left"].as_array().map_or(0, Vec::len);
        (checked["query"].as_str().unwrap().to_owned(), parameters)
    });
    checked.collect()
}

/// The generic plan of a statement, which does not depend on its parameters.
async fn generic_plan(connection: &mut PgConnection, statement: &str, parameters: usize) -> Value {
    let bound =
        if parameters == 0 { String::new() } else { format!("({})", vec!["NULL"; parameters].join(", ")) };
    let prepare = format!("DEALLOCATE ALL; PREPARE statement AS {statement}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut *connection).await.expect(statement);
    let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE statement{bound}");
    let plan: sqlx::types::Json<Value> = sqlx::query_scalar(AssertSqlSafe(explain))
        .persistent(false)
        .fetch_one(connection)
        .await
        .expect(statement);
    plan[0]["Plan"].clone()
}

/// Whether a step reads a whole table, or a whole index without a limit. A bitmap counts: it is
/// used only where no single index suffices.
fn reads_a_whole_table(step: &Value, limited: bool) -> bool {
    let kind = step["Node Type"].as_str().unwrap();
    let limited = limited || kind == "Limit";
    let unlimited = kind.starts_with("Index") && step.get("Index Cond").is_none() && !limited;
    let further = step["Plans"].as_array().into_iter().flatten();
    kind == "Seq Scan"
        || kind.starts_with("Bitmap")
        || unlimited
        || further.into_iter().any(|step| reads_a_whole_table(step, limited))
}

#[sqlx::test]
async fn every_statement_uses_an_index(pool: PgPool) {
    let mut connection =
        PgConnection::connect_with(&with_session_settings(&pool.connect_options())).await.unwrap();
    let (mut whole_table_reads, mut wrong) = (0, Vec::new());
    for (statement, parameters) in statements() {
        let plan = generic_plan(&mut connection, &statement, parameters).await;
        let on_one_line = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        let expected = READ_A_WHOLE_TABLE.iter().any(|begins| on_one_line.starts_with(begins));
        whole_table_reads += usize::from(expected);
        if reads_a_whole_table(&plan, false) != expected {
            wrong.push(format!("{statement}\n{plan:#}"));
        }
    }
    connection.close().await.unwrap();
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
    assert_eq!(whole_table_reads, READ_A_WHOLE_TABLE.len(), "each entry matches one statement");
}
