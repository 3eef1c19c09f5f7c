//! `vos-auth account show` and `sessions`: print an account and what belongs to it, without its
//! password hash.

use time::OffsetDateTime;

use super::super::{Failure, print_json};
use crate::admin::inspect::{AccountView, Overview, SeenMail};
use crate::clock::rfc3339;
use crate::mail::message::MailKind;
use crate::recovery::inspect::SeenRecovery;
use crate::session::Session;
use crate::terminal;
use crate::throttle::inspect::Level;

pub(super) fn show(overview: &Overview) {
    let Overview { account, sessions, recoveries, limits, mails } = overview;
    let AccountView { id, email, state, locale, traits, password, .. } = account;
    let time = |at: Option<OffsetDateTime>| at.map_or_else(|| "-".into(), rfc3339);
    let password = match password {
        None => "none: the owner must recover it by email",
        Some("unusable") => "unusable: the owner must recover it by email",
        Some(kind) => kind,
    };
    let facts = [
        ("id", id.to_string()),
        ("email", email.clone()),
        ("state", state.clone()),
        ("language", locale.clone().unwrap_or_else(|| "chosen by each request".into())),
        ("traits", traits.to_string()),
        ("password", password.into()),
        ("set", time(account.password_changed_at)),
        ("created", rfc3339(account.created_at)),
        ("changed", rfc3339(account.updated_at)),
        ("imported", time(account.imported_at)),
        ("bouncing", time(account.bouncing_since)),
        ("sessions", sessions.len().to_string()),
    ];
    let recoveries = recoveries.iter().map(|recovery| ("recovery", recovery_line(recovery)));
    let limits = limits.iter().filter(|level| !level.is_full()).map(|level| ("limit", limit_line(level)));
    let mails = mails.iter().map(|mail| ("mail", mail_line(mail)));
    for (name, value) in facts.into_iter().chain(recoveries).chain(limits).chain(mails) {
        terminal::line(format_args!("{name:9} {value}"));
    }
}

fn recovery_line(recovery: &SeenRecovery) -> String {
    let SeenRecovery { state, created_at, expires_at, attempts_left, .. } = recovery;
    let (created, expires) = (rfc3339(*created_at), rfc3339(*expires_at));
    format!("{state}, started {created}, expires {expires}, {attempts_left} attempts left")
}

fn limit_line(level: &Level) -> String {
    let Level { name, capacity, left, full_at } = level;
    format!("{}, {left} of {capacity} left, full at {}", <&str>::from(name), rfc3339(*full_at))
}

fn mail_line(mail: &SeenMail) -> String {
    let SeenMail { kind, state, at, attempts, last_error } = mail;
    let kind = kind.map_or("-", |kind: MailKind| <&str>::from(kind));
    let attempts = attempts.map(|attempts| format!(", {attempts} attempts")).unwrap_or_default();
    let error = last_error.as_ref().map(|error| format!(", last error {error}")).unwrap_or_default();
    format!("{kind} {state} {}{attempts}{error}", rfc3339(*at))
}

pub(super) fn print_sessions(sessions: &[Session], as_json: bool) -> Result<(), Failure> {
    if as_json {
        return sessions.iter().try_for_each(print_json);
    }
    if sessions.is_empty() {
        terminal::line("the account has no open session");
        return Ok(());
    }
    terminal::line(format_args!(
        "{:36}  {:20}  {:20}  {:20}  {:15}  DEVICE",
        "ID", "SIGNED IN", "LAST SEEN", "ENDS", "ADDRESS"
    ));
    for session in sessions {
        let [signed_in, last_seen, ends] =
            [session.authenticated_at, session.last_seen_at, session.ends_at].map(rfc3339);
        let device = &session.user_agent;
        terminal::line(format_args!(
            "{}  {signed_in:20}  {last_seen:20}  {ends:20}  {:15}  {device}",
            session.id,
            session.client_ip.to_string()
        ));
    }
    Ok(())
}
