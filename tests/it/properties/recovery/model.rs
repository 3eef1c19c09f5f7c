//! A model of recovery: no database, no HTTP, no email.

use std::collections::HashMap;

use time::OffsetDateTime;
use vos_auth::app::App;
use vos_auth::config::{CODE_LIFETIME, RESEND_LIFE, RESET_LIFETIME};
use vos_auth::throttle::RateLimit;

use crate::properties::throttle::{Buckets, whole_seconds};

/// What account an address has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    NoAccount,
    WithoutPassword,
    WithPassword,
}

/// What a client types as a code.
#[derive(Clone, Copy, Debug)]
pub enum Typed {
    Mailed,
    /// The code of another browser's session.
    MailedTo(usize),
    Wrong,
    Malformed,
}

/// The expected answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub status: u16,
    pub error: Option<String>,
    pub attempts_left: Option<u64>,
    /// The life in seconds of the recovery cookie that is set; 0 if it is cleared.
    pub cookie_life: Option<u64>,
    pub retry_after: Option<u64>,
    /// Whether a device cookie is set.
    pub knows_browser: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    CodeSent,
    Verified,
    Consumed,
}

#[derive(Debug)]
struct Session {
    address: usize,
    /// Counted up at every step: a browser with an older token has no session.
    token: u64,
    state: State,
    /// The password was changed after the session began.
    revoked: bool,
    attempts_left: i16,
    expires_at: OffsetDateTime,
    code: Option<String>,
}

/// The id of a known browser, and the address that last signed in on it.
type Device = (u64, usize);

#[derive(Debug, Default)]
struct Browser {
    token: Option<u64>,
    device: Option<Device>,
}

#[derive(Debug)]
struct Account {
    exists: bool,
    active: bool,
    password: Option<u64>,
    last_password: u64,
}

#[derive(Debug)]
pub struct Model {
    limits: (RateLimit, RateLimit),
    begin: OffsetDateTime,
    accounts: Vec<Account>,
    browsers: Vec<Browser>,
    /// The signed-in browsers of the addresses' owners.
    signed_in: Vec<Browser>,
    sessions: Vec<Session>,
    /// The buckets for codes of each address, for unknown browsers and for each device.
    code_buckets: HashMap<(usize, Option<u64>), Buckets>,
    /// The buckets for new devices of each address.
    device_buckets: HashMap<usize, Buckets>,
    counted: u64,
}

impl Model {
    pub fn new(app: &App, owners: [Owner; 2], browsers: usize) -> Self {
        let account = |owner| Account {
            exists: owner != Owner::NoAccount,
            active: true,
            password: (owner == Owner::WithPassword).then_some(0),
            last_password: 0,
        };
        Self {
            limits: (app.address_limit, app.device_limit),
            begin: app.clock.now(),
            accounts: owners.map(account).into(),
            browsers: (0..browsers).map(|_| Browser::default()).collect(),
            signed_in: owners.iter().map(|_| Browser::default()).collect(),
            sessions: Vec::new(),
            code_buckets: HashMap::new(),
            device_buckets: HashMap::new(),
            counted: 0,
        }
    }

    pub fn start(&mut self, now: OffsetDateTime, browser: usize, address: usize) -> Expected {
        let device = self.browsers[browser].device.filter(|(_, owner)| *owner == address);
        let full = Buckets::full(self.limits.0, self.begin);
        let bucket = self.code_buckets.entry((address, device.map(|(name, _)| name))).or_insert(full);
        if let Err(at) = bucket.spend(now) {
            let retry_after = Some(whole_seconds(at - now));
            return Expected { retry_after, ..Expected::error(429, "address_throttled") };
        }
        let kept = self.session_of(browser).filter(|session| {
            session.address == address
                && session.waits_for_code()
                && session.attempts_left > 0
                && session.expires_at >= now + RESEND_LIFE
        });
        let expires_at = match kept {
            Some(session) => session.expires_at,
            None => self.open(now, browser, address),
        };
        Expected::cookie(expires_at - now)
    }

