//! Passwords: hashed with Argon2id (RFC 9106) on a bounded pool, checked against a policy, and verified whatever scheme
//! they were stored with.
//!
//! [`Hasher`] is the only way to spend the memory and time that a hash takes: so many at once, so many waiting, and
//! further requests are refused before anything was spent on them.

mod policy;
mod stored;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{Instrument as _, info_span};
use unicode_normalization::UnicodeNormalization as _;

pub use self::policy::context;
pub use self::stored::{Stored, Unusable};
use crate::config::Config;
use crate::error::{Error, Problem};
use crate::metrics::Metrics;

/// What a client is told to wait when the queue is full: about as long as a full queue takes.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(2);

/// A password. `Debug` does not show it.
#[derive(Clone)]
pub struct Password {
    nfc: String,
    /// As it was typed, if that is something else: another system may have hashed it so.
    typed: Option<String>,
}

impl Password {
    /// NFC (NIST SP 800-63B-4 §3.1.1.2), so that one password is one string whichever keyboard composed it.
    #[must_use]
    pub fn new(typed: &str) -> Self {
        let nfc: String = typed.nfc().collect();
        let typed = (nfc != typed).then(|| typed.to_owned());
        Self { nfc, typed }
    }

    /// Checks it against the policy of new ones; see [`Place::hash_new`].
    ///
    /// # Errors
    ///
    /// `PasswordTooShort`, `PasswordTooLong` or `PasswordGuessable`, each with what helps.
    pub fn check(&self, min_chars: u16, context: &[String]) -> Result<(), Error> {
        policy::check(&self.nfc, min_chars, context)
    }

    /// The PHC string that is stored. Takes the cost's memory and tens of milliseconds: call it where blocking is
    /// allowed.
    ///
    /// # Panics
    ///
    /// If the operating system has no randomness for the salt.
    #[must_use]
    pub fn hash(&self, cost: Cost) -> String {
        self.hash_in(&mut Memory::default(), cost)
    }

    fn hash_in(&self, memory: &mut Memory, cost: Cost) -> String {
        let (mut salt, mut output) = ([0; 16], [0; 32]);
        SysRng.try_fill_bytes(&mut salt).expect("the operating system gives random bytes");
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(output.len()));
        let params = params.expect("the settings keep the cost within Argon2's bounds");
        let blocks = memory.blocks(params.block_count());
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(self.nfc.as_bytes(), &salt, &mut output, blocks)
            .expect("salt, output and memory are as Argon2 wants them");
        format!("{}{}${}", cost.prefix(), STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(output))
    }

    fn verify(&self, stored: &str, memory: &mut Memory, cost: Cost) -> Verdict {
        let mut matches = |spelling: &String| stored::matches(stored, spelling.as_bytes(), memory);
        let as_nfc = matches(&self.nfc);
        if !as_nfc && !self.typed.as_ref().is_some_and(matches) {
            return Verdict::Wrong;
        }
        let current = as_nfc && stored.starts_with(&cost.prefix());
        Verdict::Right { rehashed: (!current).then(|| self.hash_in(memory, cost)) }
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password(redacted)")
    }
}

/// How long one verification takes on this machine, at present. Call it where blocking is allowed.
#[must_use]
pub fn time_of(stored: &Stored) -> Duration {
    let began = Instant::now();
    std::hint::black_box(stored.matches(b"somebody's password", &mut Memory::default()));
    began.elapsed()
}

/// What one Argon2id hash costs.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Cost {
    /// As the settings say.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            memory_kib: config.argon2_memory_kib,
            passes: config.argon2_passes,
            lanes: config.argon2_lanes,
        }
    }

    /// Whether what is hashed at this cost can be verified, too: [`Stored`] bounds memory times passes.
    #[must_use]
    pub fn is_verifiable(self) -> bool {
        Stored::parse(&self.nobodys_hash()).is_ok()
    }

    fn prefix(self) -> String {
        format!("$argon2id$v=19$m={},t={},p={}$", self.memory_kib, self.passes, self.lanes)
    }

    /// The hash of no password: verifying against it takes what any does.
    fn nobodys_hash(self) -> String {
        format!("{}{}${}", self.prefix(), STANDARD_NO_PAD.encode([0; 16]), STANDARD_NO_PAD.encode([0; 32]))
    }
}

/// The first choice of OWASP's password storage cheat sheet, and the default of the settings.
impl Default for Cost {
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, passes: 2, lanes: 1 }
    }
}

/// What Argon2 works in, kept from one hash to the next: a thread never holds more than its dearest hash took.
#[derive(Debug, Default)]
pub struct Memory(Vec<Block>);

impl Memory {
    fn blocks(&mut self, count: usize) -> &mut [Block] {
        if self.0.len() < count {
            self.0 = vec![Block::new(); count];
        }
        &mut self.0[..count]
    }
}

/// What became of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not the password, or there is none.
    Wrong,
    /// It is. What was stored with another scheme, cost or spelling comes back hashed anew.
    Right {
        /// To be stored instead.
        rehashed: Option<String>,
    },
}

/// The bounded pool that hashes: threads of its own, so that memory is that of so many hashes and no more.
#[derive(Debug)]
pub struct Hasher {
    cost: Cost,
    min_chars: u16,
    places: Arc<Semaphore>,
    jobs: mpsc::Sender<Job>,
    metrics: Arc<Metrics>,
}

type Job = Box<dyn FnOnce(&mut Memory) + Send>;

