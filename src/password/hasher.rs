//! The hashing threads and their queue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{Instrument as _, info_span};

use super::blocklist::Blocklist;
use super::{
    Cost, Counts, Decoys, Memory, Password, PasswordMatch, SlowestHashes, StoredHash, verification_time,
    verifications_within,
};
use crate::config::PasswordSettings;
use crate::error::{Error, Problem};
use crate::metrics::Metrics;

/// The `Retry-After` when the queue is full: about the time that a full queue takes.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(2);
/// The number of the service's own hashes that one unit of a network's login bucket pays for. With
/// one hash for each unit, a wrong login every 15 s blocked all other logins of its network while
/// stored hashes were 20 times as slow as own ones (docs/decisions/0032).
const HASHES_PER_UNIT: u32 = 4;

/// A bounded pool of hashing threads, which bounds the memory of concurrent hashes.
///
/// Foreign hashes, of another scheme or cost, may take a hundred times as long as the service's
/// own. The pool has one thread more than foreign hashes may use, so that no login with an own hash
/// waits for them.
#[derive(Debug)]
pub struct Hasher {
    cost: Cost,
    min_chars: u16,
    blocklist: Option<Arc<Blocklist>>,
    places: Arc<Semaphore>,
    /// Permits for concurrent foreign hashes.
    foreign: Arc<Semaphore>,
    /// Permits for the memory of foreign hashes, one for each KiB.
    memory: Arc<Semaphore>,
    memory_kib: u32,
    decoys: RwLock<Option<Arc<Decoys>>>,
    jobs: mpsc::Sender<Job>,
    metrics: Arc<Metrics>,
}

type Job = Box<dyn FnOnce(&mut Memory) + Send>;

impl Hasher {
    /// Starts as many threads as the settings say. The threads end with the pool. New passwords on
    /// the blocklist are refused.
    ///
    /// # Panics
    ///
    /// If the operating system cannot start a thread.
    #[must_use]
    pub fn new(settings: &PasswordSettings, blocklist: Option<Blocklist>, metrics: Arc<Metrics>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = settings.hashing_threads.map_or_else(cores, usize::from);
        let (jobs, waiting) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..=threads {
            let waiting = Arc::clone(&waiting);
            let thread = std::thread::Builder::new().name("hashing".into());
            thread.spawn(move || work(&waiting)).expect("the operating system gives a thread");
        }
        Self {
            cost: Cost::of(settings),
            min_chars: settings.password_min_chars,
            blocklist: blocklist.map(Arc::new),
            places: Arc::new(Semaphore::new(threads + usize::from(settings.hashing_queue))),
            foreign: Arc::new(Semaphore::new(threads)),
            memory: Arc::new(Semaphore::new(settings.hashing_memory_kib as usize)),
            memory_kib: settings.hashing_memory_kib,
            decoys: RwLock::default(),
            jobs,
            metrics,
        }
    }

    /// Takes a place in the queue. Call it before anything else is spent on the request.
    ///
    /// # Errors
    ///
    /// `HashingBusy` at once if every place is taken.
    pub fn place(&self) -> Result<Place<'_>, Error> {
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.hashing_refused.inc();
            return Err(busy());
        };
        Ok(Place { hasher: self, permit: Arc::new(permit) })
    }

    /// The kind of the service's own hashes, as the census counts it.
    #[must_use]
    pub fn own_kind(&self) -> String {
        self.cost.dummy_hash()
    }

    /// The decoys. `None` until the stored hashes have been counted.
    #[must_use]
    pub fn decoys(&self) -> Option<Arc<Decoys>> {
        self.decoys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Rebuilds the decoys from the current counts of stored hashes and those after the last
    /// import. Measures the slowest hash again if it has changed.
    pub async fn update_decoys(&self, counts: &Counts, after_import: &Counts) {
        let decoys = Decoys::new(counts, after_import, self.cost, self.memory_kib);
        let known = self.decoys().filter(|known| known.slowest() == decoys.slowest());
        let price = match known {
            Some(known) => known.price(),
            None => self.measure_price(decoys.slowest()).await,
        };
        *self.decoys.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::new(decoys.with_price(price)));
    }

    /// Measures the units that a login is charged: the time of the slowest of these hashes, as the
    /// number of own hashes computed in that time, divided by [`HASHES_PER_UNIT`].
    async fn measure_price(&self, slowest: &SlowestHashes) -> u32 {
        let Ok(own) = StoredHash::parse(&self.cost.dummy_hash()) else { return 1 };
        let mut most = 1;
        for stored in slowest.iter() {
            let time = self.verification_time(stored).await;
            most = most.max(self.verifications_within(&own, time).await);
        }
        most.div_ceil(HASHES_PER_UNIT)
    }

    /// Counts how many verifications against this hash are done within `time`.
    async fn verifications_within(&self, stored: &StoredHash, time: Duration) -> u32 {
        let (permit, stored) = (self.permit(stored).await, stored.clone());
        let counted = tokio::task::spawn_blocking(move || {
            let count = verifications_within(&stored, time);
            drop(permit);
            count
        });
        counted.await.unwrap_or(1)
    }

    async fn verification_time(&self, stored: &StoredHash) -> Duration {
        let (permit, stored) = (self.permit(stored).await, stored.clone());
        let timed = tokio::task::spawn_blocking(move || {
            let time = verification_time(&stored);
            drop(permit);
            time
        });
        timed.await.unwrap_or_default()
    }

    /// Whether passwords can be verified against this hash, within the memory for foreign hashes.
    fn is_usable(&self, stored: &str) -> bool {
        self.cost.produced(stored)
            || StoredHash::parse(stored).and_then(|stored| stored.within(self.memory_kib)).is_ok()
    }

    /// Waits for the permits to compute a foreign hash: one of the threads, then its memory.
    async fn permit(&self, stored: &StoredHash) -> Option<ForeignPermit> {
        let thread = Arc::clone(&self.foreign).acquire_owned().await.ok()?;
        let memory = Arc::clone(&self.memory).acquire_many_owned(stored.memory_kib().min(self.memory_kib));
        Some(ForeignPermit { _thread: thread, _memory: memory.await.ok()? })
    }
}

