//! Everything that support needs to know about an account. It never contains a code, a token or a
//! hash.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::account::record::{self, Record};
use crate::audit::{self, AuditEntry};
use crate::clock::serialize_rfc3339;
use crate::email_address::EmailAddress;
use crate::mail::message::MailKind;
use crate::outbox::inspect::{EntryState, OutboxEntry};
use crate::password::StoredHash;
use crate::recovery::inspect::SeenRecovery;
use crate::session::{self, Session};
use crate::throttle::RateLimit;
use crate::throttle::inspect::{Level, levels};
use crate::{outbox, recovery};

/// How far back emails are shown.
const MAIL_HISTORY: Duration = Duration::from_hours(7 * 24);
/// The most emails that are shown.
const MAILS: usize = 20;

/// An account with what belongs to it.
#[derive(Debug, Serialize)]
pub struct Overview {
    /// The account.
    pub account: AccountView,
    /// Its open sessions, the newest first.
    pub sessions: Vec<Session>,
    /// Its recoveries that began within the longest lifetime of a recovery, the newest first, at
    /// most 20.
    pub recoveries: Vec<SeenRecovery>,
    /// Its rate limits, and those of its address.
    pub limits: Vec<Level>,
    /// The emails of the last 7 days, the newest first, at most 20.
    pub mails: Vec<SeenMail>,
}

/// An account as operators see it.
#[derive(Clone, Debug, Serialize)]
pub struct AccountView {
    /// Its id.
    pub id: Uuid,
    /// Its address, as stored.
    pub email: String,
    /// `active` or `disabled`.
    pub state: String,
    /// The language of its emails.
    pub locale: Option<String>,
    /// Data about the person, as stored.
    pub traits: Value,
    /// The scheme of its password's hash, or `unusable`. `None`: the owner must recover by email.
    pub password: Option<&'static str>,
    /// When the password was last changed.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub password_changed_at: Option<OffsetDateTime>,
    /// When it was created, in the other system if it was imported.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was last changed in this service.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub updated_at: OffsetDateTime,
    /// When it was imported from another system.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub imported_at: Option<OffsetDateTime>,
    /// Since when emails to its address bounce, as far as is known.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub bouncing_since: Option<OffsetDateTime>,
}

impl From<&Record> for AccountView {
    fn from(record: &Record) -> Self {
        let kind = |hash: &str| StoredHash::parse(hash).map_or("unusable", |stored| stored.kind());
        Self {
            id: record.id,
            email: record.email.clone(),
            state: record.state.clone(),
            locale: record.locale.clone(),
            traits: record.traits.clone(),
            password: record.password_hash.as_deref().map(kind),
            password_changed_at: record.password_changed_at,
            created_at: record.created_at,
            updated_at: record.updated_at,
            imported_at: record.imported_at,
            bouncing_since: record.bouncing_since,
        }
    }
}

/// An email to the account, and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct SeenMail {
    /// The kind of email; `None` for a bounce, which does not say which email bounced.
    pub kind: Option<MailKind>,
    /// What became of it.
    pub state: MailState,
    /// When it was enqueued if it is in the outbox; otherwise when it was delivered, given up or
    /// bounced.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub at: OffsetDateTime,
    /// How often an email in the outbox was tried; otherwise `None`.
    pub attempts: Option<i32>,
    /// The stage at which the last attempt of a pending email failed, with the relay's codes or the
    /// service's own reason: `rcpt 550 5.1.1`, `tls (…)`.
    pub last_error: Option<String>,
}

/// What became of an email.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum MailState {
    /// It is not sent yet.
    Pending,
    /// Its last attempt failed, and it is tried again.
    Retrying,
    /// No relay accepted it. A notice is kept, so that an operator can send it again.
    GivenUp,
    /// It expires in less than a minute or has expired, so it is not sent.
    Expired,
    /// A relay accepted it.
    Delivered,
    /// It was returned after a relay had accepted it.
    Bounced,
}

