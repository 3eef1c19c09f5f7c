//! Builds emails: headers, a text part and an HTML part.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use lettre::address::Envelope;
use lettre::message::header::{ContentTransferEncoding, ContentType, HeaderName, HeaderValue};
use lettre::message::{Body, Mailbox, MultiPart, SinglePart};
use lettre::{Address, Message};
use serde::Serialize;
use strum::{Display, IntoStaticStr};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::new_id;
use crate::config::{CODE_LIFETIME, ConfigError, ConfigErrors, MailSettings};
use crate::locale::Locale;
use crate::mail::bounce::ReturnPath;
use crate::mail::content::{About, Content, Parts};
use crate::mail::dkim::Signer;
use crate::mail::{Unbuildable, sender};
use crate::secret::{Code, Key};

/// The longest line of a message, without its end (RFC 5322 §2.1.1).
const MAX_LINE: usize = 998;

/// The time from approval to effect in the sample notice of an address change.
const SAMPLE_DELAY: Duration = Duration::from_hours(1);

/// The kinds of emails.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, Serialize, ValueEnum, sqlx::Type,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum MailKind {
    /// Contains a recovery code.
    RecoveryCode,
    /// Says that the password was changed.
    PasswordChanged,
    /// Says that an operator gave a recovery ticket.
    TicketGiven,
    /// Says to the previous address that an operator set another one.
    EmailChanged,
    /// Says that the address of the account will be changed, and how the owner can stop the change.
    AddressChange,
    /// Says to the new address that the account can be recovered with it.
    NewAddress,
    /// Tests the relays.
    Test,
}

impl MailKind {
    /// The kinds that the outbox stores.
    pub const IN_OUTBOX: [Self; 6] = [
        Self::RecoveryCode,
        Self::PasswordChanged,
        Self::TicketGiven,
        Self::EmailChanged,
        Self::AddressChange,
        Self::NewAddress,
    ];
}

/// A complete email: its envelope (sender and recipient) and the message.
#[derive(Debug)]
pub struct Mail {
    pub(super) envelope: Envelope,
    pub(super) bytes: Vec<u8>,
}

impl Mail {
    /// The message, without SMTP's dot stuffing.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message as it is sent after DATA, with the final dot (RFC 5321 §4.5.2).
    ///
    /// It is one string, so that one write sends it. A separate write of the final dot would wait
    /// 40 ms for the relay's delayed acknowledgement of the message.
    pub(super) fn dot_stuffed(&self) -> String {
        // One UTF-8 check and a split at a single character take a third of the instructions of
        // more general methods.
        let text =
            str::from_utf8(&self.bytes).map_or_else(|_| String::from_utf8_lossy(&self.bytes), Cow::Borrowed);
        let mut stuffed = String::with_capacity(text.len() + 64);
        let mut is_line_start = true;
        for piece in text.split_inclusive('\n') {
            if is_line_start && piece.starts_with('.') {
                stuffed.push('.');
            }
            stuffed.push_str(piece);
            is_line_start = piece.ends_with("\r\n");
        }
        if !is_line_start || stuffed.is_empty() {
            stuffed.push_str("\r\n");
        }
        stuffed + ".\r\n"
    }
}

/// Builds emails according to the settings.
#[derive(Debug)]
pub struct Composer {
    dkim: Option<Signer>,
    from: Mailbox,
    return_path: ReturnPath,
    content: Content,
}

impl Composer {
    /// Checks the settings of emails and of DKIM. It builds a sample of every kind of email, so
    /// that an unusable setting fails at startup, not later in a user's recovery. `key` signs the
    /// return paths.
    ///
    /// # Errors
    ///
    /// A sentence for each variable that cannot be used.
    pub fn new(settings: &MailSettings, key: &Key) -> Result<Self, ConfigErrors> {
        let mut problems = ConfigErrors::default();
        let content = problems.take(Content::new(settings));
        let from = sender::mailbox(&settings.mail_from).map_err(|why| ConfigError::new("MAIL_FROM", why));
        // With a wrong sender, the settings that depend on it are checked with an example.
        let from = problems.take(from).or_else(|| sender::mailbox("no-reply@example.com").ok());
        let Some(from) = from else { return Err(problems) };
        let return_path = ReturnPath::new(settings.mail_bounces.as_deref(), &from.email, key);
        let return_path = problems.take(return_path);
        let dkim = problems.take(Signer::new(&settings.dkim, from.email.domain()));
        let parts = content.zip(return_path).zip(dkim);
        let ((content, return_path), dkim) = problems.or(parts)?;
        let composer = Self { dkim, from, return_path, content };
        composer.build_samples().map_err(|Unbuildable| {
            ConfigError::new(
                "MAIL_FROM",
                "or the product name cannot be put in an email: use names without special characters",
            )
        })?;
        Ok(composer)
    }

