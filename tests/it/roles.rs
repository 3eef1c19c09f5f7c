//! The rights of the two roles of `deploy/grants.sql`. Other files' tests show that the rights
//! suffice. The tests in this file show that the roles have no other rights.

use std::collections::BTreeMap;

use sqlx::{Connection as _, PgConnection, PgPool};

use crate::harness::database::{self, OPERATOR, SERVE};

/// By table or sequence: the rights of `serve`, and of the operator's commands; "" is none. A
/// migration that adds a table adds a row here, and grants in `deploy/grants.sql`.
const RIGHTS: [(&str, &str, &str); 14] = [
    ("_sqlx_migrations", "SELECT", ""),
    (
        "account",
        "SELECT, UPDATE (bouncing_since, password_changed_at, password_hash, recoveries_ended, updated_at)",
        "DELETE, INSERT, SELECT, UPDATE",
    ),
    (
        "audit_event",
        "DELETE, INSERT, SELECT (account_id, created_at, id, what)",
        "INSERT, SELECT, UPDATE (client_ip, user_agent)",
    ),
    ("event_delivery", "DELETE, SELECT, UPDATE", "SELECT, UPDATE (died_at, enqueued_at, next_attempt_at)"),
    ("event_hook", "DELETE, INSERT, SELECT, UPDATE", ""),
    ("event_number", "", ""),
    ("hash_census", "INSERT, SELECT, UPDATE", ""),
    (
        "operator_request",
        "DELETE, SELECT, UPDATE (ended_at, ended_by, state)",
        "INSERT, SELECT, UPDATE (approved_at, approved_by, effective_at, ended_at, ended_by, notice_id, state)",
    ),
    ("operator", "", "INSERT, SELECT, UPDATE"),
    ("outbox", "DELETE, INSERT, SELECT, UPDATE", "DELETE, INSERT, SELECT, UPDATE (next_attempt_at)"),
    ("recovery_number", "USAGE", "USAGE"),
    ("recovery_session", "DELETE, INSERT, SELECT, UPDATE", "DELETE, SELECT, UPDATE (state)"),
    ("session", "DELETE, INSERT, SELECT, UPDATE", "SELECT, UPDATE (revoked_at)"),
    ("throttle", "DELETE, INSERT, SELECT, UPDATE", "DELETE, INSERT, SELECT, UPDATE"),
];

/// A role's effective rights on every table and sequence of the schema, including those of PUBLIC.
async fn rights_of(role: &str, pool: &PgPool) -> BTreeMap<String, String> {
    let rights = "SELECT c.relname::text, coalesce(string_agg(p.granted, ', ' ORDER BY p.granted), '')
        FROM pg_class c
        LEFT JOIN LATERAL (
            SELECT privilege AS granted
            FROM unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS privilege
            WHERE c.relkind <> 'S' AND has_table_privilege($1, c.oid, privilege)
            UNION ALL
            SELECT format('%s (%s)', privilege, string_agg(a.attname, ', ' ORDER BY a.attname))
            FROM unnest('{SELECT,INSERT,UPDATE,REFERENCES}'::text[]) AS privilege
            JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
            WHERE c.relkind <> 'S' AND NOT has_table_privilege($1, c.oid, privilege)
              AND has_column_privilege($1, c.oid, a.attnum, privilege)
            GROUP BY privilege
            UNION ALL
            SELECT privilege FROM unnest('{SELECT,UPDATE,USAGE}'::text[]) AS privilege
            WHERE c.relkind = 'S' AND has_sequence_privilege($1, c.oid, privilege)
        ) AS p ON true
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        GROUP BY c.relname";
    sqlx::query_as(rights).bind(role).fetch_all(pool).await.unwrap().into_iter().collect()
}

#[sqlx::test]
async fn each_role_has_the_rights_of_its_row_and_no_other(pool: PgPool) {
    database::grant(&database::url(&pool));
    // Running the grants again revokes what was granted by hand.
    for stray in ["GRANT ALL ON ALL TABLES IN SCHEMA public TO", "GRANT UPDATE (email) ON account TO"] {
        let stray = format!("{stray} {SERVE}, {OPERATOR}");
        sqlx::query(sqlx::AssertSqlSafe(stray)).execute(&pool).await.unwrap();
    }
    database::grant(&database::url(&pool));
    let expected = |rights: fn(&(&'static str, &'static str, &'static str)) -> &'static str| {
        RIGHTS.iter().map(|row| (row.0.to_owned(), rights(row).to_owned())).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(rights_of(SERVE, &pool).await, expected(|row| row.1));
    assert_eq!(rights_of(OPERATOR, &pool).await, expected(|row| row.2));
    for role in [SERVE, OPERATOR] {
        let can_create = "SELECT has_database_privilege($1, current_database(), 'CREATE')
            OR has_database_privilege($1, current_database(), 'TEMPORARY')
            OR has_schema_privilege($1, 'public', 'CREATE')
            OR (SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls FROM pg_roles WHERE rolname = $1)";
        assert!(
            !sqlx::query_scalar::<_, bool>(can_create).bind(role).fetch_one(&pool).await.unwrap(),
            "{role}"
        );
    }
}

/// A thief of the service's database URL can change no audit event and create no account.
#[sqlx::test]
async fn the_services_role_cannot_change_audit_events_or_create_accounts(pool: PgPool) {
    let mut service = PgConnection::connect(&database::service_url(&pool)).await.unwrap();
    for refused in [
        "UPDATE audit_event SET what = 'logged_in'",
        "UPDATE audit_event SET client_ip = NULL",
        "SELECT client_ip FROM audit_event",
        "INSERT INTO event_delivery SELECT * FROM event_delivery",
        "SELECT nextval('event_number')",
        "UPDATE account SET email = 'thief@example.com'",
        "UPDATE account SET state = 'active'",
        "DELETE FROM account",
        "INSERT INTO account (id, email, created_at, updated_at) SELECT id, email, created_at, updated_at FROM account",
        "SELECT name FROM operator",
        "TRUNCATE session",
        "INSERT INTO operator_request (id, kind, account_id, asked_by, reason, asked_at)
         SELECT id, 'ticket', id, 'thief', 'none', created_at FROM account",
        "UPDATE operator_request SET approved_by = 'thief'",
        "UPDATE operator_request SET new_email = 'thief@example.com'",
        "CREATE TABLE of_its_own ()",
        "CREATE TEMPORARY TABLE of_its_own ()",
    ] {
        let error = sqlx::query(refused).execute(&mut service).await.expect_err(refused);
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("42501"), "{refused}");
    }
    service.close().await.unwrap();
}

/// A role without grants cannot connect.
#[sqlx::test]
async fn a_role_without_grants_cannot_connect(pool: PgPool) {
    let url = database::service_url(&pool);
    let stranger = format!("stranger_{}", std::process::id());
    let run = async |sql: String| sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
    run(format!("CREATE ROLE {stranger} LOGIN")).await;
    let error = PgConnection::connect(&url.replace(SERVE, &stranger)).await.unwrap_err();
    run(format!("DROP ROLE {stranger}")).await;
    assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("42501"));
}
