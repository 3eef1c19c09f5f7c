//! Ory Kratos's admin API: its list of identities page by page, one identity, and an identity put back.
//!
//! The client asks the given address alone: it follows no redirect, and takes of the link to the next page nothing but its
//! token. Answers are bounded in time and in octets. No error quotes an answer, which holds addresses and hashes.

mod url;

use std::time::Duration;

use ::url::Url;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LINK};
use hyper::{Method, Request, StatusCode};
use serde::Deserialize;
use uuid::Uuid;

pub use self::url::AdminUrl;
use crate::config::ConfigError;
use crate::http_client::{Bounds, HttpClient, RequestError};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a whole answer may take: a page of 1,000 identities from a busy Kratos needs seconds.
const ANSWER: Duration = Duration::from_mins(1);
/// The longest identity and the longest page, in octets.
const MAX_IDENTITY: usize = 1 << 20;
const MAX_PAGE: usize = 64 << 20;

/// A client of one Kratos.
#[derive(Clone, Debug)]
pub struct Kratos {
    url: AdminUrl,
    authorization: Option<HeaderValue>,
    client: HttpClient,
}

/// Why Kratos did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KratosError {
    /// No answer, or not a whole one.
    #[error("it does not answer ({0})")]
    Away(String),
    /// An answer with another status than the one that is hoped for.
    #[error("it answered {0}{hint}", hint = hint(*.0))]
    Status(StatusCode),
    /// An answer that is not of this API.
    #[error("{0}")]
    Unreadable(&'static str),
}

impl KratosError {
    /// Whether the next request would fare no better.
    #[must_use]
    pub fn is_of_all_requests(&self) -> bool {
        match self {
            Self::Away(_) => true,
            Self::Status(status) => {
                status.is_redirection() || matches!(status.as_u16(), 401 | 403 | 407 | 429 | 502..=504)
            }
            Self::Unreadable(_) => false,
        }
    }
}

fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => ": redirects are not followed; give the address that it names",
        401 | 403 => ": set KRATOS_AUTHORIZATION to what the proxy before it asks for",
        404 => ": is this the admin API, whose usual port is 4434?",
        429 => ": it limits requests; try again later",
        _ => "",
    }
}

/// A page of the list.
pub struct Page {
    /// A JSON array of identities, as Kratos wrote it.
    pub identities: Bytes,
    /// What asks for the next page; `None` after the last one.
    pub next: Option<String>,
}

impl Kratos {
    /// A client that connects to nothing yet. `plain_http` lets hashes cross a network without TLS. `authorization` is the
    /// value of that header.
    ///
    /// # Errors
    ///
    /// A sentence, if the address needs TLS, there is no certificate to check it by, or `authorization` is no header.
    pub fn new(url: AdminUrl, plain_http: bool, authorization: Option<&str>) -> Result<Self, ConfigError> {
        let unusable = |why: String| ConfigError::new("the URL of Kratos", why);
        if !plain_http && !url.is_safe() {
            let why = "would carry the hashes of passwords over a network without TLS: use https, or --plain-http if that \
                       network is yours alone";
            return Err(unusable(why.into()));
        }
        let client = HttpClient::new(url.is_https(), CONNECT);
        let client = client.map_err(|error| unusable(format!("cannot be checked: {error}")))?;
        let authorization = authorization.map(|value| {
            let mut value = HeaderValue::from_str(value).map_err(|_| {
                ConfigError::new("KRATOS_AUTHORIZATION", "is not the value of an HTTP header")
            })?;
            value.set_sensitive(true);
            Ok::<_, ConfigError>(value)
        });
        Ok(Self { url, authorization: authorization.transpose()?, client })
    }

    /// A page of the list, in the order of ids, with passwords.
    pub async fn page(&self, size: u16, token: Option<&str>) -> Result<Page, KratosError> {
        let mut url = self.url.of_identities();
        url.query_pairs_mut()
            .append_pair("include_credential", "password")
            .append_pair("page_size", &size.to_string());
        if let Some(token) = token {
            url.query_pairs_mut().append_pair("page_token", token);
        }
        let (status, headers, identities) = self.ask(Method::GET, &url, None, MAX_PAGE).await?;
        if status != StatusCode::OK {
            return Err(KratosError::Status(status));
        }
        if identities.trim_ascii_start().first() != Some(&b'[') {
            return Err(KratosError::Unreadable("it answered with something else than a list of identities"));
        }
        Ok(Page { identities, next: next_page(&headers, &url)? })
    }

