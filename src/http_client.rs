//! An HTTP/1.1 client for the few services that this one calls. Time and size of a response are
//! bounded. There are no redirects, cookies or proxies.

use std::io;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, USER_AGENT};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Client};
use hyper_util::rt::TokioExecutor;

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

/// Plain HTTP needs no certificates, which a minimal machine may not have.
#[derive(Clone, Debug)]
enum Connections {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
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
    /// This machine has no root certificates.
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

    /// Sends a request and reads the whole response, whatever its status.
    pub async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        bounds: Bounds,
    ) -> Result<Response<Bytes>, RequestError> {
        let name = HeaderValue::from_static(concat!("vos-auth/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, name);
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
        }
    }
}

/// Includes all causes, because the outermost error says only that connecting failed.
fn connection_failed(error: &(dyn std::error::Error + 'static)) -> RequestError {
    let causes = std::iter::successors(Some(error), |error| error.source());
    RequestError::ConnectionFailed(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}
