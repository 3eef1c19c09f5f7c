//! What emails say and how they look: the templates in `templates/`, and the values in them.

#![expect(clippy::ref_binding_to_reference, reason = "askama's derive writes such patterns")]

use askama::Template;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::brand::Palette;
use crate::config::{ConfigError, ConfigErrors, MailSettings, Phone};
use crate::email_address::EmailAddress;
use crate::locale::Locale;
use crate::mail::device;
use crate::secret::Code;

/// The recipient of an email, and the request that it is about.
#[derive(Debug)]
pub struct About<'a> {
    /// The id of the outbox row. The Message-ID contains it, and so stays the same when the email
    /// is sent again.
    pub id: Uuid,
    /// The recipient's account. A signed return path names it.
    pub account_id: Uuid,
    /// The account's stored address or its previous one, never an address that a client typed.
    pub to: &'a str,
    /// The language of the email.
    pub locale: Locale,
    /// The User-Agent of the request. The email does not quote it.
    pub user_agent: &'a str,
}

/// The subject and both bodies of an email.
pub(super) struct Parts {
    pub subject: String,
    pub text: String,
    pub html: String,
}

/// The parts of emails that come from the settings.
#[derive(Debug)]
pub(super) struct Content {
    settings: MailSettings,
    support: String,
    support_link: String,
    recovery_url: Option<String>,
    zone: TimeZone,
}

impl Content {
    pub(super) fn new(settings: &MailSettings) -> Result<Self, ConfigErrors> {
        let mut problems = ConfigErrors::default();
        let zone = problems.take(TimeZone::get(&settings.mail_time_zone).map_err(|_| {
            ConfigError::new("MAIL_TIME_ZONE", "is not the IANA name of a time zone such as Asia/Ho_Chi_Minh")
        }));
        if settings.mail_brand.trim().is_empty() || settings.mail_brand.chars().any(char::is_control) {
            problems.add(ConfigError::new("MAIL_BRAND", "is empty or contains a control character"));
        }
        let support = problems.take(EmailAddress::parse(&settings.mail_support).map_err(|_| {
            ConfigError::new("MAIL_SUPPORT", "is not an email address such as support@verolabs.co")
        }));
        problems.or(zone.zip(support)).map(|(zone, support)| Self {
            settings: settings.clone(),
            support: settings.mail_support.trim().to_owned(),
            support_link: support.mailto(),
            recovery_url: settings.recovery_url.as_ref().map(ToString::to_string),
            zone,
        })
    }

    /// The email with a recovery code. `None` if a template cannot be rendered.
    pub(super) fn recovery_code(
        &self,
        about: &About<'_>,
        code: &Code,
        asked_at: OffsetDateTime,
        valid_until: OffsetDateTime,
    ) -> Option<Parts> {
        let mail = &Values {
            code: code.expose(),
            valid_until: self.local_time(valid_until, about.locale),
            ..self.values(about, asked_at)
        };
        match about.locale {
            Locale::Vi => parts(&Part::CodeViText { mail }, &Part::CodeViHtml { mail }),
            Locale::En => parts(&Part::CodeEnText { mail }, &Part::CodeEnHtml { mail }),
        }
    }

    /// The notice that the password was changed. `None` as for [`Content::recovery_code`].
    pub(super) fn password_changed(&self, about: &About<'_>, changed_at: OffsetDateTime) -> Option<Parts> {
        let mail = &self.values(about, changed_at);
        match about.locale {
            Locale::Vi => parts(&Part::ChangedViText { mail }, &Part::ChangedViHtml { mail }),
            Locale::En => parts(&Part::ChangedEnText { mail }, &Part::ChangedEnHtml { mail }),
        }
    }

    /// The notice that an operator gave a recovery ticket. `None` as for
    /// [`Content::recovery_code`].
    pub(super) fn ticket_given(&self, about: &About<'_>, given_at: OffsetDateTime) -> Option<Parts> {
        let mail = &self.values(about, given_at);
        match about.locale {
            Locale::Vi => parts(&Part::TicketViText { mail }, &Part::TicketViHtml { mail }),
            Locale::En => parts(&Part::TicketEnText { mail }, &Part::TicketEnHtml { mail }),
        }
    }

