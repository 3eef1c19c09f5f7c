//! Builds emails: headers, a text part and an HTML part. Their texts are in `templates/`, one file
//! for each language and part.

#![expect(clippy::ref_binding_to_reference, reason = "askama's derive writes such patterns")]

use std::borrow::Cow;

use askama::Template;
use clap::ValueEnum;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use lettre::address::Envelope;
use lettre::message::{Mailbox, MultiPart};
use lettre::{Address, Message};
use strum::{Display, IntoStaticStr};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::new_id;
use crate::config::{CODE_LIFETIME, ConfigError, MailSettings};
use crate::locale::Locale;
use crate::mail::Unbuildable;
use crate::mail::bounce::ReturnPath;
use crate::mail::dkim::Signer;
use crate::mail::headers::{AutoSubmitted, ContentLanguage};
use crate::mail::{device, sender};
use crate::secret::{Code, Key};

/// The kinds of emails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, ValueEnum, sqlx::Type)]
#[strum(serialize_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum MailKind {
    /// Contains a recovery code.
    RecoveryCode,
    /// Says that the password was changed.
    PasswordChanged,
    /// Tests the relays.
    Test,
}

impl MailKind {
    /// The kinds that the outbox stores.
    pub const IN_OUTBOX: [Self; 2] = [Self::RecoveryCode, Self::PasswordChanged];
}

/// The recipient of an email, and the request that it is about.
#[derive(Debug)]
pub struct About<'a> {
    /// The id of the outbox row. It makes the Message-ID, which stays the same when the email is
    /// sent again.
    pub id: Uuid,
    /// The recipient's account. A signed return path names it.
    pub account_id: Uuid,
    /// The account's stored address, never the one that a client typed.
    pub to: &'a str,
    /// The language of the email.
    pub locale: Locale,
    /// The User-Agent of the request. The email does not quote it.
    pub user_agent: &'a str,
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
    /// It is one string for one write. The dot in a write of its own would wait for the relay's
    /// delayed acknowledgement of the rest, 40 ms.
    pub(super) fn dot_stuffed(&self) -> String {
        // One check of all octets and a search for one character take a third of the general
        // methods' instructions.
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
    brand: String,
    support: String,
    zone: TimeZone,
    zone_name: String,
}