/// The permits to compute one foreign hash.
#[derive(Debug)]
struct ForeignPermit {
    _thread: OwnedSemaphorePermit,
    _memory: OwnedSemaphorePermit,
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

/// A place in the queue of the [`Hasher`]. It is free again once this is dropped and its work is
/// done.
#[derive(Debug)]
pub struct Place<'a> {
    hasher: &'a Hasher,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Place<'_> {
    /// Verifies a password against the stored hash. Without a usable stored hash the password
    /// counts as wrong, and the decoy is computed instead.
    ///
    /// # Errors
    ///
    /// `HashingBusy` if the hash could not be computed.
    pub async fn verify(
        &self,
        password: &Password,
        stored: Option<String>,
        decoy: Option<&str>,
    ) -> Result<PasswordMatch, Error> {
        let (password, cost) = (password.clone(), self.hasher.cost);
        let stored = stored.filter(|stored| self.hasher.is_usable(stored));
        let is_decoy = stored.is_none();
        let against = stored.unwrap_or_else(|| decoy.map_or_else(|| cost.dummy_hash(), ToOwned::to_owned));
        let permit = match StoredHash::parse(&against) {
            Ok(stored) if !cost.produced(&against) => self.hasher.permit(&stored).await,
            _ => None,
        };
        self.run(permit, move |memory| match password.verify(&against, memory, cost) {
            _ if is_decoy => PasswordMatch::Wrong,
            result => result,
        })
        .await
    }

    /// Checks a new password against the policy and hashes it. `context` are words that its owner
    /// is known by.
    ///
    /// # Errors
    ///
    /// `PasswordTooShort`, `PasswordTooLong`, `PasswordGuessable` or `PasswordBreached`, each with
    /// advice; `HashingBusy` if the hash could not be computed.
    pub async fn hash_new(&self, password: &Password, context: Vec<String>) -> Result<String, Error> {
        let (password, cost, min_chars) = (password.clone(), self.hasher.cost, self.hasher.min_chars);
        let blocklist = self.hasher.blocklist.clone();
        self.run(None, move |memory| {
            password.check(min_chars, &context, blocklist.as_deref())?;
            Ok(password.hash_in(memory, cost))
        })
        .await?
    }

    /// The job holds the place and the permit. So if the caller disconnects, both are free only
    /// once the job is done, or skipped because no caller waits for its result.
    async fn run<T: Send + 'static>(
        &self,
        permit: Option<ForeignPermit>,
        job: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let (place, metrics) = (Arc::clone(&self.permit), Arc::clone(&self.hasher.metrics));
        let cost = self.hasher.cost;
        // The span lasts from here to the answer. Its time outside `hashing` is spent in the queue.
        let span = info_span!("password");
        let whole = span.clone();
        let job = move |memory: &mut Memory| {
            if !answer.is_closed() {
                let _hashing = info_span!(parent: &whole, "hashing").entered();
                metrics.hashing_running.inc();
                let done = catch_unwind(AssertUnwindSafe(|| job(memory)));
                metrics.hashing_running.dec();
                memory.keep_for(cost);
                // Dropped before the answer, because its receiver may take the next place at once.
                drop((permit, place));
                // A job that panics fails its caller, who gets no answer; the thread continues.
                if let Ok(done) = done {
                    let _ = answer.send(done);
                }
            }
        };
        self.hasher.jobs.send(Box::new(job)).map_err(|_| busy())?;
        answered.instrument(span).await.map_err(|_| busy())
    }
}
