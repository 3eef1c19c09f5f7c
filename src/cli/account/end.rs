//! `vos-auth account disable`, `revoke`, `revoke-all` and `erase`. Ended sessions and erased data
//! cannot be restored.

use sqlx::PgConnection;
use time::OffsetDateTime;

use super::super::confirm::{Confirmation, counted};
use super::super::progress::{Progress, announce_stop};
use super::super::{Failure, connect, stop_signal};
use super::AccountArgument;
use crate::account::record::{self, Record};
use crate::clock::Clock;
use crate::recovery::inspect::{RecoveryState, of_address};
use crate::{admin, session, terminal};

pub(super) async fn disable(argument: &AccountArgument, confirmation: Confirmation) -> Result<(), Failure> {
    let (mut connection, account) = argument.find().await?;
    let now = Clock::system().now();
    let extent = extent(&mut connection, now, &account).await?;
    let extent = format!("disable account {}, and end {extent}", account.id);
    if account.state == "active" && !confirmation.allows(extent, Some(&account.email))? {
        return Ok(());
    }
    let changed = admin::set_active(&mut connection, Clock::system().now(), account.id, false, None).await?;
    terminal::line(if changed {
        "the account is disabled; its sessions and pending recoveries have ended"
    } else {
        "the account is disabled already"
    });
    Ok(())
}

pub(super) async fn revoke(argument: &AccountArgument, confirmation: Confirmation) -> Result<(), Failure> {
    let (mut connection, account) = argument.find().await?;
    let sessions = session::count_unended(&mut connection, Clock::system().now(), account.id).await?;
    let sessions = counted(sessions, "session", "sessions");
    if confirmation.allows(format!("end {sessions} of account {}", account.id), Some(&account.email))? {
        let ended = admin::revoke_sessions(&mut connection, Clock::system().now(), account.id, None).await?;
        terminal::line(have_ended(ended));
    }
    Ok(())
}

pub(super) async fn revoke_all(confirmation: Confirmation) -> Result<(), Failure> {
    let mut connection = connect().await?;
    let (sessions, accounts) = session::count_all_unended(&mut connection, Clock::system().now()).await?;
    let all = counted(sessions, "session", "sessions");
    let extent = format!("end {all} of {}", counted(accounts, "account", "accounts"));
    if !confirmation.allows(extent, None)? {
        return Ok(());
    }
    let (stop, mut stopped, mut progress) = (stop_signal()?, false, Progress::begin());
    let ending = admin::revoke_all_sessions(&mut connection, Clock::system().now(), |ended| {
        progress.report(ended, |rate| format!("{ended} of {sessions} sessions, {rate} a second"));
        stopped = stop.is_cancelled();
        !stopped
    });
    let ended = tokio::select! {
        ended = ending => ended?,
        never = announce_stop(&stop, "stopping after the sessions that are being ended") => match never {},
    };
    terminal::line(have_ended(ended));
    if stopped {
        return Err("stopped; run the same command again to end the other sessions".into());
    }
    Ok(())
}

pub(super) async fn erase(argument: &AccountArgument, confirmation: Confirmation) -> Result<(), Failure> {
    let (mut connection, account) = argument.find().await?;
    let now = Clock::system().now();
    let extent = extent(&mut connection, now, &account).await?;
    let extent = format!("erase account {} permanently, with {extent} and all data of its owner", account.id);
    if confirmation.allows(extent, Some(&account.email))? {
        admin::erase(&mut connection, Clock::system().now(), account.id, None).await?;
        terminal::line(format_args!("account {} and all data of its owner are erased", account.id));
    }
    Ok(())
}

/// The sessions and pending recoveries of an account, in words.
async fn extent(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    account: &Record,
) -> Result<String, Failure> {
    let sessions = session::count_unended(&mut *connection, now, account.id).await?;
    let ended = record::recoveries_ended(&mut *connection, account.id).await?.unwrap_or_default();
    let recoveries = of_address(connection, now, &account.email, ended).await?;
    let is_pending = |state| matches!(state, RecoveryState::CodeSent | RecoveryState::Verified);
    let pending = recoveries.iter().filter(|recovery| is_pending(recovery.state)).count();
    let sessions = counted(sessions, "session", "sessions");
    Ok(format!("{sessions} and {}", counted(pending as u64, "pending recovery", "pending recoveries")))
}

fn have_ended(sessions: u64) -> String {
    let have = if sessions == 1 { "has" } else { "have" };
    format!("{} {have} ended", counted(sessions, "session", "sessions"))
}
