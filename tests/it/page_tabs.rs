//! Tabs of one browser share the cookie: each acts only on the recovery that it shows.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use sqlx::PgPool;
use thirtyfour::prelude::*;

use crate::harness::Service;
use crate::harness::browser::Browser;
use crate::page::page_of;
use crate::page_lost::lose_answer_of;

/// The number of random sequences, unless `TABS_CASES` sets it, and the actions in each.
const CASES: u64 = 4;
const ACTIONS: usize = 18;
const BEFORE: &str = "morning boat on a green river";
const PASSWORDS: [&str; 2] = ["night train in autumn rain", "slow lamps over misty rice fields"];
const BUSY: &[&str] = &["--network-burst=1000000", "--network-per-minute=1000000"];

/// Does what a person would do next on the screen: types an address, the code that was mailed to
/// the shown address, or a password for it. Returns the shown address.
const ACT: &str = "
    const [what, email, codes, passwords] = ARGUMENTS;
    const seen = (id) => document.getElementById(id).checkVisibility();
    const press = (form, field, text) => {
      document.getElementById(field).value = text;
      document.getElementById(field).dispatchEvent(new Event('input', { bubbles: true }));
      document.querySelector(`#${form} button`).click();
    };
    if (seen('done') || (what === 'start' && seen('password'))) {
      history.back();
      return null;
    }
    if (what === 'start' && seen('code')) document.getElementById('other-email').click();
    if (seen('email')) {
      press('start', 'address', email);
      return ['start', email];
    }
    if (seen('code')) {
      const shown = document.querySelector('#code .address').textContent;
      const code = what === 'guess' ? '00000000' : codes[shown];
      if (!code) return null;
      press('verify', 'digits', code);
      return ['verify', shown];
    }
    if (seen('password')) {
      const shown = document.getElementById('account').value;
      press('reset', 'secret', passwords[shown]);
      return ['reset', shown];
    }
    return null;";

/// The address of the cookie's recovery, from the service, and the address on the screen, if any.
const SHOWN_AND_STORED: &str = "
    const done = arguments[0];
    const seen = (id) => document.getElementById(id).checkVisibility();
    const shown = seen('code') ? document.querySelector('#code .address').textContent
      : seen('password') ? document.getElementById('account').value : null;
    fetch('/api/auth/recovery').then((answer) => answer.json())
      .then(({ recovery }) => done([shown, recovery?.email ?? null]));";

const ADDRESS: &str = "document.querySelector('#code .address').textContent";
const IS_IDLE: &str = "document.readyState === 'complete' && !document.querySelector('[aria-busy=true]')";
/// Two windows side by side: the browser reports no change of visibility, unless a test does.
const SIDE_BY_SIDE: &str = "document.addEventListener('visibilitychange', (event) => event.isTrusted && event.stopImmediatePropagation(), true)";
const RETURN: &str = "document.dispatchEvent(new Event('visibilitychange'))";

/// Two tabs with the page.
struct Tabs {
    browser: Browser,
    handles: Vec<WindowHandle>,
    page: String,
}

impl Tabs {
    async fn open(page: &str) -> Self {
        let browser = Browser::open("en").await;
        let handles = vec![browser.driver.window().await.unwrap(), browser.driver.new_tab().await.unwrap()];
        let tabs = Self { browser, handles, page: page.to_owned() };
        for tab in 0..2 {
            tabs.switch_to(tab).await;
            let script = json!({ "source": SIDE_BY_SIDE });
            tabs.browser.devtools("Page.addScriptToEvaluateOnNewDocument", script).await;
        }
        tabs.reset().await;
        tabs
    }

    /// Resets the browser to that of a new visitor.
    async fn reset(&self) {
        self.browser.devtools("Network.clearBrowserCookies", json!({})).await;
        for tab in 0..self.handles.len() {
            self.switch_to(tab).await;
            self.browser.goes_to(&self.page).await;
            self.browser.script("sessionStorage.clear(); history.replaceState(null, '')").await;
            self.browser.goes_to(&self.page).await;
            self.browser.sees("#email").await;
        }
    }

