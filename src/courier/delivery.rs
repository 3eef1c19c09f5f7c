//! One claimed mail: asks one relay after the other until one takes it.

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
use crate::mail::gateway::Slot;
use crate::mail::message::{About, Mail, MailKind};
use crate::mail::not_sent::{NotSent, Stage};
use crate::mail::verdict::Verdict;
use crate::metrics::{GivenUpLabel, MailOutcome};
use crate::outbox::{self, ClaimedMail, Content, Delivered};

impl Courier {
    pub(super) async fn deliver(
        self: Arc<Self>,
        slot: Option<Slot>,
        owed: Arc<ClaimedMail>,
        lease: Lease,
        (taken, freed): (GroupCommit<Delivered, ()>, Arc<Notify>),
    ) {
        tracing::trace!(outbox_id = %owed.id, attempts = owed.attempts, "mail is claimed");
        let outcome = if let Some(mail) = self.compose(&owed, lease.now()) {
            self.hand_over(slot, &mail, &owed, lease, &freed).await
        } else {
            // Another replica may have the secret that this one lacks, in the middle of a rotation.
            tracing::error!(outbox_id = %owed.id, "the mail cannot be built; is its secret gone?");
            drop(slot);
            Err(Refusals::none(Stage::Compose))
        };
        // One that was delivered wakes the courier by itself.
        if outcome.is_err() {
            freed.notify_one();
        }
        match outcome {
            Ok(()) => {
                Span::current().record("mail.outcome", <&str>::from(MailOutcome::Sent));
                self.count(MailOutcome::Sent, "none", 1);
                self.metrics.mail_latency.observe((lease.now() - owed.created_at).as_seconds_f64());
                self.finish(&owed, lease, Finish::Sent(&taken)).await;
            }
            Err(refusals) => {
                let verdict = refusals.decisive.verdict();
                let is_final = verdict == Verdict::Recipient && self.gateway.has_asked_all(&refusals.asked);
                let next = outbox::backoff(lease.now(), &owed, rand::rng().random()).filter(|_| !is_final);
                let outcome = if next.is_some() { MailOutcome::Retried } else { MailOutcome::GivenUp };
                self.note(&owed, &refusals, outcome);
                let (named, stage): (&str, &str) = (outcome.into(), refusals.last.stage.into());
                Span::current().record("mail.outcome", named).record("mail.stage", stage);
                let why = refusals.decisive.to_string();
                let finish = if let Some(at) = next {
                    Finish::Retry(at, &why)
                } else {
                    let label = GivenUpLabel { kind: kind(&owed).into(), verdict: verdict.into() };
                    self.metrics.mails_given_up.get_or_create(&label).inc();
                    Finish::GiveUp(&why)
                };
                self.finish(&owed, lease, finish).await;
            }
        }
    }

    /// Asks the relays that are up, each once, in the courier's order: the one of `slot` first, and the next as soon as
    /// one has not taken the mail, as long as the lease allows for a whole conversation.
    async fn hand_over(
        &self,
        slot: Option<Slot>,
        mail: &Mail,
        owed: &ClaimedMail,
        lease: Lease,
        freed: &Notify,
    ) -> Result<(), Refusals> {
        let until = lease.begins_until(self.gateway.deadline());
        let mut refusals = Refusals::none(Stage::NoRelay);
        let mut next = slot;
        if next.is_none() {
            // The order has changed between the claim and now, or no relay is up any more.
            next = self.gateway.next_slot(owed.attempts, &[], until).await;
        }
        while let Some(slot) = next {
            let asked = async {
                self.gateway.ready(&slot, until).await?;
                // While it waited for the relay's rate its code may have become too old.
                if owed.expires_at < lease.now() + CODE_LIFE_ON_ARRIVAL {
                    return Err(NotSent::just(Stage::Rate));
                }
                // Without its lock for that long, another courier may have it.
                if !self.holder.keeps(lease.holder) {
                    return Err(NotSent::just(Stage::Rate));
                }
                self.gateway.send(&slot, mail).await
            };
            let Err(why) = asked.await else { return Ok(()) };
            refusals.add(slot.relay(), why);
            drop(slot);
            next = self.gateway.next_slot(owed.attempts, &refusals.asked, until).await;
            if next.is_some() {
                self.note(owed, &refusals, MailOutcome::NextRelay);
                // This mail has another place now; the one that it had is free.
                freed.notify_one();
            }
        }
        Err(refusals)
    }