    /// The DKIM signer, if one is configured.
    #[must_use]
    pub const fn dkim(&self) -> Option<&Signer> {
        self.dkim.as_ref()
    }

    fn build_samples(&self) -> Result<(), Unbuildable> {
        for locale in [Locale::Vi, Locale::En] {
            for kind in MailKind::IN_OUTBOX.into_iter().chain([MailKind::Test]) {
                self.sample(kind, locale, "sample@example.com", OffsetDateTime::UNIX_EPOCH)?;
            }
        }
        Ok(())
    }

    /// A sample email that is about no account. If its kind has a code, the code is random.
    ///
    /// # Errors
    ///
    /// As [`Composer::recovery_code`].
    pub fn sample(
        &self,
        kind: MailKind,
        locale: Locale,
        to: &str,
        now: OffsetDateTime,
    ) -> Result<Mail, Unbuildable> {
        let about = About { id: new_id(now), account_id: Uuid::nil(), to, locale, user_agent: "" };
        match kind {
            MailKind::RecoveryCode => {
                let code = Key::random("sample").code(about.id);
                self.recovery_code(&about, &code, now, now + CODE_LIFETIME, now)
            }
            MailKind::PasswordChanged => self.password_changed(&about, now, now),
            MailKind::TicketGiven => self.ticket_given(&about, now, now),
            MailKind::EmailChanged => self.email_changed(&about, now, now),
            MailKind::AddressChange => {
                self.address_change(&about, "new@example.com", now + SAMPLE_DELAY, now, now)
            }
            MailKind::NewAddress => self.new_address(&about, now, now),
            MailKind::Test => self.test(&about, now),
        }
    }

