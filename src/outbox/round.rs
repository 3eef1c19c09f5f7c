//! One round of the courier, in one statement: what relays have accepted is deleted and recorded, mails are claimed, rows that
//! need no mail are deleted (docs/decisions/0031).

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{ClaimedMail, Content};
use crate::audit;
use crate::clock::first_id_of;
use crate::config::CODE_LIFE_ON_ARRIVAL;

/// Rows that one round looks through at most.
pub const WINDOW: usize = 2000;

/// A mail that a relay accepted, and when.
#[derive(Debug)]
pub struct Delivered {
    /// The mail, by the claim under which it was sent.
    pub mail: Arc<ClaimedMail>,
    /// When the relay said so.
    pub at: OffsetDateTime,
}

/// What a round does. The default claims nothing.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// The present.
    pub now: OffsetDateTime,
    /// Mails that relays have accepted: the rows whose claim still holds are deleted, and each is recorded.
    pub delivered: &'a [Delivered],
    /// Rows before this id are left: under load the index is full of rows that are long deleted, and looking past them all each
    /// time would cost more than the work.
    pub from: Uuid,
    /// Only rows that were pending by then.
    pub enqueued_by: Option<OffsetDateTime>,
    /// How many mails are claimed at most.
    pub senders: usize,
    /// How many rows are looked through at most; 0 to claim nothing.
    pub window: usize,
    /// How long the claim lasts.
    pub lease: Duration,
    /// The holder that the claimed rows name: they are due again when it is gone ([`super::holder`]).
    pub holder: Option<i32>,
}

/// What a round found.
#[derive(Debug, Default)]
pub struct Claim {
    /// To be sent now.
    pub mails: Vec<ClaimedMail>,
    /// Rows that were finished: nobody to write to.
    pub no_recipient: u64,
    /// Rows that were finished: too late to be of use.
    pub expired: u64,
    /// Whether the window was full, so that there may be more.
    pub more: bool,
}

impl Claim {
    /// Rows that were finished.
    #[must_use]
    pub const fn finished(&self) -> u64 {
        self.no_recipient + self.expired
    }
}

impl<'a> Round<'a> {
    /// One that deletes and records `delivered` alone.
    #[must_use]
    pub fn just_deletes(now: OffsetDateTime, delivered: &'a [Delivered]) -> Self {
        let (from, enqueued_by, lease) = (Uuid::max(), None, Duration::ZERO);
        Self { now, delivered, from, enqueued_by, senders: 0, window: 0, lease, holder: None }
    }

    /// Claims the youngest mails first (docs/decisions/0005), and finishes every row in the window that needs no mail. All of it is
    /// done, or nothing.
    ///
    /// Rows are locked with SKIP LOCKED and `account` is only read: a row locked by a reset must not hide its mail, and two
    /// replicas must never wait for each other. Only what is finished or claimed is locked: another replica may have a slot
    /// free for the rest. A row is found again by its place (`ctid`); one that has moved meanwhile is left to the next round.
    /// Look-ups are LATERAL, so that none scans the table: a plan that was made while it was empty must not when it is full.
    /// Nor is what was finished joined to anything: two lists of a window's length would then be compared each with each.
    ///
    /// # Errors
    ///
    /// What PostgreSQL answers; then the accepted mails are still pending, and their leases will end.
    pub async fn run(self, connection: &mut PgConnection) -> Result<Claim, sqlx::Error> {
        let ids: Vec<_> = self.delivered.iter().map(|taken| taken.mail.id).collect();
        let attempts: Vec<_> = self.delivered.iter().map(|taken| taken.mail.attempts).collect();
        let events: audit::Columns<'_> = self.delivered.iter().map(Delivered::event).collect();
        let mut rows = sqlx::query_file!(
            "src/outbox/round.sql",
            self.from,
            self.now,
            i64::try_from(self.window).unwrap_or(i64::MAX),
            self.now + CODE_LIFE_ON_ARRIVAL,
            self.now + self.lease,
            i64::try_from(self.senders).unwrap_or(i64::MAX),
            self.enqueued_by.map_or(Uuid::max(), |at| first_id_of(at + Duration::from_millis(1))),
            self.holder,
            &ids,
            &attempts,
            &events.ids,
            &events.what as _,
            &events.account_ids as _,
            &events.times,
            &events.client_ips as _,
            &events.user_agents as _,
        )
        .fetch_all(connection)
        .await?
        .into_iter()
        .peekable();
        let mut claim = rows.peek().map_or_else(Claim::default, |row| Claim {
            mails: Vec::new(),
            no_recipient: row.no_recipient.unsigned_abs(),
            expired: row.expired.unsigned_abs(),
            more: self.window > 0 && row.due.unsigned_abs() >= self.window as u64,
        });
        // A row without a claim, or without what the join gives every claim, is the count alone.
        claim.mails.extend(rows.filter_map(|row| {
            let content = match row.recovery_session_id {
                Some(recovery_session_id) => Content::RecoveryCode {
                    recovery_session_id,
                    key_id: row.key_id?,
                    asked_at: row.asked_at?,
                    client_ip: row.client_ip?,
                },
                None => Content::PasswordChanged,
            };
            Some(ClaimedMail {
                id: row.id?,
                attempts: row.attempts?,
                created_at: row.created_at?,
                expires_at: row.expires_at?,
                content,
                user_agent: row.user_agent.unwrap_or_default(),
                request_locale: row.request_locale,
                account_id: row.account_id?,
                account_email: row.account_email?,
                account_locale: row.account_locale,
            })
        }));
        Ok(claim)
    }
}

impl Delivered {
    fn event(&self) -> audit::Entry<'_> {
        let Self { mail, at } = self;
        let (event, source) = match mail.content {
            Content::RecoveryCode { client_ip, .. } => {
                let source = audit::Source { client_ip, user_agent: &mail.user_agent };
                (audit::Event::RecoverySent, Some(source))
            }
            Content::PasswordChanged => (audit::Event::PasswordNoticeSent, None),
        };
        audit::Entry { at: *at, event, account_id: Some(mail.account_id), source }
    }
}
