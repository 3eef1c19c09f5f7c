//! Builds a mail: MIME, both parts, headers. Everything a mail says is in `templates/`, one file a language and a part.

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

/// What a mail is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Display, IntoStaticStr, ValueEnum, sqlx::Type)]
#[strum(serialize_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum MailKind {
    /// It brings a recovery code.
    RecoveryCode,
    /// It says that the password was changed.
    PasswordChanged,
    /// It tries the relays.
    Test,
}

impl MailKind {
    /// Those that the outbox holds.
    pub const IN_OUTBOX: [Self; 2] = [Self::RecoveryCode, Self::PasswordChanged];
}

/// Whom a mail goes to, and what it is about.
#[derive(Debug)]
pub struct About<'a> {
    /// The outbox row: a mail that is sent again has the same Message-ID.
    pub id: Uuid,
    /// Whose mail it is; a bounce comes back to an address that says so.
    pub account_id: Uuid,
    /// The stored address of the account, never the one that was typed.
    pub to: &'a str,
    /// The language.
    pub locale: Locale,
    /// The User-Agent of the request; the mail does not quote it.
    pub user_agent: &'a str,
}

/// A finished mail: sender and recipient for the relay, and the message itself.
#[derive(Debug)]
pub struct Mail {
    pub(super) envelope: Envelope,
    pub(super) bytes: Vec<u8>,
}

impl Mail {
    /// The message as it goes over the wire.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The message as DATA carries it, with the dot that ends it (RFC 5321 §4.5.2). In one piece, because it must go in
    /// one write: as a write of its own the dot waits until the relay has acknowledged the rest, which it puts off for
    /// 40 ms.
    pub(super) fn dot_stuffed(&self) -> String {
        // A search for one character and a check of all octets at once are a third of the instructions of the general ones.
        let text =
            str::from_utf8(&self.bytes).map_or_else(|_| String::from_utf8_lossy(&self.bytes), Cow::Borrowed);
        let mut stuffed = String::with_capacity(text.len() + 64);
        let mut line_begins = true;
        for piece in text.split_inclusive('\n') {
            if line_begins && piece.starts_with('.') {
                stuffed.push('.');
            }
            stuffed.push_str(piece);
            line_begins = piece.ends_with("\r\n");
        }
        if !line_begins || stuffed.is_empty() {
            stuffed.push_str("\r\n");
        }
        stuffed + ".\r\n"
    }
}

