//! Imported hashes: they reveal no account, block no other login, and stay within the memory limit.

use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio::task::JoinSet;
use vos_auth::account::hashes;
use vos_auth::census::Census;
use vos_auth::password::StoredHash;

use crate::harness::client::{Answer, Client};
use crate::harness::program::{Program, serve_environment};
use crate::harness::relay::Relay;
use crate::harness::{Service, database};
use crate::hashing::memory;

const PASSWORD: &str = "morning boat on a green river";
const WRONG: &str = "some other phrase of words";
const BUSY: [&str; 2] = ["--network-burst=1000000", "--network-per-minute=1000000"];

/// A hash of no known password, as an import stores it.
const BCRYPT_12: &str = "$2b$12$.....................................................";

async fn counts_hashes(service: &Service) {
    Census::new(service.app.clone()).round(Duration::ZERO).await;
}

/// Accounts in every state and an unknown address. The accounts that have a password have `hash`.
async fn addresses(service: &Service, hash: &str) -> [&'static str; 4] {
    let addresses =
        ["unknown@example.com", "imported@example.com", "disabled@example.com", "nohash@example.com"];
    for email in &addresses[1..] {
        service.has_account(email).await;
    }
    for email in &addresses[1..3] {
        service.has_hash(email, hash).await;
    }
    let disable = sqlx::query("UPDATE account SET state = 'disabled' WHERE email LIKE 'disabled%'");
    disable.execute(&service.pool).await.unwrap();
    counts_hashes(service).await;
    addresses
}

async fn at_once(service: &Service, email: &'static str, count: usize) -> Vec<Answer> {
    let mut logins = JoinSet::new();
    for _ in 0..count {
        let mut client = service.client();
        logins.spawn(async move { client.logs_in(email, WRONG).await });
    }
    logins.join_all().await
}

/// Simultaneous logins for one address are verified one by one, whether or not it has an account. A
/// second login has its turn at the failure time. The others are refused and draw on no rate limit.
#[sqlx::test]
async fn logins_of_one_address_are_verified_one_by_one(pool: PgPool) {
    let mut settings = BUSY.to_vec();
    settings.push("--login-failure-time=1s");
    let service = Service::start_with_settings(&pool, &settings).await;
    for email in addresses(&service, &BCRYPT_12.replace("$12$", "$04$")).await {
        let answers = at_once(&service, email, 10).await;
        let failed = answers.iter().filter(|answer| answer.status == 401).count();
        // The second login may be refused at the moment when its turn would begin.
        assert!((1..=2).contains(&failed), "{email}: {failed} at once");
        for refused in answers.iter().filter(|answer| answer.status != 401) {
            assert_eq!((refused.error(), refused.retry_after()), ((429, "login_throttled"), 1), "{email}");
        }
        let drawn = "SELECT coalesce(sum(extract(epoch FROM long_at - $1) / 864), 0)::int8 FROM throttle";
        let drawn: i64 =
            sqlx::query_scalar(drawn).bind(service.app.clock.now()).fetch_one(&pool).await.unwrap();
        assert_eq!(drawn, i64::try_from(failed).unwrap(), "{email}");
        sqlx::query("TRUNCATE throttle").execute(&pool).await.unwrap();
    }
    assert!(service.app.login_turns.is_empty(), "no turn is left in memory");
    assert!(service.metric("vos_auth_logins_total{outcome=\"concurrent\"}").await >= 32.0);
    service.stops().await;
}

/// Every address is verified against a hash as slow as the imported ones.
#[sqlx::test]
async fn an_address_without_a_hash_is_verified_against_one_as_slow_as_the_stored_ones(pool: PgPool) {
    let mut settings = BUSY.to_vec();
    settings.push("--login-failure-time=10ms");
    let service = Service::start_with_settings(&pool, &settings).await;
    for email in addresses(&service, BCRYPT_12).await {
        let began = Instant::now();
        assert_eq!(service.client().logs_in(email, WRONG).await.error(), (401, "credentials_invalid"));
        // Cost 12 takes fast machines a tenth of a second; our hash takes 5 ms in these tests.
        assert!(began.elapsed() > Duration::from_millis(100), "{email}: {:?}", began.elapsed());
    }
    service.stops().await;
}

