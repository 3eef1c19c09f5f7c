//! Whose fault it is that a relay did not take a mail, and so what the courier does next.
//! `docs/operate/mail-verdicts.md` is the table for operators, and the input of its test.

use strum::{IntoStaticStr, VariantArray};

use crate::mail::not_sent::{Enhanced, NotSent, Stage};

/// Whose fault an answer is, by its stage, its code and its enhanced code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Verdict {
    /// There is no such mailbox. The mail is given up if every relay that is up says so.
    Recipient,
    /// Our sender or our configuration. The next relay is asked, and the mail is tried again.
    Ours,
    /// The relay's own: a policy, a limit, an outage. The next relay is asked, and the mail is tried again.
    Relay,
}

impl NotSent {
    /// Whose fault it is. The enhanced codes are those of RFC 3463 §3.2 and RFC 7505 §6, as registered at IANA
    /// (Simple Mail Transfer Protocol Enhanced Status Codes).
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

    /// Whether the relay refused the mail for good by a rule of its own.
    pub(super) const fn is_by_policy(&self) -> bool {
        self.is_of_mail() && matches!(self.code, Some(500..=599)) && matches!(self.verdict(), Verdict::Relay)
    }

    /// Whether the relay had heard of the mail.
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

    /// The answers to commands of the mail's own are the rows of `docs/operate/mail-verdicts.md`.
    #[test]
    fn before_a_relay_has_heard_of_the_mail_nothing_blames_its_addresses() {
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
    fn a_policy_is_a_refusal_for_good_that_is_the_relays_fault() {
        for stage in [Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Message] {
            let is_by_policy = |code, enhanced| answer(stage, code, enhanced).is_by_policy();
            assert!(is_by_policy(554, Enhanced::Code(7, 1)) && is_by_policy(552, Enhanced::None));
            assert!(is_by_policy(550, Enhanced::Unreadable));
            assert!(!is_by_policy(450, Enhanced::Code(7, 1)) && !is_by_policy(550, Enhanced::Code(1, 8)));
        }
        assert!(!answer(Stage::Rcpt, 550, Enhanced::Code(1, 1)).is_by_policy());
    }
}
