//! `/recovery`: the recovery page for users, until the OMS has its own, and a reference for that
//! page. It uses only the public API. The settings that it needs are in its HTML.

#![expect(clippy::ref_binding_to_reference, reason = "askama's derive writes such patterns")]

use std::sync::Arc;

use askama::Template;
use axum::extract::RawQuery;
use axum::http::header::LOCATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Extension, Router};
use tower_cookies::Cookies;
use url::form_urlencoded;

use crate::brand::Picture;
use crate::config::{Config, PASSWORD_MAX_CHARS, Phone};
use crate::email_address::EmailAddress;
use crate::http::extract::locale_of;
use crate::http::files::{self, Files};
use crate::http::{AppState, cookie};
use crate::locale::Locale;

const CSS: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page in both languages and its files, made and compressed once.
fn files_of(config: &Config) -> Files {
    let brand = config.mail.brand();
    let icon = files::icon(brand);
    let mut others = vec![files::css("page.css", brand, CSS), files::script("page.js", SCRIPT)];
    others.extend(brand.logo.iter().chain([&icon]).map(files::picture));
    Files::new(others, |locale, version| html(config, locale, &icon, version))
}

fn html(config: &Config, locale: Locale, icon: &Picture, version: &str) -> String {
    let sign_in = config.page.sign_in_url.as_ref().expect("`serve` and `dev` require it with the page");
    let support =
        EmailAddress::parse(&config.mail.mail_support).expect("the composer of emails has checked it");
    let brand = config.mail.brand();
    let facts = &Facts {
        brand: config.mail.product_name(locale),
        heading: brand.heading.as_ref().map(|text| text.in_language(locale)),
        footer: brand.footer.as_ref().map(|text| text.in_language(locale)),
        logo: brand.logo.as_ref().map(|logo| logo.name),
        icon,
        support: &config.mail.mail_support,
        support_link: support.mailto(),
        phone: config.mail.support_phone.as_ref(),
        sign_in: sign_in.to_string(),
        hands_over: sign_in.has_origin(config.clients.public_origin.as_ref()),
        min_chars: config.passwords.password_min_chars,
        max_chars: PASSWORD_MAX_CHARS,
        version,
    };
    let page = match locale {
        Locale::Vi => Page::Vi { page: facts },
        Locale::En => Page::En { page: facts },
    };
    page.render().expect("nothing in the template can fail")
}

/// The routes of the page and its files.
///
/// # Panics
///
/// Without `SIGN_IN_URL`, which `serve` and `dev` require with the page.
pub fn routes(config: &Config) -> Router<AppState> {
    Router::new()
        .route("/recovery", get(page))
        // Some people and apps add a slash to the URL.
        .route("/recovery/", get(to_page))
        // Password managers open this URL (W3C, A Well-Known URL for Changing Passwords).
        .route("/.well-known/change-password", get(to_page))
        .route("/recovery/{file}", get(files::file))
        .layer(Extension(Arc::new(files_of(config))))
}

/// `GET /recovery`, in the language that the user chose in this browser, else in the browser's
/// language, else in Vietnamese. `?lang=` chooses a language.
async fn page(
    Extension(files): Extension<Arc<Files>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    cookies: Cookies,
) -> Response {
    if let Some(chosen) = choose_language(query.as_deref(), "/recovery", &cookies) {
        return chosen;
    }
    files.page(language(&headers), "accept-language, cookie", &headers)
}

async fn to_page() -> Redirect {
    Redirect::to("/recovery")
}

/// The answer to `?lang=vi` or `?lang=en`: sets the language cookie and redirects to the page at
/// `path`. `None` for any other query.
#[must_use]
pub fn choose_language(query: Option<&str>, path: &'static str, cookies: &Cookies) -> Option<Response> {
    // Other parameters are ignored, because in-app browsers add their own.
    let mut parameters = form_urlencoded::parse(query?.as_bytes());
    let chosen =
        parameters.find_map(|(name, value)| (name == "lang").then(|| value.parse().ok()).flatten())?;
    cookie::set_language(cookies, chosen);
    Some((StatusCode::SEE_OTHER, [(LOCATION, path)]).into_response())
}

/// The language of a page: chosen by the user, preferred by the browser, or Vietnamese.
#[must_use]
pub fn language(headers: &HeaderMap) -> Locale {
    cookie::language(headers).or_else(|| locale_of(headers)).unwrap_or(Locale::Vi)
}

/// The settings that the page's HTML contains.
struct Facts<'a> {
    brand: &'a str,
    heading: Option<&'a str>,
    footer: Option<&'a str>,
    /// The name of the logo's file.
    logo: Option<&'static str>,
    icon: &'a Picture,
    support: &'a str,
    support_link: String,
    phone: Option<&'a Phone>,
    sign_in: String,
    hands_over: bool,
    min_chars: u16,
    max_chars: usize,
    version: &'a str,
}

#[derive(Template)]
enum Page<'a> {
    #[template(path = "recovery.vi.html")]
    Vi { page: &'a Facts<'a> },
    #[template(path = "recovery.en.html")]
    En { page: &'a Facts<'a> },
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn both_languages_have_every_block_of_the_layout() {
        let blocks = |text: &'static str| -> BTreeSet<&str> {
            text.split("{% block ").skip(1).filter_map(|rest| rest.split(' ').next()).collect()
        };
        let asked = blocks(include_str!("recovery.html"));
        assert_eq!(blocks(include_str!("recovery.vi.html")), asked);
        assert_eq!(blocks(include_str!("recovery.en.html")), asked);
    }
}
