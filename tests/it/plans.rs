//! The plan of every statement in `.sqlx`, as the connections of the service have it made: by index, while every table is
//! empty (docs/decisions/0001). `make versions` asks each major version of PostgreSQL.

use std::fs;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool};
use vos_auth::database::with_deadline;

/// The statements that read a whole table, by how they begin: an operator's commands, `dev`, and the count of pending mails
/// for the metrics.
const READ_A_WHOLE_TABLE: [&str; 10] = [
    "DELETE FROM outbox WHERE account_id = $1 OR recovery_session_id = ANY($2)",
    "DELETE FROM recovery_session WHERE email = $1 RETURNING id",
    "DELETE FROM throttle WHERE true",
    "SELECT account_id AS \"account_id!\" FROM audit_event WHERE what = 'account_erased'",
    "SELECT id, email, state, locale, traits, password_hash, password_changed_at, created_at, updated_at, imported_at, \
     bouncing_since FROM account WHERE id = $1 OR email = $2",
    "SELECT kind AS \"kind: MailKind\", count(*)",
    "UPDATE audit_event SET client_ip = NULL, user_agent = NULL WHERE account_id = $1",
    "UPDATE outbox SET next_attempt_at = $1 WHERE kind = 'password_changed'",
    "UPDATE recovery_session SET state = CASE state WHEN 'verified' THEN 'consumed' ELSE 'revoked' END WHERE email = $1",
    "UPDATE session SET revoked_at = $1 WHERE revoked_at IS NULL AND expires_at > $1",
];

/// The statements that were checked at compile time, and how many parameters each has.
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

/// The plan that is kept for a statement, whatever is bound to it.
async fn kept_plan(connection: &mut PgConnection, statement: &str, parameters: usize) -> Value {
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

/// Whether a step of a plan reads a whole table, or an index from its one end towards the other with nothing to stop it.
/// A bitmap counts, as one is only made where no index alone will do.
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
async fn every_statement_has_an_index_to_go_by(pool: PgPool) {
    let mut connection = PgConnection::connect_with(&with_deadline(&pool.connect_options())).await.unwrap();
    let (mut whole, mut wrong) = (0, Vec::new());
    for (statement, parameters) in statements() {
        let plan = kept_plan(&mut connection, &statement, parameters).await;
        let on_one_line = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        let expected = READ_A_WHOLE_TABLE.iter().any(|begins| on_one_line.starts_with(begins));
        whole += usize::from(expected);
        if reads_a_whole_table(&plan, false) != expected {
            wrong.push(format!("{statement}\n{plan:#}"));
        }
    }
    connection.close().await.unwrap();
    assert!(wrong.is_empty(), "not as expected:\n{}", wrong.join("\n"));
    assert_eq!(whole, READ_A_WHOLE_TABLE.len(), "each is the beginning of one statement");
}
