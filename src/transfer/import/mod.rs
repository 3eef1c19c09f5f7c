//! Imports accounts of another system: from a running Ory Kratos, a file of its identities, or a
//! CSV.
//!
//! One thread reads and parses; the calling task writes. Importing the same file again after any
//! interruption gives the same result, because the result for a record depends only on the record
//! and on the stored accounts.

pub mod identity;
mod left_behind;
mod pages;
mod record_list;
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
pub use self::left_behind::LeftBehind;
pub use self::record_list::Unwritable;
pub(crate) use self::record_list::{RecordList, create_private_file};
use self::source::SourceRecord;
use crate::account::import::{ImportOutcome, Incoming, import};
use crate::audit;
use crate::clock::Clock;
use crate::database::cause;
use crate::password::{self, SlowestHashes, StoredHash, Unusable};
use crate::transfer::kratos::Kratos;

/// The number of batches that are read ahead.
const AHEAD: usize = 2;

/// The options of an import.
#[derive(Debug)]
pub struct Import {
    /// Where the records come from.
    pub source: ImportSource,
    /// The list of refused records, each with the reason and, if it is from a file, its line.
    pub refused: PathBuf,
    /// The list of imported records of which something is left behind, each with the kinds of data.
    pub left_behind: PathBuf,
    /// The paths of values in an identity.
    pub paths: Paths,
    /// The memory that a hash may take, in KiB: the setting of `serve`.
    pub hashing_memory_kib: u32,
    /// Whether to write nothing to the database.
    pub dry_run: bool,
}

/// The source of records. `Display` shows its name.
#[derive(Clone, Debug)]
pub enum ImportSource {
    /// A file with a JSON array, one JSON object a line, or a CSV. Its first character shows which.
    File(PathBuf),
    /// A running Kratos, with the number of identities per request.
    Kratos(Box<Kratos>, u16),
}

impl fmt::Display for ImportSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Kratos(..) => f.write_str("Kratos"),
        }
    }
}

