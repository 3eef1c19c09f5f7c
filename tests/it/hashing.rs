//! 200 parallel resets: clients sign in, memory stays bounded, and /healthz answers.

use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::harness::client::Client;
use crate::harness::program::{Program, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::{database, now};

const RESETS: usize = 200;
/// The memory of one Argon2id hash of the default cost.
const HASH_MIB: usize = 19;

/// The peak of the process's resident memory, in MiB.
fn peak_memory(program: &Program) -> usize {
    memory(program, "VmHWM:")
}

/// A value of the process's memory in `/proc`, in MiB.
pub fn memory(program: &Program, line: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let found = status.lines().find_map(|said| said.strip_prefix(line)).unwrap();
    found.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() / 1024
}

#[sqlx::test]
async fn r10_200_parallel_resets_leave_healthz_answering_and_memory_bounded(pool: PgPool) {
    let (relay, url) = (Relay::start().await, database::service_url(&pool));
    let relay_url = relay.url();
    let changes = [("NETWORK_BURST", "1000000"), ("HASHING_QUEUE", "200"), ("HASHING_THREADS", "2")];
    let mut program = Program::start(&["serve"], &serve_environment(&url, &relay_url, &changes));
    let address = program.address();
    let mut clients = Vec::new();
    for n in 0..RESETS {
        let email = format!("trader{n}@example.com");
        let account =
            "INSERT INTO account (id, email, created_at, updated_at) VALUES (gen_random_uuid(), $1, $2, $2)";
        sqlx::query(account).bind(&email).bind(now()).execute(&pool).await.unwrap();
        let mut client = Client::new(address);
        assert!(client.starts_recovery(&email).await.is_code_sent());
        let code = relay.mail_to(&email, 1).await.code();
        assert!(client.verifies(&code).await.is_verified());
        clients.push(client);
    }
    let before = peak_memory(&program);
    let mut resets = JoinSet::new();
    let began = Instant::now();
    for mut client in clients {
        resets.spawn(async move { client.resets("night train in autumn rain").await });
    }
    let done = CancellationToken::new();
    let probing = tokio::spawn({
        let (probe, done) = (Client::new(address), done.clone());
        async move {
            let mut waits = Vec::new();
            while !done.is_cancelled() {
                let asked = Instant::now();
                assert_eq!(probe.get("/healthz").await.status, 200);
                waits.push(asked.elapsed());
            }
            waits
        }
    });
    let answers = resets.join_all().await;
    let took = began.elapsed();
    let after = peak_memory(&program);
    done.cancel();
    let mut waits = probing.await.unwrap();
    waits.sort();
    let at = |part: usize| waits.get(waits.len() * part / 100).copied().unwrap_or(Duration::ZERO);
    eprintln!(
        "{RESETS} resets in {took:?}; /healthz {} times: p50 {:?}, p99 {:?}, most {:?}; memory {before} -> {after} MiB",
        waits.len(),
        at(50),
        at(99),
        waits.last()
    );
    // While hashing takes all cores, PostgreSQL may not answer within 2 s, a request's limit.
    let signed_in = answers.iter().filter(|answer| answer.is_signed_in()).count();
    let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert!(
        signed_in > RESETS / 2 && statuses.iter().all(|status| [200, 502].contains(status)),
        "{statuses:?}"
    );
    assert!(!waits.is_empty());
    assert!(after - before < 3 * HASH_MIB + 40, "{before} -> {after} MiB");
}
