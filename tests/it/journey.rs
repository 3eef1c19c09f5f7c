//! The whole user journey; `make versions` runs it on each PostgreSQL version.

use sqlx::PgPool;

use crate::harness::client::Client;
use crate::harness::program::{Program, has_relay, run, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::{Service, database, journey};

const TRADER: &str = "trader@example.com";

/// From an empty database: `migrate`, `serve`, every request, SIGTERM. The log has no warning.
#[sqlx::test(migrations = false)]
async fn the_program_migrates_and_serves_the_whole_journey_without_a_warning(pool: PgPool) {
    let relay = Relay::start().await;
    let migrated = run(&["migrate"], &[("DATABASE_URL", &database::url(&pool))]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
    Service::has_account_at(&pool, TRADER).await;
    let (url, relay_url) = (database::service_url(&pool), relay.url());
    let mut program = Program::start(&["serve"], &serve_environment(&url, &relay_url, &[]));
    let client = Client::new(program.address());
    has_relay(&client).await;
    assert_eq!(client.get("/readyz").await.status, 200);
    journey::is_walked_by(&client, &relay, TRADER).await;
    program.signal("-TERM");
    let (lines, clean) = program.ends();
    let warnings: Vec<_> = lines.iter().filter(|line| !line.contains(r#""level":"INFO""#)).collect();
    assert!(clean && warnings.is_empty(), "{warnings:#?}");
}
