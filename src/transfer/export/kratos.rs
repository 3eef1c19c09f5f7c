//! Carries changes made in this service back into a running Kratos: each identity is read, merged
//! and, if it differs, written with PUT.
//!
//! An identity is complete before and after its PUT, and each run examines every account that was
//! changed since the given time. A stopped export can therefore be run again.

use std::collections::HashMap;
use std::path::PathBuf;

use hyper::StatusCode;
use sqlx::PgConnection;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::merge::{Change, Merged, merge};
use crate::account::record::{self, Record};
use crate::audit::{self, Changes};
use crate::database::cause;
use crate::transfer::import::identity::JsonPath;
use crate::transfer::import::{RecordList, Unwritable};
use crate::transfer::kratos::{Kratos, KratosError};

/// The number of accounts in memory at once.
const PAGE: usize = 500;
/// After this many failures in a row, Kratos itself is considered to be failing.
const FAILURES_IN_A_ROW: u64 = 5;

/// The options of an export to Kratos.
#[derive(Debug)]
pub struct KratosExport {
    /// Exports changes since this time.
    pub since: OffsetDateTime,
    /// The path of the address in an identity.
    pub email_path: JsonPath,
    /// The file that lists identities that failed, or that were changed later in Kratos.
    pub failed: PathBuf,
    /// Whether to write nothing to Kratos.
    pub dry_run: bool,
}

/// The progress of an export.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExportReport {
    /// Accounts that were changed in this service since [`KratosExport::since`].
    pub changed: u64,
    /// Accounts that were examined.
    pub looked_at: u64,
    /// Identities that were written.
    pub written: u64,
    /// Accounts for which Kratos already had all changes.
    pub same: u64,
    /// Identities with a difference that stays, because the value was changed later in Kratos.
    pub newer_in_kratos: u64,
    /// Accounts that could not be exported.
    pub failed: u64,
}

/// Why an export did not finish. What it has written stays, and running the same export again
/// continues it.
#[derive(Debug, thiserror::Error)]
pub enum KratosExportError {
    /// The list of failures cannot be written.
    #[error(transparent)]
    Unwritable(#[from] Unwritable),
    /// An error of PostgreSQL, shown without its details.
    #[error("the database failed ({}); run the same export again to continue", cause(.0))]
    Storage(#[from] sqlx::Error),
    /// Kratos is down, or refuses every request.
    #[error(
        "the request to Kratos failed: {0}; run the same export again to continue, nothing is written twice"
    )]
    Kratos(#[from] KratosError),
    /// The export was stopped.
    #[error("stopped; run the same export again to continue, nothing is written twice")]
    Stopped,
}

/// Exports, and calls `progress` at the beginning and after every account. Returns the report
/// whether or not the export finished.
pub async fn run(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    kratos: &Kratos,
    options: &KratosExport,
    stop: &CancellationToken,
    progress: impl FnMut(&ExportReport),
) -> (ExportReport, Result<(), KratosExportError>) {
    let mut report = ExportReport::default();
    let done = export(connection, now, kratos, options, stop, &mut report, progress).await;
    (report, done)
}

async fn export(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    kratos: &Kratos,
    options: &KratosExport,
    stop: &CancellationToken,
    report: &mut ExportReport,
    mut progress: impl FnMut(&ExportReport),
) -> Result<(), KratosExportError> {
    let mut list = RecordList::create(&options.failed)?;
    let changes = audit::changed_since(&mut *connection, options.since).await?;
    report.changed = changes.len() as u64;
    progress(report);
    // Check the URL of Kratos first: at a wrong URL every identity would seem to be missing.
    kratos.page(1, None).await?;
    if !options.dry_run {
        audit::record(&mut *connection, now, audit::Event::AccountsExported, None, None).await?;
    }
    let mut failures = 0;
    for page in changes.chunks(PAGE) {
        let ids: Vec<_> = page.iter().map(|change| change.account_id).collect();
        let accounts = record::all(&mut *connection, &ids).await?;
        let accounts: HashMap<_, _> = accounts.iter().map(|account| (account.id, account)).collect();
        for changes in page {
            let id = changes.account_id;
            // Checked only between accounts, so that a PUT is never interrupted.
            if stop.is_cancelled() {
                list.finish()?;
                return Err(KratosExportError::Stopped);
            }
            let outcome = export_account(kratos, options, changes, accounts.get(&id).copied()).await;
            failures = if is_kratos_failure(&outcome) { failures + 1 } else { 0 };
            match outcome {
                Err(ExportFailure::Kratos(error))
                    if error.affects_every_request() || failures == FAILURES_IN_A_ROW =>
                {
                    list.finish()?;
                    return Err(error.into());
                }
                Err(failed) => {
                    report.failed += 1;
                    list.refused(None, Some(id), &failed.to_string())?;
                }
                Ok(Exported { written, newer_in_kratos }) => {
                    if let Some(reason) = newer_in_kratos {
                        report.newer_in_kratos += 1;
                        list.refused(None, Some(id), reason)?;
                    }
                    report.written += u64::from(written);
                    report.same += u64::from(!written && newer_in_kratos.is_none());
                }
            }
            report.looked_at += 1;
            progress(report);
        }
    }
    Ok(list.finish()?)
}

struct Exported {
    written: bool,
    newer_in_kratos: Option<&'static str>,
}

/// Why an account could not be exported. It quotes no answer of Kratos, because answers contain
/// addresses.
#[derive(Debug, thiserror::Error)]
enum ExportFailure {
    #[error(
        "Kratos has no identity with this id: the account was created here, or the identity was deleted in Kratos"
    )]
    Unknown,
    #[error("the account was erased here: delete the identity in Kratos too")]
    Erased,
    #[error("{0}")]
    Unmergeable(&'static str),
    #[error(
        "another identity in Kratos has this email; if its account has another email here, run the same export again"
    )]
    Taken,
    #[error("Kratos refused it (400): it does not match its identity schema")]
    Refused,
    #[error("Kratos failed: {0}")]
    Kratos(KratosError),
}

