//! What follows `start`: verify, session and login.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use vos_auth::password::{Cost, Password};

use super::load::{Connection, Load, Numbers, Requests, post};
use super::starts::resident;
use super::{Bench, row};
use crate::Failure;
use crate::replica::Replica;

const CONNECTIONS: usize = 64;
/// The number of connections for logins. The number of cores limits how many passwords are hashed
/// at once, so further logins would only wait.
const LOGINS: usize = 4;
const TRADERS: u64 = 64;
const PASSWORD: &str = "morning boat on a green river";
/// The number of recoveries for which wrong codes are entered, `GUESSES` for each.
const RECOVERIES: usize = 20_032;
const GUESSES: u64 = 5;

/// Runs `verify`, `session` and `login` as closed loops: `verify` with five wrong codes for each
/// recovery, and `login` with the right password.
pub async fn measure(bench: &Bench) -> Result<Value, Failure> {
    let replica = bench.serve(&bench.url, &[]).await?;
    let cost = Cost::default();
    let began = Instant::now();
    let hash = Password::new(PASSWORD).hash(cost);
    let argon2 = began.elapsed().as_secs_f64();
    let accounts = "INSERT INTO account (id, email, password_hash, created_at, updated_at)
        SELECT gen_random_uuid(), 'trader-' || n || '@example.com', $1, now(), now() FROM generate_series(0, $2) AS n
        ON CONFLICT (email) DO UPDATE SET password_hash = $1";
    sqlx::query(accounts).bind(&hash).bind(TRADERS.cast_signed() - 1).execute(&bench.pool).await?;

    println!("what follows start, closed-loop; times in ms, memory in MiB");
    println!("one Argon2id hash alone takes {:.1} ms", argon2 * 1e3);
    println!(
        "{:>8}{}",
        "",
        ["conns", "a second", "p50", "p99", "memory"].map(|name| format!("{name:>10}")).concat()
    );
    let mut measurements = serde_json::Map::new();
    let cookies = recoveries(bench, &replica).await?;
    let guesses: Requests = Arc::new(move |number| {
        let cookie = &cookies[(number / GUESSES) as usize % cookies.len()];
        post("/api/auth/recovery/verify", &format!("cookie: {cookie}\r\n"), r#"{"code":"00000000"}"#)
    });
    let tokens = sign_in(&replica)?;
    let sessions: Requests = Arc::new(move |number| {
        let token = &tokens[number as usize % tokens.len()];
        format!("GET /api/auth/session HTTP/1.1\r\nhost: bench\r\nx-session-token: {token}\r\n\r\n")
            .into_bytes()
    });
    let logins: Requests = Arc::new(|number| login(number % TRADERS));
    for (name, connections, requests, status) in [
        ("verify", CONNECTIONS, guesses, 400),
        ("session", CONNECTIONS, sessions, 200),
        ("login", LOGINS, logins, 200),
    ] {
        let load = Load { address: replica.address, requests, numbers: Numbers::default() };
        let seen = load.closed(connections, bench.lasting).await?;
        if seen.of(status).count() < seen.answers.len() {
            return Err(format!("{name}: answers by status are {:?}", seen.statuses()).into());
        }
        print!("{name:>8}");
        let measured = row(&[
            ("   conns", connections as f64),
            ("a second", seen.rate(status)),
            ("     p50", seen.quantile(status, 0.5)),
            ("     p99", seen.quantile(status, 0.99)),
            ("  memory", resident(&replica)),
        ]);
        measurements.insert(name.to_owned(), measured);
    }
    measurements.insert("argon2_ms".to_owned(), json!(argon2 * 1e3));
    Ok(Value::Object(measurements))
}

fn login(trader: u64) -> Vec<u8> {
    let body = format!(r#"{{"identifier":"trader-{trader}@example.com","password":"{PASSWORD}"}}"#);
    post("/api/auth/login", "", &body)
}

/// Begins `RECOVERIES` recoveries, and returns their cookies.
async fn recoveries(bench: &Bench, replica: &Replica) -> Result<Vec<String>, Failure> {
    let mut beginning = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (mut connection, load) = (Connection::open(replica.address)?, bench.starts(replica));
        beginning.spawn_blocking(move || {
            let mut cookies = Vec::new();
            while cookies.len() < RECOVERIES / CONNECTIONS {
                connection.asks(&load.next())?;
                let answer = connection.answer();
                let cookie = answer.split("set-cookie: ").nth(1).and_then(|rest| rest.split(';').next());
                cookies.push(cookie.unwrap_or_default().to_owned());
            }
            Ok::<_, std::io::Error>(cookies)
        });
    }
    let mut cookies = Vec::new();
    while let Some(begun) = beginning.join_next().await {
        cookies.extend(begun??);
    }
    Ok(cookies)
}

fn sign_in(replica: &Replica) -> Result<Vec<String>, Failure> {
    let mut connection = Connection::open(replica.address)?;
    let mut tokens = Vec::new();
    for trader in 0..TRADERS {
        connection.asks(&login(trader))?;
        let answer = connection.answer();
        let body: Value = serde_json::from_str(answer.rsplit("\r\n").next().unwrap_or_default())?;
        tokens.push(body["sessionToken"].as_str().ok_or("a login gave no token")?.to_owned());
    }
    Ok(tokens)
}
