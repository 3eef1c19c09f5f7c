//! The delivery of one claimed email: tries the relays one after another until one accepts it.

use std::sync::Arc;

use rand::RngExt as _;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tracing::field::Empty;
use tracing::{Span, info_span};

use super::{Courier, Finish, Lease};
use crate::config::CODE_LIFE_ON_ARRIVAL;
use crate::group_commit::GroupCommit;
use crate::locale::Locale;
use crate::mail::content::About;
use crate::mail::gateway::Slot;
use crate::mail::message::{Mail, MailKind};
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::verdict::Verdict;
use crate::metrics::{GivenUpLabel, MailOutcome};
use crate::outbox::{self, ClaimedMail, Content, Delivered};

impl Courier {
    /// Sends one claimed email, and records the result. Notifies `slot_freed` when an attempt has
    /// failed; a delivery wakes the courier through `delivered`.
    pub(super) async fn deliver(
        self: Arc<Self>,
        slot: Option<Slot>,
        claimed: Arc<ClaimedMail>,
        lease: Lease,
        delivered: GroupCommit<Delivered, ()>,
        slot_freed: Arc<Notify>,
    ) {
        tracing::trace!(outbox_id = %claimed.id, attempts = claimed.attempts, "email claimed");
        let result = if let Some(mail) = self.compose(&claimed, lease.now()) {
            self.try_relays(slot, &mail, &claimed, lease, &slot_freed).await
        } else {
            // The email is retried: during a rotation of secrets another replica may have the key.
            tracing::error!(
                outbox_id = %claimed.id,
                "the email cannot be built: check that the secret of its code is still configured"
            );
            drop(slot);
            Err(RelayRefusals::none(Stage::Compose))
        };
        if result.is_err() {
            slot_freed.notify_one();
        }
        match result {
            Ok(()) => {
                Span::current().record("mail.outcome", <&str>::from(MailOutcome::Sent));
                self.count(MailOutcome::Sent, "none", 1);
                self.metrics.mail_latency.observe((lease.now() - claimed.created_at).as_seconds_f64());
                self.finish(&claimed, lease, Finish::Sent(&delivered)).await;
            }
            Err(refusals) => {
                let verdict = refusals.decisive.verdict();
                let is_final = verdict == Verdict::Recipient && self.gateway.has_tried_all(&refusals.tried);
                let next = outbox::backoff(lease.now(), &claimed, rand::rng().random()).filter(|_| !is_final);
                let outcome = if next.is_some() { MailOutcome::Retried } else { MailOutcome::GivenUp };
                self.record_refusal(&claimed, &refusals, outcome);
                let (name, stage): (&str, &str) = (outcome.into(), refusals.last.stage.into());
                Span::current().record("mail.outcome", name).record("mail.stage", stage);
                let why = refusals.decisive.to_string();
                let finish = if let Some(at) = next {
                    Finish::Retry(at, &why)
                } else {
                    let label = GivenUpLabel { kind: kind(&claimed).into(), verdict: verdict.into() };
                    self.metrics.mails_given_up.get_or_create(&label).inc();
                    Finish::GiveUp(&why)
                };
                self.finish(&claimed, lease, finish).await;
            }
        }
    }

    /// Tries each relay that is up once, in the courier's order, beginning with the relay of
    /// `slot`. Stops when a relay accepts the email, or when the lease leaves no time for another
    /// conversation.
    async fn try_relays(
        &self,
        slot: Option<Slot>,
        mail: &Mail,
        claimed: &ClaimedMail,
        lease: Lease,
        slot_freed: &Notify,
    ) -> Result<(), RelayRefusals> {
        let until = lease.latest_start(self.gateway.deadline());
        let mut refusals = RelayRefusals::none(Stage::NoRelay);
        let mut next = slot;
        if next.is_none() {
            // Since the claim, the order of relays has changed, or the last relay has gone down.
            next = self.gateway.next_slot(claimed.attempts, &[], until).await;
        }
        while let Some(slot) = next {
            let attempt = async {
                self.gateway.wait_for_rate(&slot, until).await?;
                // The code may have become too old during the wait.
                if claimed.expires_at < lease.now() + CODE_LIFE_ON_ARRIVAL {
                    return Err(NotSent::just(Stage::Rate));
                }
                // If this courier was without its lock for too long, another one may have claimed
                // the email.
                if !self.holder.still_holds(lease.holder) {
                    return Err(NotSent::just(Stage::Rate));
                }
                self.gateway.send(&slot, mail).await
            };
            let Err(why) = attempt.await else { return Ok(()) };
            refusals.add(slot.relay(), why);
            drop(slot);
            next = self.gateway.next_slot(claimed.attempts, &refusals.tried, until).await;
            if next.is_some() {
                self.record_refusal(claimed, &refusals, MailOutcome::NextRelay);
                // The slot of the previous relay is free again.
                slot_freed.notify_one();
            }
        }
        Err(refusals)
    }