impl SeenMail {
    fn pending(entry: OutboxEntry, now: OffsetDateTime) -> Self {
        let state = match entry.state(now) {
            EntryState::Expired => MailState::Expired,
            EntryState::GivenUp => MailState::GivenUp,
            EntryState::UnderWay | EntryState::Due | EntryState::Waits => match entry.last_error {
                Some(_) => MailState::Retrying,
                None => MailState::Pending,
            },
        };
        Self {
            kind: Some(entry.kind),
            state,
            at: entry.created_at,
            attempts: Some(entry.attempts),
            last_error: entry.last_error,
        }
    }

    fn of_event(event: &AuditEntry) -> Option<Self> {
        let (kind, state) = match event.what.as_str() {
            "recovery_sent" => (Some(MailKind::RecoveryCode), MailState::Delivered),
            "recovery_not_sent" => (Some(MailKind::RecoveryCode), MailState::GivenUp),
            "password_notice_sent" => (Some(MailKind::PasswordChanged), MailState::Delivered),
            "ticket_notice_sent" => (Some(MailKind::TicketGiven), MailState::Delivered),
            "email_notice_sent" => (Some(MailKind::EmailChanged), MailState::Delivered),
            "address_change_notice_sent" => (Some(MailKind::AddressChange), MailState::Delivered),
            "new_address_notice_sent" => (Some(MailKind::NewAddress), MailState::Delivered),
            "email_bounced" => (None, MailState::Bounced),
            _ => return None,
        };
        Some(Self { kind, state, at: event.at, attempts: None, last_error: None })
    }
}

/// Reads the [`Overview`] of an account. `idle` is the setting `SESSION_IDLE`; `address_limit` is
/// the rate limit of recoveries of an address. Returns `None` if the account was erased meanwhile.
pub async fn overview(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    record: &Record,
    idle: Duration,
    address_limit: RateLimit,
) -> Result<Option<Overview>, sqlx::Error> {
    let Some(ended) = record::recoveries_ended(&mut *connection, record.id).await? else { return Ok(None) };
    let sessions = session::list_open(&mut *connection, now, idle, record.id).await?;
    let recoveries = recovery::inspect::of_address(&mut *connection, now, &record.email, ended).await?;
    let limits = match EmailAddress::parse(&record.email) {
        Ok(email) => levels(&mut *connection, now, &email, Some(record.id), address_limit).await?,
        Err(_) => Vec::new(),
    };
    let mails = mails(connection, now, record.id, &recoveries).await?;
    Ok(Some(Overview { account: record.into(), sessions, recoveries, limits, mails }))
}

async fn mails(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    account_id: Uuid,
    recoveries: &[SeenRecovery],
) -> Result<Vec<SeenMail>, sqlx::Error> {
    let limit = i64::try_from(MAILS).unwrap_or(i64::MAX);
    let sessions: Vec<_> = recoveries.iter().map(|recovery| recovery.session_id).collect();
    let pending = outbox::inspect::of_account(&mut *connection, account_id, &sessions, limit).await?;
    let events = audit::mails_of_account(connection, account_id, now - MAIL_HISTORY, limit).await?;
    let mut mails: Vec<_> = pending.into_iter().map(|entry| SeenMail::pending(entry, now)).collect();
    mails.extend(events.iter().filter_map(SeenMail::of_event));
    mails.sort_by_key(|mail| std::cmp::Reverse(mail.at));
    mails.truncate(MAILS);
    Ok(mails)
}

#[cfg(test)]
mod tests {
    use strum::VariantArray as _;

    use super::*;
    use crate::audit::Event;

    #[test]
    fn every_kind_of_email_that_was_delivered_is_shown() {
        let shown = |event: &Event| {
            let entry = AuditEntry {
                id: Uuid::nil(),
                at: OffsetDateTime::UNIX_EPOCH,
                what: <&str>::from(event).to_owned(),
                account_id: None,
                client_ip: None,
                user_agent: None,
                operator: None,
                reason: None,
                call: None,
                outcome: None,
            };
            SeenMail::of_event(&entry)
        };
        let shown: Vec<_> = Event::VARIANTS.iter().filter_map(shown).collect();
        for kind in MailKind::IN_OUTBOX {
            let is_delivered =
                |mail: &SeenMail| mail.kind == Some(kind) && mail.state == MailState::Delivered;
            assert!(shown.iter().any(is_delivered), "{kind:?}");
        }
    }
}
