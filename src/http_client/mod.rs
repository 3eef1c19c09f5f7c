//! An HTTP/1.1 client for the few services that vos-auth calls. Time and size of a response are
//! bounded. There are no redirects, cookies or proxies.

mod reach;

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, USER_AGENT};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore};

pub use self::reach::Reach;
use self::reach::Resolver;

/// The bounds of one response.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Time from the request to the end of the response.
    pub time: Duration,
    /// Maximum length of the body, in octets.
    pub octets: usize,
}

/// A client for one service. Clones share its connections.
#[derive(Clone, Debug)]
pub struct HttpClient(Connections);

/// Plain HTTP has a client of its own: it needs no root certificates, which a minimal machine may
/// lack.
#[derive(Clone, Debug)]
enum Connections {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
    Within(Reach, Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>),
}

/// Why there is no complete response. It quotes nothing from a response.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The connection failed, for these causes.
    #[error("{0}")]
    ConnectionFailed(String),
    /// The response took longer than allowed.
    #[error("not within {} seconds", .0.as_secs())]
    TimedOut(Duration),
    /// The body of the response is longer than allowed.
    #[error("its answer is too long")]
    TooLong,
}

impl HttpClient {
    /// A client that uses TLS for every connection, or for none. It does not connect yet. `connect`
    /// bounds one attempt to connect.
    ///
    /// # Errors
    ///
    /// If this machine has no root certificates.
    pub fn new(is_https: bool, connect: Duration) -> io::Result<Self> {
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(connect));
        let client = || Client::builder(TokioExecutor::new());
        Ok(Self(if is_https {
            http.enforce_http(false);
            let tls = HttpsConnectorBuilder::new().with_native_roots()?;
            Connections::Tls(client().build(tls.https_only().enable_http1().wrap_connector(http)))
        } else {
            Connections::Plain(client().build(http))
        }))
    }

    /// A client that uses TLS for every connection and connects only to addresses within `reach`,
    /// whatever a name resolves to. It trusts the machine's certificate authorities and those in
    /// the PEM file `authorities`.
    ///
    /// # Errors
    ///
    /// The file cannot be read or contains no certificate, or no authority is known.
    pub fn within(reach: Reach, authorities: Option<&Path>, connect: Duration) -> io::Result<Self> {
        let mut http = HttpConnector::new_with_resolver(Resolver(reach.clone()));
        http.set_connect_timeout(Some(connect));
        http.enforce_http(false);
        let tls = HttpsConnectorBuilder::new().with_tls_config(tls_config(authorities)?);
        let connector = tls.https_only().enable_http1().wrap_connector(http);
        Ok(Self(Connections::Within(reach, Client::builder(TokioExecutor::new()).build(connector))))
    }

    /// Sends a request and reads the whole response, whatever its status.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        bounds: Bounds,
    ) -> Result<Response<Bytes>, RequestError> {
        let name = HeaderValue::from_static(concat!("vos-auth/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, name);
        if !self.0.allows(&request) {
            return Err(connection_failed(&reach::out_of_reach()));
        }
        let exchange = async {
            let (head, body) =
                self.0.request(request).await.map_err(|error| connection_failed(&error))?.into_parts();
            let body = Limited::new(body, bounds.octets).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() {
                    RequestError::TooLong
                } else {
                    connection_failed(&*error)
                }
            })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(bounds.time, exchange).await.map_err(|_| RequestError::TimedOut(bounds.time))?
    }
}

impl Connections {
    async fn request(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, legacy::Error> {
        match self {
            Self::Plain(client) => client.request(request).await,
            Self::Tls(client) => client.request(request).await,
            Self::Within(_, client) => client.request(request).await,
        }
    }

    /// Checks a host that is an IP address: the connector does not pass it to the resolver, which
    /// checks names.
    fn allows(&self, request: &Request<Full<Bytes>>) -> bool {
        let Self::Within(reach, _) = self else { return true };
        let host = request.uri().host().unwrap_or_default();
        let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        address.is_none_or(|address| reach.allows(address))
    }
}

fn tls_config(authorities: Option<&Path>) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // Some of the machine's certificates may be unreadable for rustls; the others are still used.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = authorities {
        let none = || io::Error::new(io::ErrorKind::InvalidData, "it contains no certificate in PEM form");
        let pem = std::fs::read(path)?;
        let found =
            CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(|_| none())?;
        if found.is_empty() {
            return Err(none());
        }
        for authority in found {
            roots.add(authority).map_err(|_| none())?;
        }
    }
    if roots.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "this machine has no certificate authorities"));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(ALL_VERSIONS);
    Ok(config.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth())
}

/// The longest reason of a failure, in characters.
const MAX_WHY: usize = 300;

/// Includes all causes, because the outermost error says only that connecting failed.
fn connection_failed(error: &(dyn std::error::Error + 'static)) -> RequestError {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let why = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    // Bounded, because a peer chooses parts of it, such as the names in its certificate.
    RequestError::ConnectionFailed(why.chars().take(MAX_WHY).collect())
}