    /// Logs and counts that a relay did not accept an email.
    fn record_refusal(&self, claimed: &ClaimedMail, refusals: &RelayRefusals, outcome: MailOutcome) {
        let (why, relay) = (&refusals.last, refusals.tried.last());
        let (id, attempts, verdict) = (claimed.id, claimed.attempts, why.verdict());
        let (fault, outcome_name): (&str, &str) = (verdict.into(), outcome.into());
        tracing::warn!(
            outbox_id = %id,
            attempts,
            relay,
            %why,
            verdict = fault,
            outcome = outcome_name,
            "email was not accepted"
        );
        if verdict == Verdict::Ours && relay.is_some() {
            tracing::error!(
                relay,
                %why,
                "the relay refuses our sender: check the addresses of MAIL_FROM and MAIL_BOUNCES, the DNS of their \
                 domains, and that the relay's account may send from them"
            );
        }
        self.count(outcome, why.stage.into(), 1);
    }

    /// `None` if the secret of the code is no longer configured, or if the stored address cannot be
    /// put in an email.
    fn compose(&self, claimed: &ClaimedMail, now: OffsetDateTime) -> Option<Mail> {
        let locale = [&claimed.account_locale, &claimed.request_locale].into_iter().flatten().next();
        let about = About {
            id: claimed.id,
            account_id: claimed.account_id,
            to: &claimed.account_email,
            locale: locale.and_then(|tag| tag.parse().ok()).unwrap_or(Locale::Vi),
            user_agent: &claimed.user_agent,
        };
        match &claimed.content {
            Content::RecoveryCode { recovery_session_id, key_id, asked_at, .. } => {
                let code = self.code_keys.by_id(key_id)?.code(*recovery_session_id);
                self.composer.recovery_code(&about, &code, *asked_at, claimed.expires_at, now)
            }
            Content::PasswordChanged => self.composer.password_changed(&about, claimed.created_at, now),
            Content::TicketGiven => self.composer.ticket_given(&about, claimed.created_at, now),
            Content::EmailChanged => self.composer.email_changed(&about, claimed.created_at, now),
            Content::AddressChange { new, effective_at } => {
                self.composer.address_change(&about, new, *effective_at, claimed.created_at, now)
            }
            Content::NewAddress => self.composer.new_address(&about, claimed.created_at, now),
        }
        .ok()
    }
}

/// The relays that did not accept one email under one claim, and their answers.
#[derive(Debug)]
struct RelayRefusals {
    /// The relays' places in `SMTP_RELAYS`, in the order in which they were tried.
    tried: Vec<usize>,
    /// The last answer; if no relay was tried, the reason for that.
    last: NotSent,
    /// The answer that decides whether the email is tried again: the last one that does not blame
    /// the recipient, else the last one.
    decisive: NotSent,
}

impl RelayRefusals {
    fn none(stage: Stage) -> Self {
        Self { tried: Vec::new(), last: NotSent::just(stage), decisive: NotSent::just(stage) }
    }

    fn add(&mut self, relay: usize, why: NotSent) {
        let blames_recipient = |why: &NotSent| why.verdict() == Verdict::Recipient;
        if self.tried.is_empty() || !blames_recipient(&why) || blames_recipient(&self.decisive) {
            self.decisive = why.clone();
        }
        self.tried.push(relay);
        self.last = why;
    }
}

const fn kind(claimed: &ClaimedMail) -> MailKind {
    match claimed.content {
        Content::RecoveryCode { .. } => MailKind::RecoveryCode,
        Content::PasswordChanged => MailKind::PasswordChanged,
        Content::TicketGiven => MailKind::TicketGiven,
        Content::EmailChanged => MailKind::EmailChanged,
        Content::AddressChange { .. } => MailKind::AddressChange,
        Content::NewAddress => MailKind::NewAddress,
    }
}

/// The root span of an email's own trace. It has no link to the request or to the recipient: see
/// [`crate::traces`].
pub(super) fn span_of(claimed: &ClaimedMail) -> Span {
    info_span!(
        parent: None,
        "send mail",
        outbox_id = %claimed.id,
        mail.kind = <&str>::from(kind(claimed)),
        mail.attempts = claimed.attempts,
        mail.outcome = Empty,
        mail.stage = Empty,
    )
}