    /// Switches to a tab.
    async fn switch_to(&self, tab: usize) {
        self.browser.driver.switch_to_window(self.handles[tab].clone()).await.unwrap();
    }

    async fn return_to(&self, tab: usize) {
        self.switch_to(tab).await;
        self.browser.script(RETURN).await;
    }
}

/// One random sequence on two addresses of its own, and its record.
struct Case<'a> {
    tabs: &'a Tabs,
    service: &'a Service,
    emails: [String; 2],
    /// The number of codes entered while each address was on the screen. Each may spend one
    /// attempt.
    verified: BTreeMap<String, i64>,
    /// The addresses that were on the screen when a password was sent.
    reset: BTreeSet<String>,
    /// The address that each tab showed when it last sent a password.
    last_reset: [Option<String>; 2],
    /// The addresses for which a tab reported a changed password.
    signed_in: BTreeSet<String>,
    /// The tabs that may still wait for an answer.
    busy: [bool; 2],
}

impl Case<'_> {
    async fn runs(&mut self, random: &mut SmallRng) {
        for _ in 0..ACTIONS {
            let (tab, waits) = (random.random_range(0..2), random.random_bool(0.8));
            let actions =
                ["next", "next", "next", "guess", "guess", "start", "start", "return", "reload", "back"];
            let other = usize::from(random.random_bool(0.2));
            let (action, email) = (actions.choose(random).unwrap(), &self.emails[tab ^ other]);
            println!("  tab {tab}: {action} ({email}){}", if waits { "" } else { ", and goes on at once" });
            let (email, before, was_busy) = (email.clone(), self.spent().await, self.busy);
            let shown = self.acts(tab, action, &email).await;
            // The service may still process a request that a reload interrupted.
            self.busy[tab] = !waits || (action == &"reload" && was_busy[tab]);
            if waits {
                self.tabs.browser.until(IS_IDLE).await;
                self.service.until_outbox_has(0).await;
                self.observe(tab).await;
            }
            if self.busy == [false; 2] && was_busy == [false; 2] {
                let after = self.spent().await;
                for n in (0..2).filter(|n| shown.as_ref() != Some(&self.emails[*n])) {
                    assert_eq!(
                        after[n], before[n],
                        "attempts of {}, which is not on the screen",
                        self.emails[n]
                    );
                }
            }
        }
    }

    /// Records the account that a tab says it signed in to. Also clears the addresses' rate limits.
    async fn observe(&mut self, tab: usize) {
        let step = "document.querySelector('#done').checkVisibility()";
        if self.tabs.browser.value(step).await == "true" {
            self.signed_in.extend(self.last_reset[tab].take());
        }
        sqlx::query("DELETE FROM throttle").execute(&self.service.pool).await.unwrap();
    }

    /// The attempts spent on each address, over all its recoveries.
    async fn spent(&self) -> [i64; 2] {
        let of = async |email: &String| {
            let spent =
                "SELECT coalesce(sum(5 - attempts_left), 0)::bigint FROM recovery_session WHERE email = $1";
            sqlx::query_scalar(spent).bind(email).fetch_one(&self.service.pool).await.unwrap()
        };
        [of(&self.emails[0]).await, of(&self.emails[1]).await]
    }

    /// Does `action` in a tab. Returns the address on the screen if a code or a password was sent.
    async fn acts(&mut self, tab: usize, action: &str, email: &str) -> Option<String> {
        let browser = &self.tabs.browser;
        self.tabs.switch_to(tab).await;
        match action {
            "return" => {
                browser.script(RETURN).await;
            }
            "reload" => browser.driver.refresh().await.unwrap(),
            "back" => {
                browser.script("history.state?.step !== 'email' && history.back()").await;
            }
            _ => {
                let mails = self.service.relay.mails();
                let codes = mails.iter().filter_map(|mail| Some((&mail.recipients[0], mail.code_if_any()?)));
                let codes: BTreeMap<_, _> = codes.collect();
                let passwords: BTreeMap<_, _> = self.emails.iter().zip(PASSWORDS).collect();
                let arguments = json!([action, email, codes, passwords]).to_string();
                let pressed = browser.script(&ACT.replace("ARGUMENTS", &arguments)).await;
                let shown = pressed[1].as_str()?.to_owned();
                match pressed[0].as_str()? {
                    "verify" => *self.verified.entry(shown.clone()).or_default() += 1,
                    "reset" => {
                        self.last_reset[tab] = Some(shown.clone());
                        self.reset.insert(shown.clone());
                    }
                    _ => return None,
                }
                return Some(shown);
            }
        }
        None
    }

    /// Checks that only accounts on a screen were changed. Returns the number of signed-in tabs.
    async fn check(&mut self) -> usize {
        for tab in 0..2 {
            self.tabs.switch_to(tab).await;
            self.tabs.browser.until(IS_IDLE).await;
            self.tabs.browser.script(RETURN).await;
            let state = async || {
                self.tabs.browser.driver.execute_async(SHOWN_AND_STORED, vec![]).await.unwrap().json().clone()
            };
            self.service
                .until("the screen shows the service's state", async || {
                    let state = state().await;
                    state[0].is_null() || state[0] == state[1]
                })
                .await;
            self.observe(tab).await;
        }
        let spent = self.spent().await;
        for (n, email) in self.emails.iter().enumerate() {
            let logs_in =
                async |password| self.service.client().logs_in(email, password).await.is_signed_in();
            let is_new = logs_in(PASSWORDS[n]).await;
            assert!(!logs_in(PASSWORDS[1 - n]).await, "{email} has the password of the other");
            assert!(is_new || logs_in(BEFORE).await, "{email} has a password that no tab sent for it");
            assert!(!is_new || self.reset.contains(email), "{email} was not on the screen");
            assert!(
                is_new || !self.signed_in.contains(email),
                "a tab reported a changed password for {email}"
            );
            let pressed = self.verified.get(email).copied().unwrap_or_default();
            assert!(spent[n] <= pressed, "{} attempts of {email} were spent by {pressed} presses", spent[n]);
        }
        self.signed_in.len()
    }
}