/// Builds mails as the settings want them.
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
    /// Reads the `MAIL_*` settings and builds every mail once, so that a setting no mail can be built with stops the
    /// start and not a trader. `key` signs the addresses that bounces go to.
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
                return Err(ConfigError::new(name, "is empty or has a control character in it"));
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
        composer.build_every_mail().map_err(|Unbuildable| {
            ConfigError::new("MAIL_FROM", "or MAIL_BRAND makes a mail that cannot be built: use plain names")
        })?;
        Ok(composer)
    }

    /// What signs the mails, if anything does.
    #[must_use]
    pub const fn dkim(&self) -> Option<&Signer> {
        self.dkim.as_ref()
    }

    fn build_every_mail(&self) -> Result<(), Unbuildable> {
        for locale in [Locale::Vi, Locale::En] {
            for kind in [MailKind::RecoveryCode, MailKind::PasswordChanged, MailKind::Test] {
                self.sample(kind, locale, "sample@example.com", OffsetDateTime::UNIX_EPOCH)?;
            }
        }
        Ok(())
    }

    /// A mail that is about no account: with a made-up code, if it is of the kind that has one.
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

    /// The mail with a recovery code, asked for and valid at these times; `now` becomes its Date.
    ///
    /// # Errors
    ///
    /// [`Unbuildable`] if the recipient's address or a rendered header does not fit a mail.
    pub fn recovery_code(
        &self,
        about: &About<'_>,
        code: &Code,
        asked_at: OffsetDateTime,
        valid_until: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Mail, Unbuildable> {
        let words = Words {
            code: code.expose_grouped(),
            valid_until: self.local_time(valid_until, about.locale),
            ..self.words(about, asked_at)
        };
        let words = &words;
        self.build(
            about,
            now,
            match about.locale {
                Locale::Vi => (Page::CodeViText { mail: words }, Page::CodeViHtml { mail: words }),
                Locale::En => (Page::CodeEnText { mail: words }, Page::CodeEnHtml { mail: words }),
            },
        )
    }

    /// The mail that says that the password was changed; `now` becomes its Date.
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
        let words = &self.words(about, changed_at);
        self.build(
            about,
            now,
            match about.locale {
                Locale::Vi => (Page::ChangedViText { mail: words }, Page::ChangedViHtml { mail: words }),
                Locale::En => (Page::ChangedEnText { mail: words }, Page::ChangedEnHtml { mail: words }),
            },
        )
    }

    fn test(&self, about: &About<'_>, now: OffsetDateTime) -> Result<Mail, Unbuildable> {
        let words = &self.words(about, now);
        self.build(
            about,
            now,
            match about.locale {
                Locale::Vi => (Page::TestViText { mail: words }, Page::TestViHtml { mail: words }),
                Locale::En => (Page::TestEnText { mail: words }, Page::TestEnHtml { mail: words }),
            },
        )
    }

    fn words(&self, about: &About<'_>, at: OffsetDateTime) -> Words<'_> {
        Words {
            brand: &self.brand,
            support: &self.support,
            at: self.local_time(at, about.locale),
            device: device::describe(about.user_agent, about.locale),
            code: String::new(),
            valid_until: String::new(),
        }
    }

    /// The text begins with the subject and an empty line.
    fn build(
        &self,
        about: &About<'_>,
        now: OffsetDateTime,
        (text, html): (Page<'_>, Page<'_>),
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

    /// `09:05 23/11/2026 (giờ Việt Nam, UTC+7)`: the way times are written in Viet Nam, with the zone spelled out.
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

struct Words<'a> {
    brand: &'a str,
    support: &'a str,
    at: String,
    device: String,
    code: String,
    valid_until: String,
}

#[derive(Template)]
enum Page<'a> {
    #[template(path = "recovery_code.vi.txt")]
    CodeViText { mail: &'a Words<'a> },
    #[template(path = "recovery_code.vi.html")]
    CodeViHtml { mail: &'a Words<'a> },
    #[template(path = "recovery_code.en.txt")]
    CodeEnText { mail: &'a Words<'a> },
    #[template(path = "recovery_code.en.html")]
    CodeEnHtml { mail: &'a Words<'a> },
    #[template(path = "password_changed.vi.txt")]
    ChangedViText { mail: &'a Words<'a> },
    #[template(path = "password_changed.vi.html")]
    ChangedViHtml { mail: &'a Words<'a> },
    #[template(path = "password_changed.en.txt")]
    ChangedEnText { mail: &'a Words<'a> },
    #[template(path = "password_changed.en.html")]
    ChangedEnHtml { mail: &'a Words<'a> },
    #[template(path = "test.vi.txt")]
    TestViText { mail: &'a Words<'a> },
    #[template(path = "test.vi.html")]
    TestViHtml { mail: &'a Words<'a> },
    #[template(path = "test.en.txt")]
    TestEnText { mail: &'a Words<'a> },
    #[template(path = "test.en.html")]
    TestEnHtml { mail: &'a Words<'a> },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_where_it_ends() {
        let stuffed = |text: &str| {
            let envelope = Envelope::new(None, vec!["a@example.com".parse().unwrap()]).unwrap();
            Mail { envelope, bytes: text.into() }.dot_stuffed()
        };
        assert_eq!(stuffed("a\r\nb"), "a\r\nb\r\n.\r\n");
        assert_eq!(stuffed(".\r\n..\r\na.\r\n"), "..\r\n...\r\na.\r\n.\r\n");
        assert_eq!(stuffed("a\n.b\r\n.c"), "a\n.b\r\n..c\r\n.\r\n", "a line ends with both");
    }
}
