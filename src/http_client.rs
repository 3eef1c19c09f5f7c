//! An HTTP/1.1 client for the few services that this one asks: bounded in time and in octets, without redirects, cookies or
//! proxies.

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

/// How much of an answer is waited for and read.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the request to the end of the answer.
    pub time: Duration,
    /// The longest body, in octets.
    pub octets: usize,
}

/// A client of one service. Clones share its connections.
#[derive(Clone, Debug)]
pub struct HttpClient(Connections);

/// Over http no certificates are needed, which a bare machine may not have.
#[derive(Clone, Debug)]
enum Connections {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

/// Why there is no whole answer. It quotes nothing of one.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// The connection failed, with its causes.
    #[error("{0}")]
    Away(String),
    /// It took longer than it may.
    #[error("not within {} seconds", .0.as_secs())]
    Late(Duration),
    /// The answer has more octets than it may.
    #[error("its answer is too long")]
    TooLong,
}

impl HttpClient {
    /// A client that connects to nothing yet, over TLS alone or over none. `connect` bounds one try to connect.
    ///
    /// # Errors
    ///
    /// This machine has no certificates that a server's could be checked by.
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

    /// Sends a request and reads the whole answer, whatever its status.
    pub async fn ask(
        &self,
        mut request: Request<Full<Bytes>>,
        bounds: Bounds,
    ) -> Result<Response<Bytes>, NoAnswer> {
        let name = HeaderValue::from_static(concat!("vos-auth/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, name);
        let asking = async {
            let (head, body) = self.0.request(request).await.map_err(|error| away(&error))?.into_parts();
            let body = Limited::new(body, bounds.octets).collect().await.map_err(|error| {
                if error.is::<LengthLimitError>() { NoAnswer::TooLong } else { away(&*error) }
            })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        tokio::time::timeout(bounds.time, asking).await.map_err(|_| NoAnswer::Late(bounds.time))?
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

/// With its causes: the outermost says no more than that connecting failed.
fn away(error: &(dyn std::error::Error + 'static)) -> NoAnswer {
    let causes = std::iter::successors(Some(error), |error| error.source());
    NoAnswer::Away(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
}