/// Two tabs, two addresses, actions in any order: each password and each attempt is for the account
/// on the screen, and both tabs end with the service's state. `TABS_SEED` repeats a run.
#[sqlx::test]
async fn two_tabs_act_on_what_they_show(pool: PgPool) {
    let of_environment = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    let first: u64 = of_environment("TABS_SEED").unwrap_or_else(|| rand::rng().random_range(0..1_000_000));
    let cases: u64 = of_environment("TABS_CASES").unwrap_or(CASES);
    let (service, page) = page_of(&pool, BUSY).await;
    let tabs = Tabs::open(&page).await;
    let (mut seed, mut signed_in, mut refused) = (first, 0, 0.0);
    // Continues until a tab has signed in and the service has refused a request: a run without both
    // would show nothing.
    while seed < first + cases || signed_in == 0 || refused == 0.0 {
        println!("TABS_SEED={seed}");
        let emails = ["left", "right"].map(|name| format!("{name}{seed}@example.com"));
        for email in &emails {
            service.has_trader(email, BEFORE).await;
        }
        tabs.reset().await;
        let mut case = Case {
            tabs: &tabs,
            service: &service,
            emails,
            verified: BTreeMap::new(),
            reset: BTreeSet::new(),
            last_reset: [None, None],
            signed_in: BTreeSet::new(),
            busy: [false; 2],
        };
        case.runs(&mut SmallRng::seed_from_u64(seed)).await;
        signed_in += case.check().await;
        refused = answers_401(&service).await;
        seed += 1;
    }
    tabs.browser.closes().await;
    service.stops().await;
}

/// The number of answers 401 of `verify` and `reset-password`.
async fn answers_401(service: &Service) -> f64 {
    let of = async |step: &str| {
        let route = format!("/api/auth/recovery/{step}");
        service.metric(&format!("vos_auth_http_answers_total{{route=\"{route}\",status=\"401\"}}")).await
    };
    of("verify").await + of("reset-password").await
}

