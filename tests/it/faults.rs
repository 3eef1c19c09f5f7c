//! Kills the service or PostgreSQL at every step of a reset. Either the old password and all
//! sessions remain, or the new password is set, the earlier sessions are revoked, and the notice is
//! pending or sent.

use sqlx::{Connection as _, PgConnection, PgPool, Row as _};
use tokio::task::JoinHandle;
use vos_auth::password::{Cost, Password};

use crate::harness::client::Client;
use crate::harness::cluster::Cluster;
use crate::harness::database::Server;
use crate::harness::program::{Program, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::tripwire::{Break, Tripwire};
use crate::harness::{PATIENCE, now};

const OLD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";

/// The state after an interrupted reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Old,
    New,
}

/// Inserts an account with a password.
async fn insert_account(connection: &mut PgConnection, email: &str) {
    let cheap = Cost { memory_kib: 7168, passes: 1, lanes: 1 };
    sqlx::query(
        "INSERT INTO account (id, email, password_hash, traits, created_at, updated_at)
         VALUES (gen_random_uuid(), $1, $2, jsonb_build_object('email', $1), $3, $3)",
    )
    .bind(email)
    .bind(Password::new(OLD).hash(cheap))
    .bind(now())
    .execute(connection)
    .await
    .unwrap();
}

/// Reads the whole state. Fails if it is neither that before the reset nor that after it.
async fn state_after(connection: &mut PgConnection, email: &str, old_hash: &str) -> State {
    let row = sqlx::query(
        "WITH a AS MATERIALIZED (SELECT * FROM account WHERE email = $1)
         SELECT a.password_hash = $2 AS old,
            (SELECT count(*) FROM session s WHERE s.account_id = a.id AND revoked_at IS NULL) AS live,
            (SELECT count(*) FROM session s WHERE s.account_id = a.id AND revoked_at IS NOT NULL) AS revoked,
            (SELECT count(*) FROM recovery_session r WHERE r.email = a.email AND r.state = 'verified') AS verified,
            (SELECT count(*) FROM recovery_session r WHERE r.email = a.email AND r.state = 'consumed') AS consumed,
            (SELECT count(*) FROM recovery_session r
                WHERE r.email = a.email AND r.state = 'code_sent' AND r.number > a.recoveries_ended) AS pending,
            (SELECT count(*) FROM outbox o WHERE o.account_id = a.id)
                + (SELECT count(*) FROM audit_event e WHERE e.account_id = a.id AND what = 'password_notice_sent')
                AS notices,
            (SELECT count(*) FROM audit_event e WHERE e.account_id = a.id AND what = 'password_reset') AS events
         FROM a",
    );
    // A reset may still run after the break: lock the row, then read in a second statement.
    let mut transaction = connection.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM account WHERE email = $1 FOR UPDATE")
        .bind(email)
        .execute(&mut *transaction)
        .await
        .unwrap();
    let row = row.bind(email).bind(old_hash).fetch_one(&mut *transaction).await.unwrap();
    transaction.commit().await.unwrap();
    let counts = ["live", "revoked", "verified", "consumed", "pending", "notices", "events"];
    let counts = counts.map(|name| row.get::<i64, _>(name));
    match (row.get::<bool, _>("old"), counts) {
        (true, [2, 0, 1, 0, 1, 0, 0]) => State::Old,
        (false, [1, 2, 0, 1, 0, 1, 1]) => State::New,
        mixture => panic!("a mixture: {mixture:?}"),
    }
}

async fn hash_of(connection: &mut PgConnection, email: &str) -> String {
    let hash = sqlx::query_scalar("SELECT password_hash FROM account WHERE email = $1");
    hash.bind(email).fetch_one(connection).await.unwrap()
}

struct Stage {
    relay: Relay,
    wire: Tripwire,
    database: String,
}

impl Stage {
    async fn before(server: Server, database: &str) -> Self {
        let (relay, wire) = (Relay::start().await, Tripwire::before(server).await);
        Self { relay, wire, database: database.to_owned() }
    }

    fn program(&self) -> Program {
        let (url, relay) = (self.wire.url(&self.database), self.relay.url());
        let changes = [
            ("NETWORK_BURST", "100000"),
            ("ARGON2_MEMORY_KIB", "7168"),
            ("ARGON2_PASSES", "1"),
            // The courier rarely polls, so that the reset has PostgreSQL almost alone while the
            // tripwire is armed.
            ("OUTBOX_POLL_INTERVAL", "1min"),
        ];
        Program::start(&["serve"], &serve_environment(&url, &relay, &changes))
    }

