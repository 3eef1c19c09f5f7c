//! The recovery flow, compared with a model: answers, emails, stored rows, passwords.

mod model;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use sqlx::PgPool;
use time::OffsetDateTime;
use vos_auth::password::{Cost, Password};

use self::model::{Expected, Model, Owner, Typed};
use super::{BUSY, holds};
use crate::harness::Service;
use crate::harness::client::{Answer, Client};
use crate::verify::wrong;

const BROWSERS: usize = 3;
const ADDRESSES: usize = 2;
/// The longest time of a sequence, because ended sessions are deleted after a day.
const LONGEST: Duration = Duration::from_hours(20);

#[derive(Clone, Debug)]
enum Step {
    Start {
        browser: usize,
        address: usize,
    },
    Verify {
        browser: usize,
        typed: Typed,
    },
    Reset {
        browser: usize,
        password: Chosen,
    },
    /// A browser copies another's cookie: from then on both have it.
    TakeCookie {
        browser: usize,
        from: usize,
    },
    Pass {
        seconds: u64,
    },
    /// The owner changes the password in a signed-in browser.
    ChangeElsewhere {
        address: usize,
    },
    Disable {
        address: usize,
    },
    Enable {
        address: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Chosen {
    Good,
    Short,
    /// The body is not a valid request.
    Mistyped,
}

fn step() -> impl Strategy<Value = Step> {
    let (browser, address) = (0..BROWSERS, 0..ADDRESSES);
    let typed = prop_oneof![
        5 => Just(Typed::Mailed),
        3 => Just(Typed::Wrong),
        1 => Just(Typed::Malformed),
        1 => browser.clone().prop_map(Typed::MailedTo),
    ];
    let chosen = prop_oneof![4 => Just(Chosen::Good), 1 => Just(Chosen::Short), 1 => Just(Chosen::Mistyped)];
    let seconds = prop_oneof![
        3 => prop::sample::select(vec![1, 60, 240, 299, 300, 419, 420, 421, 599, 600, 601, 899, 900]),
        1 => 1..20_000u64,
    ];
    prop_oneof![
        6 => (browser.clone(), address.clone()).prop_map(|(browser, address)| Step::Start { browser, address }),
        7 => (browser.clone(), typed).prop_map(|(browser, typed)| Step::Verify { browser, typed }),
        4 => (browser.clone(), chosen).prop_map(|(browser, password)| Step::Reset { browser, password }),
        1 => (browser.clone(), browser).prop_map(|(browser, from)| Step::TakeCookie { browser, from }),
        4 => seconds.prop_map(|seconds| Step::Pass { seconds }),
        1 => address.clone().prop_map(|address| Step::ChangeElsewhere { address }),
        1 => address.clone().prop_map(|address| Step::Disable { address }),
        1 => address.prop_map(|address| Step::Enable { address }),
    ]
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![6 => Just(Owner::WithPassword), 2 => Just(Owner::WithoutPassword), 1 => Just(Owner::NoAccount)]
}

#[sqlx::test]
async fn the_recovery_flow_matches_its_model(pool: PgPool) {
    let service = Arc::new(Service::start_with_settings(&pool, BUSY).await);
    let sequences = (prop::array::uniform2(owner()), vec(step(), 1..25));
    let (number, tested) = (AtomicU64::new(0), Arc::clone(&service));
    let client = service.client();
    let hash = Password::new(&password(0)).hash(Cost { memory_kib: 7168, passes: 1, lanes: 1 });
    holds(sequences, 30, async move |(owners, steps)| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let mut world = World::new(&tested, &client, &hash, number, owners).await;
        for step in steps {
            world.apply(step).await;
        }
        world.check().await;
    })
    .await;
    Arc::into_inner(service).unwrap().stops().await;
}

/// The service and its model.
struct World<'a> {
    service: &'a Service,
    model: Model,
    emails: [String; ADDRESSES],
    browsers: [Client; BROWSERS],
    /// The signed-in browsers of the addresses' owners.
    signed_in: [Client; ADDRESSES],
    passwords: u64,
    ends: OffsetDateTime,
}

impl<'a> World<'a> {
    async fn new(
        service: &'a Service,
        client: &Client,
        hash: &str,
        number: u64,
        owners: [Owner; ADDRESSES],
    ) -> Self {
        let emails = ["left", "right"].map(|name| format!("{name}{number}@example.com"));
        for (email, owner) in emails.iter().zip(owners) {
            match owner {
                Owner::NoAccount => {}
                Owner::WithoutPassword => service.has_account(email).await,
                Owner::WithPassword => {
                    service.has_account(email).await;
                    service.has_hash(email, hash).await;
                }
            }
        }
        let ends = service.app.clock.now() + LONGEST;
        Self {
            service,
            model: Model::new(&service.app, owners, BROWSERS),
            emails,
            browsers: std::array::from_fn(|_| client.clone()),
            signed_in: std::array::from_fn(|_| client.clone()),
            passwords: 0,
            ends,
        }
    }

