//! `serve` without a writable place: every file system read-only, no HOME, no TMPDIR.

use sqlx::PgPool;

use crate::harness::Service;
use crate::harness::client::Client;
use crate::harness::database;
use crate::harness::needs;
use crate::harness::program::{Program, has_relay, run_under, serve_environment};
use crate::harness::relay::Relay;

/// Runs a command where every file system is mounted read-only; fails if one still is writable.
const READ_ONLY: [&str; 7] = [
    "unshare",
    "--mount",
    "--propagation=private",
    "sh",
    "-c",
    r#"while read -r _ at _; do mount -o remount,bind,ro "$at" 2>/dev/null; done </proc/mounts
for folder in / /tmp /var/tmp /dev/shm /run "$PWD"; do
  if [ -d "$folder" ] && touch "$folder/vos-auth-written" 2>/dev/null; then echo "$folder can be written" >&2; exit 3; fi
done
exec "$@""#,
    "sh",
];

#[sqlx::test]
async fn serve_needs_no_writable_file_system(pool: PgPool) {
    let check = run_under(&READ_ONLY, &["--version"], &[]);
    let err = String::from_utf8_lossy(&check.stderr);
    assert!(!err.contains("can be written"), "{err}");
    if !needs::has(
        check.status.success(),
        &format!("a read-only view of the file systems needs root: {}", err.trim()),
    ) {
        return;
    }
    Service::has_account_at(&pool, "trader@example.com").await;
    let relay = Relay::start().await;
    let (url, relay_url) = (database::service_url(&pool), relay.url());
    let environment = serve_environment(&url, &relay_url, &[]);
    let mut program = Program::start_under(&READ_ONLY, &["serve"], &environment);
    let mut client = Client::new(program.address());
    has_relay(&client).await;
    assert!(client.starts_recovery("trader@example.com").await.is_code_sent());
    let code = relay.mail(1).await.code();
    assert!(client.verifies(&code).await.is_verified());
    assert!(client.resets("sao hom tren doi thong gio").await.is_signed_in());
    program.signal("-TERM");
    let (log, clean) = program.ends();
    assert!(clean && !log.iter().any(|line| line.contains("Read-only")), "{log:?}");
}
