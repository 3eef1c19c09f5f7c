//! A constant, bounded load through nginx. It counts failures.
//!
//! - Users go through the whole flow: start, the code from the mail, verify, reset, login, session.
//! - A REST API verifies each JWT with a JWKS that it caches for as long as it may.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::nginx::Nginx;
use crate::postfix::Postfix;
use crate::relay::{Mail, Relay};

/// The number of users at once.
const PEOPLE: usize = 3;
/// How often each user begins the flow, unless the last flow took longer.
const PACE: Duration = Duration::from_millis(400);
const PASSWORD: &str = "morning boat on a green river";

/// Where the users read their mails.
pub enum Mailbox {
    Relay(Relay),
    Postfix(Arc<Postfix>),
}

/// The requests and their failures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: usize,
    /// Users who completed the flow.
    pub people: usize,
    /// Codes from a mail that the service refused.
    pub codes_refused: usize,
    /// A line for each request that was not answered 200, and for each JWT that was refused.
    pub failures: Vec<String>,
}

pub struct Load {
    nginx: Arc<Nginx>,
    accounts: PgPool,
    mailbox: Mailbox,
    counts: Mutex<Counts>,
    /// How long the REST API caches the JWKS. The field `jwks` is the cached JWKS, with the time of
    /// its request.
    jwks_life: Duration,
    jwks: tokio::sync::Mutex<Option<(Instant, Value)>>,
    /// The last JWT that each key signed, by the key's id.
    jwts: Mutex<BTreeMap<String, String>>,
}

/// A user with a code that is not entered yet. The user's browser (curl's cookie jar) has the same
/// name.
pub struct Person {
    pub name: String,
    code: String,
}

impl Person {
    pub fn email(&self) -> String {
        email_of(&self.name)
    }
}

fn email_of(name: &str) -> String {
    format!("{name}@example.com")
}

impl Load {
    pub fn new(nginx: Arc<Nginx>, accounts: PgPool, mailbox: Mailbox, jwks_life: Duration) -> Arc<Self> {
        Arc::new(Self {
            nginx,
            accounts,
            mailbox,
            counts: Mutex::default(),
            jwks_life,
            jwks: tokio::sync::Mutex::default(),
            jwts: Mutex::default(),
        })
    }

    /// Runs the load for as long as `work` takes. Then waits until all users have finished.
    pub async fn during<T>(self: &Arc<Self>, work: impl Future<Output = T>) -> T {
        let over = CancellationToken::new();
        let people: JoinSet<()> = (0..PEOPLE)
            .map(|_| {
                let (load, over) = (Arc::clone(self), over.clone());
                async move {
                    let mut tick = tokio::time::interval(PACE);
                    while over.run_until_cancelled(tick.tick()).await.is_some() {
                        load.person().await;
                    }
                }
            })
            .collect();
        let done = work.await;
        over.cancel();
        people.join_all().await;
        done
    }

    pub fn counts(&self) -> Counts {
        self.counts.lock().unwrap().clone()
    }

    /// The number of keys that signed the JWTs.
    pub fn keys(&self) -> usize {
        self.jwts.lock().unwrap().len()
    }

    /// Takes a new user through the whole flow.
    pub async fn person(&self) {
        if let Some(person) = self.has_code().await {
            self.gets_in(&person).await;
        }
    }

    /// Makes this many users who have a code.
    pub async fn have_codes(&self, people: usize) -> Vec<Person> {
        let mut have = Vec::new();
        for _ in 0..people {
            have.extend(self.has_code().await);
        }
        have
    }

    /// Makes a user, who requests a code and reads it in the mail.
    pub async fn has_code(&self) -> Option<Person> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("person{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let account = "INSERT INTO account (id, email, created_at, updated_at)
            VALUES (gen_random_uuid(), $1, now(), now())";
        sqlx::query(account).bind(email_of(&name)).execute(&self.accounts).await.unwrap();
        self.asks(&name, "/api/auth/recovery/start", Some(json!({ "email": email_of(&name) })), "").await?;
        let code = self.mailbox.mail_to(email_of(&name)).await.code();
        Some(Person { name, code })
    }