/// Continues in one tab until it shows the field of the password.
async fn verifies_in(tabs: &Tabs, service: &Service, tab: usize, email: &str, mail: usize) {
    tabs.switch_to(tab).await;
    tabs.browser.types("#address", email).await;
    tabs.browser.clicks("#start button").await;
    tabs.browser.sees("#code").await;
    tabs.browser.types("#digits", &service.relay.mail(mail).await.code()).await;
    tabs.browser.sees("#password").await;
}

/// A former defect set the password of another account than the one on the screen.
#[sqlx::test]
async fn a_password_is_never_set_for_an_account_that_is_not_on_the_screen(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let [left, right] = ["left@example.com", "right@example.com"];
    for email in [left, right] {
        service.has_trader(email, BEFORE).await;
    }
    let tabs = Tabs::open(&page).await;
    let (browser, account) = (&tabs.browser, "document.querySelector('#account').value");
    verifies_in(&tabs, &service, 0, left, 1).await;
    verifies_in(&tabs, &service, 1, right, 2).await;
    tabs.switch_to(0).await;
    assert_eq!(browser.value(account).await, left);
    browser.types("#secret", PASSWORDS[0]).await;
    browser.clicks("#reset button").await;
    browser.until(&format!("{account} === '{right}'")).await;
    assert!(browser.reads("#network").await.starts_with("Another recovery was started in this browser"));
    assert_eq!(
        browser.value("document.querySelector('#secret').value").await,
        "",
        "the password was for the other account"
    );
    assert!(service.client().logs_in(right, BEFORE).await.is_signed_in(), "the password is unchanged");
    // After a reload, the tab still shows the address `right`. It then sets the password of that
    // account.
    browser.driver.refresh().await.unwrap();
    browser.sees("#password").await;
    assert_eq!(browser.value(account).await, right);
    browser.types("#secret", PASSWORDS[1]).await;
    browser.clicks("#reset button").await;
    browser.sees("#done").await;
    assert!(service.client().logs_in(right, PASSWORDS[1]).await.is_signed_in());
    assert!(service.client().logs_in(left, BEFORE).await.is_signed_in());
    // The other tab reports that its recovery has ended.
    tabs.return_to(1).await;
    browser.sees("#email").await;
    assert!(
        browser
            .reads("#start-error")
            .await
            .starts_with("This recovery has ended, or the browser may be blocking cookies.")
    );
    tabs.browser.closes().await;
    service.stops().await;
}

/// The answer is lost but its cookie is set: the page asks the service for the state.
#[sqlx::test]
async fn after_a_lost_answer_the_page_shows_the_current_step(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    browser.goes_to(&page).await;
    browser.sees("#email").await;
    // The start is answered, the next request is not: the page shows what it knows.
    browser.types("#address", "trader@example.com").await;
    lose_answer_of(&browser, "/recovery").await;
    browser.clicks("#start button").await;
    browser.sees("#code").await;
    assert_eq!(browser.value(ADDRESS).await, "trader@example.com");
    assert_eq!(browser.value("document.querySelector('#code-life').innerText").await, "");
    browser.clicks("#other-email").await;
    lose_answer_of(&browser, "/start").await;
    browser.clicks("#start button").await;
    browser.sees("#code").await;
    assert_eq!(browser.value(ADDRESS).await, "trader@example.com");
    lose_answer_of(&browser, "/verify").await;
    browser.types("#digits", "00000000").await;
    assert!(browser.reads("#network").await.starts_with("The server has not answered."));
    assert_eq!(browser.reads("#attempts").await, "Attempts left: 4");
    browser.types("#digits", &service.relay.mail(1).await.code()).await;
    lose_answer_of(&browser, "/verify").await;
    browser.clicks("#verify button").await;
    browser.sees("#password").await;
    // A new tab shows the same step.
    let tab = browser.driver.new_tab().await.unwrap();
    browser.driver.switch_to_window(tab).await.unwrap();
    browser.goes_to(&page).await;
    browser.sees("#password").await;
    browser.closes().await;
    service.stops().await;
}
