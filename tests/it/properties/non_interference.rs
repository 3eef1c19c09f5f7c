//! Promise 1 as non-interference: whoever has not got the mail sees the same, call by call, whosever the address is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use reqwest::Method;
use sqlx::PgPool;

use super::{BUSY, holds};
use crate::harness::Service;
use crate::harness::client::{Answer, Client};

const BROWSERS: usize = 2;
const PASSWORD: &str = "slow boats on a misty green river";
/// Whose addresses are compared, each as long as the others. The first has an owner who goes on with their life.
const ARMS: [&str; 4] = ["known", "unown", "disbl", "nopas"];

/// What a stranger does. Codes and passwords are made up.
#[derive(Clone, Debug)]
enum Call {
    Start {
        browser: usize,
        shouted: bool,
    },
    /// Asks what the recovery is waiting for.
    Progress {
        browser: usize,
    },
    /// `means`: whose recovery is named in `X-Recovery-Id`, if any is.
    Verify {
        browser: usize,
        code: &'static str,
        means: Option<usize>,
    },
    Reset {
        browser: usize,
        password: &'static str,
        means: Option<usize>,
    },
    Login {
        browser: usize,
        password: &'static str,
    },
    /// Anything else, with the cookies that there are.
    Other {
        browser: usize,
        method: Method,
        path: &'static str,
        body: &'static str,
    },
    TakeCookie {
        browser: usize,
        from: usize,
    },
    Pass {
        seconds: u64,
    },
    /// No call: where there is an owner, they change their password elsewhere meanwhile.
    OwnerChangesPassword,
}

