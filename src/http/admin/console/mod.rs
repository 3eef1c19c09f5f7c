//! `/console`: one page for the support desk, at the address of the admin API. It uses only that
//! API, so a role has the same rights in both.

#![expect(clippy::ref_binding_to_reference, reason = "askama's derive writes such patterns")]

use std::sync::Arc;

use askama::Template;
use axum::extract::RawQuery;
use axum::http::HeaderMap;
use axum::response::{Redirect, Response};
use axum::routing::get;
use axum::{Extension, Router};
use url::form_urlencoded;

use crate::brand::Picture;
use crate::config::Config;
use crate::http::extract::locale_of;
use crate::http::files::{self, Files};
use crate::locale::Locale;

const CSS: &str = include_str!("console.css");
const SCRIPT: &str = include_str!("console.js");

/// The routes of the console and its files. They need no credential, because they contain no data
/// of accounts.
pub fn routes<S: Clone + Send + Sync + 'static>(config: &Config) -> Router<S> {
    let brand = config.mail.brand();
    let icon = files::icon(brand);
    let others = vec![
        files::css("console.css", brand, CSS),
        files::script("console.js", SCRIPT),
        files::picture(&icon),
    ];
    let files = Files::new(others, |locale, version| html(config, locale, &icon, version));
    Router::new()
        .route("/", get(async || Redirect::to("/console")))
        .route("/console", get(page))
        .route("/console/{file}", get(files::file))
        .layer(Extension(Arc::new(files)))
}

fn html(config: &Config, locale: Locale, icon: &Picture, version: &str) -> String {
    let certificates = config.admin.admin_client_ca.is_some();
    let facts = &Facts { brand: config.mail.product_name(locale), icon, certificates, version };
    let page = match locale {
        Locale::Vi => Page::Vi { page: facts },
        Locale::En => Page::En { page: facts },
    };
    page.render().expect("nothing in the template can fail")
}

/// `GET /console`, in the language of `?lang=`, else in the browser's, else in Vietnamese. It sets
/// no cookie.
async fn page(
    Extension(files): Extension<Arc<Files>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let query = query.unwrap_or_default();
    let chosen = form_urlencoded::parse(query.as_bytes())
        .find_map(|(name, value)| (name == "lang").then(|| value.parse().ok()).flatten());
    let locale = chosen.or_else(|| locale_of(&headers)).unwrap_or(Locale::Vi);
    files.page(locale, "accept-language", &headers)
}

/// The settings that the page's HTML contains.
struct Facts<'a> {
    brand: &'a str,
    icon: &'a Picture,
    /// Whether an operator may present a client certificate instead of a token.
    certificates: bool,
    version: &'a str,
}

#[derive(Template)]
enum Page<'a> {
    #[template(path = "console.vi.html")]
    Vi { page: &'a Facts<'a> },
    #[template(path = "console.en.html")]
    En { page: &'a Facts<'a> },
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use strum::VariantArray as _;

    use super::SCRIPT;
    use crate::audit::Event;
    use crate::http::admin::OPERATIONS;
    use crate::mail::message::MailKind;
    use crate::operator::Role;

    const VI: &str = include_str!("console.vi.html");
    const EN: &str = include_str!("console.en.html");

    /// The texts between `begin` and `end`.
    fn between<'a>(text: &'a str, begin: &str, end: char) -> BTreeSet<&'a str> {
        text.split(begin).skip(1).filter_map(|rest| rest.split(end).next()).collect()
    }

    #[test]
    fn both_languages_have_every_block_of_the_layout_and_every_word() {
        let asked = between(include_str!("console.html"), "{% block ", ' ');
        assert_eq!(between(VI, "{% block ", ' '), asked);
        assert_eq!(between(EN, "{% block ", ' '), asked);
        let words = between(EN, "<data value=\"", '"');
        assert_eq!(between(VI, "<data value=\"", '"'), words);
        for called in between(SCRIPT, "say('", '\'') {
            assert!(words.contains(called), "{called}");
        }
    }

    /// Every event, call, email kind and role has a text. Otherwise the console would show its
    /// internal name.
    #[test]
    fn every_name_of_the_service_has_a_word() {
        let words = between(EN, "<data value=\"", '"');
        let events = Event::VARIANTS.iter().map(|event| format!("event.{}", <&str>::from(event)));
        let calls = OPERATIONS.iter().map(|operation| format!("call.{}", operation.name));
        let mails = MailKind::IN_OUTBOX.iter().map(|kind| format!("mail.{}", <&str>::from(kind)));
        let roles = Role::VARIANTS.iter().map(|role| format!("role.{role}"));
        for name in events.chain(calls).chain(mails).chain(roles) {
            assert!(words.contains(name.as_str()), "{name}");
        }
    }
}
