//! Moves a replica's clock while it runs, with libfaketime: the program has no switch for it.

use std::path::PathBuf;

use serde_json::json;
use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::database;
use crate::harness::program::{Program, serve_environment};
use crate::harness::relay::{Mood, Relay};
use crate::harness::{PATIENCE, metric, now};

/// The program, with a clock that a file shifts.
struct ShiftedClock {
    program: Program,
    file: String,
}

impl ShiftedClock {
    fn start(name: &str, pool: &PgPool, relay: &Relay) -> Self {
        let file = format!("{}/faketime-{name}", env!("CARGO_TARGET_TMPDIR"));
        std::fs::write(&file, "+0").unwrap();
        let library = library();
        let (url, relay) = (database::service_url(pool), relay.url());
        let changes = [
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", &file),
            ("FAKETIME_NO_CACHE", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
            ("OUTBOX_POLL_INTERVAL", "20ms"),
        ];
        let program = Program::start(&["serve"], &serve_environment(&url, &relay, &changes));
        Self { program, file }
    }

    /// Shifts its clock from now on: `+1h`, `-30m`.
    fn is_shifted(&self, by: &str) {
        // Replaced by a rename: a file that is written in place is empty for a moment.
        let next = format!("{}.next", self.file);
        std::fs::write(&next, by).unwrap();
        std::fs::rename(next, &self.file).unwrap();
    }
}

/// Debian's package has the library in a folder that is named after the CPU architecture.
pub fn library() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib").unwrap();
    let mut found = folders.map(|folder| folder.unwrap().path().join("faketime/libfaketime.so.1"));
    found.find(|path| path.exists()).expect("libfaketime is installed: see make test")
}

/// A clock that is ahead by a code's life would expire every email. A clock that is behind would
/// send expired codes.
#[sqlx::test]
async fn a_replica_with_a_wrong_clock_serves_nothing_until_the_clock_is_right(pool: PgPool) {
    let relay = Relay::start().await;
    let mut shifted = ShiftedClock::start("shifted", &pool, &relay);
    let (address, metrics) = (shifted.program.address(), shifted.program.metrics_address());
    let rounds = || metric(metrics, "vos_auth_courier_rounds_total");
    let mut connection = pool.acquire().await.unwrap();
    vos_auth::account::create(
        &mut connection,
        now(),
        vos_auth::account::NewAccount {
            email: vos_auth::email_address::EmailAddress::parse("trader@example.com").unwrap(),
            locale: None,
            traits: serde_json::Map::new(),
            password_hash: None,
        },
        None,
    )
    .await
    .unwrap();
    drop(connection);
    let mut client = Client::new(address);
    // A deferred email, so that one is pending while the clock is wrong.
    relay.is_in_mood(Mood::RefusesRecipient("450 4.2.0 later"));
    assert!(client.starts_recovery("trader@example.com").await.is_code_sent());
    relay.until_asked(1).await;
    let pending =
        async || -> i64 { sqlx::query_scalar("SELECT count(*) FROM outbox").fetch_one(&pool).await.unwrap() };
    for by in ["+1h", "-30m"] {
        shifted.is_shifted(by);
        let answer = client.starts_recovery("trader@example.com").await;
        assert_eq!(answer.error(), (502, "storage_unavailable"), "{by}");
        let answer = client.logs_in("trader@example.com", "a guess").await;
        assert_eq!(answer.error(), (502, "storage_unavailable"), "{by}");
        let ready = client.get("/readyz").await;
        assert_eq!((ready.status, &ready.body["parts"]["database"]), (503, &json!("clock_skewed")), "{by}");
        assert_eq!(client.get("/healthz").await.status, 200);
        let round = rounds().await;
        let several = async { while rounds().await < round + 3.0 {} };
        tokio::time::timeout(PATIENCE, several).await.expect("the courier has done several rounds");
        assert_eq!(pending().await, 1, "{by}");
        assert_eq!(relay.mails().len(), 0);
    }
    relay.is_in_mood(Mood::Takes);
    shifted.is_shifted("+0");
    relay.mail(1).await;
    let back = async { while client.get("/readyz").await.status != 200 {} };
    tokio::time::timeout(PATIENCE, back).await.expect("the replica is ready again");
    // The network's rate limit uses the monotonic clock, so that the shift blocks no client.
    assert!(client.starts_recovery("other@example.com").await.is_code_sent());
}
