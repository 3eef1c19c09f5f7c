//! Takes over the accounts of another system: from a running Ory Kratos, from a file of its identities, or from a CSV.
//!
//! One thread reads, parses and judges; the task that called writes what comes, a batch a transaction. Whatever is killed
//! at whatever moment: the same file run again brings the same end, as each record says by itself what becomes of it.

pub mod identity;
mod pages;
mod refused;
mod source;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::{Executor as _, PgConnection};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

pub use self::identity::Paths;
pub use self::refused::Unwritable;
pub(crate) use self::refused::{Refusals, file_of_its_owner};
use self::source::Record;
use crate::account::import::{Fate, Incoming, import};
use crate::audit;
use crate::clock::Clock;
use crate::database::cause;
use crate::password::{self, Slowest, Stored, Unusable};
use crate::transfer::kratos::Kratos;

/// Batches that are read ahead.
const AHEAD: usize = 2;

/// What is imported, and how.
#[derive(Debug)]
pub struct Import {
    /// Where the records come from.
    pub source: Source,
    /// Where refused records are listed, each with the reason, and its line if it is of a file.
    pub refused: PathBuf,
    /// Where in an identity what is needed stands.
    pub paths: Paths,
    /// What a hash may take of memory, in KiB: the setting of `serve`.
    pub hashing_memory_kib: u32,
    /// Whether nothing is written to the database.
    pub dry_run: bool,
}

/// Where records come from. `Display` names it.
#[derive(Clone, Debug)]
pub enum Source {
    /// A JSON array, a JSON object a line, or a CSV; its first character tells.
    File(PathBuf),
    /// A running Kratos, so many identities a request.
    Kratos(Box<Kratos>, u16),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Kratos(..) => f.write_str("Kratos"),
        }
    }
}