    /// The email with a recovery code that was requested at `asked_at` and expires at
    /// `valid_until`. `now` becomes its Date.
    ///
    /// # Errors
    ///
    /// [`Unbuildable`] if the recipient's address or a header cannot be put in an email.
    pub fn recovery_code(
        &self,
        about: &About<'_>,
        code: &Code,
        asked_at: OffsetDateTime,
        valid_until: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Mail, Unbuildable> {
        self.build(about, now, self.content.recovery_code(about, code, asked_at, valid_until))
    }

    /// The notice that the password was changed at `changed_at`. `now` becomes its Date.
    ///
    /// # Errors
    ///
    /// As [`Composer::recovery_code`].
    pub fn password_changed(
        &self,
        about: &About<'_>,
        changed_at: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Mail, Unbuildable> {
        self.build(about, now, self.content.password_changed(about, changed_at))
    }

    /// The notice that an operator gave a recovery ticket at `given_at`. `now` becomes its Date.
    ///
    /// # Errors
    ///
    /// As [`Composer::recovery_code`].
    pub fn ticket_given(
        &self,
        about: &About<'_>,
        given_at: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Mail, Unbuildable> {
        self.build(about, now, self.content.ticket_given(about, given_at))
    }

    /// The notice that an operator set another address at `changed_at`. `now` becomes its Date.
    ///
    /// # Errors
    ///
    /// As [`Composer::recovery_code`].
    pub fn email_changed(
        &self,
        about: &About<'_>,
        changed_at: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Mail, Unbuildable> {
        self.build(about, now, self.content.email_changed(about, changed_at))
    }

    /// The notice to the stored address that the change to the address `new` was approved at
    /// `approved_at`, and takes effect at `effective_at` or later. `now` becomes its Date.
    ///
    /// # Errors
    ///
    /// As [`Composer::recovery_code`].
    pub fn address_change(
        &self,
        about: &About<'_>,
        new: &str,
        effective_at: OffsetDateTime,
        approved_at: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Mail, Unbuildable> {
        self.build(about, now, self.content.address_change(about, new, effective_at, approved_at))
    }

    /// The notice to the new address that the account has had it since `changed_at`. `now` becomes
    /// its Date.
    ///
    /// # Errors
    ///
    /// As [`Composer::recovery_code`].
    pub fn new_address(
        &self,
        about: &About<'_>,
        changed_at: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Mail, Unbuildable> {
        self.build(about, now, self.content.new_address(about, changed_at))
    }

    fn test(&self, about: &About<'_>, now: OffsetDateTime) -> Result<Mail, Unbuildable> {
        self.build(about, now, self.content.test(about, now))
    }

    fn build(
        &self,
        about: &About<'_>,
        now: OffsetDateTime,
        parts: Option<Parts>,
    ) -> Result<Mail, Unbuildable> {
        let Parts { subject, text, html } = parts.ok_or(Unbuildable)?;
        let to: Address = about.to.parse().map_err(|_| Unbuildable)?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to.clone()))
            .subject(subject)
            .date(now.into())
            .message_id(Some(format!("<{}@{}>", about.id, self.from.email.domain())))
            // Prevents automatic replies such as holiday notices (RFC 3834 §5).
            .raw_header(header("Auto-Submitted", "auto-generated"))
            // Prevents automatic replies of Exchange (MS-OXCMAIL §2.1.3.2.20). `All` would also
            // suppress the reports of failed delivery that `vos-auth bounce` reads.
            .raw_header(header("X-Auto-Response-Suppress", "DR, RN, NRN, OOF, AutoReply"))
            // Gmail groups emails with the same subject in a thread, where a user may take an old
            // code for the newest. A different value in each email prevents that.
            .raw_header(header("X-Entity-Ref-ID", about.id.to_string()))
            // The language of the text part (RFC 3282); the HTML part has the attribute `lang`.
            .raw_header(header("Content-Language", <&str>::from(about.locale)))
            .multipart(
                MultiPart::alternative().singlepart(SinglePart::plain(text)).singlepart(html_part(html)),
            )
            .map_err(|_| Unbuildable)?;
        let sender = self.return_path.of(about.account_id, about.to, now)?;
        let envelope = Envelope::new(Some(sender), vec![to]).map_err(|_| Unbuildable)?;
        let mut bytes = message.formatted();
        if let Some(dkim) = &self.dkim {
            bytes = dkim.signed(&bytes, now).ok_or(Unbuildable)?;
        }
        Ok(Mail { envelope, bytes })
    }
}

fn header(name: &'static str, value: impl Into<String>) -> HeaderValue {
    HeaderValue::new(HeaderName::new_from_ascii_str(name), value.into())
}

/// The HTML part. Character references make it ASCII, because quoted-printable would take most of
/// the time of building an email.
fn html_part(html: String) -> SinglePart {
    let part = SinglePart::builder().header(ContentType::TEXT_HTML);
    let ascii = to_ascii(&html);
    if ascii.lines().any(|line| line.len() > MAX_LINE) {
        return part.body(html);
    }
    part.body(Body::dangerous_pre_encoded(ascii.into_bytes(), ContentTransferEncoding::SevenBit))
}

/// Writes CRLF at the ends of lines, and non-ASCII characters as character references.
fn to_ascii(html: &str) -> String {
    let mut ascii = String::with_capacity(2 * html.len());
    for line in html.split_inclusive('\n') {
        for run in line.trim_end_matches('\n').split_inclusive(|sign: char| !sign.is_ascii()) {
            let (plain, other) = run.split_at(run.trim_end_matches(|sign: char| !sign.is_ascii()).len());
            ascii.push_str(plain);
            for sign in other.chars() {
                let _ = write!(ascii, "&#x{:X};", u32::from(sign));
            }
        }
        ascii.push_str("\r\n");
    }
    ascii
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_becomes_ascii_in_whole_lines() {
        assert_eq!(to_ascii("<p>a</p>\n\nMật khẩu\n"), "<p>a</p>\r\n\r\nM&#x1EAD;t kh&#x1EA9;u\r\n");
        assert_eq!(to_ascii("ếế b"), "&#x1EBF;&#x1EBF; b\r\n");
        let encoding_of = |length| {
            let part = html_part("x".repeat(length));
            part.headers().get::<ContentTransferEncoding>().unwrap().to_string()
        };
        assert_eq!((encoding_of(998), encoding_of(999)), ("7bit".into(), "quoted-printable".into()));
    }

    #[test]
    fn only_the_final_dot_ends_a_message() {
        let stuffed = |text: &str| {
            let envelope = Envelope::new(None, vec!["a@example.com".parse().unwrap()]).unwrap();
            Mail { envelope, bytes: text.into() }.dot_stuffed()
        };
        assert_eq!(stuffed("a\r\nb"), "a\r\nb\r\n.\r\n");
        assert_eq!(stuffed(".\r\n..\r\na.\r\n"), "..\r\n...\r\na.\r\n.\r\n");
        assert_eq!(stuffed("a\n.b\r\n.c"), "a\n.b\r\n..c\r\n.\r\n", "a line ends with both");
    }
}
