//! One round of the courier, in one statement (docs/decisions/0031). It deletes the rows of
//! delivered emails and records the deliveries in the audit log, claims emails that are due, and
//! deletes rows that need no email.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{ClaimedMail, Content};
use crate::audit;
use crate::clock::first_id_of;
use crate::config::CODE_LIFE_ON_ARRIVAL;
use crate::mail::message::MailKind;

/// The most rows that one round looks through.
pub const WINDOW: usize = 2000;

/// An email that a relay accepted.
#[derive(Debug)]
pub struct Delivered {
    /// The email, with the claim under which it was sent.
    pub mail: Arc<ClaimedMail>,
    /// When the relay accepted it.
    pub at: OffsetDateTime,
}

/// What a round does.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// The present.
    pub now: OffsetDateTime,
    /// Delivered emails. The round deletes and records those whose row was not claimed again
    /// meanwhile.
    pub delivered: &'a [Delivered],
    /// The lowest id to look at. Under load the index is full of entries of deleted rows, and
    /// passing them all in each round would cost more than the rest of the round.
    pub from: Uuid,
    /// The latest time of enqueueing; later emails are not claimed.
    pub enqueued_by: Option<OffsetDateTime>,
    /// The most emails to claim.
    pub senders: usize,
    /// The most rows to look through; 0 claims nothing.
    pub window: usize,
    /// How long the claim lasts.
    pub lease: Duration,
    /// The holder to name in the claimed rows. These rows are due again when the holder is gone:
    /// see [`super::holder`].
    pub holder: Option<i32>,
}

/// The result of a round.
#[derive(Debug, Default)]
pub struct Claim {
    /// The claimed emails, to be sent now.
    pub mails: Vec<ClaimedMail>,
    /// How many rows were deleted because they had no recipient.
    pub no_recipient: u64,
    /// How many rows were deleted because the email expires too soon to be sent.
    pub expired: u64,
    /// How many notices were deleted that had been given up before.
    pub given_up: u64,
    /// Whether the window was full, so that there may be more rows.
    pub more: bool,
}

impl Claim {
    /// How many rows were deleted because they need no email.
    #[must_use]
    pub const fn finished(&self) -> u64 {
        self.no_recipient + self.expired + self.given_up
    }
}

impl<'a> Round<'a> {
    /// A round that deletes and records `delivered`, and claims nothing.
    #[must_use]
    pub fn delete_only(now: OffsetDateTime, delivered: &'a [Delivered]) -> Self {
        let (from, enqueued_by, lease) = (Uuid::max(), None, Duration::ZERO);
        Self { now, delivered, from, enqueued_by, senders: 0, window: 0, lease, holder: None }
    }

    /// Runs the round in one statement, all of it or nothing. It claims the newest emails first
    /// (docs/decisions/0005).
    ///
    /// Why the statement is written as it is:
    ///
    /// - It locks rows with SKIP LOCKED and only reads `account`: two replicas must not wait for
    ///   each other, and a reset that locks an account must not hide its email.
    /// - It locks only the rows that it claims or deletes: another replica may have free slots for
    ///   the other rows.
    /// - It finds a row again by its place (`ctid`). If the row has moved meanwhile, the next round
    ///   finds it.
    /// - The look-ups are LATERAL, so that no look-up scans a table, even with a plan that was made
    ///   while the table was empty.
    /// - The deleted rows are joined to nothing: PostgreSQL might compare two lists of [`WINDOW`]
    ///   rows in a nested loop.
    ///
    /// # Errors
    ///
    /// PostgreSQL's error. The rows of the delivered emails then stay; they have to be passed to a
    /// later round.
    pub async fn run(self, connection: &mut PgConnection) -> Result<Claim, sqlx::Error> {
        let ids: Vec<_> = self.delivered.iter().map(|delivered| delivered.mail.id).collect();
        let attempts: Vec<_> = self.delivered.iter().map(|delivered| delivered.mail.attempts).collect();
        let events: audit::EventColumns<'_> = self.delivered.iter().map(Delivered::event).collect();
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
            given_up: row.given_up.unsigned_abs(),
            more: self.window > 0 && row.due.unsigned_abs() >= self.window as u64,
        });
        // A row without a claim carries the counts alone.
        claim.mails.extend(rows.filter_map(|row| {
            let content = match (row.recovery_session_id, row.kind?) {
                (Some(recovery_session_id), _) => Content::RecoveryCode {
                    recovery_session_id,
                    key_id: row.key_id?,
                    asked_at: row.asked_at?,
                    client_ip: row.client_ip?,
                },
                (None, MailKind::TicketGiven) => Content::TicketGiven,
                (None, MailKind::EmailChanged) => Content::EmailChanged,
                (None, MailKind::AddressChange) => {
                    Content::AddressChange { new: row.other_address?, effective_at: row.effective_at? }
                }
                (None, MailKind::NewAddress) => Content::NewAddress,
                (None, _) => Content::PasswordChanged,
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
        let (event, by) = match mail.content {
            Content::RecoveryCode { client_ip, .. } => {
                let client = audit::ClientInfo { client_ip, user_agent: &mail.user_agent };
                (audit::Event::RecoverySent, Some(audit::By::Client(client)))
            }
            Content::PasswordChanged => (audit::Event::PasswordNoticeSent, None),
            Content::TicketGiven => (audit::Event::TicketNoticeSent, None),
            Content::EmailChanged => (audit::Event::EmailNoticeSent, None),
            Content::AddressChange { .. } => (audit::Event::AddressChangeNoticeSent, None),
            Content::NewAddress => (audit::Event::NewAddressNoticeSent, None),
        };
        audit::Entry { at: *at, event, account_id: Some(mail.account_id), by }
    }
}