fn call() -> impl Strategy<Value = Call> {
    let browser = 0..BROWSERS;
    let code = prop::sample::select(vec!["00000000", "1234 5678", "９８７６５４３２", "1234567", "", "x"]);
    let password = prop::sample::select(vec![PASSWORD, "night train in autumn rain", "short", ""]);
    let guess = prop::sample::select(vec!["night train in autumn rain", "password", ""]);
    let means = prop::option::of(0..BROWSERS);
    let other = prop::sample::select(vec![
        (Method::GET, "/api/auth/session", ""),
        (Method::POST, "/api/auth/logout", "{}"),
        (Method::GET, "/api/auth/sessions", ""),
        (Method::POST, "/api/auth/password", r#"{"currentPassword":"a","newPassword":"b"}"#),
        (Method::POST, "/api/auth/recovery/start", "{}"),
        (Method::POST, "/api/auth/recovery/verify", "["),
        (Method::POST, "/api/auth/recovery/reset-password", r#"{"password":1}"#),
        (Method::GET, "/api/auth/recovery/verify", ""),
    ]);
    let seconds =
        prop_oneof![prop::sample::select(vec![1, 60, 300, 419, 420, 421, 599, 600, 601]), 1..20_000u64,];
    prop_oneof![
        5 => (browser.clone(), any::<bool>()).prop_map(|(browser, shouted)| Call::Start { browser, shouted }),
        3 => browser.clone().prop_map(|browser| Call::Progress { browser }),
        6 => (browser.clone(), code, means.clone())
            .prop_map(|(browser, code, means)| Call::Verify { browser, code, means }),
        2 => (browser.clone(), password, means)
            .prop_map(|(browser, password, means)| Call::Reset { browser, password, means }),
        2 => (browser.clone(), guess).prop_map(|(browser, password)| Call::Login { browser, password }),
        2 => (browser.clone(), other)
            .prop_map(|(browser, (method, path, body))| Call::Other { browser, method, path, body }),
        1 => (browser.clone(), browser).prop_map(|(browser, from)| Call::TakeCookie { browser, from }),
        3 => seconds.prop_map(|seconds| Call::Pass { seconds }),
        2 => Just(Call::OwnerChangesPassword),
    ]
}

#[sqlx::test]
async fn s1_without_the_mailed_code_every_address_is_alike(pool: PgPool) {
    let service = Arc::new(Service::start_with_settings(&pool, BUSY).await);
    let (number, tested, client) = (AtomicU64::new(0), Arc::clone(&service), service.client());
    holds(vec(call(), 1..25), 15, async move |calls| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let emails = ARMS.map(|arm| format!("{arm}{number}@example.com"));
        let [known, _, disabled, without_password] = &emails;
        tested.has_trader(known, PASSWORD).await;
        tested.has_trader(disabled, PASSWORD).await;
        tested.has_account(without_password).await;
        let disable = sqlx::query("UPDATE account SET state = 'disabled' WHERE email = $1").bind(disabled);
        disable.execute(&tested.pool).await.unwrap();
        let mut strangers = emails.clone().map(|email| Stranger {
            email,
            browsers: std::array::from_fn(|_| client.clone()),
            shown: [const { String::new() }; BROWSERS],
            ids: Vec::new(),
        });
        let mut owner = Owner { email: known, client: client.clone(), changes: 0 };
        for call in calls {
            match call {
                Call::Pass { seconds } => tested.clock.advance(Duration::from_secs(seconds)),
                Call::OwnerChangesPassword => owner.changes_password().await,
                call => {
                    let mut seen = Vec::new();
                    for stranger in &mut strangers {
                        seen.push(stranger.sees(&call).await);
                    }
                    for (arm, transcript) in ARMS.iter().zip(&seen) {
                        assert_eq!(transcript, &seen[0], "{arm} beside {} at {call:?}", ARMS[0]);
                    }
                }
            }
        }
        // Nobody reads them here, and thousands of sequences are many mails.
        tested.relay.takes_mails();
    })
    .await;
    Arc::into_inner(service).unwrap().stops().await;
}

/// Somebody with browsers of their own who is after one address.
struct Stranger {
    email: String,
    browsers: [Client; BROWSERS],
    /// The recovery that each browser shows, by its public id.
    shown: [String; BROWSERS],
    /// Every id that was seen, in the order of its coming.
    ids: Vec<String>,
}

impl Stranger {
    async fn sees(&mut self, call: &Call) -> Option<Seen> {
        let answer = match call {
            Call::Start { browser, shouted } => {
                let email = if *shouted { self.email.to_uppercase() } else { self.email.clone() };
                let answer = self.browsers[*browser].starts_recovery(&email).await;
                if let Some(id) = answer.header("x-recovery-id") {
                    id.clone_into(&mut self.shown[*browser]);
                }
                answer
            }
            Call::Progress { browser } => self.browsers[*browser].get("/api/auth/recovery").await,
            Call::Verify { browser, code, means } => {
                self.meaning(*browser, *means, async |client: &mut Client| client.verifies(code).await).await
            }
            Call::Reset { browser, password, means } => {
                self.meaning(*browser, *means, async |client: &mut Client| client.resets(password).await)
                    .await
            }
            Call::Login { browser, password } => self.browsers[*browser].logs_in(&self.email, password).await,
            Call::Other { browser, method, path, body } => {
                let request = self.browsers[*browser].request(method.clone(), path);
                Client::answer(request.header("content-type", "application/json").body(*body)).await
            }
            Call::TakeCookie { browser, from } => {
                let taken = self.browsers[*from].cookie.clone();
                self.browsers[*browser].cookie = taken;
                return None;
            }
            Call::Pass { .. } | Call::OwnerChangesPassword => unreachable!("it is no stranger's"),
        };
        let id = answer.header("x-recovery-id").or_else(|| answer.body["recovery"]["id"].as_str());
        if let Some(id) = id.filter(|id| !self.ids.iter().any(|known| known == id)) {
            self.ids.push(id.to_owned());
        }
        Some(self.masked(&answer))
    }

    /// Calls as a page that shows the recovery of browser `means`, or as one that does not say what it shows.
    async fn meaning(
        &mut self,
        browser: usize,
        means: Option<usize>,
        call: impl AsyncFn(&mut Client) -> Answer,
    ) -> Answer {
        let client = &mut self.browsers[browser];
        let before = client.headers.clone();
        if let Some(means) = means {
            client.headers.insert("x-recovery-id", self.shown[means].parse().unwrap());
        }
        let answer = call(client).await;
        client.headers = before;
        answer
    }

    /// All that an answer says: what is new in every one of them is masked at its length, and the public id of a recovery
    /// by its number, so that the same one is seen to come again.
    fn masked(&self, answer: &Answer) -> Seen {
        let number = |id: &str| format!("{:*>22}", self.ids.iter().position(|known| known == id).unwrap());
        let mut text = answer.text.clone();
        if let Some(id) = answer.body["recovery"]["id"].as_str() {
            text = text.replace(id, &number(id)).replace(&self.email, &"*".repeat(self.email.len()));
        }
        (answer.status, headers(answer, number), text)
    }
}

/// Status, headers in their order, body.
type Seen = (u16, Vec<(String, String)>, String);

fn headers(answer: &Answer, number: impl Fn(&str) -> String) -> Vec<(String, String)> {
    let headers = answer.headers.iter().map(|(name, value)| {
        let value = value.to_str().unwrap();
        let shown = match name.as_str() {
            "date" | "x-request-id" => "*".repeat(value.len()),
            "x-recovery-id" => number(value),
            "set-cookie" => {
                let (name, rest) = value.split_once('=').unwrap();
                let (token, attributes) = rest.split_once(';').unwrap();
                format!("{name}={};{attributes}", "*".repeat(token.len()))
            }
            _ => value.to_owned(),
        };
        (name.to_string(), shown)
    });
    headers.collect()
}

/// The owner of the known address, who is signed in on a browser of their own.
struct Owner<'a> {
    email: &'a str,
    client: Client,
    changes: u64,
}

impl Owner<'_> {
    /// Ends every recovery of the address that has begun.
    async fn changes_password(&mut self) {
        let current = self.password();
        assert!(self.client.logs_in(self.email, &current).await.is_signed_in());
        self.changes += 1;
        let changed = self.client.changes_password(&current, &self.password()).await;
        assert!(changed.is_signed_in(), "{}", changed.text);
    }

    fn password(&self) -> String {
        if self.changes == 0 { PASSWORD.to_owned() } else { format!("{PASSWORD} {}", self.changes) }
    }
}
