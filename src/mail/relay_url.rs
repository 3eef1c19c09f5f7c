//! Reads an entry of `SMTP_RELAYS`: a relay's address, its encryption, how to sign in, and the load
//! that it accepts.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use lettre::transport::smtp::authentication::Credentials;
use percent_encoding::percent_decode_str;
use url::Url;

use crate::config::{RelaySettings, is_local};
use crate::mail::oauth::Tokens;
use crate::mail::sign_in::SignIn;
use crate::mail::tls::{Authorities, Implicit, Tls, starttls};

/// An entry of `SMTP_RELAYS`.
pub(super) struct RelayUrl {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Tls,
    pub(super) sign_in: SignIn,
    /// Emails that the relay accepts at once.
    pub(super) connections: u32,
    /// Emails that the relay accepts in a second, if it is limited.
    pub(super) per_second: Option<NonZeroU32>,
}

/// Shows only host and port, because the rest may contain a password.
impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl RelayUrl {
    /// Parses an entry:
    ///
    /// | Part | Meaning |
    /// |---|---|
    /// | `smtp://` | STARTTLS, required |
    /// | `smtps://` | implicit TLS |
    /// | `smtp://…?tls=none` | plain text, to this machine only |
    /// | `USER:PASSWORD@` | percent-encoded (RFC 3986 §2.1) |
    /// | `auth=xoauth2` | signs in with an access token of `tokens` |
    /// | `connections=N`, `per_second=N` | limits of the load |
    ///
    /// # Errors
    ///
    /// What is wrong, as the rest of a sentence that begins with the variable's name. It quotes
    /// neither user nor password.
    pub(super) fn parse(
        text: &str,
        settings: &RelaySettings,
        ca: Option<&Authorities>,
        tokens: Option<&Arc<Tokens>>,
    ) -> Result<Self, String> {
        if has_stray_percent(text) {
            return Err(
                "has an entry with a % that is not part of an escape such as %40: write it as %25".into()
            );
        }
        let url = Url::parse(text)
            .map_err(|_| "has an entry that is not a URL such as smtps://USER:PASSWORD@HOST:465")?;
        let host = url.host_str().ok_or("has an entry without a host")?.to_owned();
        let options = Options::parse(&url, settings)?;
        let name = host.trim_matches(['[', ']']);
        let unchecked = || format!("names {host}, which no certificate can be checked against");
        let (tls, port) = match (url.scheme(), options.plain) {
            ("smtps", false) => (Tls::Implicit(Implicit::new(name, ca).ok_or_else(unchecked)?), 465),
            ("smtp", false) => (Tls::StartTls(starttls(name, ca).ok_or_else(unchecked)?), 587),
            ("smtp", true) if is_local(url.host()) || is_local_name(&host) => (Tls::Plain, 25),
            ("smtp", true) => {
                return Err(format!(
                    "would send codes to {host} in plain text: remove tls=none, or use smtps://"
                ));
            }
            ("smtps", true) => return Err("has an entry with both smtps:// and tls=none".into()),
            _ => return Err("has an entry that begins with neither smtp:// nor smtps://".into()),
        };
        let decoded = |text: &str| {
            let text = percent_decode_str(text).decode_utf8().map(std::borrow::Cow::into_owned);
            text.map_err(|_| "has a user or password that is not UTF-8 when percent-decoded")
        };
        let sign_in = match (url.username(), url.password(), options.xoauth2) {
            ("", None, false) => SignIn::Nothing,
            (user, Some(password), false) if !user.is_empty() => {
                SignIn::Password(Credentials::new(decoded(user)?, decoded(password)?))
            }
            (user, None, true) if !user.is_empty() => {
                let tokens =
                    tokens.ok_or("has an entry with auth=xoauth2, which needs SMTP_OAUTH_TOKEN_URL")?;
                SignIn::Token { user: decoded(user)?, tokens: Arc::clone(tokens) }
            }
            (.., true) => {
                return Err("has an entry with auth=xoauth2, which needs a user and no password".into());
            }
            (.., false) => return Err("has an entry with a user or a password, but not both".into()),
        };
        let (connections, per_second) = (options.connections, options.per_second);
        Ok(Self { host, port: url.port().unwrap_or(port), tls, sign_in, connections, per_second })
    }
}

/// The options of a relay's URL, with defaults from the settings.
struct Options {
    plain: bool,
    xoauth2: bool,
    connections: u32,
    per_second: Option<NonZeroU32>,
}