    /// The user enters the code, sets a password, signs in, refreshes, and sends the JWT to the
    /// REST API.
    pub async fn gets_in(&self, person: &Person) -> Option<()> {
        let Person { name, code } = person;
        self.asks(name, "/api/auth/recovery/verify", Some(json!({ "code": code })), "").await?;
        let password = json!({ "password": PASSWORD });
        self.asks(name, "/api/auth/recovery/reset-password", Some(password), "").await?;
        let login = json!({ "identifier": person.email(), "password": PASSWORD });
        let signed_in = self.asks(name, "/api/auth/login", Some(login), "").await?;
        let token = signed_in["sessionToken"].as_str().unwrap_or_default();
        let session = self.asks(name, "/api/auth/session", None, token).await?;
        self.takes_jwt(session["jwt"].as_str().unwrap_or_default()).await;
        self.counts.lock().unwrap().people += 1;
        Some(())
    }

    /// Sends a `start` from a browser, without counting it. Returns the status.
    pub async fn starts_from(&self, browser: &str, email: &str) -> u16 {
        let body = json!({ "email": email }).to_string();
        self.nginx.asks(browser, "/api/auth/recovery/start", &["--json", &body]).await.0
    }

    async fn asks(&self, browser: &str, path: &str, body: Option<Value>, token: &str) -> Option<Value> {
        let (body, token) = (body.map(|body| body.to_string()), format!("X-Session-Token: {token}"));
        let mut more = vec!["-H", token.as_str()];
        more.extend(body.iter().flat_map(|body| ["--json", body.as_str()]));
        let (status, answer) = self.nginx.asks(browser, path, &more).await;
        let mut counts = self.counts.lock().unwrap();
        counts.requests += 1;
        if status == 200 {
            return Some(answer);
        }
        counts.codes_refused += usize::from(path.ends_with("/verify") && matches!(status, 400 | 401));
        counts.failures.push(format!("{path}: {status} {answer}"));
        None
    }

    /// Verifies a JWT as the REST API does, with the JWKS that it caches.
    async fn takes_jwt(&self, jwt: &str) {
        let mut kept = self.jwks.lock().await;
        if kept.as_ref().is_none_or(|(since, _)| since.elapsed() >= self.jwks_life) {
            let asked = Instant::now();
            *kept = self.asks("api", "/.well-known/jwks.json", None, "").await.map(|jwks| (asked, jwks));
        }
        let verdict = kept.as_ref().ok_or("there is no JWKS").and_then(|(_, jwks)| verify(jwt, jwks));
        match verdict {
            Ok(key) => drop(self.jwts.lock().unwrap().insert(key, jwt.to_owned())),
            Err(why) => self.counts.lock().unwrap().failures.push(format!("a JWT is refused: {why}")),
        }
    }

    /// Verifies the last JWT of each key again, with the present JWKS.
    pub async fn takes_old_jwts(&self) {
        *self.jwks.lock().await = None;
        let jwts: Vec<_> = self.jwts.lock().unwrap().values().cloned().collect();
        for jwt in jwts {
            self.takes_jwt(&jwt).await;
        }
    }
}

impl Mailbox {
    async fn mail_to(&self, address: String) -> Mail {
        match self {
            Self::Relay(relay) => relay.mail_to(&address, 1).await,
            Self::Postfix(postfix) => {
                let postfix = Arc::clone(postfix);
                tokio::task::spawn_blocking(move || postfix.mail_to(&address)).await.unwrap()
            }
        }
    }
}

/// Verifies a JWT and returns the id of its key.
fn verify(jwt: &str, jwks: &Value) -> Result<String, &'static str> {
    let octets = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| "it is no base64url");
    let (message, signature) = jwt.rsplit_once('.').ok_or("it is no JWT")?;
    let header: Value = serde_json::from_slice(&octets(message.split('.').next().unwrap_or_default())?)
        .map_err(|_| "its header is no JSON")?;
    let mut keys = jwks["keys"].as_array().into_iter().flatten();
    let key = keys.find(|key| key["kid"] == header["kid"]).ok_or("its key is unknown")?;
    let coordinate = |name: &str| octets(key[name].as_str().unwrap_or_default());
    let point = [vec![4], coordinate("x")?, coordinate("y")?].concat();
    let public = VerifyingKey::from_sec1_bytes(&point).map_err(|_| "its key is no point")?;
    let signature = Signature::from_slice(&octets(signature)?).map_err(|_| "its signature is none")?;
    public.verify(message.as_bytes(), &signature).map_err(|_| "its signature does not match")?;
    Ok(header["kid"].as_str().unwrap_or_default().to_owned())
}