    /// The notice to the previous address that an operator set another one. `None` as for
    /// [`Content::recovery_code`].
    pub(super) fn email_changed(&self, about: &About<'_>, changed_at: OffsetDateTime) -> Option<Parts> {
        let mail = &self.values(about, changed_at);
        match about.locale {
            Locale::Vi => parts(&Part::AddressViText { mail }, &Part::AddressViHtml { mail }),
            Locale::En => parts(&Part::AddressEnText { mail }, &Part::AddressEnHtml { mail }),
        }
    }

    /// The notice that the address will be changed to `new`. `None` as for
    /// [`Content::recovery_code`].
    pub(super) fn address_change(
        &self,
        about: &About<'_>,
        new: &str,
        effective_at: OffsetDateTime,
        approved_at: OffsetDateTime,
    ) -> Option<Parts> {
        let mail = &Values {
            other: in_part(new),
            effective: self.local_time(effective_at, about.locale),
            ..self.values(about, approved_at)
        };
        match about.locale {
            Locale::Vi => parts(&Part::ChangeViText { mail }, &Part::ChangeViHtml { mail }),
            Locale::En => parts(&Part::ChangeEnText { mail }, &Part::ChangeEnHtml { mail }),
        }
    }

    /// The notice to the new address of an account. `None` as for [`Content::recovery_code`].
    pub(super) fn new_address(&self, about: &About<'_>, changed_at: OffsetDateTime) -> Option<Parts> {
        let mail = &self.values(about, changed_at);
        match about.locale {
            Locale::Vi => parts(&Part::NewViText { mail }, &Part::NewViHtml { mail }),
            Locale::En => parts(&Part::NewEnText { mail }, &Part::NewEnHtml { mail }),
        }
    }

    /// The email that tests the relays. `None` as for [`Content::recovery_code`].
    pub(super) fn test(&self, about: &About<'_>, now: OffsetDateTime) -> Option<Parts> {
        let mail = &self.values(about, now);
        match about.locale {
            Locale::Vi => parts(&Part::TestViText { mail }, &Part::TestViHtml { mail }),
            Locale::En => parts(&Part::TestEnText { mail }, &Part::TestEnHtml { mail }),
        }
    }

    fn values<'a>(&'a self, about: &'a About<'_>, at: OffsetDateTime) -> Values<'a> {
        let brand = self.settings.brand();
        Values {
            light: &brand.light,
            dark: &brand.dark,
            lang: about.locale.into(),
            brand: self.settings.product_name(about.locale),
            footer: brand.footer.as_ref().map(|text| text.in_language(about.locale)),
            support: &self.support,
            support_link: &self.support_link,
            phone: self.settings.support_phone.as_ref(),
            recovery_url: self.recovery_url.as_deref(),
            account: about.to,
            at: self.local_time(at, about.locale),
            device: device::describe(about.user_agent, about.locale),
            code: String::new(),
            valid_until: String::new(),
            other: String::new(),
            effective: String::new(),
        }
    }

    /// A time with its zone: `09:05, 3 Nov 2026 (Viet Nam time, UTC+7)`. The month cannot be
    /// mistaken for the day.
    fn local_time(&self, at: OffsetDateTime, locale: Locale) -> String {
        let zoned = Timestamp::from_second(at.unix_timestamp())
            .unwrap_or_default()
            .to_zoned_datetime(self.zone.clone());
        let offset = zoned.offset().seconds();
        let (hours, minutes) = (offset / 3600, (offset / 60 % 60).abs());
        let offset =
            if minutes == 0 { format!("UTC{hours:+}") } else { format!("UTC{hours:+}:{minutes:02}") };
        let zone = match (self.settings.mail_time_zone.as_str(), locale) {
            ("Asia/Ho_Chi_Minh", Locale::Vi) => "giờ Việt Nam",
            ("Asia/Ho_Chi_Minh", Locale::En) => "Viet Nam time",
            (name, _) => name,
        };
        let format = match locale {
            Locale::Vi => "%H:%M, ngày %-d tháng %-m năm %Y",
            Locale::En => "%H:%M, %-d %b %Y",
        };
        format!("{} ({zone}, {offset})", zoned.strftime(format))
    }
}

/// An address in part, so that its owner recognizes it and other readers do not learn it:
/// `t…@example.com`.
fn in_part(address: &str) -> String {
    let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
    local.chars().next().map_or_else(String::new, |first| format!("{first}…@{domain}"))
}

