//! Invariant 1 of `src/lib.rs` as non-interference: to a client that does not see the email, the
//! answers are the same for all addresses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use vos_auth::operator::Role;

use super::{BUSY, holds};
use crate::address_change::two_operators_agree;
use crate::admin::{self, desk, id_of, operator};
use crate::event_hooks::start_with;
use crate::harness::Service;
use crate::harness::client::{Answer, Client};
use crate::harness::webhook::{Mood, Webhook};

const BROWSERS: usize = 2;
const PASSWORD: &str = "slow boats on a misty green river";
/// The compared addresses, all of one length. The first has an owner who uses the account.
const KINDS: [&str; 4] = ["known", "unown", "disbl", "nopas"];

/// The actions of an attacker, with made-up codes and passwords.
#[derive(Clone, Debug)]
enum Call {
    Start {
        browser: usize,
        uppercase: bool,
    },
    /// Asks for the progress of the recovery.
    Progress {
        browser: usize,
    },
    /// `named`: the browser whose recovery is named in `X-Recovery-Id`, if any.
    /// `keyed`: with an `Idempotency-Key`.
    Verify {
        browser: usize,
        code: &'static str,
        named: Option<usize>,
        keyed: bool,
    },
    Reset {
        browser: usize,
        password: &'static str,
        named: Option<usize>,
        keyed: bool,
    },
    Login {
        browser: usize,
        password: &'static str,
    },
    /// Any other request, with the current cookies.
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
    /// No call: the known address's owner changes the password elsewhere.
    OwnerChangesPassword,
    /// No call: two operators agree on another address for the owner, who may stop that.
    AddressChange {
        stopped: bool,
    },
    /// No call of the attackers: an operator calls the admin API about the known address's account.
    Operator(Act),
}

/// What an operator does.
#[derive(Clone, Copy, Debug)]
enum Act {
    FindAndRead,
    Ticket,
    EndSessions,
    SetLocale,
    DisableAndEnable,
    /// Lifts the limits of every compared address, because support can do so without an account.
    LiftLimits,
}

