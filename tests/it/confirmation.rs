//! The operator's destructive commands, and the question that they ask first.

use sqlx::PgPool;
use uuid::Uuid;

use crate::commands::{count, execute, vos_auth};
use crate::harness::program::{Program, run_on_terminal};
use crate::harness::{PATIENCE, Service, database, place};

const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "morning boat on a green river";

/// Inserts accounts `trader-1@example.com` and so on, and divides the open sessions evenly among
/// them.
async fn has_sessions(pool: &PgPool, accounts: usize, sessions: usize) {
    let sql = format!(
        "INSERT INTO account (id, email, created_at, updated_at)
             SELECT gen_random_uuid(), format('trader-%s@example.com', n), now(), now() FROM generate_series(1, {accounts}) n;
         INSERT INTO session (id, token_hash, account_id, authenticated_at, last_seen_at, expires_at, client_ip, user_agent)
             SELECT gen_random_uuid(), sha256(n::text::bytea), a.id, now(), now(), now() + interval '1 day', '192.0.2.1', 'curl'
             FROM generate_series(0, {sessions} - 1) n
             JOIN account a ON a.email = format('trader-%s@example.com', n % {accounts} + 1)"
    );
    execute(pool, &sql).await;
}

const OPEN: &str = "session WHERE revoked_at IS NULL";

#[sqlx::test]
async fn revoke_all_says_how_much_it_ends_and_asks_on_a_terminal(pool: PgPool) {
    has_sessions(&pool, 812, 1240).await;
    let url = database::operator_url(&pool);
    let revoke_all = ["account", "revoke-all"];
    let typed = |typed| run_on_terminal(&revoke_all, &[("DATABASE_URL", &url)], typed);

    let printed = vos_auth(&pool, &[&revoke_all[..], &["--dry-run"]].concat()).unwrap();
    assert_eq!(printed, "Dry run: this would end 1,240 sessions of 812 accounts.");
    let why = vos_auth(&pool, &revoke_all).unwrap_err();
    assert!(why.starts_with("vos-auth: this would end 1,240 sessions of 812 accounts: run it"), "{why}");
    assert!(why.contains("--yes") && why.ends_with("Nothing was changed"), "{why}");
    for no in ["n\n", "\n", "", "1240\n"] {
        let (screen, ok) = typed(no);
        assert!(!ok && screen.contains("This will end 1,240 sessions of 812 accounts.\n"), "{screen}");
        assert!(screen.contains("Continue? [y/N]") && screen.contains("nothing was changed"), "{screen}");
    }
    assert_eq!((count(&pool, OPEN).await, count(&pool, "audit_event").await), (1240, 0));

    let (screen, ok) = typed("y\n");
    assert!(ok && screen.contains("1,240 sessions have ended"), "{screen}");
    assert_eq!((count(&pool, OPEN).await, count(&pool, "audit_event").await), (0, 1));
    let printed = vos_auth(&pool, &[&revoke_all[..], &["--yes"]].concat()).unwrap();
    assert_eq!(printed, "0 sessions have ended");
}

#[sqlx::test]
async fn revoke_all_can_be_interrupted_and_run_again(pool: PgPool) {
    has_sessions(&pool, 3, 12_000).await;
    // Locks a session of the second page: the command commits the first page, then waits.
    let mut holder = pool.begin().await.unwrap();
    let nth =
        "SELECT FROM session WHERE id = (SELECT id FROM session ORDER BY id OFFSET 6000 LIMIT 1) FOR UPDATE";
    sqlx::query(nth).execute(&mut *holder).await.unwrap();
    let url = database::operator_url(&pool);
    let mut program = Program::start(&["account", "revoke-all", "--yes"], &[("DATABASE_URL", &url)]);
    let waits = "pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    let blocked = async { while count(&pool, waits).await == 0 {} };
    tokio::time::timeout(PATIENCE, blocked).await.expect("the second page waits for the session");
    program.signal("-INT");
    program.line_with("stopping after the sessions");
    holder.rollback().await.unwrap();
    let (lines, ok) = program.ends();
    let printed = lines.join("\n");
    assert!(!ok && printed.contains("10,000 sessions have ended"), "{printed}");
    assert!(printed.contains("stopped; run the same command again"), "{printed}");
    assert_eq!(count(&pool, OPEN).await, 2000);
    let printed = vos_auth(&pool, &["account", "revoke-all", "--yes"]).unwrap();
    assert_eq!(printed, "2,000 sessions have ended");
    assert_eq!(count(&pool, OPEN).await, 0);
}