    fn open(&mut self, now: OffsetDateTime, browser: usize, address: usize) -> OffsetDateTime {
        let (token, expires_at) = (self.count(), now + CODE_LIFETIME);
        let (state, attempts_left) = (State::CodeSent, 5);
        self.sessions.push(Session {
            address,
            token,
            state,
            revoked: false,
            attempts_left,
            expires_at,
            code: None,
        });
        self.browsers[browser].token = Some(token);
        expires_at
    }

    pub fn verify(&mut self, now: OffsetDateTime, browser: usize, typed: Typed) -> Expected {
        let typed_code = match typed {
            Typed::Mailed => self.mailed_code(browser).map(str::to_owned),
            Typed::MailedTo(other) => self.mailed_code(other).map(str::to_owned),
            Typed::Wrong | Typed::Malformed => None,
        };
        let token = self.count();
        let Some(session) = self.session_of(browser) else { return Expected::missing() };
        if let Some(error) = session.ended(now) {
            return error;
        }
        if !session.waits_for_code() {
            return Expected::error(401, "recovery_session_used");
        }
        if matches!(typed, Typed::Malformed) {
            return Expected::error(400, "code_malformed");
        }
        session.attempts_left -= 1;
        let right = typed_code.is_some() && typed_code == session.code && !session.revoked;
        let (address, attempts_left) = (session.address, u64::try_from(session.attempts_left).ok());
        if !right || !self.accounts[address].is_usable() {
            return Expected { attempts_left, ..Expected::error(400, "code_invalid") };
        }
        let expires_at = now + RESET_LIFETIME;
        let session = self.session_of(browser).expect("the session exists");
        (session.state, session.token, session.expires_at) = (State::Verified, token, expires_at);
        self.browsers[browser].token = Some(token);
        Expected::cookie(time::Duration::try_from(RESET_LIFETIME).unwrap())
    }

    /// A reset with a valid password. Also returns the address whose password was changed.
    pub fn reset(&mut self, now: OffsetDateTime, browser: usize, password: u64) -> (Expected, Option<usize>) {
        let address = match self.may_reset(now, browser) {
            Ok(address) => address,
            Err(error) => return (error, None),
        };
        let session = self.session_of(browser).expect("the session may reset");
        session.state = State::Consumed;
        self.browsers[browser].token = None;
        self.set_password(address, password);
        let device = self.browsers[browser].device;
        let known = self.sign_in(now, address, device);
        self.browsers[browser].device = known.or(device);
        let cookie_life = Some(0);
        (
            Expected { status: 200, cookie_life, knows_browser: known.is_some(), ..Expected::default() },
            Some(address),
        )
    }

    /// A reset with a password that is refused as `refusal`, if there is a session.
    pub fn refused_password(&mut self, now: OffsetDateTime, browser: usize, refusal: &str) -> Expected {
        self.may_reset(now, browser).map_or_else(|error| error, |_| Expected::error(400, refusal))
    }

    fn may_reset(&mut self, now: OffsetDateTime, browser: usize) -> Result<usize, Expected> {
        let session = self.session_of(browser).ok_or_else(Expected::missing)?;
        if let Some(error) = session.ended(now) {
            return Err(error);
        }
        if session.waits_for_code() {
            return Err(Expected::error(401, "recovery_session_unverified"));
        }
        let (address, usable) = (session.address, session.state == State::Verified && !session.revoked);
        let used = || Expected::error(401, "recovery_session_used");
        (usable && self.accounts[address].is_usable()).then_some(address).ok_or_else(used)
    }

    pub fn change_elsewhere(&mut self, now: OffsetDateTime, address: usize, password: u64) {
        for _signed_in in ["by the login", "by the change"] {
            let device = self.signed_in[address].device;
            self.signed_in[address].device = self.sign_in(now, address, device).or(device);
        }
        self.set_password(address, password);
    }