/// Renders both bodies. The text template begins with the subject and an empty line.
fn parts(text: &Part<'_>, html: &Part<'_>) -> Option<Parts> {
    let (text, html) = (text.render().ok()?, html.render().ok()?);
    let (subject, text) = text.split_once("\n\n")?;
    Some(Parts { subject: subject.to_owned(), text: text.to_owned(), html })
}

/// The values that the templates use as `mail`.
struct Values<'a> {
    light: &'a Palette,
    dark: &'a Palette,
    lang: &'static str,
    brand: &'a str,
    footer: Option<&'a str>,
    support: &'a str,
    support_link: &'a str,
    phone: Option<&'a Phone>,
    recovery_url: Option<&'a str>,
    account: &'a str,
    at: String,
    device: String,
    code: String,
    valid_until: String,
    other: String,
    effective: String,
}

#[derive(Template)]
enum Part<'a> {
    #[template(path = "recovery_code.vi.txt")]
    CodeViText { mail: &'a Values<'a> },
    #[template(path = "recovery_code.vi.html")]
    CodeViHtml { mail: &'a Values<'a> },
    #[template(path = "recovery_code.en.txt")]
    CodeEnText { mail: &'a Values<'a> },
    #[template(path = "recovery_code.en.html")]
    CodeEnHtml { mail: &'a Values<'a> },
    #[template(path = "password_changed.vi.txt")]
    ChangedViText { mail: &'a Values<'a> },
    #[template(path = "password_changed.vi.html")]
    ChangedViHtml { mail: &'a Values<'a> },
    #[template(path = "password_changed.en.txt")]
    ChangedEnText { mail: &'a Values<'a> },
    #[template(path = "password_changed.en.html")]
    ChangedEnHtml { mail: &'a Values<'a> },
    #[template(path = "ticket_given.vi.txt")]
    TicketViText { mail: &'a Values<'a> },
    #[template(path = "ticket_given.vi.html")]
    TicketViHtml { mail: &'a Values<'a> },
    #[template(path = "ticket_given.en.txt")]
    TicketEnText { mail: &'a Values<'a> },
    #[template(path = "ticket_given.en.html")]
    TicketEnHtml { mail: &'a Values<'a> },
    #[template(path = "email_changed.vi.txt")]
    AddressViText { mail: &'a Values<'a> },
    #[template(path = "email_changed.vi.html")]
    AddressViHtml { mail: &'a Values<'a> },
    #[template(path = "email_changed.en.txt")]
    AddressEnText { mail: &'a Values<'a> },
    #[template(path = "email_changed.en.html")]
    AddressEnHtml { mail: &'a Values<'a> },
    #[template(path = "address_change.vi.txt")]
    ChangeViText { mail: &'a Values<'a> },
    #[template(path = "address_change.vi.html")]
    ChangeViHtml { mail: &'a Values<'a> },
    #[template(path = "address_change.en.txt")]
    ChangeEnText { mail: &'a Values<'a> },
    #[template(path = "address_change.en.html")]
    ChangeEnHtml { mail: &'a Values<'a> },
    #[template(path = "new_address.vi.txt")]
    NewViText { mail: &'a Values<'a> },
    #[template(path = "new_address.vi.html")]
    NewViHtml { mail: &'a Values<'a> },
    #[template(path = "new_address.en.txt")]
    NewEnText { mail: &'a Values<'a> },
    #[template(path = "new_address.en.html")]
    NewEnHtml { mail: &'a Values<'a> },
    #[template(path = "test.vi.txt")]
    TestViText { mail: &'a Values<'a> },
    #[template(path = "test.vi.html")]
    TestViHtml { mail: &'a Values<'a> },
    #[template(path = "test.en.txt")]
    TestEnText { mail: &'a Values<'a> },
    #[template(path = "test.en.html")]
    TestEnHtml { mail: &'a Values<'a> },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_part_has_its_first_character_and_its_domain() {
        for (address, shown) in [
            ("trader@example.com", "t…@example.com"),
            ("t@example.com", "t…@example.com"),
            ("a.b@c@xn--bcher-kva.example", "a…@xn--bcher-kva.example"),
        ] {
            assert_eq!(in_part(address), shown);
        }
    }
}