/// The database reports only kinds of hashes. Each kind has a decoy to verify against.
#[sqlx::test]
async fn every_kind_of_hash_has_a_decoy_that_is_no_stored_hash(pool: PgPool) {
    let service = Service::start(&pool).await;
    let mut hashes: Vec<_> = include_str!("../hashes.tsv")
        .lines()
        .map(|line| line.split_once('\t').unwrap().1.to_owned())
        .collect();
    hashes.extend((0..10).map(|_| bcrypt::hash(PASSWORD, 5).unwrap()));
    // A salt that looks like a number is still a salt.
    hashes
        .extend([("5", 43), ("sha512-crypt", 86)].map(|(id, n)| format!("${id}$20261129${}", ".".repeat(n))));
    for (n, hash) in hashes.iter().enumerate() {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        service.has_hash(&email, hash).await;
    }
    let counted = hashes::count(&pool, 0, 1000).await.unwrap();
    assert_eq!(counted.next, None);
    let counts = counted.kinds;
    let ours: Vec<_> = counts.iter().filter(|(kind, _)| kind.starts_with("$2b$05$")).collect();
    assert_eq!(ours, [&(format!("$2b$05${}", ".".repeat(53)), 10)]);
    assert_eq!(counts.iter().map(|(_, count)| count).sum::<u64>(), hashes.len() as u64);
    for hash in &hashes {
        let hash = StoredHash::parse(hash).unwrap();
        let same = |kind: &StoredHash| {
            (kind.kind(), kind.work(), kind.memory_kib()) == (hash.kind(), hash.work(), hash.memory_kib())
        };
        assert!(
            counts.iter().any(|(kind, _)| StoredHash::parse(kind).is_ok_and(|kind| same(&kind))),
            "{hash:?}"
        );
    }
    assert!(counts.iter().all(|(kind, _)| !hashes.contains(kind) && !kind.contains("20261129")));
    service.stops().await;
}

/// A replica that starts later moves decoys only to our own kind, not to another foreign one.
#[sqlx::test]
async fn a_replica_that_starts_later_moves_no_decoy_from_one_foreign_kind_to_another(pool: PgPool) {
    let service = Service::start(&pool).await;
    let foreign = ["$04$", "$05$", "$06$", "$07$"].map(|cost| BCRYPT_12.replace("$12$", cost));
    for n in 0..40 {
        let email = format!("trader{n}@example.com");
        service.has_account(&email).await;
        service.has_hash(&email, &foreign[n % 4]).await;
    }
    let decoys_of = |service: &Service| -> Vec<String> {
        let decoys = service.app.hasher.decoys().unwrap();
        let of = |n: u32| {
            let address = format!("nobody{n}@example.com");
            let mac = service.app.device_keys.oldest().mac("decoy/1", &[address.as_bytes()]);
            decoys.for_address(&mac).to_owned()
        };
        (0..400).map(of).collect()
    };
    counts_hashes(&service).await;
    let before = decoys_of(&service);
    let ours = service.app.hasher.own_kind();
    assert!(!before.contains(&ours));
    let rehash = "UPDATE account SET password_hash = $1 WHERE email ~ 'trader[0-9]@' OR password_hash = $2";
    sqlx::query(rehash).bind(&ours).bind(&foreign[1]).execute(&pool).await.unwrap();
    let later = service.replica(&[]).await;
    let after = decoys_of(&later);
    let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!(moved.len() > 100, "{}", moved.len());
    assert!(moved.iter().all(|(_, after)| **after == ours), "a decoy went to another foreign kind");
    later.stops().await;
    service.stops().await;
}

/// If a client that disconnects freed its turn, it could have many passwords verified at once.
#[sqlx::test]
async fn a_client_that_disconnects_frees_no_turn(pool: PgPool) {
    let mut settings = BUSY.to_vec();
    settings.push("--login-failure-time=3s");
    let service = Service::start_with_settings(&pool, &settings).await;
    let email = "trader@example.com";
    service.has_trader(email, PASSWORD).await;
    let mut client = service.client();
    let began = Instant::now();
    let gone = tokio::spawn(async move { client.logs_in(email, WRONG).await });
    service.until("the failure is counted", async || service.count("throttle").await == 1).await;
    gone.abort();
    assert!(gone.await.is_err());
    assert!(service.client().logs_in(email, PASSWORD).await.is_signed_in());
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    // The failure is recorded although the client has disconnected.
    assert_eq!(service.count("audit_event WHERE what = 'sign_in_failed'").await, 1);
    service.stops().await;
}

/// A failed login costs its network the slowest hash, for every address. A success refunds it.
#[sqlx::test]
async fn a_failed_login_costs_its_network_the_slowest_hash_for_every_address(pool: PgPool) {
    let settings = ["--trusted-proxies=127.0.0.1/32", "--network-burst=40"];
    let service = Service::start_with_settings(&pool, &settings).await;
    let addresses = addresses(&service, &BCRYPT_12.replace("$12$", "$10$")).await;
    service.has_trader("own@example.com", PASSWORD).await;
    let price = service.metric("vos_auth_login_price ").await;
    assert!((2.0..=20.0).contains(&price), "{price}");
    let passing = (40.0 / price).floor();
    for (n, email) in addresses.iter().chain(["own@example.com"].iter()).enumerate() {
        let mut client = service.client().with("x-forwarded-for", &format!("203.0.113.{n}"));
        let mut failed = 0.0;
        let refused = loop {
            let answer = client.logs_in(email, WRONG).await;
            if answer.status != 401 {
                break answer;
            }
            failed += 1.0;
            // The address's own bucket must not refuse a login before the network's does.
            sqlx::query("TRUNCATE throttle").execute(&pool).await.unwrap();
        };
        assert_eq!(refused.error(), (429, "network_throttled"), "{email}");
        assert!((failed - passing).abs() < 0.5, "{email}: {failed} failed, {passing} would pass");
    }
    // A password that is not NFC is tried in two spellings, and costs twice.
    let mut composed = service.client().with("x-forwarded-for", "203.0.113.98");
    let mut failed = 0.0;
    while composed.logs_in("unknown@example.com", "nguye\u{302}\u{303}n").await.status == 401 {
        failed += 1.0;
        sqlx::query("TRUNCATE throttle").execute(&pool).await.unwrap();
    }
    assert!((failed - (40.0 / (2.0 * price)).floor()).abs() < 0.5, "{failed}, {price}");
    let mut right = service.client().with("x-forwarded-for", "203.0.113.99");
    let mut signed_in = 0.0;
    // Each login keeps the one unit that any request costs, because the test's clock does not move.
    while signed_in + price <= 40.0 {
        right.device = None;
        assert!(right.logs_in("own@example.com", PASSWORD).await.is_signed_in(), "{signed_in}");
        signed_in += 1.0;
    }
    assert!(signed_in > passing, "a success refunds the price");
    service.stops().await;
}

