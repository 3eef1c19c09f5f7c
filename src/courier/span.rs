//! The trace of a mail.

use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::outbox::{ClaimedMail, Content};

/// It begins here, and nothing in it leads to who asked, or is written to: see [`crate::traces`].
pub(super) fn span_of(owed: &ClaimedMail) -> Span {
    let kind = match owed.content {
        Content::RecoveryCode { .. } => "recovery_code",
        Content::PasswordChanged => "password_changed",
    };
    info_span!(
        parent: None,
        "send mail",
        outbox_id = %owed.id,
        mail.kind = kind,
        mail.attempts = owed.attempts,
        mail.outcome = Empty,
        mail.stage = Empty,
    )
}
