//! `/docs`: an interactive reference of the API, which openapi-explorer renders from
//! `/openapi.json`. The page loads nothing from other hosts.

use axum::Router;
use axum::extract::RawQuery;
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tower_cookies::Cookies;

use crate::http::page;
use crate::locale::Locale;

/// `dist/browser/openapi-explorer.min.js` of the npm package openapi-explorer 2.4.820, compressed
/// with `gzip -9n`.
const VIEWER: &[u8] = include_bytes!("openapi-explorer.min.js.gz");

/// The viewer needs inline styles. Only lit-html may turn text into markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; \
                      form-action 'none'; base-uri 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types lit-html";

/// The page and its script.
pub fn routes() -> Router {
    let head = [(CONTENT_TYPE, "text/javascript; charset=utf-8"), (CONTENT_ENCODING, "gzip")];
    Router::new()
        .route("/docs", get(reference))
        .route("/docs/openapi-explorer.js", get(async move || (head, VIEWER)))
}

async fn reference(RawQuery(query): RawQuery, headers: HeaderMap, cookies: Cookies) -> Response {
    if let Some(chosen) = page::choose_language(query.as_deref(), "/docs", &cookies) {
        return chosen;
    }
    let head = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, POLICY)];
    (head, html(page::language(&headers))).into_response()
}

fn html(locale: Locale) -> String {
    let language: &'static str = locale.into();
    let (other, name) = match locale {
        Locale::Vi => ("en", "English"),
        Locale::En => ("vi", "Tiếng Việt"),
    };
    format!(
        r#"<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API · vos-auth dev</title>
<link rel="icon" href="data:,">
<script type="module" src="/docs/openapi-explorer.js"></script>
</head>
<body>
<openapi-explorer spec-url="/openapi.json?lang={language}" hide-components="true">
<a slot="nav-header" href="/docs?lang={other}" lang="{other}" hreflang="{other}" style="color: #fff; padding: 16px 24px 0">{name}</a>
</openapi-explorer>
</body>
</html>
"#
    )
}