/// Imported hashes take all their threads; a login with our own hash is verified meanwhile.
#[sqlx::test]
async fn a_login_with_a_hash_of_ours_does_not_wait_for_imported_ones(pool: PgPool) {
    let mut settings = BUSY.to_vec();
    settings.push("--hashing-threads=1");
    let service = Service::start_with_settings(&pool, &settings).await;
    // Each of these hashes takes seconds. The test does not call `counts_hashes`, which would take
    // three times as long.
    for email in ["one@example.com", "other@example.com"] {
        service.has_account(email).await;
        service.has_hash(email, &BCRYPT_12.replace("$12$", "$15$")).await;
    }
    service.has_trader("own@example.com", PASSWORD).await;
    let mut slow = JoinSet::new();
    for email in ["one@example.com", "other@example.com"] {
        let mut client = service.client();
        slow.spawn(async move { client.logs_in(email, WRONG).await.status });
    }
    service.until("one is verified", async || service.metric("vos_auth_hashing_running ").await > 0.5).await;
    assert!(service.client().logs_in("own@example.com", PASSWORD).await.is_signed_in());
    assert!(slow.try_join_next().is_none(), "it was answered before the slow ones");
    assert_eq!(slow.join_all().await, [401, 401]);
    service.stops().await;
}

/// bcrypt ignores the end of a long password. A login with a typo there must not store a hash of
/// the typo.
#[sqlx::test]
async fn a_typo_beyond_what_bcrypt_reads_keeps_the_true_password_valid(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (email, password) = ("trader@example.com", format!("{} and the rest", "a".repeat(72)));
    service.has_account(email).await;
    service.has_hash(email, &bcrypt::hash(&password, 4).unwrap()).await;
    assert!(service.client().logs_in(email, &password.replace("rest", "typo")).await.is_signed_in());
    assert!(service.client().logs_in(email, &password).await.is_signed_in());
    service.stops().await;
}

/// A hash above the memory limit matches no password, and the memory of an expensive hash is freed.
#[sqlx::test]
async fn imported_hashes_stay_within_their_memory_limit(pool: PgPool) {
    let (relay, url) = (Relay::start().await, database::url(&pool));
    let relay_url = relay.url();
    let changes = [
        ("HASHING_MEMORY_KIB", "131072"),
        ("HASHING_THREADS", "4"),
        ("ARGON2_MEMORY_KIB", "7168"),
        ("ARGON2_PASSES", "1"),
        ("LOGIN_FAILURE_TIME", "10ms"),
        ("NETWORK_BURST", "1000000"),
    ];
    let argon2 = |kib| format!("$argon2id$v=19$m={kib},t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA${}", "A".repeat(43));
    for (email, kib) in [("a@example.com", 131_072), ("b@example.com", 131_072), ("c@example.com", 1 << 20)] {
        Service::has_trader_at(&pool, email, PASSWORD).await;
        let put = sqlx::query("UPDATE account SET password_hash = $2 WHERE email = $1").bind(email);
        put.bind(argon2(kib)).execute(&pool).await.unwrap();
    }
    let mut program = Program::start(&["serve"], &serve_environment(&url, &relay_url, &changes));
    let address = program.address();
    let before = memory(&program, "VmRSS:");
    let mut logins = JoinSet::new();
    for email in ["a@example.com", "b@example.com", "c@example.com", "d@example.com", "e@example.com"] {
        logins.spawn(async move { Client::new(address).logs_in(email, WRONG).await.status });
    }
    assert_eq!(logins.join_all().await, [401; 5]);
    let peak = memory(&program, "VmHWM:");
    assert!(peak < before + 128 + 4 * 7 + 40, "{before} -> {peak} MiB");
    // The service frees the memory when it handles other requests.
    let freed = async {
        loop {
            let client = Client::new(address);
            assert_eq!(client.get("/healthz").await.status, 200);
            if memory(&program, "VmRSS:") < before + 5 * 7 + 40 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), freed).await.expect("the memory is freed");
}