fn call() -> impl Strategy<Value = Call> {
    let browser = 0..BROWSERS;
    let code = prop::sample::select(vec!["00000000", "1234 5678", "９８７６５４３２", "1234567", "", "x"]);
    let password = prop::sample::select(vec![PASSWORD, "night train in autumn rain", "short", ""]);
    let guess = prop::sample::select(vec!["night train in autumn rain", "password", ""]);
    let named = prop::option::of(0..BROWSERS);
    let other = prop::sample::select(vec![
        (Method::GET, "/api/auth/session", ""),
        (Method::POST, "/api/auth/logout", "{}"),
        (Method::GET, "/api/auth/sessions", ""),
        (Method::POST, "/api/auth/password", r#"{"currentPassword":"a","newPassword":"b"}"#),
        (Method::POST, "/api/auth/address-change/stop", r#"{"password":"a"}"#),
        (Method::POST, "/api/auth/recovery/start", "{}"),
        (Method::POST, "/api/auth/recovery/verify", "["),
        (Method::POST, "/api/auth/recovery/reset-password", r#"{"password":1}"#),
        (Method::GET, "/api/auth/recovery/verify", ""),
    ]);
    let seconds =
        prop_oneof![prop::sample::select(vec![1, 60, 300, 419, 420, 421, 599, 600, 601]), 1..20_000u64,];
    prop_oneof![
        5 => (browser.clone(), any::<bool>()).prop_map(|(browser, uppercase)| Call::Start { browser, uppercase }),
        3 => browser.clone().prop_map(|browser| Call::Progress { browser }),
        6 => (browser.clone(), code, named.clone(), any::<bool>())
            .prop_map(|(browser, code, named, keyed)| Call::Verify { browser, code, named, keyed }),
        2 => (browser.clone(), password, named, any::<bool>())
            .prop_map(|(browser, password, named, keyed)| Call::Reset { browser, password, named, keyed }),
        2 => (browser.clone(), guess).prop_map(|(browser, password)| Call::Login { browser, password }),
        2 => (browser.clone(), other)
            .prop_map(|(browser, (method, path, body))| Call::Other { browser, method, path, body }),
        1 => (browser.clone(), browser).prop_map(|(browser, from)| Call::TakeCookie { browser, from }),
        3 => seconds.prop_map(|seconds| Call::Pass { seconds }),
        6 => elsewhere(),
    ]
}

/// What happens without a call of the attackers.
fn elsewhere() -> impl Strategy<Value = Call> {
    let acts = vec![
        Act::FindAndRead,
        Act::Ticket,
        Act::EndSessions,
        Act::SetLocale,
        Act::DisableAndEnable,
        Act::LiftLimits,
    ];
    prop_oneof![
        2 => Just(Call::OwnerChangesPassword),
        1 => any::<bool>().prop_map(|stopped| Call::AddressChange { stopped }),
        3 => prop::sample::select(acts).prop_map(Call::Operator),
    ]
}

#[sqlx::test]
async fn s1_without_the_mailed_code_all_addresses_look_alike(pool: PgPool) {
    let webhook = Webhook::start(Mood::Takes);
    let settings = BUSY
        .iter()
        .chain(&[admin::ADDRESS, "--operator-per-hour=10000"])
        .map(|setting| (*setting).to_owned());
    let settings = settings.chain(webhook.settings()).collect();
    let service = Arc::new(start_with(&pool, settings, &[webhook.entry("rest", "all")]).await);
    let desk = desk(&service, &operator(&service, "alice", Role::Admin).await);
    let (number, tested, client) = (AtomicU64::new(0), Arc::clone(&service), service.client());
    holds(vec(call(), 1..25), 15, async move |calls| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let emails = KINDS.map(|kind| format!("{kind}{number}@example.com"));
        let [known, _, disabled, without_password] = &emails;
        tested.has_trader(known, PASSWORD).await;
        tested.has_trader(disabled, PASSWORD).await;
        tested.has_account(without_password).await;
        let disable = sqlx::query("UPDATE account SET state = 'disabled' WHERE email = $1").bind(disabled);
        disable.execute(&tested.pool).await.unwrap();
        let mut attackers = emails.clone().map(|email| Attacker {
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
                Call::AddressChange { stopped } => owner.gets_another_address(&tested, stopped).await,
                Call::Operator(act) => does(&desk, id_of(&tested.pool, known).await, &emails, act).await,
                call => {
                    let mut seen = Vec::new();
                    for attacker in &mut attackers {
                        seen.push(attacker.sees(&call).await);
                    }
                    for (kind, transcript) in KINDS.iter().zip(&seen) {
                        assert_eq!(transcript, &seen[0], "{kind} compared with {} at {call:?}", KINDS[0]);
                    }
                }
            }
        }
        // Discarded to save memory: thousands of sequences send many emails.
        tested.relay.takes_mails();
    })
    .await;
    assert!(!webhook.calls().is_empty());
    Arc::into_inner(service).unwrap().stops().await;
}

/// An operator acts on the account with this id.
async fn does(desk: &Client, id: Uuid, emails: &[String], act: Act) {
    let account = format!("/admin/accounts/{id}");
    let of_account =
        |method: &'static str, rest: &str, body: Value| (method, format!("{account}{rest}"), body);
    let calls = match act {
        Act::FindAndRead => vec![
            ("GET", format!("/admin/accounts?email={}", emails[0]), Value::Null),
            of_account("GET", "", Value::Null),
            of_account("GET", "/events", Value::Null),
        ],
        Act::Ticket => vec![of_account("POST", "/ticket", Value::Null)],
        Act::EndSessions => vec![of_account("DELETE", "/sessions", Value::Null)],
        Act::SetLocale => vec![of_account("PUT", "/locale", json!({ "locale": "en" }))],
        Act::DisableAndEnable => {
            vec![of_account("POST", "/disable", Value::Null), of_account("POST", "/enable", Value::Null)]
        }
        Act::LiftLimits => {
            let lift = |email| ("POST", "/admin/limits/lift".to_owned(), json!({ "email": email }));
            emails.iter().map(lift).collect()
        }
    };
    for (method, path, body) in calls {
        let answer = admin::call(desk, method, &path, &body).await;
        let is_bounded = matches!(act, Act::LiftLimits | Act::Ticket) && answer.status == 429;
        assert!(answer.status < 300 || is_bounded, "{method} {path}: {} {}", answer.status, answer.text);
    }
}

/// An attacker with several browsers, who tries one address.
struct Attacker {
    email: String,
    browsers: [Client; BROWSERS],
    /// The public id of the recovery that each browser shows.
    shown: [String; BROWSERS],
    /// Every id that was seen, in order.
    ids: Vec<String>,
}

impl Attacker {
    async fn sees(&mut self, call: &Call) -> Option<Seen> {
        let answer = match call {
            Call::Start { browser, uppercase } => {
                let email = if *uppercase { self.email.to_uppercase() } else { self.email.clone() };
                let answer = self.browsers[*browser].starts_recovery(&email).await;
                if let Some(id) = answer.header("x-recovery-id") {
                    id.clone_into(&mut self.shown[*browser]);
                }
                answer
            }
            Call::Progress { browser } => self.browsers[*browser].get("/api/auth/recovery").await,
            Call::Verify { browser, code, named, keyed } => {
                let verify = async |client: &mut Client| client.verifies(code).await;
                self.naming(*browser, *named, *keyed, verify).await
            }
            Call::Reset { browser, password, named, keyed } => {
                let reset = async |client: &mut Client| client.resets(password).await;
                self.naming(*browser, *named, *keyed, reset).await
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
            Call::Pass { .. }
            | Call::OwnerChangesPassword
            | Call::AddressChange { .. }
            | Call::Operator(_) => {
                unreachable!("not an attacker's call")
            }
        };
        let id = answer.header("x-recovery-id").or_else(|| answer.body["recovery"]["id"].as_str());
        if let Some(id) = id.filter(|id| !self.ids.iter().any(|known| known == id)) {
            self.ids.push(id.to_owned());
        }
        Some(self.masked(&answer))
    }

    /// Sends `call` from `browser`, naming the recovery of browser `named` if there is one, and
    /// always with the same key if `keyed`.
    async fn naming(
        &mut self,
        browser: usize,
        named: Option<usize>,
        keyed: bool,
        call: impl AsyncFn(&mut Client) -> Answer,
    ) -> Answer {
        let client = &mut self.browsers[browser];
        let before = client.headers.clone();
        if let Some(named) = named {
            client.headers.insert("x-recovery-id", self.shown[named].parse().unwrap());
        }
        if keyed {
            client.headers.insert("idempotency-key", "0123456789abcdefghijkl".parse().unwrap());
        }
        let answer = call(client).await;
        client.headers = before;
        answer
    }

    /// The comparable answer. Unique values are masked at their length, and a recovery's public id
    /// by its number, so that a repeated id shows.
    fn masked(&self, answer: &Answer) -> Seen {
        let number = |id: &str| format!("{:*>22}", self.ids.iter().position(|known| known == id).unwrap());
        let mut text = answer.text.clone();
        if let Some(id) = answer.body["recovery"]["id"].as_str() {
            text = text.replace(id, &number(id)).replace(&self.email, &"*".repeat(self.email.len()));
        }
        (answer.status, headers(answer, number), text)
    }
}

/// Status, headers in order, body.
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

/// The known address's owner, signed in on another browser.
struct Owner<'a> {
    email: &'a str,
    client: Client,
    changes: u64,
}

impl Owner<'_> {
    /// Changes the password, which ends every open recovery of the address.
    async fn changes_password(&mut self) {
        let current = self.password();
        assert!(self.client.logs_in(self.email, &current).await.is_signed_in());
        self.changes += 1;
        let changed = self.client.changes_password(&current, &self.password()).await;
        assert!(changed.is_signed_in(), "{}", changed.text);
    }

    /// Two operators agree on another address. The change never takes effect in this test, because
    /// the old address would then have no account.
    async fn gets_another_address(&mut self, service: &Service, stopped: bool) {
        assert!(self.client.logs_in(self.email, &self.password()).await.is_signed_in());
        // Stops the earlier change, if there is one.
        self.client.stops_address_change(&self.password()).await;
        let account = "SELECT id FROM account WHERE email = $1";
        let account = sqlx::query_scalar(account).bind(self.email).fetch_one(&service.pool).await.unwrap();
        let (now, new) = (service.app.clock.now(), format!("new.{}", self.email));
        two_operators_agree(&service.pool, now, account, &new).await;
        if stopped {
            assert_eq!(self.client.stops_address_change(&self.password()).await.status, 200);
        }
    }

    fn password(&self) -> String {
        if self.changes == 0 { PASSWORD.to_owned() } else { format!("{PASSWORD} {}", self.changes) }
    }
}
