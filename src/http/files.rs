//! A page in both languages and its files: compressed once, and each with a content security
//! policy. Browsers cache the files by a version in their URLs.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery};
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderName, VARY};
use axum::response::{AppendHeaders, IntoResponse, Response};
use sha2::{Digest, Sha256};

use crate::brand::{Brand, Picture};
use crate::error::{Error, Problem};
use crate::http::asset::Asset;
use crate::locale::Locale;

/// The policy of a page: it may load its own files and call the API, and scripts cannot turn text
/// into markup. Browsers must not submit its forms, because forms without the script would put
/// their fields into the URL.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// The policy of the files of a page. If a user opens one by itself, such as a picture, it runs no
/// script, loads nothing and has an opaque origin.
const FILE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox";

const ICON: &str = include_str!("icon.svg");

/// A file before it is compressed: its name, its content type and its content.
pub type NewFile = (&'static str, &'static str, Bytes);

/// A page and its files.
#[derive(Debug)]
pub struct Files {
    vi: Asset,
    en: Asset,
    /// The files of the page, each with its name.
    others: Vec<(&'static str, Asset)>,
    /// The beginning of a hash over `others`. It is in the URLs of these files, so browsers can
    /// cache them until they change.
    version: String,
}

impl Files {
    /// Compresses `others`, and the HTML that `html` makes for a language and a version.
    pub fn new(others: Vec<NewFile>, html: impl Fn(Locale, &str) -> String) -> Self {
        let mut digest = Sha256::new();
        for (.., content) in &others {
            digest.update(content);
        }
        let version =
            digest.finalize()[..8].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        let [vi, en] = [Locale::Vi, Locale::En]
            .map(|locale| Asset::new("text/html; charset=utf-8", html(locale, &version).into_bytes()));
        let compressed = |(name, content_type, content)| (name, Asset::new(content_type, content));
        Self { vi, en, others: others.into_iter().map(compressed).collect(), version }
    }

    /// The page in a language. `vary` names the headers that the language depends on.
    pub fn page(&self, locale: Locale, vary: &'static str, headers: &HeaderMap) -> Response {
        let page = match locale {
            Locale::Vi => &self.vi,
            Locale::En => &self.en,
        };
        let head = [
            (CONTENT_SECURITY_POLICY, POLICY),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
            (VARY, vary),
        ];
        // The page's headers are appended to those of the asset, because both contain `Vary`.
        (AppendHeaders(head), page.answer(headers)).into_response()
    }

    /// A file by its name. If the URL has another version than this replica's, as during a
    /// roll-out, browsers must not cache the answer.
    fn file(
        &self,
        name: Result<Path<String>, PathRejection>,
        version: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Response, Error> {
        let Path(name) = name.map_err(|_| Problem::NotFound)?;
        let (_, asset) = self.others.iter().find(|(known, _)| *known == name).ok_or(Problem::NotFound)?;
        let cache = if version == Some(self.version.as_str()) {
            "public, max-age=31536000, immutable"
        } else {
            "no-store"
        };
        let head = [(CACHE_CONTROL, cache), (CONTENT_SECURITY_POLICY, FILE_POLICY)];
        Ok((head, asset.answer(headers)).into_response())
    }
}

/// Answers `GET /…/{file}?VERSION` with a file of the page whose [`Files`] are an extension.
///
/// # Errors
///
/// `NotFound` if there is no such file.
pub async fn file(
    Extension(files): Extension<Arc<Files>>,
    name: Result<Path<String>, PathRejection>,
    RawQuery(version): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Error> {
    files.file(name, version.as_deref(), &headers)
}

/// A script.
pub fn script(name: &'static str, content: &'static str) -> NewFile {
    (name, "text/javascript; charset=utf-8", content.into())
}

/// A style sheet with the colors of a brand.
pub fn css(name: &'static str, brand: &Brand, content: &str) -> NewFile {
    let (light, dark) = (brand.light.css(), brand.dark.css());
    let css = format!(
        ":root {{ color-scheme: light dark; {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{content}"
    );
    (name, "text/css; charset=utf-8", css.into())
}

/// A picture.
pub fn picture(picture: &Picture) -> NewFile {
    (picture.name, picture.content_type, picture.content.clone().into())
}

/// The icon of a brand, or the built-in one.
///
/// # Panics
///
/// If the built-in icon fails the checks of [`Picture::svg`], which tests rule out.
pub fn icon(brand: &Brand) -> Picture {
    let ours = || Picture::svg("icon.svg", ICON.into()).expect("our own icon is harmless");
    brand.icon.clone().unwrap_or_else(ours)
}