impl Composer {
    /// Reads the `MAIL_*` settings. It builds every email once, so that an unusable setting stops
    /// the service at its start, and not a user's recovery later. `key` signs the return paths.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable.
    pub fn new(settings: &MailSettings, key: &Key) -> Result<Self, ConfigError> {
        let from = sender::mailbox(&settings.mail_from).map_err(|why| ConfigError::new("MAIL_FROM", why))?;
        let return_path = ReturnPath::new(settings.mail_bounces.as_deref(), &from.email, key)?;
        let zone = TimeZone::get(&settings.mail_time_zone).map_err(|_| {
            ConfigError::new("MAIL_TIME_ZONE", "is not the IANA name of a time zone such as Asia/Ho_Chi_Minh")
        })?;
        for (name, text) in [("MAIL_BRAND", &settings.mail_brand), ("MAIL_SUPPORT", &settings.mail_support)] {
            if text.trim().is_empty() || text.chars().any(char::is_control) {
                return Err(ConfigError::new(name, "is empty or contains a control character"));
            }
        }
        let composer = Self {
            dkim: Signer::new(&settings.dkim, from.email.domain())?,
            from,
            return_path,
            brand: settings.mail_brand.clone(),
            support: settings.mail_support.clone(),
            zone,
            zone_name: settings.mail_time_zone.clone(),
        };
        composer.build_samples().map_err(|Unbuildable| {
            ConfigError::new(
                "MAIL_FROM",
                "or MAIL_BRAND cannot be put in an email: use names without special characters",
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
            for kind in [MailKind::RecoveryCode, MailKind::PasswordChanged, MailKind::Test] {
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
        let data = TemplateData {
            code: code.expose_grouped(),
            valid_until: self.local_time(valid_until, about.locale),
            ..self.template_data(about, asked_at)
        };
        let data = &data;
        self.build(
            about,
            now,
            match about.locale {
                Locale::Vi => (Part::CodeViText { mail: data }, Part::CodeViHtml { mail: data }),
                Locale::En => (Part::CodeEnText { mail: data }, Part::CodeEnHtml { mail: data }),
            },
        )
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
        let data = &self.template_data(about, changed_at);
        self.build(
            about,
            now,
            match about.locale {
                Locale::Vi => (Part::ChangedViText { mail: data }, Part::ChangedViHtml { mail: data }),
                Locale::En => (Part::ChangedEnText { mail: data }, Part::ChangedEnHtml { mail: data }),
            },
        )
    }

    fn test(&self, about: &About<'_>, now: OffsetDateTime) -> Result<Mail, Unbuildable> {
        let data = &self.template_data(about, now);
        self.build(
            about,
            now,
            match about.locale {
                Locale::Vi => (Part::TestViText { mail: data }, Part::TestViHtml { mail: data }),
                Locale::En => (Part::TestEnText { mail: data }, Part::TestEnHtml { mail: data }),
            },
        )
    }

    fn template_data(&self, about: &About<'_>, at: OffsetDateTime) -> TemplateData<'_> {
        TemplateData {
            brand: &self.brand,
            support: &self.support,
            at: self.local_time(at, about.locale),
            device: device::describe(about.user_agent, about.locale),
            code: String::new(),
            valid_until: String::new(),
        }
    }

    /// Renders the two parts. The text template begins with the subject and an empty line.
    fn build(
        &self,
        about: &About<'_>,
        now: OffsetDateTime,
        (text, html): (Part<'_>, Part<'_>),
    ) -> Result<Mail, Unbuildable> {
        let text = text.render().map_err(|_| Unbuildable)?;
        let html = html.render().map_err(|_| Unbuildable)?;
        let to: Address = about.to.parse().map_err(|_| Unbuildable)?;
        let (subject, text) = text.split_once("\n\n").ok_or(Unbuildable)?;
        let message = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to.clone()))
            .subject(subject)
            .date(now.into())
            .message_id(Some(format!("<{}@{}>", about.id, self.from.email.domain())))
            .header(AutoSubmitted)
            .header(ContentLanguage(about.locale))
            .multipart(MultiPart::alternative_plain_html(text.to_owned(), html))
            .map_err(|_| Unbuildable)?;
        let sender = self.return_path.of(about.account_id, about.to, now)?;
        let envelope = Envelope::new(Some(sender), vec![to]).map_err(|_| Unbuildable)?;
        let mut bytes = message.formatted();
        if let Some(dkim) = &self.dkim {
            bytes = dkim.signed(&bytes, now).ok_or(Unbuildable)?;
        }
        Ok(Mail { envelope, bytes })
    }

    /// A time as people in Viet Nam write it, with its zone: `09:05 23/11/2026 (giờ Việt Nam,
    /// UTC+7)`.
    fn local_time(&self, at: OffsetDateTime, locale: Locale) -> String {
        let zoned = Timestamp::from_second(at.unix_timestamp())
            .unwrap_or_default()
            .to_zoned_datetime(self.zone.clone());
        let offset = zoned.offset().seconds();
        let (hours, minutes) = (offset / 3600, (offset / 60 % 60).abs());
        let offset =
            if minutes == 0 { format!("UTC{hours:+}") } else { format!("UTC{hours:+}:{minutes:02}") };
        let zone = match (self.zone_name.as_str(), locale) {
            ("Asia/Ho_Chi_Minh", Locale::Vi) => "giờ Việt Nam",
            ("Asia/Ho_Chi_Minh", Locale::En) => "Viet Nam time",
            (name, _) => name,
        };
        format!("{} ({zone}, {offset})", zoned.strftime("%H:%M %d/%m/%Y"))
    }
}

struct TemplateData<'a> {
    brand: &'a str,
    support: &'a str,
    at: String,
    device: String,
    code: String,
    valid_until: String,
}

#[derive(Template)]
enum Part<'a> {
    #[template(path = "recovery_code.vi.txt")]
    CodeViText { mail: &'a TemplateData<'a> },
    #[template(path = "recovery_code.vi.html")]
    CodeViHtml { mail: &'a TemplateData<'a> },
    #[template(path = "recovery_code.en.txt")]
    CodeEnText { mail: &'a TemplateData<'a> },
    #[template(path = "recovery_code.en.html")]
    CodeEnHtml { mail: &'a TemplateData<'a> },
    #[template(path = "password_changed.vi.txt")]
    ChangedViText { mail: &'a TemplateData<'a> },
    #[template(path = "password_changed.vi.html")]
    ChangedViHtml { mail: &'a TemplateData<'a> },
    #[template(path = "password_changed.en.txt")]
    ChangedEnText { mail: &'a TemplateData<'a> },
    #[template(path = "password_changed.en.html")]
    ChangedEnHtml { mail: &'a TemplateData<'a> },
    #[template(path = "test.vi.txt")]
    TestViText { mail: &'a TemplateData<'a> },
    #[template(path = "test.vi.html")]
    TestViHtml { mail: &'a TemplateData<'a> },
    #[template(path = "test.en.txt")]
    TestEnText { mail: &'a TemplateData<'a> },
    #[template(path = "test.en.html")]
    TestEnHtml { mail: &'a TemplateData<'a> },
}

#[cfg(test)]
mod tests {
    use super::*;

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
