//! The move from Ory Kratos, with the built program: what is imported, what is not, and that an
//! import can be interrupted and repeated.

mod again;
mod hostile;
mod kratos;
mod left_behind;
mod table;

use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

use crate::harness::program::run;
use crate::harness::{Service, database};

const PASSWORD: &str = "con meo treo cay cau";
const NEW: &str = "night train in autumn rain";
const ARGON2ID: &str =
    "$argon2id$v=19$m=1024,t=2,p=1$AAECAwQFBgcICQoLDA0ODw$0o5OID1MxUf2ag4jaVy/3Gcgf7RyJ6Ia3jYFblKkQw0";
const BCRYPT: &str = "$2b$04$oGfom7.iTdry90Ty.skkGuGe6sVSG7rM5WGnqVPXcx7qLzZlGCSiO";

/// A hash of [`PASSWORD`] of each kind: the test vectors of `src/password/stored`.
fn kinds() -> impl Iterator<Item = (&'static str, &'static str)> {
    include_str!("../../hashes.tsv").lines().map(|line| line.split_once('\t').unwrap())
}

/// An identity as Kratos's admin API writes it.
fn identity(number: u32, email: &str, hash: &str) -> Value {
    json!({
        "id": Uuid::from_u128(0x9f42_0000_0000_4000_8000_0000_0000_0000 + u128::from(number)),
        "schema_id": "default",
        "schema_url": "http://127.0.0.1:4433/schemas/ZGVmYXVsdA",
        "state": "active",
        "state_changed_at": "2023-01-31T12:00:00Z",
        "traits": { "email": email, "name": { "first": "An", "last": "Trần" } },
        "verifiable_addresses": [{ "value": email, "verified": true, "via": "email", "status": "completed" }],
        "recovery_addresses": [{ "value": email, "via": "email" }],
        "metadata_public": null,
        "metadata_admin": null,
        "organization_id": null,
        "credentials": { "password": {
            "type": "password",
            "identifiers": [email],
            "config": { "hashed_password": hash },
            "version": 0,
            "created_at": "2023-01-31T12:00:00Z",
            "updated_at": "2024-01-31T12:00:00.123456Z",
        } },
        "created_at": "2023-01-31T12:00:00Z",
        "updated_at": "2024-01-31T12:00:00Z",
    })
}

fn traders(numbers: std::ops::Range<u32>) -> Vec<Value> {
    numbers.map(|n| identity(n, &format!("trader-{n}@example.com"), BCRYPT)).collect()
}

fn lines(identities: &[Value]) -> String {
    identities.iter().map(Value::to_string).collect::<Vec<_>>().join("\n") + "\n"
}

/// The path of a file that only this test uses.
fn path_of(pool: &PgPool, name: &str) -> String {
    let database = pool.connect_options().get_database().unwrap().to_owned();
    format!("{}/{database}-{name}", env!("CARGO_TARGET_TMPDIR"))
}

struct Outcome {
    out: String,
    err: String,
    ok: bool,
}

fn vos_auth(pool: &PgPool, arguments: &[&str]) -> Outcome {
    let url = database::operator_url(pool);
    let ended = run(arguments, &[("DATABASE_URL", url.as_str())]);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { out: text(ended.stdout), err: text(ended.stderr), ok: ended.status.success() }
}

/// Imports a file with this content.
fn imports(pool: &PgPool, content: &str, more: &[&str]) -> Outcome {
    let file = path_of(pool, "import");
    std::fs::write(&file, content).unwrap();
    vos_auth(pool, &[&["account", "import", file.as_str()], more].concat())
}