    /// A client with a verified recovery, besides two sessions and a pending recovery.
    async fn trader(&self, program: &mut Program, email: &str) -> Client {
        let address = program.address();
        for _ in 0..2 {
            assert!(Client::new(address).logs_in(email, OLD).await.is_signed_in());
        }
        let (mut pending, mut client) = (Client::new(address), Client::new(address));
        assert!(pending.starts_recovery(email).await.is_code_sent());
        self.relay.mail_to(email, 1).await;
        assert!(client.starts_recovery(email).await.is_code_sent());
        let code = self.relay.mail_to(email, 2).await.code();
        assert!(client.verifies(&code).await.is_verified());
        client
    }

    /// Resets the password. If the tripwire interrupts that, returns the task that waits for the
    /// answer.
    async fn reset_breaks(&self, client: &Client, at: Break) -> Option<JoinHandle<u16>> {
        self.wire.is_armed(at);
        let mut client = client.clone();
        let mut resetting = tokio::spawn(async move { client.resets(NEW).await.status });
        let status = tokio::select! {
            () = self.wire.until_broken() => return Some(resetting),
            status = &mut resetting => status,
        };
        assert_eq!(status.unwrap(), 200);
        None
    }
}

fn breaks() -> impl Iterator<Item = [Break; 2]> {
    (1..).map(|n| [Break::Before(n), Break::After(n)])
}

#[sqlx::test]
async fn r3_a_service_killed_at_any_step_of_a_reset_leaves_no_mixture(pool: PgPool) {
    let stage = Stage::before(Server::of(&pool), pool.connect_options().get_database().unwrap()).await;
    let mut connection = pool.acquire().await.unwrap();
    let (mut steps, mut seen) = (0, Vec::new());
    'steps: for pair in breaks() {
        for at in pair {
            let email = format!("trader{}@example.com", seen.len());
            insert_account(&mut connection, &email).await;
            let mut program = stage.program();
            let client = stage.trader(&mut program, &email).await;
            let old = hash_of(&mut connection, &email).await;
            let broken = stage.reset_breaks(&client, at).await;
            program.is_killed();
            if let Some(waiting) = &broken {
                waiting.abort();
            }
            stage.wire.is_repaired();
            seen.push(state_after(&mut connection, &email, &old).await);
            if broken.is_none() {
                break 'steps;
            }
        }
        steps += 1;
    }
    eprintln!("{steps} steps; state after each break: {seen:?}");
    assert!(steps >= 10 && seen.contains(&State::Old) && seen.contains(&State::New), "{steps}: {seen:?}");
}

#[tokio::test]
async fn r3_a_postgres_killed_at_any_step_of_a_reset_leaves_no_mixture() {
    let mut cluster = Cluster::start().await;
    let stage = Stage::before(Server::Socket(cluster.socket()), "postgres").await;
    let mut program = stage.program();
    let (mut steps, mut seen) = (0, Vec::new());
    'steps: for pair in breaks() {
        for at in pair {
            let email = format!("trader{}@example.com", seen.len());
            let mut connection = cluster.connect().await;
            insert_account(&mut connection, &email).await;
            let client = stage.trader(&mut program, &email).await;
            let old = hash_of(&mut connection, &email).await;
            let broken = stage.reset_breaks(&client, at).await;
            if broken.is_none() {
                seen.push(state_after(&mut connection, &email, &old).await);
                break 'steps;
            }
            cluster.is_killed_and_restarted();
            stage.wire.is_repaired();
            let mut connection = cluster.connect().await;
            seen.push(state_after(&mut connection, &email, &old).await);
            // The service reconnects by itself.
            let address = program.address();
            let ready = async { while Client::new(address).get("/readyz").await.status != 200 {} };
            tokio::time::timeout(PATIENCE, ready).await.expect("the service is ready again");
        }
        steps += 1;
    }
    eprintln!("{steps} steps; state after each break: {seen:?}");
    assert!(steps >= 8 && seen.contains(&State::Old) && seen.contains(&State::New), "{steps}: {seen:?}");
}
