//! The verdict on a refusal: whether the recipient, our configuration or the relay is at fault, and
//! so what the courier does next. `docs/operate/mail-verdicts.md` has a table for operators, and a
//! test compares the table with this code.

use strum::{IntoStaticStr, VariantArray};

use crate::mail::not_sent::{Enhanced, NotSent, Stage};

/// Who is at fault for a refusal, by its stage, reply code and enhanced code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Verdict {
    /// The mailbox does not exist. The courier gives the email up if every relay that is up says
    /// so.
    Recipient,
    /// Our sender address or configuration. The courier tries the next relay, and later tries
    /// again.
    Ours,
    /// The relay: a policy, a limit, an outage. The courier tries the next relay, and later tries
    /// again.
    Relay,
}

impl NotSent {
    /// The verdict. The enhanced codes are those of RFC 3463 §3.2 and RFC 7505 §6, registered at
    /// IANA (Simple Mail Transfer Protocol Enhanced Status Codes).
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        let about_recipient = matches!(self.stage, Stage::Rcpt | Stage::Message);
        match (self.code, self.enhanced) {
            (Some(500..=599), Enhanced::Code(1, 1 | 2 | 3 | 6 | 10))
            | (Some(550 | 551 | 553), Enhanced::None)
                if about_recipient =>
            {
                Verdict::Recipient
            }
            (Some(500..=599), Enhanced::Code(1, 0 | 7 | 8)) if self.is_of_mail() => Verdict::Ours,
            _ if matches!(self.stage, Stage::Compose) => Verdict::Ours,
            _ => Verdict::Relay,
        }
    }

    /// Whether the relay refused the email permanently by its own policy.
    pub(super) const fn is_by_policy(&self) -> bool {
        self.is_of_mail() && matches!(self.code, Some(500..=599)) && matches!(self.verdict(), Verdict::Relay)
    }

    /// Whether the failure belongs to a command for an email (such as RCPT), and not to a command
    /// for the connection.
    const fn is_of_mail(&self) -> bool {
        matches!(self.stage, Stage::Mail | Stage::Rcpt | Stage::Data | Stage::Message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(stage: Stage, code: u16, enhanced: Enhanced) -> NotSent {
        NotSent { code: Some(code), enhanced, ..NotSent::just(stage) }
    }

    /// `tests/it/verdicts.rs` tests the answers to commands of an email.
    #[test]
    fn before_the_first_command_of_an_email_no_answer_blames_its_addresses() {
        use Stage::{Auth, Compose, Connect, Data, Deadline, Mail, Message, NoRelay, Rate, Rcpt, Tls};
        for stage in [NoRelay, Rate, Connect, Tls, Auth, Deadline] {
            for enhanced in [Enhanced::None, Enhanced::Code(1, 1), Enhanced::Code(1, 8)] {
                let answer = answer(stage, 550, enhanced);
                assert_eq!(answer.verdict(), Verdict::Relay, "{answer}");
                assert!(!answer.is_by_policy(), "{answer}");
            }
        }
        for stage in [Mail, Rcpt, Data, Message, Deadline] {
            assert_eq!(NotSent::just(stage).verdict(), Verdict::Relay, "a lost connection");
        }
        assert_eq!(NotSent::just(Compose).verdict(), Verdict::Ours);
    }

    #[test]
    fn a_policy_is_a_permanent_refusal_that_is_the_relays_fault() {
        for stage in [Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Message] {
            let is_by_policy = |code, enhanced| answer(stage, code, enhanced).is_by_policy();
            assert!(is_by_policy(554, Enhanced::Code(7, 1)) && is_by_policy(552, Enhanced::None));
            assert!(is_by_policy(550, Enhanced::Unreadable));
            assert!(!is_by_policy(450, Enhanced::Code(7, 1)) && !is_by_policy(550, Enhanced::Code(1, 8)));
        }
        assert!(!answer(Stage::Rcpt, 550, Enhanced::Code(1, 1)).is_by_policy());
    }
}