impl ExportFailure {
    fn of_put(error: KratosError) -> Self {
        match error {
            KratosError::Status(StatusCode::NOT_FOUND) => Self::Unknown,
            KratosError::Status(StatusCode::CONFLICT) => Self::Taken,
            KratosError::Status(StatusCode::BAD_REQUEST) => Self::Refused,
            error => Self::Kratos(error),
        }
    }
}

fn is_kratos_failure(outcome: &Result<Exported, ExportFailure>) -> bool {
    matches!(outcome, Err(ExportFailure::Kratos(_)))
}

async fn export_account(
    kratos: &Kratos,
    options: &KratosExport,
    changes: &Changes,
    account: Option<&Record>,
) -> Result<Exported, ExportFailure> {
    let identity = kratos.identity(changes.account_id).await.map_err(ExportFailure::Kratos)?;
    let (account, identity) = match (account, identity) {
        (Some(account), Some(identity)) => (account, identity),
        (Some(_), None) => return Err(ExportFailure::Unknown),
        (None, Some(_)) => return Err(ExportFailure::Erased),
        (None, None) => return Ok(Exported { written: false, newer_in_kratos: None }),
    };
    let Merged { put, newer_in_kratos } = merge(&identity, &change(changes, account), &options.email_path)
        .map_err(ExportFailure::Unmergeable)?;
    let written = put.is_some();
    if let Some(put) = put
        && !options.dry_run
    {
        kratos.put(changes.account_id, put).await.map_err(ExportFailure::of_put)?;
    }
    Ok(Exported { written, newer_in_kratos })
}

/// The current values of what has changed.
fn change<'a>(changes: &Changes, account: &'a Record) -> Change<'a> {
    Change {
        password_hash: account.password_hash.as_deref().zip(changes.password),
        email: changes.email.map(|at| (account.email.as_str(), at)),
        active: changes.state.map(|at| (account.state == "active", at)),
    }
}