impl Hasher {
    /// As many threads and places as the settings say. The threads end with the pool.
    ///
    /// # Panics
    ///
    /// If the operating system has no thread to give.
    #[must_use]
    pub fn new(config: &Config, metrics: Arc<Metrics>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = config.hashing_threads.map_or_else(cores, usize::from);
        let (jobs, waiting) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..threads {
            let waiting = Arc::clone(&waiting);
            let thread = std::thread::Builder::new().name("hashing".into());
            thread.spawn(move || work(&waiting)).expect("the operating system gives a thread");
        }
        Self {
            cost: Cost::of(config),
            min_chars: config.password_min_chars,
            places: Arc::new(Semaphore::new(threads + usize::from(config.hashing_queue))),
            jobs,
            metrics,
        }
    }

    /// Takes a place in the queue, before anything else is spent on the request.
    ///
    /// # Errors
    ///
    /// `HashingBusy` at once, if every place is taken.
    pub fn place(&self) -> Result<Place<'_>, Error> {
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.hashing_refused.inc();
            return Err(busy());
        };
        Ok(Place { hasher: self, permit: Arc::new(permit) })
    }
}

fn work(waiting: &Mutex<mpsc::Receiver<Job>>) {
    let mut memory = Memory::default();
    loop {
        let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        job(&mut memory);
    }
}

fn busy() -> Error {
    Error::retry_after(Problem::HashingBusy, BUSY_RETRY_AFTER)
}

/// A place in the queue of the [`Hasher`], given back when it is dropped and its work is done.
#[derive(Debug)]
pub struct Place<'a> {
    hasher: &'a Hasher,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Place<'_> {
    /// Verifies a password against what is stored. With nothing stored it is wrong, at the same cost.
    ///
    /// # Errors
    ///
    /// `HashingBusy` if the hash could not be made.
    pub async fn verify(&self, password: &Password, stored: Option<String>) -> Result<Verdict, Error> {
        let (password, cost) = (password.clone(), self.hasher.cost);
        self.run(move |memory| password.verify(&stored.unwrap_or_else(|| cost.nobodys_hash()), memory, cost))
            .await
    }

    /// Checks a new password against the policy, with the words that its owner is known by, and hashes it.
    ///
    /// # Errors
    ///
    /// `PasswordTooShort`, `PasswordTooLong` or `PasswordGuessable`, each with what helps; `HashingBusy` if the hash could
    /// not be made.
    pub async fn hash_new(&self, password: &Password, context: Vec<String>) -> Result<String, Error> {
        let (password, cost, min_chars) = (password.clone(), self.hasher.cost, self.hasher.min_chars);
        self.run(move |memory| {
            password.check(min_chars, &context)?;
            Ok(password.hash_in(memory, cost))
        })
        .await?
    }

    /// The permit goes with the job: a caller that is gone frees its place when the job is done, or passed over because
    /// nobody waits for it any more.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let (place, metrics) = (Arc::clone(&self.permit), Arc::clone(&self.hasher.metrics));
        // From here to the answer; what of it is not `hashing` was spent in the queue.
        let span = info_span!("password");
        let whole = span.clone();
        let job = move |memory: &mut Memory| {
            if !answer.is_closed() {
                let _hashing = info_span!(parent: &whole, "hashing").entered();
                metrics.hashing_running.inc();
                let done = catch_unwind(AssertUnwindSafe(|| job(memory)));
                metrics.hashing_running.dec();
                // Before the answer: whoever has it may ask for the next.
                drop(place);
                // A job that panicked fails its caller, who waits for its answer in vain; the thread goes on.
                if let Ok(done) = done {
                    let _ = answer.send(done);
                }
            }
        };
        self.hasher.jobs.send(Box::new(job)).map_err(|_| busy())?;
        answered.instrument(span).await.map_err(|_| busy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hashed_verifies_and_other_costs_are_rehashed() {
        let (password, cheap) =
            (Password::new("ngày mai trời lại sáng"), Cost { memory_kib: 7168, passes: 1, lanes: 1 });
        let stored = password.hash(cheap);
        assert_eq!(
            password.verify(&stored, &mut Memory::default(), cheap),
            Verdict::Right { rehashed: None }
        );
        let Verdict::Right { rehashed: Some(rehashed) } =
            password.verify(&stored, &mut Memory::default(), Cost::default())
        else {
            panic!("a hash of another cost is made anew");
        };
        assert_eq!(
            password.verify(&rehashed, &mut Memory::default(), Cost::default()),
            Verdict::Right { rehashed: None }
        );
        assert_eq!(
            Password::new("ngày mai trời lại mưa").verify(&stored, &mut Memory::default(), cheap),
            Verdict::Wrong
        );
        assert_eq!(password.verify(&cheap.nobodys_hash(), &mut Memory::default(), cheap), Verdict::Wrong);
    }

    #[test]
    fn what_another_system_hashed_as_it_was_typed_is_found_too() {
        let decomposed: String = "mật khẩu".nfd().collect();
        let cheap = Cost { memory_kib: 7168, passes: 1, lanes: 1 };
        // Another system may even hash at this one's cost.
        let at_our_cost = Password { nfc: decomposed.clone(), typed: None }.hash(cheap);
        for stored in [bcrypt::hash(&decomposed, 4).unwrap(), at_our_cost] {
            let verify = |typed| Password::new(typed).verify(&stored, &mut Memory::default(), cheap);
            assert!(matches!(verify(&decomposed), Verdict::Right { rehashed: Some(_) }), "{stored}");
            assert_eq!(verify("mật khẩu"), Verdict::Wrong, "{stored}");
        }
    }
}
