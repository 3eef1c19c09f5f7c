//! `vos-auth account show` and `sessions`: print the stored data of an account, without its
//! password hash.

use std::time::Duration;

use serde_json::json;
use sqlx::PgConnection;
use time::OffsetDateTime;

use super::super::Failure;
use crate::account::record::Record;
use crate::password::Stored;
use crate::session::{self, Session};
use crate::terminal;

pub(super) async fn show(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    idle: Duration,
    account: &Record,
    as_json: bool,
) -> Result<(), Failure> {
    let sessions = session::open_of(connection, now, idle, account.id).await?.len();
    let password = match account.password_hash.as_deref().map(Stored::parse) {
        None => "none: the owner must recover it by email",
        Some(Ok(stored)) => stored.kind(),
        Some(Err(_)) => "unusable: the owner must recover it by email",
    };
    let time = |at: Option<OffsetDateTime>| at.map_or_else(|| "-".into(), |at| at.to_string());
    if as_json {
        let shown = json!({
            "id": account.id,
            "email": account.email,
            "state": account.state,
            "locale": account.locale,
            "traits": account.traits,
            "password": account.password_hash.as_ref().map(|_| password),
            "password_changed_at": account.password_changed_at.map(rfc3339),
            "created_at": rfc3339(account.created_at),
            "updated_at": rfc3339(account.updated_at),
            "imported_at": account.imported_at.map(rfc3339),
            "bouncing_since": account.bouncing_since.map(rfc3339),
            "sessions": sessions,
        });
        terminal::line(shown);
        return Ok(());
    }
    let lines = [
        ("id", account.id.to_string()),
        ("email", account.email.clone()),
        ("state", account.state.clone()),
        ("language", account.locale.clone().unwrap_or_else(|| "chosen by each request".into())),
        ("traits", account.traits.to_string()),
        ("password", password.into()),
        ("set", time(account.password_changed_at)),
        ("created", time(Some(account.created_at))),
        ("changed", time(Some(account.updated_at))),
        ("imported", time(account.imported_at)),
        ("bouncing", time(account.bouncing_since)),
        ("sessions", sessions.to_string()),
    ];
    for (name, value) in lines {
        terminal::line(format_args!("{name:9} {value}"));
    }
    Ok(())
}

fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

pub(super) fn print_sessions(sessions: &[Session]) {
    if sessions.is_empty() {
        terminal::line("the account has no open session");
        return;
    }
    terminal::line(format_args!(
        "{:36}  {:20}  {:20}  {:20}  {:15}  DEVICE",
        "ID", "SIGNED IN", "LAST SEEN", "ENDS", "ADDRESS"
    ));
    for session in sessions {
        let [signed_in, last_seen, ends] = [session.authenticated_at, session.last_seen_at, session.ends_at]
            .map(|at| rfc3339(at.truncate_to_second()));
        let device = &session.user_agent;
        terminal::line(format_args!(
            "{}  {signed_in:20}  {last_seen:20}  {ends:20}  {:15}  {device}",
            session.id,
            session.client_ip.to_string()
        ));
    }
}