    async fn apply(&mut self, step: Step) {
        let now = self.service.app.clock.now();
        match step {
            Step::Start { browser, address } => {
                let answer = self.browsers[browser].starts_recovery(&self.emails[address]).await;
                let expected = self.model.start(now, browser, address);
                assert_eq!(observed(&answer), expected);
                if expected.status == 200 {
                    self.check_emails(browser, address).await;
                }
            }
            Step::Verify { browser, typed } => {
                let code = self.code(browser, typed);
                let answer = self.browsers[browser].verifies(&code).await;
                assert_eq!(observed(&answer), self.model.verify(now, browser, typed));
            }
            Step::Reset { browser, password: Chosen::Good } => {
                let answer = self.browsers[browser].resets(&password(self.passwords + 1)).await;
                let (expected, address) = self.model.reset(now, browser, self.passwords + 1);
                assert_eq!(observed(&answer), expected);
                if let Some(address) = address {
                    self.passwords += 1;
                    self.check_notice_to(address).await;
                }
            }
            Step::Reset { browser, password: Chosen::Short } => {
                let answer = self.browsers[browser].resets("ngắn").await;
                assert_eq!(
                    observed(&answer),
                    self.model.refused_password(now, browser, "password_too_short")
                );
            }
            Step::Reset { browser, password: Chosen::Mistyped } => {
                let path = "/api/auth/recovery/reset-password";
                let answer = self.browsers[browser].post_json(path, r#"{"password":1}"#).await;
                assert_eq!(
                    observed(&answer),
                    self.model.refused_password(now, browser, "field_type_invalid")
                );
            }
            Step::TakeCookie { browser, from } => {
                let taken = self.browsers[from].cookie.clone();
                self.browsers[browser].cookie = taken;
                self.model.take_cookie(browser, from);
            }
            Step::Pass { seconds } => {
                let passed = Duration::from_secs(seconds);
                if now + passed < self.ends {
                    self.service.clock.advance(passed);
                }
            }
            Step::ChangeElsewhere { address } => self.owner_changes_password(now, address).await,
            Step::Disable { address } => self.set_account_state(address, "disabled").await,
            Step::Enable { address } => self.set_account_state(address, "active").await,
        }
    }

    /// The code to type: a mailed one if there was one, else a made-up one.
    fn code(&self, browser: usize, typed: Typed) -> String {
        let mailed = |browser| self.model.mailed_code(browser).unwrap_or("00000000").to_owned();
        match typed {
            Typed::Mailed => mailed(browser),
            Typed::MailedTo(other) => mailed(other),
            Typed::Wrong => wrong(&mailed(browser)),
            Typed::Malformed => "1234 567".into(),
        }
    }

    /// Checks that one email with the session's code is sent if the session is live and an account
    /// can get it, else none.
    async fn check_emails(&mut self, browser: usize, address: usize) {
        self.service.until_outbox_has(0).await;
        let mails = self.service.relay.takes_mails();
        let expected = usize::from(self.model.is_mailed(browser));
        assert_eq!(mails.len(), expected, "mails to {}", self.emails[address]);
        if let [mail] = mails.as_slice() {
            assert_eq!(mail.recipients, [self.emails[address].as_str()]);
            self.model.code_is_mailed(browser, &mail.code());
        }
    }

    async fn check_notice_to(&self, address: usize) {
        self.service.until_outbox_has(0).await;
        let mails = self.service.relay.takes_mails();
        let recipients: Vec<_> = mails.iter().flat_map(|mail| mail.recipients.clone()).collect();
        assert_eq!(recipients, [self.emails[address].as_str()], "the owner gets the notice");
    }

    async fn owner_changes_password(&mut self, now: OffsetDateTime, address: usize) {
        let Some(current) = self.model.password_that_logs_in(address).map(password) else { return };
        let client = &mut self.signed_in[address];
        assert!(client.logs_in(&self.emails[address], &current).await.is_signed_in());
        let changed = client.changes_password(&current, &password(self.passwords + 1)).await;
        assert!(changed.is_signed_in(), "{}", changed.text);
        self.passwords += 1;
        self.model.change_elsewhere(now, address, self.passwords);
        self.check_notice_to(address).await;
    }

    async fn set_account_state(&mut self, address: usize, state: &str) {
        let update = sqlx::query("UPDATE account SET state = $2 WHERE email = $1");
        update.bind(&self.emails[address]).bind(state).execute(&self.service.pool).await.unwrap();
        self.model.set_account_state(address, state == "active");
    }

    /// The model's password works and the one before does not; every session is as in the model.
    async fn check(mut self) {
        for (address, email) in self.emails.iter().enumerate() {
            let right = self.model.password_that_logs_in(address);
            let last = self.model.last_password(address);
            for number in last.saturating_sub(1)..=last {
                let status = self.signed_in[address].logs_in(email, &password(number)).await.status;
                let expected = if right == Some(number) { 200 } else { 401 };
                assert_eq!(status, expected, "{email} with password {number}");
            }
            let stored: Vec<(String, i16, OffsetDateTime)> =
                sqlx::query_as("SELECT state, attempts_left, expires_at FROM recovery_session WHERE email = $1 ORDER BY 1, 2, 3")
                    .bind(email)
                    .fetch_all(&self.service.pool)
                    .await
                    .unwrap();
            assert_eq!(stored, self.model.sessions_of(address), "{email}");
        }
    }
}

/// A valid password for each number.
fn password(number: u64) -> String {
    format!("{number} slow boats on a misty green river")
}

/// The parts of an answer that the model predicts.
fn observed(answer: &Answer) -> Expected {
    Expected {
        status: answer.status,
        error: (answer.status != 200).then(|| answer.error().1.to_owned()),
        attempts_left: answer.body["attempts_left"].as_u64(),
        cookie_life: answer.set_cookie().map(|_| answer.cookie_life()),
        retry_after: answer.header("retry-after").map(|_| answer.retry_after()),
        knows_browser: answer.device_cookie().is_some(),
    }
}
