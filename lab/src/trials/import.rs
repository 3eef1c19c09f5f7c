//! `make import`: imports many accounts in Kratos's format, with every kind of password.
//!
//! It imports a file without interruption, then a second time. Then it deletes the accounts, kills
//! an import in the middle with `kill -9`, and runs the import again. Each time, it compares the
//! stored accounts. Then 100 accounts of each supported kind of password log in over HTTP. It ends
//! with an error if the accounts differ or a login gets the wrong answer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinSet;
use vos_auth_lab::replica::Replica;
use vos_auth_lab::{Failure, database, place};

const PASSWORD: &str = "con meo treo cay cau";
const WRONG: &str = "con meo treo cay chuoi";
/// The number of logins for each kind of password.
const EACH: usize = 100;
/// The number of clients that log in in parallel.
const CLIENTS: usize = 4;
/// Kinds of accounts that are imported without a usable password: unsupported hashes, and no hash.
const NOT_WORKING: [(&str, Option<&str>); 7] = [
    ("md5", Some("$md5$CY9rzUYh03PK3k6DJie09g==")),
    ("sha256", Some("$sha256$pf=e1NBTFR9e1BBU1NXT1JEfQ==$MTIz$oQSrEkuL0sWCuv6yXJ2lPxk0NFQ1WOdWWYaeQmBG7lU=")),
    ("hmac", Some("$hmac-sha256$YjhhZDA4YTM=$MTIzNDU=")),
    ("ssha", Some("{SSHA}czO44OTV17PcF1cRxWrLZLy9xHd7CWyVYplr1rOhuMlx")),
    ("md5-crypt", Some("$md5-crypt$saltstring$6Kf3JjWTUOXqHsb4SSy6c0")),
    ("unknown", Some("$whirlpool$AAAA")),
    ("none", None),
];

/// Trial: imports many accounts, kills the import in the middle and repeats it
#[derive(Args)]
pub struct Options {
    /// How many
    #[arg(long, default_value = "1000000")]
    accounts: usize,
}

/// A kind of password: its name, and its hash.
type Kind = (String, Option<String>);

pub async fn run(options: Options) -> Result<(), Failure> {
    let url = database::of_program("import", "")?;
    let pool = database::anew(&url).await?;
    let count = options.accounts;
    let hashes = place::text("tests/hashes.tsv");
    let working = hashes.lines().filter_map(|line| line.split_once('\t'));
    let mut kinds: Vec<Kind> = working.map(|(name, hash)| (name.to_owned(), Some(hash.to_owned()))).collect();
    let working = kinds.len();
    kinds.extend(NOT_WORKING.map(|(name, hash)| (name.to_owned(), hash.map(str::to_owned))));

    let file = place::temporary("identities.ndjson");
    let mut out = BufWriter::new(File::create(&file)?);
    for number in 0..count {
        writeln!(out, "{}", identity(number, &kinds))?;
    }
    out.into_inner()?;
    let size = std::fs::metadata(&file)?.len() >> 20;
    println!("{count} identities, {} kinds of passwords, {size} MiB", kinds.len());

    let import = Import { url, file, count };
    let whole = import.row("in one go").await?;
    println!("{}", whole.said.lines().skip(1).collect::<Vec<_>>().join("\n"));
    let expected = stored(&pool).await?;
    import.row("the same file again").await?;
    is_same(&expected, &stored(&pool).await?)?;

    sqlx::raw_sql("TRUNCATE account CASCADE").execute(&pool).await?;
    let killed = import.runs(Some(whole.took / 2)).await?;
    let there: i64 = sqlx::query_scalar("SELECT count(*) FROM account").fetch_one(&pool).await?;
    if !killed.is_killed || !(1..count).contains(&usize::try_from(there)?) {
        return Err(format!("the kill came at the wrong time: {there} accounts are there").into());
    }
    println!("killed with -9 after {:.1} s, {there} accounts are there", killed.took.as_secs_f64());
    import.row("run again after the kill").await?;
    is_same(&expected, &stored(&pool).await?)?;
    println!("the same accounts as in one go: {expected}");
    logins(&import.url, &pool, &kinds[..working], kinds.len(), count).await?;
    std::fs::remove_file(import.file)?;
    Ok(())
}

fn email(number: usize) -> String {
    format!("trader-{number}@example.com")
}

/// The identity with this number, in the format of Kratos.
fn identity(number: usize, kinds: &[Kind]) -> Value {
    let (address, (_, hash)) = (email(number), &kinds[number % kinds.len()]);
    let id = (number as u128).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    let id = uuid::Builder::from_random_bytes(id.to_be_bytes()).into_uuid();
    let password = json!({
        "type": "password",
        "identifiers": [address],
        "config": { "hashed_password": hash },
        "version": 0,
        "created_at": "2023-01-31T12:00:00Z",
        "updated_at": "2024-01-31T12:00:00.123456Z",
    });
    json!({
        "id": id.to_string(),
        "credentials": if hash.is_some() { json!({ "password": password }) } else { json!({}) },
        "schema_id": "default",
        "schema_url": "https://identity.example.com/schemas/ZGVmYXVsdA",
        "state": if number % 1000 == 999 { "inactive" } else { "active" },
        "state_changed_at": "2023-01-31T12:00:00Z",
        "traits": { "email": address, "name": { "first": "An", "last": "Trần" }, "desk": number % 40 },
        "verifiable_addresses": [{ "value": address, "verified": true, "via": "email", "status": "completed" }],
        "recovery_addresses": [{ "value": address, "via": "email" }],
        "metadata_public": if number % 2 == 1 { json!({ "locale": "vi" }) } else { Value::Null },
        "metadata_admin": null,
        "created_at": "2023-01-31T12:00:00Z",
        "updated_at": "2024-01-31T12:00:00Z",
        "organization_id": null,
    })
}