    /// Ends every recovery of the address. A session that waits for its code does not show its end.
    fn set_password(&mut self, address: usize, password: u64) {
        let account = &mut self.accounts[address];
        (account.password, account.last_password) = (Some(password), password);
        for session in &mut self.sessions {
            session.revoked |= session.address == address;
        }
    }

    /// Signs in. Returns the device cookie that is set, if any.
    fn sign_in(&mut self, now: OffsetDateTime, address: usize, device: Option<Device>) -> Option<Device> {
        if let Some(kept) = device.filter(|(_, owner)| *owner == address) {
            return Some(kept);
        }
        let full = Buckets::full(self.limits.1, self.begin);
        let spent = self.device_buckets.entry(address).or_insert(full).spend(now);
        spent.is_ok().then(|| (self.count(), address))
    }

    pub fn take_cookie(&mut self, browser: usize, from: usize) {
        self.browsers[browser].token = self.browsers[from].token;
    }

    pub fn set_account_state(&mut self, address: usize, active: bool) {
        self.accounts[address].active = active;
    }

    pub fn mailed_code(&self, browser: usize) -> Option<&str> {
        let token = self.browsers[browser].token?;
        self.sessions.iter().find(|session| session.token == token)?.code.as_deref()
    }

    /// Whether an accepted start sends an email.
    pub fn is_mailed(&mut self, browser: usize) -> bool {
        let session = self.session_of(browser).expect("the session has just started");
        let (address, live) = (session.address, !session.revoked);
        live && self.accounts[address].is_usable()
    }

    /// A session has one code during its life.
    pub fn code_is_mailed(&mut self, browser: usize, code: &str) {
        let session = self.session_of(browser).expect("the session has just started");
        assert_eq!(*session.code.get_or_insert(code.to_owned()), code);
    }

    pub fn password_that_logs_in(&self, address: usize) -> Option<u64> {
        self.accounts[address].password.filter(|_| self.accounts[address].is_usable())
    }

    pub fn last_password(&self, address: usize) -> u64 {
        self.accounts[address].last_password
    }

    /// The stored rows, in order.
    pub fn sessions_of(&self, address: usize) -> Vec<(String, i16, OffsetDateTime)> {
        let of_address = self.sessions.iter().filter(|session| session.address == address);
        let mut stored: Vec<_> = of_address
            .map(|session| (session.state.stored().to_owned(), session.attempts_left, session.expires_at))
            .collect();
        stored.sort();
        stored
    }

    fn session_of(&mut self, browser: usize) -> Option<&mut Session> {
        let token = self.browsers[browser].token?;
        self.sessions.iter_mut().find(|session| session.token == token)
    }

    fn count(&mut self) -> u64 {
        self.counted += 1;
        self.counted
    }
}

impl Account {
    fn is_usable(&self) -> bool {
        self.exists && self.active
    }
}

impl Session {
    fn waits_for_code(&self) -> bool {
        self.state == State::CodeSent
    }

    fn ended(&self, now: OffsetDateTime) -> Option<Expected> {
        if self.expires_at <= now {
            return Some(Expected::error(401, "recovery_session_expired"));
        }
        let spent = self.waits_for_code() && self.attempts_left == 0;
        spent.then(|| Expected::error(401, "recovery_session_spent"))
    }
}

impl State {
    fn stored(self) -> &'static str {
        match self {
            Self::CodeSent => "code_sent",
            Self::Verified => "verified",
            Self::Consumed => "consumed",
        }
    }
}

impl Expected {
    fn error(status: u16, error: &str) -> Self {
        Self { status, error: Some(error.into()), ..Self::default() }
    }

    fn missing() -> Self {
        Self::error(401, "recovery_session_missing")
    }

    fn cookie(life: time::Duration) -> Self {
        Self { status: 200, cookie_life: Some(whole_seconds(life)), ..Self::default() }
    }
}
