//! The calls whose times are measured, and the calls that prepare them.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use vos_auth_lab::Failure;

/// The rate of starts by other clients in a cell with load, per second.
const LOAD: u32 = 300;
/// The pause between the two starts of [`Call::Later`]. After it, the first start must have no
/// effect on the time of the second.
const LATER: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Call {
    Start,
    /// A second start with the cookie of the first.
    Resend,
    Verify,
    /// `GET /api/auth/recovery`.
    Progress,
    /// A start for an unknown address, 100 ms after a start for the address of this kind.
    Later,
    /// The same without a pause. The effect can be measured, because sending a mail takes CPU time:
    /// see docs/security.md.
    AtOnce,
    Login,
    /// Bursts of logins with imported hashes, in cells of their own (`parallel.rs`).
    ParallelLogin,
}

impl Call {
    pub const ALL: [Self; 7] =
        [Self::Start, Self::Resend, Self::Verify, Self::Progress, Self::Later, Self::AtOnce, Self::Login];

    /// The numbers of connections on which this call is measured.
    pub fn connections(self) -> &'static [usize] {
        match self {
            Self::Start | Self::Resend | Self::Verify | Self::Progress => &[1, 16],
            Self::Later => &[4],
            Self::AtOnce => &[1],
            Self::Login => &[16],
            Self::ParallelLogin => &[],
        }
    }

    /// By how much the number of calls is divided, because this call takes longer.
    pub fn share(self) -> usize {
        match self {
            Self::Start | Self::Verify | Self::Progress => 1,
            Self::Resend => 4,
            Self::Later | Self::AtOnce | Self::Login => 10,
            Self::ParallelLogin => 400,
        }
    }
}

/// The kinds of addresses that calls are for.
pub const KINDS: [&str; 4] = ["unknown", "known", "disabled", "nopassword"];
pub const UNKNOWN: usize = 0;

/// The prefix of the addresses of a kind. All have the same length, so that the length reveals
/// nothing.
pub fn prefix(kind: usize) -> String {
    format!("{:-<10}", KINDS[kind])
}

/// The address that a call is for.
#[derive(Clone)]
pub struct Subject {
    kind: usize,
    email: String,
    /// The cookie of the recovery that was begun for it.
    cookie: String,
}

impl Subject {
    pub fn new(kind: usize, number: usize) -> Self {
        Self { kind, email: format!("{}{number}@example.com", prefix(kind)), cookie: String::new() }
    }
}

/// Makes all calls, divided among this many parallel connections.
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

/// Begins a recovery for each subject. Returns the subjects with the cookies.
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

/// Makes one call after the other on one connection. Returns the kind and the time of each.
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

/// Sends starts of other clients until the future is dropped, if `are_there`. Each start comes from
/// the network that `from` returns.
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