impl Options {
    fn parse(url: &Url, settings: &RelaySettings) -> Result<Self, String> {
        let mut options =
            Self { plain: false, xoauth2: false, connections: settings.smtp_connections, per_second: None };
        for (name, value) in url.query_pairs() {
            match (&*name, &*value) {
                ("tls", "none") => options.plain = true,
                ("auth", "xoauth2") => options.xoauth2 = true,
                ("connections", number) => {
                    options.connections = number
                        .parse()
                        .ok()
                        .filter(|number| (1..=256).contains(number))
                        .ok_or("has an entry whose connections= is not between 1 and 256")?;
                }
                ("per_second", number) => {
                    let number = number.parse().map_err(
                        |_| "has an entry whose per_second= is not a whole number of emails, at least 1",
                    )?;
                    options.per_second = Some(number);
                }
                _ => {
                    return Err("has an entry with an option that is none of tls=none, auth=xoauth2, connections=N and per_second=N".into());
                }
            }
        }
        Ok(options)
    }
}

fn is_local_name(host: &str) -> bool {
    // The url crate does not parse the host of a URL with a scheme that it does not know.
    is_local(url::Host::parse(host).ok())
}

/// Whether there is a `%` without two hexadecimal digits after it.
fn has_stray_percent(text: &str) -> bool {
    let is_escape = |after: &str| matches!(after.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    !text.split('%').skip(1).all(is_escape)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Settings {
        #[command(flatten)]
        relays: RelaySettings,
    }

    #[test]
    fn relays_are_read_and_plain_text_stays_on_this_machine() {
        let settings = Settings::parse_from(["test"]).relays;
        let parse = |text: &str| RelayUrl::parse(text, &settings, None, None);
        assert!(matches!(
            parse("smtps://u:p%40@mx.example.com").unwrap(),
            RelayUrl { port: 465, tls: Tls::Implicit(_), .. }
        ));
        assert!(matches!(
            parse("smtp://mx.example.com:2525").unwrap(),
            RelayUrl { port: 2525, tls: Tls::StartTls(_), .. }
        ));
        for local in
            ["smtp://127.0.0.1:2525?tls=none", "smtp://[::1]:2525?tls=none", "smtp://localhost?tls=none"]
        {
            assert!(matches!(parse(local).unwrap().tls, Tls::Plain), "{local}");
        }
        for bad in [
            "smtp://10.0.0.1?tls=none",
            "smtp://mx.example.com?tls=none",
            "smtp://mx.example.com?tls=maybe",
            "smtps://127.0.0.1?tls=none",
            "smtps://mx.example.com?connections=0",
            "smtps://mx.example.com?connections=257",
            "smtps://mx.example.com?per_second=0",
            "smtps://mx.example.com?per_second=a",
            "http://x",
            "x",
            "smtp://alice@x.vn",
            "smtp://alice@x.vn?auth=xoauth2",
            "smtp://alice:p@x.vn?auth=xoauth2",
            "smtp://x.vn?auth=xoauth2",
            "smtp://alice:p@x.vn?auth=plain",
        ] {
            let why = parse(bad).err().unwrap_or_else(|| panic!("{bad} was accepted"));
            assert!(!why.contains("alice"), "{why}");
        }
    }

    #[test]
    fn user_and_password_are_percent_encoded() {
        let settings = Settings::parse_from(["test"]).relays;
        let parse =
            |user: &str| RelayUrl::parse(&format!("smtps://{user}@mx.example.com"), &settings, None, None);
        for (given, user, password) in [
            ("a%40x.vn:p%40%3A%2F%25%2c%20%3f%23", "a@x.vn", "p@:/%, ?#"),
            ("a:100%25", "a", "100%"),
            ("a:p+q", "a", "p+q"),
            ("a:m%E1%BA%ADt", "a", "mật"),
        ] {
            let expected = Credentials::new(user.into(), password.into());
            let is_read = |sign_in| matches!(sign_in, SignIn::Password(read) if read == expected);
            assert!(is_read(parse(given).unwrap().sign_in), "{given}");
        }
        for stray in ["a:100%", "a:50%off", "a:%4", "a:%%40", "a%:b", "a:%x0"] {
            let why = parse(stray).err().unwrap();
            assert!(why.contains("not part of an escape") && !why.contains("off"), "{stray}: {why}");
        }
        assert!(parse("a:%ff").err().unwrap().contains("not UTF-8"));
    }
}
