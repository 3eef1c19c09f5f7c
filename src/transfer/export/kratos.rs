//! What has changed here, carried back into a running Kratos: one identity after the other is read, merged and, if it differs,
//! put.
//!
//! Every identity is whole before and after its PUT, and each run looks again at all that differs. So an export that was
//! stopped, by whatever, is run again.

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
use crate::transfer::import::{Refusals, Unwritable};
use crate::transfer::kratos::{Kratos, KratosError};

/// Accounts that are in memory at once.
const PAGE: usize = 500;
/// So many failures of Kratos in a row, and it is its own, not the identities'.
const FAILURES_IN_A_ROW: u64 = 5;

/// What is exported, and how.
#[derive(Debug)]
pub struct ToKratos {
    /// Changes since then.
    pub since: OffsetDateTime,
    /// Where in an identity the address stands.
    pub email_path: JsonPath,
    /// Where identities are listed that failed, or that Kratos has changed later.
    pub failed: PathBuf,
    /// Whether nothing is written to Kratos.
    pub dry_run: bool,
}

/// What has become of the accounts so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Carried {
    /// Accounts that have changed here.
    pub changed: u64,
    /// Those that were looked at.
    pub looked_at: u64,
    /// Identities that were put.
    pub written: u64,
    /// Identities that were the same already.
    pub same: u64,
    /// Identities that differ in what was changed in Kratos later than here, which stays.
    pub newer_there: u64,
    /// Accounts that could not be carried back.
    pub failed: u64,
}

/// Why an export did not come to its end. What it has written stays, and the same export run again goes on.
#[derive(Debug, thiserror::Error)]
pub enum ToKratosError {
    /// The list cannot be written.
    #[error(transparent)]
    Unwritable(#[from] Unwritable),
    /// What PostgreSQL answered, as it may be shown.
    #[error("the database failed ({}); run the same export again to go on", cause(.0))]
    Storage(#[from] sqlx::Error),
    /// Kratos is down, or answers nothing that is asked.
    #[error(
        "Kratos cannot be asked: {0}; run the same export again to go on, what is written is not written again"
    )]
    Kratos(#[from] KratosError),
    /// Somebody stopped it.
    #[error("stopped; run the same export again to go on, what is written is not written again")]
    Stopped,
}

/// Exports, and tells `progress` after every account. The report is of what was done, whether it came to its end or not.
pub async fn run(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    kratos: &Kratos,
    what: &ToKratos,
    stop: &CancellationToken,
    progress: impl FnMut(&Carried),
) -> (Carried, Result<(), ToKratosError>) {
    let mut carried = Carried::default();
    let done = carry(connection, now, kratos, what, stop, &mut carried, progress).await;
    (carried, done)
}

async fn carry(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    kratos: &Kratos,
    what: &ToKratos,
    stop: &CancellationToken,
    carried: &mut Carried,
    mut progress: impl FnMut(&Carried),
) -> Result<(), ToKratosError> {
    let mut list = Refusals::create(&what.failed)?;
    let changes = audit::changed_since(&mut *connection, what.since).await?;
    carried.changed = changes.len() as u64;
    progress(carried);
    // At another address every identity would seem to be missing.
    kratos.page(1, None).await?;
    if !what.dry_run {
        audit::record(&mut *connection, now, audit::Event::AccountsExported, None, None).await?;
    }
    let mut failures = 0;
    for page in changes.chunks(PAGE) {
        let ids: Vec<_> = page.iter().map(|change| change.account_id).collect();
        let accounts = record::all(&mut *connection, &ids).await?;
        let accounts: HashMap<_, _> = accounts.iter().map(|account| (account.id, account)).collect();
        for changes in page {
            let id = changes.account_id;
            // A PUT that was sent is waited for.
            if stop.is_cancelled() {
                list.end()?;
                return Err(ToKratosError::Stopped);
            }
            let outcome = one(kratos, what, changes, accounts.get(&id).copied()).await;
            failures = if is_kratos_failure(&outcome) { failures + 1 } else { 0 };
            match outcome {
                Err(Failed::Kratos(error)) if error.is_of_all_requests() || failures == FAILURES_IN_A_ROW => {
                    list.end()?;
                    return Err(error.into());
                }
                Err(failed) => {
                    carried.failed += 1;
                    list.write(None, Some(id), &failed.to_string())?;
                }
                Ok(Outcome { written, newer_there }) => {
                    if let Some(reason) = newer_there {
                        carried.newer_there += 1;
                        list.write(None, Some(id), reason)?;
                    }
                    carried.written += u64::from(written);
                    carried.same += u64::from(!written && newer_there.is_none());
                }
            }
            carried.looked_at += 1;
            progress(carried);
        }
    }
    Ok(list.end()?)
}

struct Outcome {
    written: bool,
    newer_there: Option<&'static str>,
}

/// Why an account could not be carried back. It quotes nothing that Kratos said, as that names addresses.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(
        "Kratos has no identity with this id: the account was created here, or the identity deleted there"
    )]
    Unknown,
    #[error("the account was erased here: delete the identity in Kratos, too")]
    Erased,
    #[error("{0}")]
    Unmergeable(&'static str),
    #[error(
        "another identity in Kratos has this email; if that one has another email here, run the same export again"
    )]
    Taken,
    #[error("Kratos refuses it (400): it does not fit its schema there")]
    Refused,
    #[error("Kratos failed: {0}")]
    Kratos(KratosError),
}

impl Failed {
    fn of_put(error: KratosError) -> Self {
        match error {
            KratosError::Status(StatusCode::NOT_FOUND) => Self::Unknown,
            KratosError::Status(StatusCode::CONFLICT) => Self::Taken,
            KratosError::Status(StatusCode::BAD_REQUEST) => Self::Refused,
            error => Self::Kratos(error),
        }
    }
}

fn is_kratos_failure(outcome: &Result<Outcome, Failed>) -> bool {
    matches!(outcome, Err(Failed::Kratos(_)))
}

async fn one(
    kratos: &Kratos,
    what: &ToKratos,
    changes: &Changes,
    account: Option<&Record>,
) -> Result<Outcome, Failed> {
    let identity = kratos.identity(changes.account_id).await.map_err(Failed::Kratos)?;
    let (account, identity) = match (account, identity) {
        (Some(account), Some(identity)) => (account, identity),
        (Some(_), None) => return Err(Failed::Unknown),
        (None, Some(_)) => return Err(Failed::Erased),
        (None, None) => return Ok(Outcome { written: false, newer_there: None }),
    };
    let Merged { put, newer_there } =
        merge(&identity, &change(changes, account), &what.email_path).map_err(Failed::Unmergeable)?;
    let written = put.is_some();
    if let Some(put) = put
        && !what.dry_run
    {
        kratos.put(changes.account_id, put).await.map_err(Failed::of_put)?;
    }
    Ok(Outcome { written, newer_there })
}

/// What the account is now, of what has changed.
fn change<'a>(changes: &Changes, account: &'a Record) -> Change<'a> {
    Change {
        password_hash: account.password_hash.as_deref().zip(changes.password),
        email: changes.email.map(|at| (account.email.as_str(), at)),
        active: changes.state.map(|at| (account.state == "active", at)),
    }
}
