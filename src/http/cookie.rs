//! The cookies for a recovery, a known device and a chosen language (RFC 6265bis, with the
//! `__Host-` prefix).
//!
//! They are written by tower-cookies but read from the raw header. tower-cookies decodes
//! `%5F%5FHost-…` and trims Unicode space in names, so a sibling host could plant a cookie.

use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::COOKIE;
use tower_cookies::cookie::SameSite;
use tower_cookies::cookie::time::Duration as MaxAge;
use tower_cookies::{Cookie, Cookies};

use crate::app::App;
use crate::config::DEVICE_LIFETIME;
use crate::http::error::ceil_seconds;
use crate::known_device::{self, KnownDevice};
use crate::locale::Locale;
use crate::secret::Token;
use crate::session::STEP_LIFETIME;

const RECOVERY: &str = "__Host-vos_recovery";
const LOGIN: &str = "__Host-vos_login";
const DEVICE: &str = "__Host-vos_device";
const LANGUAGE: &str = "__Host-vos_language";

/// The recovery token of a request. `None` unless the cookie occurs exactly once and its token is
/// well-formed.
#[must_use]
pub fn recovery_token(headers: &HeaderMap) -> Option<Token> {
    Token::parse(value(headers, RECOVERY)?)
}

/// The token of a login that waits for its second factor, read as [`recovery_token`] is.
#[must_use]
pub fn login_token(headers: &HeaderMap) -> Option<Token> {
    Token::parse(value(headers, LOGIN)?)
}

/// Whether a request has the recovery cookie exactly once, whatever its value.
#[must_use]
pub fn has_recovery(headers: &HeaderMap) -> bool {
    value(headers, RECOVERY).is_some()
}

/// The browser that sent a request, if a user has signed in on it before.
#[must_use]
pub fn known_device(headers: &HeaderMap, app: &App) -> Option<KnownDevice> {
    KnownDevice::read(&known_device::COOKIE, &app.device_keys, value(headers, DEVICE)?, app.clock.now())
}

/// The language that the user chose on a page in this browser.
#[must_use]
pub fn language(headers: &HeaderMap) -> Option<Locale> {
    value(headers, LANGUAGE)?.parse().ok()
}

fn value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(COOKIE).iter().flat_map(|line| {
        line.as_bytes().split(|byte| *byte == b';').filter_map(|pair| {
            let pair = pair.trim_ascii_start();
            pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
        })
    });
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    std::str::from_utf8(value.trim_ascii_end()).ok()
}

/// Sets the recovery cookie for `lifetime`, rounded up to seconds: the cookie must not expire
/// before its session.
pub fn set_recovery(cookies: &Cookies, token: &Token, lifetime: Duration) {
    set(cookies, RECOVERY, token.expose(), lifetime);
}

/// Deletes the recovery cookie. The deletion repeats its attributes, because browsers refuse a
/// `__Host-` cookie without `Secure` and `Path=/`.
pub fn clear_recovery(cookies: &Cookies) {
    set(cookies, RECOVERY, String::new(), Duration::ZERO);
}

/// Sets the cookie of a login that waits for its second factor.
pub fn set_login(cookies: &Cookies, token: &Token) {
    set(cookies, LOGIN, token.expose(), STEP_LIFETIME);
}

/// Deletes the cookie of a login that was completed.
pub fn clear_login(cookies: &Cookies) {
    set(cookies, LOGIN, String::new(), Duration::ZERO);
}

/// Sets the device cookie, which makes the browser known for a year.
pub fn set_device(cookies: &Cookies, value: String) {
    set(cookies, DEVICE, value, DEVICE_LIFETIME);
}

/// Sets the cookie with the chosen language for a year.
pub fn set_language(cookies: &Cookies, language: Locale) {
    set(cookies, LANGUAGE, <&str>::from(language).to_owned(), DEVICE_LIFETIME);
}

fn set(cookies: &Cookies, name: &'static str, value: String, lifetime: Duration) {
    let max_age = ceil_seconds(lifetime);
    cookies.add(
        Cookie::build((name, value))
            .http_only(true)
            .secure(true)
            .same_site(SameSite::Strict)
            .path("/")
            .max_age(MaxAge::seconds(i64::try_from(max_age).unwrap_or(i64::MAX)))
            .build(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Key;

    #[test]
    fn only_a_single_cookie_of_the_exact_name_is_read() {
        let token = Token::issue(&Key::random("a"), "test/1", time::OffsetDateTime::UNIX_EPOCH);
        let text = token.expose();
        let read = |lines: &[String]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(COOKIE, line.parse().unwrap());
            }
            recovery_token(&headers).map(|token| token.hash())
        };
        let plain = format!("{RECOVERY}={text}");
        for good in [plain.clone(), format!("a=b; {plain}; c=d"), format!("a=b;{plain} ")] {
            assert_eq!(read(&[good]), Some(token.hash()));
        }
        assert_eq!(read(&[plain.clone(), "a=b".into()]), Some(token.hash()));
        for bad in [
            format!("%5F%5FHost-vos_recovery={text}"),
            format!("\u{2000}{plain}"),
            format!("__host-vos_recovery={text}"),
            format!("{RECOVERY} ={text}"),
            format!("{RECOVERY}=\"{text}\""),
            format!("{plain}; {plain}"),
            format!("x{plain}"),
            format!("{RECOVERY}={}", &text[1..]),
        ] {
            assert_eq!(read(std::slice::from_ref(&bad)), None, "{bad}");
        }
        assert_eq!(read(&[plain.clone(), plain]), None);
    }
}