/// A checksum of all columns of the accounts, except the times of their import.
async fn stored(pool: &PgPool) -> Result<String, sqlx::Error> {
    let stored = "SELECT count(*) || '|' || md5(string_agg(
            md5((to_jsonb(a) - 'updated_at' - 'imported_at')::text), '' ORDER BY id))
        FROM account a";
    sqlx::query_scalar(stored).fetch_one(pool).await
}

fn is_same(expected: &str, found: &str) -> Result<(), Failure> {
    if expected == found { Ok(()) } else { Err(format!("not the same accounts: {expected}, {found}").into()) }
}

struct Import {
    url: String,
    file: String,
    count: usize,
}

/// The result of one import.
struct Outcome {
    took: Duration,
    /// The peak of the import's memory in MiB.
    peak: f64,
    said: String,
    is_killed: bool,
}

/// A process that is killed when this value is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Import {
    async fn row(&self, what: &str) -> Result<Outcome, Failure> {
        let outcome = self.runs(None).await?;
        let seconds = outcome.took.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "there are fewer accounts than an f64 can count")]
        let rate = self.count as f64 / seconds;
        let first = outcome.said.lines().next().unwrap_or_default();
        println!("{what:28} {seconds:8.1} s {rate:10.0} a second {:7.1} MiB   {first}", outcome.peak);
        Ok(outcome)
    }

    async fn runs(&self, kill_after: Option<Duration>) -> Result<Outcome, Failure> {
        let printed = place::temporary("import-printed");
        let mut import = Command::new(place::built());
        import.args(["account", "import", &self.file]).env("DATABASE_URL", &self.url);
        let (began, mut peak, mut is_killed) = (Instant::now(), 0.0_f64, false);
        let mut running = Running(import.stdout(File::create(&printed)?).spawn()?);
        while running.0.try_wait()?.is_none() {
            peak = peak.max(peak_of(running.0.id()));
            if kill_after.is_some_and(|after| began.elapsed() > after) {
                running.0.kill()?;
                is_killed = true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let ended_well = running.0.wait()?.success();
        let said = std::fs::read_to_string(printed)?;
        if !ended_well && !is_killed {
            return Err(format!("an import failed: {said}").into());
        }
        Ok(Outcome { took: began.elapsed(), peak, said, is_killed: is_killed && !ended_well })
    }
}

fn peak_of(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// 100 accounts of each kind log in. Two of each kind log in again with the new hash, and try a
/// wrong password.
async fn logins(
    url: &str,
    pool: &PgPool,
    kinds: &[Kind],
    all_kinds: usize,
    count: usize,
) -> Result<(), Failure> {
    let replica = Replica::start(url, "smtp://127.0.0.1:9?tls=none", &[]).await?;
    let login = format!("http://{}/api/auth/login", replica.address);
    // Every thousandth account is inactive and is left out.
    let of_kind = |kind| (kind..count).step_by(all_kinds).filter(|number| number % 1000 != 999).take(EACH);
    let chosen: Vec<Vec<usize>> = (0..kinds.len()).map(|kind| of_kind(kind).collect()).collect();
    for (password, expected, each) in [(PASSWORD, 200, EACH), (PASSWORD, 200, 2), (WRONG, 401, 2)] {
        let numbers: Vec<_> = chosen
            .iter()
            .enumerate()
            .flat_map(|(kind, numbers)| numbers.iter().take(each).map(move |number| (kind, *number)))
            .collect();
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let share = numbers.iter().skip(client).step_by(CLIENTS).copied().collect();
            clients.spawn(log_in(login.clone(), share, password));
        }
        let mut as_expected: BTreeMap<usize, usize> = BTreeMap::new();
        while let Some(answers) = clients.join_next().await {
            for (kind, status) in answers?? {
                if status != expected {
                    return Err(format!("{}: a login was answered {status}", kinds[kind].0).into());
                }
                *as_expected.entry(kind).or_default() += 1;
            }
        }
        if expected == 200 {
            let told: Vec<_> =
                as_expected.iter().map(|(kind, count)| format!("{} {count}", kinds[*kind].0)).collect();
            println!("logged in: {}", told.join(", "));
        }
    }
    let addresses: Vec<_> = chosen.iter().flatten().map(|number| email(*number)).collect();
    let anew = "SELECT count(*) FROM account
        WHERE email = ANY($1) AND password_hash LIKE '$argon2id$v=19$m=19456,t=2,p=1$%'";
    let anew: i64 = sqlx::query_scalar(anew).bind(&addresses).fetch_one(pool).await?;
    println!("hashed anew: {anew} of {}", addresses.len());
    if usize::try_from(anew)? == addresses.len() {
        Ok(())
    } else {
        Err("not every hash was made anew".into())
    }
}

/// Logs in one account after the other. Returns the kind and the status of each login.
async fn log_in(
    url: String,
    numbers: Vec<(usize, usize)>,
    password: &str,
) -> Result<Vec<(usize, u16)>, reqwest::Error> {
    let (client, mut answers) = (reqwest::Client::new(), Vec::new());
    for (kind, number) in numbers {
        let body = json!({ "identifier": email(number), "password": password }).to_string();
        let mut status = 503;
        for _ in 0..100 {
            let request = client.post(&url).header("content-type", "application/json").body(body.clone());
            status = request.send().await?.status().as_u16();
            if status != 503 {
                break;
            }
            // The queue of the hashing threads is full: retry later, as the answer says.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        answers.push((kind, status));
    }
    Ok(answers)
}