    /// An identity with its password, as Kratos writes it; `None` if there is none with this id.
    pub async fn identity(&self, id: Uuid) -> Result<Option<Bytes>, KratosError> {
        let mut url = self.url.of_identity(id);
        url.query_pairs_mut().append_pair("include_credential", "password");
        match self.ask(Method::GET, &url, None, MAX_IDENTITY).await? {
            (StatusCode::OK, _, identity) if is_of(&identity, id) => Ok(Some(identity)),
            (StatusCode::OK, ..) => Err(KratosError::Unreadable(
                "it answered with something else than the identity that was asked for",
            )),
            (StatusCode::NOT_FOUND, ..) => Ok(None),
            (status, ..) => Err(KratosError::Status(status)),
        }
    }

    /// Replaces an identity, all but the credentials that `identity` does not have.
    pub async fn put(&self, id: Uuid, identity: Vec<u8>) -> Result<(), KratosError> {
        match self.ask(Method::PUT, &self.url.of_identity(id), Some(identity), MAX_IDENTITY).await? {
            (StatusCode::OK, ..) => Ok(()),
            (status, ..) => Err(KratosError::Status(status)),
        }
    }

    async fn ask(
        &self,
        method: Method,
        url: &Url,
        json: Option<Vec<u8>>,
        max: usize,
    ) -> Result<(StatusCode, HeaderMap, Bytes), KratosError> {
        let mut request =
            Request::builder().method(method).uri(url.as_str()).header(ACCEPT, "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if json.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::from(json.unwrap_or_default());
        let request = request.body(body).map_err(|error| KratosError::Away(error.to_string()))?;
        let answer = self.client.send(request, Bounds { time: ANSWER, octets: max }).await?;
        let (head, body) = answer.into_parts();
        Ok((head.status, head.headers, body))
    }
}

impl From<RequestError> for KratosError {
    fn from(why: RequestError) -> Self {
        match why {
            RequestError::TooLong => {
                Self::Unreadable("its answer is too long: ask for smaller pages (--page-size)")
            }
            RequestError::ConnectionFailed(_) | RequestError::TimedOut(_) => Self::Away(why.to_string()),
        }
    }
}

/// Whether an answer is the identity of this id: another one's traits must not be put in its place.
fn is_of(identity: &[u8], id: Uuid) -> bool {
    #[derive(Deserialize)]
    struct Named {
        id: Uuid,
    }
    serde_json::from_slice::<Named>(identity).is_ok_and(|named| named.id == id)
}

/// The token of the next page, of the header `Link` (RFC 8288). Only the token: a proxy may have changed the rest.
fn next_page(headers: &HeaderMap, asked: &Url) -> Result<Option<String>, KratosError> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    let next = links.flat_map(|links| links.split('<')).find_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        let is_next =
            parameters.split([';', ',']).any(|one| matches!(one.trim(), "rel=\"next\"" | "rel=next"));
        is_next.then_some(target)
    });
    let Some(next) = next else { return Ok(None) };
    let url = asked.join(next).ok();
    let token = url.and_then(|url| {
        url.query_pairs().find_map(|(name, value)| (name == "page_token").then(|| value.into_owned()))
    });
    let unknown = "its list has no page tokens: it is older than Kratos 1.0; import a file from it";
    token.filter(|token| !token.is_empty()).map(Some).ok_or(KratosError::Unreadable(unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_next_page_only_the_token_is_taken() {
        let asked = Url::parse("http://127.0.0.1:4434/admin/identities?page_size=2").unwrap();
        let next = |link: &'static str| {
            let headers = HeaderMap::from_iter([(LINK, HeaderValue::from_static(link))]);
            next_page(&headers, &asked).map_err(|error| error.to_string())
        };
        let first = "</admin/identities?page_size=2&page_token=00>; rel=\"first\"";
        assert_eq!(next(first), Ok(None));
        for target in [
            "/admin/identities?page_size=2&page_token=a%2Bb",
            "https://elsewhere.example/x?page_token=a%2Bb",
            "?page_token=a%2Bb&page_size=2",
        ] {
            let link: &'static str = format!("{first},<{target}>; rel=\"next\"").leak();
            assert_eq!(next(link), Ok(Some("a+b".to_owned())), "{link}");
        }
        assert!(next("</admin/identities?page=2>; rel=\"next\"").unwrap_err().contains("no page tokens"));
    }
}