/// Why an import did not finish. What it has written stays, and running the same import again
/// continues it.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source cannot be read to the end.
    #[error("{from} cannot be read: {why}")]
    Unreadable {
        /// The source.
        from: String,
        /// Why.
        why: io::Error,
    },
    /// A list of records cannot be written.
    #[error(transparent)]
    Unwritable(#[from] Unwritable),
    /// An error of PostgreSQL, shown without its details.
    #[error("the database failed ({}); run the same import again to continue", cause(.0))]
    Storage(#[from] sqlx::Error),
    /// The import was stopped after this many records.
    #[error("stopped after {0} records; run the same import again to continue")]
    Stopped(u64),
}

/// The progress of an import.
#[derive(Debug, Default)]
pub struct ImportReport {
    /// Records that were read.
    pub records: u64,
    /// Accounts that were created.
    pub created: u64,
    /// Accounts of an earlier import that have changed in the source, and were not used in this
    /// service since the import.
    pub updated: u64,
    /// Accounts that exist and are the same.
    pub unchanged: u64,
    /// Accounts that differ and are not updated, because they were used or changed in this service.
    pub kept: u64,
    /// Records that were refused.
    pub refused: u64,
    /// Refused records whose address has characters beyond ASCII before the @.
    pub not_ascii: u64,
    /// Usable passwords, by kind.
    pub passwords: BTreeMap<&'static str, u64>,
    /// Passwords that are too weak to keep, by kind.
    pub too_weak: BTreeMap<&'static str, u64>,
    /// Password hashes of a known kind that are malformed or too slow to verify.
    pub broken: u64,
    /// Passwords whose hashes take more memory than `HASHING_MEMORY_KIB`.
    pub too_large: u64,
    /// Password hashes of an unknown kind.
    pub unknown: u64,
    /// Accounts whose record has no password.
    pub without_password: u64,
    /// Accounts of whose records something is left behind, by the kind of data.
    pub left_behind: BTreeMap<LeftBehind, u64>,
    /// The part of the file that was read, in percent; `None` if its length is unknown.
    pub percent: Option<u64>,
    slowest: SlowestHashes,
}

impl ImportReport {
    fn count(
        &mut self,
        outcome: ImportOutcome,
        password: Option<Result<StoredHash, Unusable>>,
        left_behind: &[LeftBehind],
    ) {
        match outcome {
            ImportOutcome::Created => self.created += 1,
            ImportOutcome::Updated => self.updated += 1,
            ImportOutcome::Unchanged => self.unchanged += 1,
            ImportOutcome::Kept => self.kept += 1,
            ImportOutcome::OtherEmail | ImportOutcome::OtherId => return self.refused += 1,
        }
        for kind in left_behind {
            *self.left_behind.entry(*kind).or_default() += 1;
        }
        match password {
            None => self.without_password += 1,
            Some(Err(Unusable::TooWeak(kind))) => *self.too_weak.entry(kind).or_default() += 1,
            Some(Err(Unusable::Broken)) => self.broken += 1,
            Some(Err(Unusable::TooLarge)) => self.too_large += 1,
            Some(Err(Unusable::Unknown)) => self.unknown += 1,
            Some(Ok(stored)) => {
                *self.passwords.entry(stored.kind()).or_default() += 1;
                self.slowest.record(stored);
            }
        }
    }

    /// The kind of the slowest hash, and how long it takes to verify on this machine. Call it where
    /// blocking is allowed.
    #[must_use]
    pub fn slowest(&self) -> Option<(&'static str, Duration)> {
        let times = self.slowest.iter().map(|stored| (stored.kind(), password::verification_time(stored)));
        times.max_by_key(|(_, time)| *time)
    }
}

/// Imports, and calls `progress` after every batch. Returns the report whether or not the import
/// finished.
pub async fn run(
    connection: &mut PgConnection,
    clock: &Clock,
    options: &Import,
    stop: &CancellationToken,
    progress: impl FnMut(&ImportReport),
) -> (ImportReport, Result<(), ImportError>) {
    let mut report = ImportReport::default();
    let done = write(connection, clock, options, stop, &mut report, progress).await;
    (report, done)
}

async fn write(
    connection: &mut PgConnection,
    clock: &Clock,
    options: &Import,
    stop: &CancellationToken,
    report: &mut ImportReport,
    mut progress: impl FnMut(&ImportReport),
) -> Result<(), ImportError> {
    let unreadable = |why| ImportError::Unreadable { from: options.source.to_string(), why };
    let OpenSource { input, length, fetching } = open(&options.source).map_err(unreadable)?;
    let mut refusals = RecordList::create(&options.refused)?;
    let mut incomplete = RecordList::create(&options.left_behind)?;
    // Otherwise a plan that was made while `account` was empty would still scan the whole table
    // when it has a million rows.
    connection.execute("SET enable_seqscan = off").await?;
    if !options.dry_run {
        // Imports run one at a time, because two would wait for each other's rows.
        connection.execute("SELECT pg_advisory_lock(hashtext('vos-auth account import'))").await?;
        audit::record(&mut *connection, clock.now(), audit::Event::AccountsImported, None, None).await?;
    }
    let erased = audit::erased(&mut *connection).await?;
    let (sender, mut batches) = mpsc::channel(AHEAD);
    let read = Arc::new(AtomicU64::new(0));
    let (paths, counter) = (options.paths.clone(), Arc::clone(&read));
    // Not a thread of the runtime, because the runtime would wait at shutdown until a pipe ends.
    let reading = std::thread::spawn(move || source::read(input, &paths, &counter, &sender));
    while let Some(batch) = stop.run_until_cancelled(batches.recv()).await.flatten() {
        let records = batch.map_err(unreadable)?;
        report.records += records.len() as u64;
        report.percent = (read.load(Ordering::Relaxed) * 100).checked_div(length);
        for part in distinct(options, records, &erased, &mut refusals, report)? {
            let (new, others): (Vec<_>, Vec<_>) =
                part.into_iter().map(|one| (one.new, (one.line, one.password, one.left_behind))).unzip();
            let outcomes = import(connection, clock.now(), &new, options.dry_run).await?;
            for ((outcome, new), (line, password, left_behind)) in outcomes.into_iter().zip(new).zip(others) {
                if let Some(reason) = refusal(outcome) {
                    refusals.refused(options.line(line), new.id, reason)?;
                } else if !left_behind.is_empty() {
                    incomplete.incomplete(options.line(line), new.id, &left_behind)?;
                }
                report.count(outcome, password, &left_behind);
            }
        }
        progress(report);
    }
    incomplete.finish()?;
    refusals.finish()?;
    if stop.is_cancelled() {
        return Err(ImportError::Stopped(report.records));
    }
    // The channel is closed, so the thread has ended; `join` tells whether it panicked.
    reading.join().map_err(|_| unreadable(io::Error::other("the reading thread panicked")))?;
    drop(fetching);
    Ok(())
}

/// A source that is being read.
struct OpenSource {
    input: Box<dyn Read + Send>,
    /// In octets; 0 if unknown.
    length: u64,
    fetching: Option<AbortOnDropHandle<()>>,
}

fn open(source: &ImportSource) -> io::Result<OpenSource> {
    match source {
        ImportSource::File(path) => {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Ok(OpenSource { input: Box::new(file), length, fetching: None })
        }
        ImportSource::Kratos(kratos, page_size) => {
            let (pages, fetching) = pages::open(Kratos::clone(kratos), *page_size);
            Ok(OpenSource { input: Box::new(pages), length: 0, fetching: Some(fetching) })
        }
    }
}

impl Import {
    /// `line` if the source is a file: only a file has lines that an operator can look up.
    fn line(&self, line: u64) -> Option<u64> {
        matches!(self.source, ImportSource::File(_)).then_some(line)
    }
}

/// A record that can be written.
struct ValidRecord {
    line: u64,
    new: Incoming,
    password: Option<Result<StoredHash, Unusable>>,
    left_behind: Vec<LeftBehind>,
}

/// The records that are not refused, split so that no part has an id or address twice: of two
/// records with the same id or address, the earlier one is written before the later one is
/// compared.
fn distinct(
    options: &Import,
    records: Vec<SourceRecord>,
    erased: &HashSet<Uuid>,
    refusals: &mut RecordList,
    report: &mut ImportReport,
) -> Result<Vec<Vec<ValidRecord>>, ImportError> {
    let mut parts = vec![Vec::new()];
    let (mut ids, mut emails) = (HashSet::new(), HashSet::new());
    for SourceRecord { line, read } in records {
        let found = match read {
            Ok(found) if found.new.id.is_some_and(|id| erased.contains(&id)) => {
                Err(identity::Refusal { id: found.new.id, reason: "the account was erased here" })
            }
            read => read,
        };
        let identity::ImportedIdentity { mut new, password, left_behind } = match found {
            Ok(found) => found,
            Err(refusal) => {
                report.refused += 1;
                report.not_ascii += u64::from(refusal.reason == identity::NOT_ASCII);
                refusals.refused(options.line(line), refusal.id, refusal.reason)?;
                continue;
            }
        };
        let password =
            password.map(|found| found.and_then(|stored| stored.within(options.hashing_memory_kib)));
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
        parts.last_mut().expect("parts is never empty").push(ValidRecord {
            line,
            new,
            password,
            left_behind,
        });
    }
    Ok(parts)
}

fn refusal(outcome: ImportOutcome) -> Option<&'static str> {
    match outcome {
        ImportOutcome::OtherEmail => Some(
            "the account has another email here: change it with `vos-auth account set-email`, then import again",
        ),
        ImportOutcome::OtherId => Some("its email is that of an account with another id"),
        ImportOutcome::Created | ImportOutcome::Updated | ImportOutcome::Unchanged | ImportOutcome::Kept => {
            None
        }
    }
}
