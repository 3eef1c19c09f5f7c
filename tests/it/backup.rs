//! Runs the commands of docs/operate/backup-and-restore.md as written. Checks sessions, pending
//! recoveries and pending emails in the restored database.

use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::cluster::Cluster;
use crate::harness::machine::Machine;
use crate::harness::program::{Program, has_relay, serve_environment};
use crate::harness::relay::{Mood, Relay};
use crate::harness::{Service, needs};

const PASSWORD: &str = "morning boat on a green river";

fn section(heading: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operate/backup-and-restore.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split(&format!("## {heading}\n")).nth(1).expect("the heading is there");
    section.split("\n## ").next().unwrap().to_owned()
}

/// The shell blocks of a section.
fn blocks(heading: &str) -> Vec<String> {
    let section = section(heading);
    let blocks = section.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap().to_owned());
    blocks.collect()
}

/// The machine is that of docs/operate/install.md: `DATABASE_URL_FILE` has the URL, the service's
/// role does not own the database, and PostgreSQL has no role `root`.
#[tokio::test]
async fn a_restored_dump_keeps_sessions_recoveries_and_pending_emails() {
    if !needs::has_root("docs/operate/install.md") {
        return;
    }
    let (relay, machine) = (Relay::start().await, Machine::start().await);
    let file = machine.service_url_file();
    let changes = [("DATABASE_URL", ""), ("DATABASE_URL_FILE", &file)];
    let serve = || Program::start(&["serve"], &serve_environment("", &relay.url(), &changes));
    let pool = PgPool::connect(&machine.owner_url()).await.unwrap();
    let mut program = serve();
    let address = program.address();
    has_relay(&Client::new(address)).await;
    for email in ["trader@example.com", "mailed@example.com", "pending@example.com"] {
        Service::has_trader_at(&pool, email, PASSWORD).await;
    }
    let [mut signed_in, mut mailed, mut pending] = [(); 3].map(|()| Client::new(address));
    assert!(signed_in.logs_in("trader@example.com", PASSWORD).await.is_signed_in());
    assert!(mailed.starts_recovery("mailed@example.com").await.is_code_sent());
    let code = relay.mail_to("mailed@example.com", 1).await.code();
    until_outbox_has(&pool, 0).await;
    relay.is_in_mood(Mood::RefusesRecipient("450 4.2.1 busy"));
    assert!(pending.starts_recovery("pending@example.com").await.is_code_sent());
    let asked = "outbox WHERE last_error = 'rcpt 450 4.2.1' AND lease_until IS NULL";
    until(&pool, asked, 1).await;
    // A killed process would leave a lease, and the restored service would wait for it.
    program.signal("-TERM");
    assert!(program.ends().1);

    let [dump] = &blocks("Take a dump")[..] else { panic!("one block") };
    machine.operator_runs(dump);
    Service::has_trader_at(&pool, "later@example.com", PASSWORD).await;
    pool.close().await;
    let [restore, rename, revoke] = &blocks("Restore a dump")[..] else { panic!("three blocks") };
    machine.operator_runs(restore);
    let all = vos_auth::database::MIGRATOR.iter().count();
    let said = machine.operator_runs(rename);
    assert!(said.contains(&format!("{all} migrations are applied, 0 to go")), "{said}");

    let restored = PgPool::connect(&machine.owner_url()).await.unwrap();
    until(&restored, "account WHERE email = 'later@example.com'", 0).await;
    let others = "pg_class WHERE relnamespace = 'public'::regnamespace AND relowner <> 'vos_auth'::regrole";
    until(&restored, others, 0).await;
    relay.is_in_mood(Mood::Takes);
    let mut program = serve();
    let address = program.address();
    has_relay(&Client::new(address)).await;
    assert!(signed_in.at(address).refreshes().await.is_signed_in());
    assert!(Client::new(address).logs_in("trader@example.com", PASSWORD).await.is_signed_in());
    assert!(mailed.at(address).verifies(&code).await.is_verified());
    let code = relay.mail_to("pending@example.com", 1).await.code();
    assert!(pending.at(address).verifies(&code).await.is_verified());
    until_outbox_has(&restored, 0).await;
    assert_eq!(relay.mails().len(), 2, "each email was sent once");

    let said = machine.operator_runs(revoke);
    assert_eq!(said.trim(), "Dry run: this would end 2 sessions of 1 account.\n2 sessions have ended");
    assert_eq!(signed_in.at(address).refreshes().await.error(), (401, "session_invalid"));
    until(&restored, "audit_event WHERE what = 'sessions_revoked' AND account_id IS NULL", 1).await;
    assert!(Client::new(address).logs_in("trader@example.com", PASSWORD).await.is_signed_in());
    program.is_killed();
    restored.close().await;
}

/// A base backup and the WAL restore the database to the moment before a mistake.
#[tokio::test]
async fn a_base_backup_and_wal_restore_the_moment_before_a_mistake() {
    let section = section("Restore to a point in time");
    let settings = section.split("```ini\n").nth(1).unwrap().split("```").next().unwrap();
    let [base, restore] = &blocks("Restore to a point in time")[..] else { panic!("two blocks") };
    // Only the path `/backup` differs from the document.
    let mut backup = String::new();
    let mut cluster = Cluster::start_with(|home| {
        backup = format!("{}/backup", home.display());
        settings.replace("/backup", &backup)
    })
    .await;
    let runs = |cluster: &Cluster, lines: &str, environment: &[(&str, &str)]| {
        cluster.owner_runs(&lines.replace("/backup", &backup), environment);
    };
    runs(&cluster, "mkdir -p /backup/wal", &[]);
    let mut connection = cluster.connect().await;
    let account = "INSERT INTO account (id, email, created_at, updated_at) VALUES (gen_random_uuid(), $1, now(), now())";
    let accounts = "SELECT count(*) FROM account";
    sqlx::query(account).bind("before@example.com").execute(&mut connection).await.unwrap();
    runs(&cluster, base, &[]);
    sqlx::query(account).bind("after@example.com").execute(&mut connection).await.unwrap();
    let moment: String =
        sqlx::query_scalar("SELECT clock_timestamp()::text").fetch_one(&mut connection).await.unwrap();
    sqlx::query("DELETE FROM account").execute(&mut connection).await.unwrap();
    let last: String = sqlx::query_scalar("SELECT pg_walfile_name(pg_switch_wal())")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let archived = std::path::Path::new(&backup).join("wal").join(last);
    let archiving = async {
        while !archived.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, archiving).await.expect("the WAL is archived");

    cluster.is_killed();
    runs(&cluster, restore, &[("MOMENT", &moment)]);
    cluster.starts_again();
    let mut connection = cluster.connect().await;
    let recovering = async {
        while sqlx::query_scalar::<_, bool>("SELECT pg_is_in_recovery()")
            .fetch_one(&mut connection)
            .await
            .unwrap()
        {}
    };
    tokio::time::timeout(crate::harness::PATIENCE, recovering)
        .await
        .expect("the recovery reaches its target");
    let left: i64 = sqlx::query_scalar(accounts).fetch_one(&mut connection).await.unwrap();
    assert_eq!(left, 2, "the rows from before and after the base backup");
}

async fn until_outbox_has(pool: &PgPool, rows: i64) {
    until(pool, "outbox", rows).await;
}

async fn until(pool: &PgPool, table: &str, rows: i64) {
    let count = || sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")));
    let waiting = async {
        while count().fetch_one(pool).await.unwrap() != rows {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, waiting).await.expect(table);
}