    /// One line, and one more in the figures, for each time that a mail was not taken.
    fn note(&self, owed: &ClaimedMail, refusals: &Refusals, outcome: MailOutcome) {
        let (why, relay) = (&refusals.last, refusals.asked.last());
        let (id, attempts, verdict) = (owed.id, owed.attempts, why.verdict());
        let (fault, became): (&str, &str) = (verdict.into(), outcome.into());
        tracing::warn!(outbox_id = %id, attempts, relay, %why, verdict = fault, outcome = became, "mail was not taken");
        if verdict == Verdict::Ours && relay.is_some() {
            tracing::error!(
                relay,
                %why,
                "the relay refuses our sender: check the addresses of MAIL_FROM and MAIL_BOUNCES, the DNS of their \
                 domains, and that the relay's account may send as them"
            );
        }
        self.count(outcome, why.stage.into(), 1);
    }

    /// `None` if the code's secret has been rotated away, or the stored address fits no mail.
    fn compose(&self, owed: &ClaimedMail, now: OffsetDateTime) -> Option<Mail> {
        let locale = [&owed.account_locale, &owed.request_locale].into_iter().flatten().next();
        let about = About {
            id: owed.id,
            account_id: owed.account_id,
            to: &owed.account_email,
            locale: locale.and_then(|tag| tag.parse().ok()).unwrap_or(Locale::Vi),
            user_agent: &owed.user_agent,
        };
        match &owed.content {
            Content::RecoveryCode { recovery_session_id, key_id, asked_at, .. } => {
                let code = self.code_keys.by_id(key_id)?.code(*recovery_session_id);
                self.composer.recovery_code(&about, &code, *asked_at, owed.expires_at, now)
            }
            Content::PasswordChanged => self.composer.password_changed(&about, owed.created_at, now),
        }
        .ok()
    }
}

/// What the relays have said to one mail under one claim.
#[derive(Debug)]
struct Refusals {
    /// Their places, in the order in which they were asked.
    asked: Vec<usize>,
    /// What the last one said; without any, why none was asked.
    last: NotSent,
    /// The last answer that does not blame the recipient, for one such is enough to try the mail again; or the last.
    decisive: NotSent,
}

impl Refusals {
    fn none(stage: Stage) -> Self {
        Self { asked: Vec::new(), last: NotSent::just(stage), decisive: NotSent::just(stage) }
    }

    fn add(&mut self, relay: usize, why: NotSent) {
        let blames_recipient = |why: &NotSent| why.verdict() == Verdict::Recipient;
        if self.asked.is_empty() || !blames_recipient(&why) || blames_recipient(&self.decisive) {
            self.decisive = why.clone();
        }
        self.asked.push(relay);
        self.last = why;
    }
}

const fn kind(owed: &ClaimedMail) -> MailKind {
    match owed.content {
        Content::RecoveryCode { .. } => MailKind::RecoveryCode,
        Content::PasswordChanged => MailKind::PasswordChanged,
    }
}

/// The trace of a mail. It begins here, and nothing in it leads to who asked, or is written to: see [`crate::traces`].
pub(super) fn span_of(owed: &ClaimedMail) -> Span {
    info_span!(
        parent: None,
        "send mail",
        outbox_id = %owed.id,
        mail.kind = <&str>::from(kind(owed)),
        mail.attempts = owed.attempts,
        mail.outcome = Empty,
        mail.stage = Empty,
    )
}
