//! The calls that are timed, and those that go before.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use vos_auth_lab::Failure;

/// Starts a second of strangers while a cell is loaded.
const LOAD: u32 = 300;
/// After this long a call for a known address may leave no trace in the next one.
const LATER: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Call {
    Start,
    /// Another start with the cookie of the first.
    Resend,
    Verify,
    /// What the recovery is waiting for.
    Progress,
    /// A start for an unknown address, 100 ms after one for the address in question.
    Later,
    /// The same at once. That shows, because a mail takes time of the machine: docs/security.md has the measurement.
    AtOnce,
    Login,
    /// Bursts of logins with imported hashes, in cells of their own (`parallel.rs`).
    ParallelLogin,
}

impl Call {
    pub const ALL: [Self; 7] =
        [Self::Start, Self::Resend, Self::Verify, Self::Progress, Self::Later, Self::AtOnce, Self::Login];

    /// On how many connections it is made.
    pub fn connections(self) -> &'static [usize] {
        match self {
            Self::Start | Self::Resend | Self::Verify | Self::Progress => &[1, 16],
            Self::Later => &[4],
            Self::AtOnce => &[1],
            Self::Login => &[16],
            Self::ParallelLogin => &[],
        }
    }

    /// One in how many calls is made of it, as it takes so much longer.
    pub fn share(self) -> usize {
        match self {
            Self::Start | Self::Verify | Self::Progress => 1,
            Self::Resend => 4,
            Self::Later | Self::AtOnce | Self::Login => 10,
            Self::ParallelLogin => 400,
        }
    }
}

/// Whose address a call is for.
pub const KINDS: [&str; 4] = ["unknown", "known", "disabled", "nopassword"];
pub const UNKNOWN: usize = 0;

/// What the addresses of a kind begin with: equally long, so that their length does not tell.
pub fn prefix(kind: usize) -> String {
    format!("{:-<10}", KINDS[kind])
}

/// Whom a call is about.
#[derive(Clone)]
pub struct Subject {
    kind: usize,
    email: String,
    /// Of the recovery that was begun for it.
    cookie: String,
}

impl Subject {
    pub fn new(kind: usize, number: usize) -> Self {
        Self { kind, email: format!("{}{number}@example.com", prefix(kind)), cookie: String::new() }
    }
}

/// Has so many connections work through their shares at once.
pub async fn in_parallel<T: Send + 'static, W>(
    connections: usize,
    subjects: &[Subject],
    work: impl Fn(Vec<Subject>) -> W,
) -> Result<Vec<T>, Failure>
where
    W: Future<Output = Result<Vec<T>, reqwest::Error>> + Send + 'static,
{
    let mut working = tokio::task::JoinSet::new();
    for share in subjects.chunks(subjects.len().div_ceil(connections)) {
        working.spawn(work(share.to_vec()));
    }
    let mut all = Vec::new();
    while let Some(ended) = working.join_next().await {
        all.extend(ended??);
    }
    Ok(all)
}

/// Begins a recovery for each.
pub async fn begins(base: String, share: Vec<Subject>) -> Result<Vec<Subject>, reqwest::Error> {
    let client = reqwest::Client::new();
    let mut begun = Vec::new();
    for subject in share {
        let body = serde_json::json!({ "email": subject.email });
        let started = post(&client, &base, "/recovery/start", &body).send().await?.error_for_status()?;
        let cookie = started.headers()["set-cookie"].to_str().unwrap_or_default();
        let cookie = cookie.split(';').next().unwrap_or_default().to_owned();
        begun.push(Subject { cookie, ..subject });
    }
    Ok(begun)
}

/// One connection, one call after the other. Gives the kind of each, and how long its answer took.
pub async fn one_by_one(
    call: Call,
    base: String,
    share: Vec<Subject>,
) -> Result<Vec<(usize, f64)>, reqwest::Error> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(1).build()?;
    let mut took = Vec::new();
    for Subject { kind, mut email, cookie } in share {
        if matches!(call, Call::Later | Call::AtOnce) {
            let body = serde_json::json!({ "email": email });
            post(&client, &base, "/recovery/start", &body).send().await?.error_for_status()?.bytes().await?;
            if call == Call::Later {
                tokio::time::sleep(LATER).await;
            }
            email = format!("next-{email}");
        }
        let (path, body, status) = match call {
            Call::Start | Call::Resend | Call::Later | Call::AtOnce => {
                ("/recovery/start", serde_json::json!({ "email": email }), 200)
            }
            Call::Verify => ("/recovery/verify", serde_json::json!({ "code": "00000000" }), 400),
            Call::Progress => ("/recovery", serde_json::Value::Null, 200),
            Call::Login | Call::ParallelLogin => (
                "/login",
                serde_json::json!({ "identifier": email, "password": "a guess that is wrong" }),
                401,
            ),
        };
        let request = match call {
            Call::Progress => client.get(format!("{base}{path}")),
            _ => post(&client, &base, path, &body),
        };
        let request = request.header("cookie", cookie);
        let began = Instant::now();
        let answer = request.send().await?;
        assert_eq!(answer.status().as_u16(), status, "{call:?} of {email}");
        answer.bytes().await?;
        took.push((kind, began.elapsed().as_secs_f64()));
    }
    Ok(took)
}

fn post(
    client: &reqwest::Client,
    base: &str,
    path: &str,
    body: &serde_json::Value,
) -> reqwest::RequestBuilder {
    client.post(format!("{base}{path}")).header("content-type", "application/json").body(body.to_string())
}

/// Others who ask for codes meanwhile, each from the network that `from` gives it.
pub async fn strangers(base: String, are_there: bool, from: impl Fn(u32) -> Option<String>) {
    let client = reqwest::Client::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / LOAD);
    for number in 0_u32.. {
        tick.tick().await;
        if are_there {
            let body = serde_json::json!({ "email": format!("stranger{number}@example.com") }).to_string();
            let start = client.post(format!("{base}/recovery/start"));
            let mut start = start.header("content-type", "application/json").body(body);
            if let Some(network) = from(number) {
                start = start.header("x-forwarded-for", network);
            }
            tokio::spawn(start.send());
        }
    }
}
