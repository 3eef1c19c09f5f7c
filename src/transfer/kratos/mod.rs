//! A client of Ory Kratos's admin API: lists identities page by page, reads one identity, replaces
//! an identity.
//!
//! The client sends requests only to the given address: it follows no redirect, and uses only the
//! token of the link to the next page. Responses are bounded in time and size. No error quotes a
//! response, which contains addresses and hashes.

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

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);
/// The timeout of a whole response: a page of 1,000 identities from a busy Kratos takes seconds.
const ANSWER: Duration = Duration::from_mins(1);
/// The maximum size of an identity and of a page, in octets.
const MAX_IDENTITY: usize = 1 << 20;
const MAX_PAGE: usize = 64 << 20;

/// A client of one Kratos.
#[derive(Clone, Debug)]
pub struct Kratos {
    url: AdminUrl,
    authorization: Option<HeaderValue>,
    client: HttpClient,
}

/// Why a request to Kratos failed.
#[derive(Debug, thiserror::Error)]
pub enum KratosError {
    /// There was no response, or an incomplete one.
    #[error("it does not answer ({0})")]
    Unreachable(String),
    /// The response has an unexpected status.
    #[error("it answered {0}{hint}", hint = hint(*.0))]
    Status(StatusCode),
    /// The response cannot be used, for this reason.
    #[error("{0}")]
    Unreadable(&'static str),
}

impl KratosError {
    /// Whether the next request would fail in the same way.
    #[must_use]
    pub fn affects_every_request(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Status(status) => {
                status.is_redirection() || matches!(status.as_u16(), 401 | 403 | 407 | 429 | 502..=504)
            }
            Self::Unreadable(_) => false,
        }
    }
}

fn hint(status: StatusCode) -> &'static str {
    match status.as_u16() {
        300..=399 => ": redirects are not followed; give the address that it redirects to",
        401 | 403 => ": set KRATOS_AUTHORIZATION to the header value that the proxy in front of it requires",
        404 => ": is this the admin API, whose usual port is 4434?",
        429 => ": it limits the rate of requests; try again later",
        _ => "",
    }
}

/// A page of the list of identities.
pub struct IdentityPage {
    /// A JSON array of identities, as Kratos wrote it.
    pub identities: Bytes,
    /// The token of the next page; `None` after the last one.
    pub next: Option<String>,
}

impl Kratos {
    /// Creates a client without connecting. `plain_http` allows hashes to cross a network without
    /// TLS. `authorization` is the value of the header `Authorization`.
    ///
    /// # Errors
    ///
    /// A sentence, if the address needs TLS, no root certificates are available, or `authorization`
    /// is not a header value.
    pub fn new(url: AdminUrl, plain_http: bool, authorization: Option<&str>) -> Result<Self, ConfigError> {
        let unusable = |why: String| ConfigError::new("the URL of Kratos", why);
        if !plain_http && !url.is_safe() {
            let why = "would send password hashes over a network without TLS: use https, or --plain-http if the network \
                       is private";
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

    /// Reads a page of identities with passwords, ordered by id.
    pub async fn page(&self, size: u16, token: Option<&str>) -> Result<IdentityPage, KratosError> {
        let mut url = self.url.identities_url();
        url.query_pairs_mut()
            .append_pair("include_credential", "password")
            .append_pair("page_size", &size.to_string());
        if let Some(token) = token {
            url.query_pairs_mut().append_pair("page_token", token);
        }
        let (status, headers, identities) = self.send(Method::GET, &url, None, MAX_PAGE).await?;
        if status != StatusCode::OK {
            return Err(KratosError::Status(status));
        }
        if identities.trim_ascii_start().first() != Some(&b'[') {
            return Err(KratosError::Unreadable("its answer is not a list of identities"));
        }
        Ok(IdentityPage { identities, next: next_page(&headers, &url)? })
    }

    /// Reads an identity with its password, as Kratos writes it; `None` if there is none with this
    /// id.
    pub async fn identity(&self, id: Uuid) -> Result<Option<Bytes>, KratosError> {
        let mut url = self.url.identity_url(id);
        url.query_pairs_mut().append_pair("include_credential", "password");
        match self.send(Method::GET, &url, None, MAX_IDENTITY).await? {
            (StatusCode::OK, _, identity) if is_identity(&identity, id) => Ok(Some(identity)),
            (StatusCode::OK, ..) => Err(KratosError::Unreadable("its answer is not the requested identity")),
            (StatusCode::NOT_FOUND, ..) => Ok(None),
            (status, ..) => Err(KratosError::Status(status)),
        }
    }

    /// Replaces an identity, except credentials that `identity` omits.
    pub async fn put(&self, id: Uuid, identity: Vec<u8>) -> Result<(), KratosError> {
        match self.send(Method::PUT, &self.url.identity_url(id), Some(identity), MAX_IDENTITY).await? {
            (StatusCode::OK, ..) => Ok(()),
            (status, ..) => Err(KratosError::Status(status)),
        }
    }

    async fn send(
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
        let request = request.body(body).map_err(|error| KratosError::Unreachable(error.to_string()))?;
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
            RequestError::ConnectionFailed(_) | RequestError::TimedOut(_) => {
                Self::Unreachable(why.to_string())
            }
        }
    }
}

/// Whether a response is the identity with this id, so that the export never writes the traits of
/// one identity to another.
fn is_identity(identity: &[u8], id: Uuid) -> bool {
    #[derive(Deserialize)]
    struct IdentityId {
        id: Uuid,
    }
    serde_json::from_slice::<IdentityId>(identity).is_ok_and(|identity| identity.id == id)
}

/// The token of the next page, from the header `Link` (RFC 8288). Only the token is used, because a
/// proxy may have changed the rest.
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
    let unknown = "its list has no page tokens, because it is older than Kratos 1.0; import a file from it";
    token.filter(|token| !token.is_empty()).map(Some).ok_or(KratosError::Unreadable(unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_of_the_next_page_is_used() {
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
