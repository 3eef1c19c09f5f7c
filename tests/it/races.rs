//! Parallel guesses and resets on two processes of the program. RACES=20 repeats each race 20
//! times.

use sqlx::PgPool;
use tokio::task::JoinSet;
use vos_auth::password::{Cost, Password};

use crate::harness::client::{Answer, Client};
use crate::harness::program::{Program, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::{PATIENCE, database, now};
use crate::verify::wrong;

fn rounds() -> usize {
    std::env::var("RACES").map_or(1, |rounds| rounds.parse().expect("RACES is a number"))
}

struct Pair {
    programs: Vec<Program>,
    relay: Relay,
    pool: PgPool,
}

impl Pair {
    async fn start(pool: &PgPool) -> Self {
        let (relay, url) = (Relay::start().await, database::service_url(pool));
        let relay_url = relay.url();
        let changes = [
            ("NETWORK_BURST", "1000000"),
            ("ARGON2_MEMORY_KIB", "7168"),
            ("ARGON2_PASSES", "1"),
            ("LOGIN_FAILURE_TIME", "10ms"),
        ];
        let environment = serve_environment(&url, &relay_url, &changes);
        let programs = (0..2).map(|_| Program::start(&["serve"], &environment)).collect();
        Self { programs, relay, pool: pool.clone() }
    }

    /// A new account, and a client with a mailed code for it.
    async fn trader(&mut self, email: &str) -> (Client, String) {
        let cheap = Cost { memory_kib: 7168, passes: 1, lanes: 1 };
        sqlx::query(
            "INSERT INTO account (id, email, password_hash, created_at, updated_at)
             VALUES (gen_random_uuid(), $1, $2, $3, $3)",
        )
        .bind(email)
        .bind(Password::new("morning boat on a green river").hash(cheap))
        .bind(now())
        .execute(&self.pool)
        .await
        .unwrap();
        let mut client = Client::new(self.programs[0].address());
        assert!(client.starts_recovery(email).await.is_code_sent());
        let code = self.relay.mail_to(email, 1).await.code();
        (client, code)
    }

    /// Sends a request `count` times in parallel, alternating between the processes.
    async fn at_once(
        &mut self,
        client: &Client,
        count: usize,
        call: impl AsyncFn(Client, usize) -> Answer + Clone + 'static,
    ) -> Vec<Answer> {
        let addresses: Vec<_> = self.programs.iter_mut().map(Program::address).collect();
        let local = tokio::task::LocalSet::new();
        let mut calls = JoinSet::new();
        for n in 0..count {
            let (client, call) = (client.at(addresses[n % addresses.len()]), call.clone());
            calls.spawn_local_on(async move { (n, call(client, n).await) }, &local);
        }
        let mut answers = local.run_until(calls.join_all()).await;
        answers.sort_by_key(|(n, _)| *n);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }
}

fn count(answers: &[Answer], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status == status).count()
}

#[sqlx::test]
async fn v2_of_100_parallel_wrong_codes_5_are_evaluated(pool: PgPool) {
    let mut pair = Pair::start(&pool).await;
    let mut evaluated = Vec::new();
    for round in 0..rounds() {
        let (client, code) = pair.trader(&format!("wrong{round}@example.com")).await;
        let wrong = wrong(&code);
        let answers = pair
            .at_once(&client, 100, async move |mut client: Client, _| client.verifies(&wrong).await)
            .await;
        assert_eq!(count(&answers, 400) + count(&answers, 401), 100);
        assert_eq!(client.clone().verifies(&code).await.error(), (401, "recovery_session_spent"));
        evaluated.push(count(&answers, 400));
    }
    eprintln!("evaluated of 100 wrong: {evaluated:?}");
    assert!(evaluated.iter().all(|count| *count == 5), "{evaluated:?}");
}

#[sqlx::test]
async fn v2_of_50_parallel_right_codes_one_verifies(pool: PgPool) {
    let mut pair = Pair::start(&pool).await;
    let mut verified = Vec::new();
    for round in 0..rounds() {
        let (client, code) = pair.trader(&format!("right{round}@example.com")).await;
        let answers =
            pair.at_once(&client, 50, async move |mut client: Client, _| client.verifies(&code).await).await;
        assert_eq!(count(&answers, 200) + count(&answers, 401), 50);
        verified.push(count(&answers, 200));
    }
    eprintln!("verified of 50 right: {verified:?}");
    assert!(verified.iter().all(|count| *count == 1), "{verified:?}");
}

#[sqlx::test]
async fn r3_of_20_parallel_resets_one_sets_the_password(pool: PgPool) {
    let password = |n: usize| format!("night train number {n} in autumn rain");
    let mut pair = Pair::start(&pool).await;
    let mut counts = Vec::new();
    for round in 0..rounds() {
        let email = format!("reset{round}@example.com");
        let (mut client, code) = pair.trader(&email).await;
        assert!(client.verifies(&code).await.is_verified());
        let answers = pair
            .at_once(&client, 20, async move |mut client: Client, n| client.resets(&password(n)).await)
            .await;
        assert_eq!(count(&answers, 200) + count(&answers, 401), 20);
        let mut logins = Vec::new();
        for (n, answer) in answers.iter().enumerate() {
            // Failed logins would exhaust the address's rate limit.
            sqlx::query("DELETE FROM throttle").execute(&pool).await.unwrap();
            let signed_in = client.clone().logs_in(&email, &password(n)).await.is_signed_in();
            assert_eq!(signed_in, answer.status == 200, "password {n} logs in if it was set");
            logins.push(signed_in);
        }
        counts.push((count(&answers, 200), logins.iter().filter(|signed_in| **signed_in).count()));
    }
    eprintln!("(set, log in) of 20 resets: {counts:?}");
    assert!(counts.iter().all(|count| *count == (1, 1)), "{counts:?}");
}

/// Each resend waits for the lock of the rate limit. Its snapshot of the outbox is older than the
/// other resend's email.
#[sqlx::test]
async fn two_parallel_resends_of_a_session_enqueue_one_email(pool: PgPool) {
    let mut pair = Pair::start(&pool).await;
    let (client, _) = pair.trader("resend@example.com").await;
    let rows = async |of: &str| {
        let counts = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {of}"));
        sqlx::query_scalar::<_, i64>(counts).fetch_one(&pool).await.unwrap()
    };
    let until = async |count: i64, of: &str| {
        let reached = async { while rows(of).await != count {} };
        tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("not {count} of {of}"));
    };
    until(0, "outbox").await;
    let (mut throttle, mut accounts) = (pool.begin().await.unwrap(), pool.begin().await.unwrap());
    sqlx::query("SELECT FROM throttle FOR UPDATE").execute(&mut *throttle).await.unwrap();
    // Without reading accounts, the courier leaves the emails pending.
    sqlx::query("LOCK TABLE account IN ACCESS EXCLUSIVE MODE").execute(&mut *accounts).await.unwrap();
    let resend = async |mut client: Client, _| client.starts_recovery("resend@example.com").await;
    let both_wait = async {
        let waits = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
            AND query LIKE '%INSERT INTO throttle%'";
        until(2, waits).await;
        throttle.rollback().await.unwrap();
    };
    let (answers, ()) = tokio::join!(pair.at_once(&client, 2, resend), both_wait);
    assert_eq!(count(&answers, 200), 2);
    assert_eq!(rows("outbox").await, 1);
    accounts.rollback().await.unwrap();
    pair.relay.mail(2).await;
    until(0, "outbox").await;
    assert_eq!(pair.relay.mails().len(), 2);
}