fn refusals(pool: &PgPool) -> Vec<Value> {
    let text = std::fs::read_to_string(path_of(pool, "import.refused.ndjson")).unwrap();
    assert!(!text.contains("$2b$") && !text.contains("@example.com"), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every column of the accounts, except the times of the import.
async fn accounts(pool: &PgPool) -> Vec<Value> {
    let rows = "SELECT to_jsonb(a) - 'updated_at' - 'imported_at' FROM account a ORDER BY id";
    sqlx::query_scalar(rows).fetch_all(pool).await.unwrap()
}

async fn count(pool: &PgPool, rows: &str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {rows}"));
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

async fn hash_of(pool: &PgPool, email: &str) -> Option<String> {
    let hash = sqlx::query_scalar("SELECT password_hash FROM account WHERE email = $1");
    hash.bind(email).fetch_one(pool).await.unwrap()
}

/// A hash above the memory limit is left out, and imported when the limit allows it.
#[sqlx::test]
async fn a_hash_above_the_memory_limit_is_left_out_with_the_reason(pool: PgPool) {
    let output = "A".repeat(43);
    let argon2 = format!("$argon2id$v=19$m=262145,t=1,p=1$AAECAwQFBgcICQoLDA0ODw${output}");
    let scrypt = format!("$scrypt$ln=18,r=8,p=1$AAECAwQFBgcICQoLDA0ODw${output}");
    let file = lines(&[identity(1, "a@example.com", &argon2), identity(2, "s@example.com", &scrypt)]);
    let ended = imports(&pool, &file, &[]);
    assert!(ended.ok, "{}", ended.err);
    assert!(ended.out.contains("2 need more memory than HASHING_MEMORY_KIB (262144)"), "{}", ended.out);
    for email in ["a@example.com", "s@example.com"] {
        assert_eq!(hash_of(&pool, email).await, None);
    }
    let ended = imports(&pool, &file, &["--hashing-memory-kib", "524288"]);
    assert!(ended.out.contains("0 new, 2 changed"), "{}", ended.out);
    assert_eq!(hash_of(&pool, "a@example.com").await, Some(argon2));
}

#[sqlx::test]
async fn every_kind_of_password_keeps_working_and_is_rehashed(pool: PgPool) {
    let identities: Vec<_> = (0..)
        .zip(kinds())
        .map(|(n, (kind, hash))| identity(n, &format!("{kind}@example.com"), hash))
        .collect();
    let ended = imports(&pool, &Value::Array(identities).to_string(), &["--login-failure-time", "10ms"]);
    assert!(ended.ok, "{}", ended.err);
    assert!(ended.out.contains("13 records: 13 new, 0 changed"), "{}", ended.out);
    let counted = "passwords that keep working: argon2d 1, argon2i 1, argon2id 1, bcrypt 3, firebase-scrypt 1, pbkdf2-sha1 1, \
                 pbkdf2-sha256 1, pbkdf2-sha512 1, scrypt 1, sha256-crypt 1, sha512-crypt 1";
    assert!(ended.out.contains(counted), "{}", ended.out);
    assert!(ended.out.contains("the slowest hash is "), "{}", ended.out);
    let service = Service::start_with_settings(&pool, &["--network-burst=1000000"]).await;
    for (kind, hash) in kinds() {
        let email = format!("{kind}@example.com");
        assert_eq!(hash_of(&pool, &email).await.as_deref(), Some(hash));
        assert_eq!(service.client().logs_in(&email, "con meo treo cay chuoi").await.status, 401, "{kind}");
        let answer = service.client().logs_in(&email, PASSWORD).await;
        assert!(answer.is_signed_in(), "{kind}: {}", answer.text);
        assert_eq!(answer.body["identity"]["traits"]["name"]["last"], "Trần");
        let rehashed = hash_of(&pool, &email).await.unwrap();
        assert!(rehashed.starts_with("$argon2id$v=19$m=7168,t=1,p=1$"), "{kind}: {rehashed}");
        assert!(service.client().logs_in(&email, PASSWORD).await.is_signed_in(), "{kind}");
    }
    service.stops().await;
}

/// Weak or unverifiable hashes: the account is imported, and its owner recovers by email.
#[sqlx::test]
async fn an_account_with_a_weak_hash_is_imported_without_a_password(pool: PgPool) {
    let hashes = [
        "$md5$CY9rzUYh03PK3k6DJie09g==",
        "$sha256$pf=e1NBTFR9e1BBU1NXT1JEfQ==$MTIz$oQSrEkuL0sWCuv6yXJ2lPxk0NFQ1WOdWWYaeQmBG7lU=",
        "$hmac-sha256$YjhhZDA4YTM=$MTIzNDU=",
        "{SSHA}czO44OTV17PcF1cRxWrLZLy9xHd7CWyVYplr1rOhuMlx",
        "$md5-crypt$saltstring$6Kf3JjWTUOXqHsb4SSy6c0",
        "$1$saltstring$6Kf3JjWTUOXqHsb4SSy6c0",
        "$whirlpool$AAAA",
        "$2b$31$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
        "",
    ];
    let identities: Vec<_> =
        (0..).zip(hashes).map(|(n, hash)| identity(n, &format!("weak-{n}@example.com"), hash)).collect();
    let ended = imports(&pool, &lines(&identities), &[]);
    assert!(ended.ok, "{}", ended.err);
    let left_out = "6 too weak (hmac 1, md5 1, md5-crypt 2, sha256 1, ssha 1), 1 malformed or too slow to verify, \
                    1 of an unknown scheme, 1 not in the file";
    assert!(ended.out.contains(left_out), "{}", ended.out);
    assert!(ended.out.contains("include_credential=password"), "{}", ended.out);
    assert_eq!(count(&pool, "account WHERE password_hash IS NULL AND state = 'active'").await, 9);
    let service = Service::start(&pool).await;
    let mut owner = service.verified("weak-0@example.com").await;
    assert!(owner.resets(NEW).await.is_signed_in());
    service.stops().await;
}

#[sqlx::test]
async fn all_formats_import_the_same_accounts(pool: PgPool) {
    let all = traders(0..3);
    let (first, rest) = all.split_at(1);
    let pretty = |part: &[Value]| serde_json::to_string_pretty(&part).unwrap();
    let hashes = [BCRYPT; 3];
    let csv = (0..3).zip(hashes).fold("traits,id,email,password_hash\n".to_owned(), |csv, (n, hash)| {
        let (id, traits) =
            (all[n]["id"].as_str().unwrap(), all[n]["traits"].to_string().replace('"', "\"\""));
        csv + format!("\"{traits}\",{id},trader-{n}@example.com,{hash}\n").as_str()
    });
    let mut seen = Vec::new();
    for content in [
        lines(&all),
        Value::Array(all.clone()).to_string(),
        format!("\n{}\n{}\n", pretty(first), pretty(rest)),
        lines(&all).replace('\n', "\r\n\r\n"),
        lines(&all).trim_end().to_owned(),
        csv,
    ] {
        let ended = imports(&pool, &content, &[]);
        assert!(ended.ok && ended.out.starts_with("3 records: 3 new"), "{}{}", ended.out, ended.err);
        let mut imported = accounts(&pool).await;
        for account in &mut imported {
            // A CSV has no times.
            account.as_object_mut().unwrap().retain(|name, _| !name.ends_with("_at"));
        }
        seen.push(imported);
        sqlx::query("DELETE FROM account").execute(&pool).await.unwrap();
    }
    assert_eq!(seen[0].len(), 3);
    assert!(seen.iter().all(|accounts| accounts == &seen[0]), "{seen:#?}");
    for (content, part) in [("", "it is empty"), ("email,passwort\na@b.vn,x\n", "\"passwort\" is unknown")] {
        let ended = imports(&pool, content, &[]);
        assert!(!ended.ok && ended.err.contains(part), "{}", ended.err);
    }
}

#[sqlx::test]
async fn refused_records_are_listed_with_line_and_reason(pool: PgPool) {
    assert!(imports(&pool, &lines(&traders(0..2)), &[]).ok);
    assert!(
        !std::fs::exists(path_of(&pool, "import.refused.ndjson")).unwrap(),
        "no file without refused records"
    );
    let long = json!({ "id": Uuid::nil(), "traits": { "email": "a@example.com", "x": "y".repeat(1 << 20) } });
    let content = [
        traders(2..3)[0].to_string(),
        "{\"id\": \"broken".to_owned(),
        identity(0, "trader-1@example.com", BCRYPT).to_string(),
        identity(9, "trader-1@example.com", BCRYPT).to_string(),
        long.to_string(),
        identity(8, "no address", BCRYPT).to_string(),
        identity(7, "trader-7@example.com", BCRYPT).to_string(),
        identity(6, "trader-7@example.com", BCRYPT).to_string(),
        identity(7, "trader-7@example.com", BCRYPT).to_string(),
    ];
    let ended = imports(&pool, &content.join("\n"), &[]);
    assert!(!ended.ok && ended.err.contains("6 records were refused"), "{}", ended.err);
    assert!(
        ended.out.starts_with(
            "9 records: 2 new, 0 changed, 1 unchanged, 0 kept because they were used here, 6 refused"
        ),
        "{}",
        ended.out
    );
    let mut refused = refusals(&pool);
    refused.sort_by_key(|refused| refused["line"].as_u64());
    let found: Vec<_> =
        refused.iter().map(|one| (one["line"].as_u64().unwrap(), one["reason"].as_str().unwrap())).collect();
    for ((line, reason), (expected, part)) in found.iter().zip([
        (2, "not JSON"),
        (3, "another email here"),
        (4, "another id"),
        (5, "longer than 1 MiB"),
        (6, "not a valid email address"),
        (8, "another id"),
    ]) {
        assert!(*line == expected && reason.contains(part), "{found:?}");
    }
    assert_eq!(found.len(), 6);
    assert_eq!(refused[2]["id"], identity(9, "", "")["id"]);
    assert_eq!(count(&pool, "account").await, 4);
}

/// An array cut in the middle: what came before is imported, and the error names the line.
#[sqlx::test]
async fn a_truncated_array_is_imported_up_to_where_it_ends(pool: PgPool) {
    let whole = traders(0..3).iter().map(ToString::to_string).collect::<Vec<_>>().join(",\n");
    let whole = format!("[{whole}]");
    let ended = imports(&pool, &whole[..whole.len() - 40], &[]);
    assert!(
        !ended.ok && ended.err.contains("cannot be read") && ended.err.contains("line 3"),
        "{}",
        ended.err
    );
    assert_eq!(count(&pool, "account").await, 2);
    let huge = format!("[{},{{\"traits\":{{\"x\":\"{}", traders(3..4)[0], "y".repeat(3 << 20));
    let ended = imports(&pool, &huge, &[]);
    assert!(!ended.ok && ended.err.contains("longer than 1 MiB"), "{}", ended.err);
    assert_eq!(count(&pool, "account").await, 3);
}

#[sqlx::test]
async fn a_dry_run_writes_nothing(pool: PgPool) {
    assert!(imports(&pool, &lines(&traders(0..1)), &[]).ok);
    let events = count(&pool, "audit_event").await;
    let mut all = traders(0..3);
    all[0]["traits"]["desk"] = json!(7);
    all.push(identity(9, "trader-0@example.com", BCRYPT));
    let before = accounts(&pool).await;
    let ended = imports(&pool, &lines(&all), &["--dry-run"]);
    assert!(!ended.ok && ended.err.contains("1 records were refused"), "{}", ended.err);
    let counts = "4 records: dry run, the result would be 2 new, 1 changed, 0 unchanged, 0 kept because they were used here, 1 refused";
    assert!(ended.out.starts_with(counts), "{}", ended.out);
    assert_eq!((accounts(&pool).await, count(&pool, "audit_event").await), (before, events));
}