/// On a terminal, the question shows the account's address, so that an operator notices a wrong id.
#[sqlx::test]
async fn ending_sessions_disabling_and_erasing_ask_first(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    assert!(service.client().logs_in(TRADER, PASSWORD).await.is_signed_in());
    service.verified(TRADER).await;
    let id: Uuid = sqlx::query_scalar("SELECT id FROM account").fetch_one(&pool).await.unwrap();
    let (id, url) = (id.to_string(), database::operator_url(&pool));
    for (command, extent) in [
        ("revoke", format!("end 1 session of account {id}")),
        ("disable", format!("disable account {id}, and end 1 session and 1 pending recovery")),
        ("erase", format!("erase account {id} permanently, with 1 session and 1 pending recovery")),
    ] {
        let why = vos_auth(&pool, &["account", command, TRADER]).unwrap_err();
        assert!(why.contains(&format!("this would {extent}")) && why.contains("--yes"), "{why}");
        assert!(!why.contains('@'), "no address in an error: {why}");
        let printed = vos_auth(&pool, &["account", command, TRADER, "--dry-run"]).unwrap();
        assert!(printed.starts_with(&format!("Dry run: this would {extent}")), "{printed}");
        let (screen, ok) = run_on_terminal(&["account", command, &id], &[("DATABASE_URL", &url)], "n\n");
        assert!(!ok && screen.contains(&extent) && screen.contains(TRADER), "{screen}");
        let both = vos_auth(&pool, &["account", command, TRADER, "--dry-run", "--yes"]).unwrap_err();
        assert!(both.contains("cannot be used with"), "{both}");
    }
    assert_eq!(count(&pool, OPEN).await, 1);
    assert_eq!(count(&pool, "account WHERE state = 'active'").await, 1);
    for command in ["revoke", "disable", "erase"] {
        let (screen, ok) = run_on_terminal(&["account", command, &id], &[("DATABASE_URL", &url)], "yes\n");
        assert!(ok, "{screen}");
    }
    assert_eq!(count(&pool, "account").await, 0);
    service.stops().await;
}

#[sqlx::test]
async fn an_export_writes_no_hashes_to_a_terminal(pool: PgPool) {
    Service::has_trader_at(&pool, TRADER, PASSWORD).await;
    let url = database::operator_url(&pool);
    let environment = [("DATABASE_URL", url.as_str())];
    for to_terminal in [&["account", "export"][..], &["account", "export", "--out", "/dev/stdout"]] {
        let (screen, ok) = run_on_terminal(to_terminal, &environment, "");
        assert!(!ok && screen.contains("--out PATH") && !screen.contains("$argon2id"), "{screen}");
    }
    assert_eq!(count(&pool, "audit_event WHERE what = 'accounts_exported'").await, 0);
    let file = place::temporary(&format!("export-{}", std::process::id()));
    let (screen, ok) = run_on_terminal(&["account", "export", "--out", &file], &environment, "");
    assert!(ok && screen.contains("1 accounts are exported"), "{screen}");
    assert!(std::fs::read_to_string(&file).unwrap().contains("$argon2id"));
    assert!(vos_auth(&pool, &["account", "export"]).unwrap().contains("$argon2id"), "a pipe");
}
