//! Documents for clients: the OpenAPI description and the public keys of JWTs (JWKS).

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::response::{IntoResponse, Response};

use crate::error::{Error, Problem};
use crate::http::AppState;
use crate::http::extract::locale_of;
use crate::jwt::JWKS_MAX_AGE;
use crate::locale::Locale;

const OPENAPI_VI: &str = include_str!("../../openapi/openapi.oms.vi.json");
const OPENAPI_EN: &str = include_str!("../../openapi/openapi.oms.en.json");

/// `GET /openapi.json?lang=vi|en`: the OpenAPI description. Without `lang` it is in the language
/// that the request prefers.
///
/// # Errors
///
/// `QueryInvalid` for another parameter, another language, or a repeated parameter.
pub async fn openapi(RawQuery(query): RawQuery, headers: HeaderMap) -> Result<Response, Error> {
    let query = query.unwrap_or_default();
    let mut parameters = url::form_urlencoded::parse(query.as_bytes());
    let locale = match (parameters.next(), parameters.next()) {
        (None, _) => locale_of(&headers).unwrap_or(Locale::En),
        (Some((name, value)), None) if name == "lang" => value.parse().map_err(|_| Problem::QueryInvalid)?,
        _ => return Err(Problem::QueryInvalid.into()),
    };
    let document = match locale {
        Locale::Vi => OPENAPI_VI,
        Locale::En => OPENAPI_EN,
    };
    let head = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "public, max-age=300"),
        (VARY, "accept-language"),
    ];
    Ok((head, document).into_response())
}

/// `GET /.well-known/jwks.json`: the public keys that verify the JWTs.
pub async fn jwks(State(state): State<AppState>) -> Response {
    let cached = format!("public, max-age={}", JWKS_MAX_AGE.as_secs());
    let keys = state.app.jwt_keys.jwks(state.app.clock.now());
    ([(CACHE_CONTROL, cached)], Json(keys)).into_response()
}
