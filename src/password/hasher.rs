//! The pool of threads that hash, and the queue before it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{Instrument as _, info_span};

use super::{Cost, Counts, Decoys, Memory, Password, Slowest, Stored, Verdict, count_within, time_of};
use crate::config::PasswordSettings;
use crate::error::{Error, Problem};
use crate::metrics::Metrics;

/// What a client is told to wait when the queue is full: about as long as a full queue takes.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(2);
/// Hashes of ours whose time one unit of a network's bucket of logins pays for. With one, a wrong login every 15 s kept all
/// others of its network out while hashes were stored that are 20 times as slow (docs/decisions/0032).
const HASHES_A_UNIT: u32 = 4;

/// The bounded pool that hashes: threads of its own, so that memory is that of so many hashes and no more.
///
/// Hashes of another scheme or cost may take a hundred times as long as ours. One thread more than they can have is there,
/// so that no login with a hash of ours waits for them.
#[derive(Debug)]
pub struct Hasher {
    cost: Cost,
    min_chars: u16,
    places: Arc<Semaphore>,
    /// How many hashes of another scheme or cost are computed at once.
    others: Arc<Semaphore>,
    /// What they may take of memory together, in KiB.
    memory: Arc<Semaphore>,
    memory_kib: u32,
    decoys: RwLock<Option<Arc<Decoys>>>,
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
    pub fn new(settings: &PasswordSettings, metrics: Arc<Metrics>) -> Self {
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
            places: Arc::new(Semaphore::new(threads + usize::from(settings.hashing_queue))),
            others: Arc::new(Semaphore::new(threads)),
            memory: Arc::new(Semaphore::new(settings.hashing_memory_kib as usize)),
            memory_kib: settings.hashing_memory_kib,
            decoys: RwLock::default(),
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

    /// The kind of the hashes that are made here, as it is counted.
    #[must_use]
    pub fn own_kind(&self) -> String {
        self.cost.dummy_hash()
    }

    /// What addresses without a usable hash are verified against. `None` until the stored hashes were counted.
    #[must_use]
    pub fn decoys(&self) -> Option<Arc<Decoys>> {
        self.decoys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes over how many hashes of each kind are stored, of how many after the last import, and measures how long the slowest
    /// takes if that is another one than before.
    pub async fn learn(&self, counts: &Counts, most: &Counts) {
        let decoys = Decoys::of(counts, most, self.cost, self.memory_kib);
        let known = self.decoys().filter(|known| known.slowest() == decoys.slowest());
        let price = match known {
            Some(known) => known.price(),
            None => self.price(decoys.slowest()).await,
        };
        *self.decoys.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(decoys.at(price)));
    }

    /// Units that a login is charged: the time that the slowest of these takes, in hashes of ours.
    async fn price(&self, slowest: &Slowest) -> u32 {
        let Ok(ours) = Stored::parse(&self.cost.dummy_hash()) else { return 1 };
        let mut most = 1;
        for stored in slowest.iter() {
            let time = self.time_of(stored).await;
            most = most.max(self.count_within(&ours, time).await);
        }
        most.div_ceil(HASHES_A_UNIT)
    }

    /// How many of these are done within a time. Other work on the machine makes a long time longer by more than the shortest of
    /// many short ones.
    async fn count_within(&self, stored: &Stored, time: Duration) -> u32 {
        let (lane, stored) = (self.lane(stored).await, stored.clone());
        let counted = tokio::task::spawn_blocking(move || {
            let count = count_within(&stored, time);
            drop(lane);
            count
        });
        counted.await.unwrap_or(1)
    }

    async fn time_of(&self, stored: &Stored) -> Duration {
        let (lane, stored) = (self.lane(stored).await, stored.clone());
        let timed = tokio::task::spawn_blocking(move || {
            let time = time_of(&stored);
            drop(lane);
            time
        });
        timed.await.unwrap_or_default()
    }

    /// Whether passwords are verified against it here: it can be, in the memory that there is for it.
    fn is_usable(&self, stored: &str) -> bool {
        self.cost.made(stored)
            || Stored::parse(stored).and_then(|stored| stored.within(self.memory_kib)).is_ok()
    }

    /// Waits until a hash of another scheme or cost may be computed: for one of their threads, then for its memory.
    async fn lane(&self, stored: &Stored) -> Option<Lane> {
        let thread = Arc::clone(&self.others).acquire_owned().await.ok()?;
        let memory = Arc::clone(&self.memory).acquire_many_owned(stored.memory_kib().min(self.memory_kib));
        Some(Lane { _thread: thread, _memory: memory.await.ok()? })
    }
}

/// The leave to compute one hash of another scheme or cost.
#[derive(Debug)]
struct Lane {
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

/// A place in the queue of the [`Hasher`], given back when it is dropped and its work is done.
#[derive(Debug)]
pub struct Place<'a> {
    hasher: &'a Hasher,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Place<'_> {
    /// Verifies a password against what is stored. With nothing stored that can be, it is wrong, at the cost of the decoy;
    /// without one, at that of a hash of ours.
    ///
    /// # Errors
    ///
    /// `HashingBusy` if the hash could not be made.
    pub async fn verify(
        &self,
        password: &Password,
        stored: Option<String>,
        decoy: Option<&str>,
    ) -> Result<Verdict, Error> {
        let (password, cost) = (password.clone(), self.hasher.cost);
        let stored = stored.filter(|stored| self.hasher.is_usable(stored));
        let is_decoy = stored.is_none();
        let against = stored.unwrap_or_else(|| decoy.map_or_else(|| cost.dummy_hash(), ToOwned::to_owned));
        let lane = match Stored::parse(&against) {
            Ok(stored) if !cost.made(&against) => self.hasher.lane(&stored).await,
            _ => None,
        };
        self.run(lane, move |memory| match password.verify(&against, memory, cost) {
            _ if is_decoy => Verdict::Wrong,
            verdict => verdict,
        })
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
        self.run(None, move |memory| {
            password.check(min_chars, &context)?;
            Ok(password.hash_in(memory, cost))
        })
        .await?
    }

    /// The permit goes with the job: a caller that is gone frees its place when the job is done, or passed over because
    /// nobody waits for it any more.
    async fn run<T: Send + 'static>(
        &self,
        lane: Option<Lane>,
        job: impl FnOnce(&mut Memory) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answered) = oneshot::channel();
        let (place, metrics) = (Arc::clone(&self.permit), Arc::clone(&self.hasher.metrics));
        let cost = self.hasher.cost;
        // From here to the answer; what of it is not `hashing` was spent in the queue.
        let span = info_span!("password");
        let whole = span.clone();
        let job = move |memory: &mut Memory| {
            if !answer.is_closed() {
                let _hashing = info_span!(parent: &whole, "hashing").entered();
                metrics.hashing_running.inc();
                let done = catch_unwind(AssertUnwindSafe(|| job(memory)));
                metrics.hashing_running.dec();
                memory.keep_for(cost);
                // Before the answer: whoever has it may ask for the next.
                drop((lane, place));
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