/// Why an import did not come to its end. What it has written stays, and the same import run again goes on.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source cannot be read, from somewhere on.
    #[error("{from} cannot be read: {why}")]
    Unreadable {
        /// The source.
        from: String,
        /// Why.
        why: io::Error,
    },
    /// The list of refused records cannot be written.
    #[error(transparent)]
    Unwritable(#[from] Unwritable),
    /// What PostgreSQL answered, as it may be shown.
    #[error("the database failed ({}); run the same import again to go on", cause(.0))]
    Storage(#[from] sqlx::Error),
    /// Somebody stopped it.
    #[error("stopped after {0} records; run the same import again to go on")]
    Stopped(u64),
}

/// What has become of the records so far.
#[derive(Debug, Default)]
pub struct Report {
    /// Records that were read.
    pub records: u64,
    /// Accounts that are new.
    pub created: u64,
    /// Accounts that an earlier import wrote, that nobody has used here since, and that have changed there.
    pub updated: u64,
    /// Accounts that are here, and the same.
    pub unchanged: u64,
    /// Accounts that differ and stay as they are, as they have been used or changed here.
    pub kept: u64,
    /// Records that were refused.
    pub refused: u64,
    /// Of these, those whose address has characters beyond ASCII before the @.
    pub not_ascii: u64,
    /// Passwords that are verified, by kind.
    pub passwords: BTreeMap<&'static str, u64>,
    /// Passwords that are too weak to keep, by kind.
    pub too_weak: BTreeMap<&'static str, u64>,
    /// Passwords of a known kind that are broken, or dearer than is computed.
    pub broken: u64,
    /// Passwords whose hashes take more memory than `HASHING_MEMORY_KIB`.
    pub too_large: u64,
    /// Passwords of no kind that is known.
    pub unknown: u64,
    /// Accounts whose record has no password.
    pub without: u64,
    /// How much of the file was read, of 100; `None` if that has no known length.
    pub percent: Option<u64>,
    slowest: Slowest,
}

impl Report {
    fn count(&mut self, fate: Fate, password: Option<Result<Stored, Unusable>>) {
        match fate {
            Fate::Created => self.created += 1,
            Fate::Updated => self.updated += 1,
            Fate::Unchanged => self.unchanged += 1,
            Fate::Kept => self.kept += 1,
            Fate::OtherEmail | Fate::OtherId => return self.refused += 1,
        }
        match password {
            None => self.without += 1,
            Some(Err(Unusable::TooWeak(kind))) => *self.too_weak.entry(kind).or_default() += 1,
            Some(Err(Unusable::Broken)) => self.broken += 1,
            Some(Err(Unusable::TooLarge)) => self.too_large += 1,
            Some(Err(Unusable::Unknown)) => self.unknown += 1,
            Some(Ok(stored)) => {
                *self.passwords.entry(stored.kind()).or_default() += 1;
                self.slowest.note(stored);
            }
        }
    }

    /// The kind whose slowest password took longest to verify on this machine, and how long. Call it where blocking is
    /// allowed.
    #[must_use]
    pub fn slowest(&self) -> Option<(&'static str, Duration)> {
        let times = self.slowest.iter().map(|stored| (stored.kind(), password::time_of(stored)));
        times.max_by_key(|(_, time)| *time)
    }
}

/// Imports, and tells `progress` after every batch. The report is of what was done, whether it came to its end or not.
pub async fn run(
    connection: &mut PgConnection,
    clock: &Clock,
    what: &Import,
    stop: &CancellationToken,
    progress: impl FnMut(&Report),
) -> (Report, Result<(), ImportError>) {
    let mut report = Report::default();
    let done = write(connection, clock, what, stop, &mut report, progress).await;
    (report, done)
}

async fn write(
    connection: &mut PgConnection,
    clock: &Clock,
    what: &Import,
    stop: &CancellationToken,
    report: &mut Report,
    mut progress: impl FnMut(&Report),
) -> Result<(), ImportError> {
    let unreadable = |why| ImportError::Unreadable { from: what.source.to_string(), why };
    let Opened { input, length, asking } = open(&what.source).map_err(unreadable)?;
    let mut refusals = Refusals::create(&what.refused)?;
    // A plan that was made while the table was empty must not scan it when it holds a million.
    connection.execute("SET enable_seqscan = off").await?;
    if !what.dry_run {
        // One after the other: two imports at once would wait for each other's rows.
        connection.execute("SELECT pg_advisory_lock(hashtext('vos-auth account import'))").await?;
        audit::record(&mut *connection, clock.now(), audit::Event::AccountsImported, None, None).await?;
    }
    let erased = audit::erased(&mut *connection).await?;
    let (sender, mut batches) = mpsc::channel(AHEAD);
    let read = Arc::new(AtomicU64::new(0));
    let (paths, counter) = (what.paths.clone(), Arc::clone(&read));
    // No thread of the runtime, which would wait for the end of a pipe when it has been stopped.
    let reading = std::thread::spawn(move || source::read(input, &paths, &counter, &sender));
    while let Some(batch) = stop.run_until_cancelled(batches.recv()).await.flatten() {
        let records = batch.map_err(unreadable)?;
        report.records += records.len() as u64;
        report.percent = (read.load(Ordering::Relaxed) * 100).checked_div(length);
        for part in distinct(what, records, &erased, &mut refusals, report)? {
            let (new, others): (Vec<_>, Vec<_>) =
                part.into_iter().map(|one| (one.new, (one.line, one.password))).unzip();
            let fates = import(connection, clock.now(), &new, what.dry_run).await?;
            for ((fate, new), (line, password)) in fates.into_iter().zip(new).zip(others) {
                if let Some(reason) = refusal(fate) {
                    refusals.write(what.line(line), new.id, reason)?;
                }
                report.count(fate, password);
            }
        }
        progress(report);
    }
    if stop.is_cancelled() {
        return Err(ImportError::Stopped(report.records));
    }
    // It has ended, as nothing comes any more: whether at the end of the file, it has to say.
    reading.join().map_err(|_| unreadable(io::Error::other("reading it failed")))?;
    drop(asking);
    Ok(refusals.end()?)
}

/// A source that is being read.
struct Opened {
    input: Box<dyn Read + Send>,
    /// In octets; 0: nobody knows.
    length: u64,
    asking: Option<AbortOnDropHandle<()>>,
}

fn open(source: &Source) -> io::Result<Opened> {
    match source {
        Source::File(path) => {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Ok(Opened { input: Box::new(file), length, asking: None })
        }
        Source::Kratos(kratos, page_size) => {
            let (pages, asking) = pages::open(Kratos::clone(kratos), *page_size);
            Ok(Opened { input: Box::new(pages), length: 0, asking: Some(asking) })
        }
    }
}

impl Import {
    /// Lines are of files; what Kratos sends has none that anybody could look up.
    fn line(&self, line: u64) -> Option<u64> {
        matches!(self.source, Source::File(_)).then_some(line)
    }
}

/// A record that can be written.
struct Candidate {
    line: u64,
    new: Incoming,
    password: Option<Result<Stored, Unusable>>,
}

/// The records that were not refused, in parts in which no id and no address is twice: a later record of the file finds the
/// earlier one written.
fn distinct(
    what: &Import,
    records: Vec<Record>,
    erased: &HashSet<Uuid>,
    refusals: &mut Refusals,
    report: &mut Report,
) -> Result<Vec<Vec<Candidate>>, ImportError> {
    let mut parts = vec![Vec::new()];
    let (mut ids, mut emails) = (HashSet::new(), HashSet::new());
    for Record { line, read } in records {
        let found = match read {
            Ok(found) if found.new.id.is_some_and(|id| erased.contains(&id)) => {
                Err(identity::Refusal { id: found.new.id, reason: "the account was erased here" })
            }
            read => read,
        };
        let identity::Identity { mut new, password } = match found {
            Ok(found) => found,
            Err(refusal) => {
                report.refused += 1;
                report.not_ascii += u64::from(refusal.reason == identity::NOT_ASCII);
                refusals.write(what.line(line), refusal.id, refusal.reason)?;
                continue;
            }
        };
        let password = password.map(|found| found.and_then(|stored| stored.within(what.hashing_memory_kib)));
        if matches!(password, Some(Err(_))) {
            (new.password_hash, new.password_changed_at) = (None, None);
        }
        if new.id.is_some_and(|id| ids.contains(&id)) || emails.contains(&new.email) {
            parts.push(Vec::new());
            ids.clear();
            emails.clear();
        }
        ids.extend(new.id);
        emails.insert(new.email.clone());
        parts.last_mut().expect("there is one").push(Candidate { line, new, password });
    }
    Ok(parts)
}

fn refusal(fate: Fate) -> Option<&'static str> {
    match fate {
        Fate::OtherEmail => Some(
            "the account has another email here: `vos-auth account set-email` changes it, then import again",
        ),
        Fate::OtherId => Some("its email is that of an account with another id"),
        Fate::Created | Fate::Updated | Fate::Unchanged | Fate::Kept => None,
    }
}
