//! What stands around the handlers: request id, client address, the headers of every answer, log and figures; the rate limits of
//! networks; the origin.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_SECURITY_POLICY, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ipnet::IpNet;
use time::OffsetDateTime;
use tracing::{Instrument as _, Span};

use crate::app::App;
use crate::clock::new_id;
use crate::config::ClientSettings;
use crate::error::{Error, Problem};
use crate::http::error::CLIENT_CLOSED_REQUEST;
use crate::http::extract::{ClientIp, SessionToken, locale_of, ticket};
use crate::http::{AppState, cookie, error};
use crate::locale::Locale;
use crate::metrics::{Answer, Metrics};
use crate::throttle::{Limiter, Source};
use crate::{recovery, session, traces};

/// The other end of the TCP connection; the server puts it into every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

const REQUEST_ID: &str = "x-request-id";
const FORWARDED_FOR: &str = "x-forwarded-for";
const TRACEPARENT: &str = "traceparent";
/// How long a request waits for others with its session token.
const TOKEN_PATIENCE: Duration = Duration::from_secs(1);
/// Between two warnings of peers that are not trusted.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// What every answer has unless its handler says otherwise.
const DEFAULT_HEADERS: [(HeaderName, HeaderValue); 4] = [
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
];

/// Gives a request its id and its client's address, writes the body of its error and the headers of its answer, and says
/// in one line how it was answered.
pub async fn observe(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let peer = request
        .extensions()
        .get::<Peer>()
        .map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip().to_canonical());
    let trusted = &state.app.config.clients.trusted_proxies;
    let client = client_ip(peer, request.headers(), trusted);
    request.extensions_mut().insert(ClientIp(client));
    let by_proxy = is_trusted(peer, trusted);
    let request_id = request_id(request.headers(), by_proxy)
        .unwrap_or_else(|| header_of(&new_id(state.app.clock.now()).to_string()));
    let method = known_method(request.method());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str);
    let locale = locale_of(request.headers()).unwrap_or(Locale::En);
    let request_id_text = request_id.to_str().unwrap_or_default();
    let traceparent = traceparent(request.headers(), by_proxy);
    let span = traces::of_request(method, route, request_id_text, traceparent);
    if !by_proxy && request.headers().contains_key(FORWARDED_FOR) {
        state.untrusted_proxies.is_seen(peer, &state.app);
    }
    let route = route.unwrap_or("none");
    let metrics = &state.app.metrics;
    let mut record =
        Record { request_id: request_id_text, method, route, began, span, metrics, is_open: true };

    let response = next.run(request).instrument(record.span.clone()).await;

    let mut response = error::render(response, locale);
    for (name, value) in DEFAULT_HEADERS {
        response.headers_mut().entry(name).or_insert(value);
    }
    record.is_answered(response.status().as_u16());
    drop(record);
    response.headers_mut().insert(REQUEST_ID, request_id);
    if state.draining.load(Ordering::Relaxed) {
        // A proxy must not send the next request on a connection that is closed when the drain is over: it could not
        // tell whether a POST was read.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// What is logged and counted of one request. hyper drops a request whose client has closed the connection, wherever its
/// handler is: that is counted as an answer 499.
struct Record<'a> {
    request_id: &'a str,
    method: &'static str,
    route: &'a str,
    began: Instant,
    span: Span,
    metrics: &'a Metrics,
    is_open: bool,
}

impl Record<'_> {
    fn is_answered(&mut self, status: u16) {
        let Self { request_id, method, route, .. } = *self;
        let duration = self.began.elapsed();
        let (duration_ms, trace_id) = (duration.as_secs_f64() * 1000.0, traces::trace_id(&self.span));
        traces::is_answered(&self.span, status);
        self.metrics.http_answers.get_or_create(&Answer { route: route.to_owned(), status }).inc();
        self.is_open = false;
        if status == CLIENT_CLOSED_REQUEST {
            tracing::info!(request_id, method, route, status, duration_ms, trace_id, "aborted by the client");
        } else {
            self.metrics.http_duration.observe(duration.as_secs_f64());
            tracing::info!(request_id, method, route, status, duration_ms, trace_id, "answered");
        }
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        // A panic has its own message.
        if self.is_open && !std::thread::panicking() {
            self.is_answered(CLIENT_CLOSED_REQUEST);
        }
    }
}

/// Peers that send `X-Forwarded-For` and that TRUSTED_PROXIES does not name.
#[derive(Debug, Default)]
pub struct UntrustedProxies {
    warned: Mutex<Option<OffsetDateTime>>,
}

impl UntrustedProxies {
    /// Counts one of its requests, and warns of it unless that was done within the last minute.
    fn is_seen(&self, peer: IpAddr, app: &App) {
        app.metrics.untrusted_forwarded.inc();
        if self.is_due(app.clock.now()) {
            tracing::warn!(
                %peer,
                "X-Forwarded-For is ignored, as TRUSTED_PROXIES does not name its sender: if that is your proxy, \
                 all its clients share one rate limit until you add it"
            );
        }
    }

    fn is_due(&self, now: OffsetDateTime) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let due = warned.is_none_or(|last| now - last >= WARNING_INTERVAL);
        if due {
            *warned = Some(now);
        }
        due
    }
}

/// Lets a POST through that costs an email or a hash: first its origin, then the rate limit of its network (or of its account's
/// known browsers there, or of its ticket); both before anything is parsed.
pub async fn admit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    admitted(&state, &state.app.source_limits.requests, request, next).await
}

/// The same for a login, which draws the rest of its price itself.
pub async fn admit_login(State(state): State<AppState>, request: Request, next: Next) -> Response {
    admitted(&state, &state.app.source_limits.logins, request, next).await
}

async fn admitted(state: &AppState, limiter: &Limiter, mut request: Request, next: Next) -> Response {
    // First: a page of another state, open in one browser, must not use up the limit of all that share its network.
    if !comes_from_us(request.headers(), &state.app.config.clients) {
        return Error::from(Problem::OriginRefused).into_response();
    }
    let source = source(&request, &state.app);
    if let Err(wait) = limiter.admit(source) {
        return Error::retry_after(Problem::NetworkThrottled, wait).into_response();
    }
    request.extensions_mut().insert(source);
    next.run(request).await
}

/// The same for a step of a recovery: one with a cookie of its own draws on no network, or a neighbour behind the same
/// address could end it.
pub async fn admit_recovery(State(state): State<AppState>, request: Request, next: Next) -> Response {
    // First, as above: nor must it use up the cookie.
    if !comes_from_us(request.headers(), &state.app.config.clients) {
        return Error::from(Problem::OriginRefused).into_response();
    }
    let cookie =
        cookie::recovery_token(request.headers()).filter(|token| recovery::was_issued(&state.app, token));
    let admitted = state.app.source_limits.admit_recovery(
        cookie.map(|token| token.hash()).as_ref(),
        Source::Network(client_of(&request)),
        source(&request, &state.app),
    );
    if let Err(wait) = admitted {
        return Error::retry_after(Problem::NetworkThrottled, wait).into_response();
    }
    next.run(request).await
}

/// Lets a session token be looked up. One that was issued here costs nothing, unless it has ended and comes again and again;
/// any other draws on its network's bucket, and gets that back if it is good.
pub async fn admit_token(
    State(state): State<AppState>,
    SessionToken(token): SessionToken,
    request: Request,
    next: Next,
) -> Response {
    // Without a token nothing is looked up.
    let Some(token) = token else { return next.run(request).await };
    let (limits, hash, source) = (&state.app.source_limits, token.hash(), source(&request, &state.app));
    let is_free = session::was_issued(&state.app, &token) && limits.is_free(&hash);
    if !is_free && let Err(wait) = limits.unknown_tokens.admit(source) {
        return Error::retry_after(Problem::NetworkThrottled, wait).into_response();
    }
    // One at a time for each token, or one session would hold up the look-ups of all others.
    let turn = state.app.session_turns.take(hash.to_bytes(), tokio::time::Instant::now() + TOKEN_PATIENCE);
    let Some(_turn) = turn.await else {
        return Error::retry_after(Problem::NetworkThrottled, TOKEN_PATIENCE).into_response();
    };
    let response = next.run(request).await;
    match (is_free, response.status()) {
        (true, StatusCode::UNAUTHORIZED) => limits.was_refused(&hash),
        // The token was good. Of an answer 502 nobody knows.
        (false, StatusCode::OK | StatusCode::NOT_FOUND) => limits.unknown_tokens.give_back(source, 1),
        _ => {}
    }
    response
}

/// Whose bucket a request draws on.
fn source(request: &Request, app: &App) -> Source {
    let known = cookie::known_device(request.headers(), app).or_else(|| ticket(request.headers(), app));
    let tag = known.and_then(|device| device.owner_tag());
    let client = client_of(request);
    tag.map_or(Source::Network(client), |tag| Source::Owner(tag, client))
}

fn client_of(request: &Request) -> IpAddr {
    request.extensions().get::<ClientIp>().map_or(IpAddr::from([0, 0, 0, 0]), |client| client.0)
}

/// `Origin`, if present, decides alone; `Sec-Fetch-AppState` only without it. Neither: not a browser, so no cookie of
/// somebody else's rides along.
fn comes_from_us(headers: &HeaderMap, clients: &ClientSettings) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (Some(origin), None) => {
            let mut ours = clients.public_origin.iter().chain(&clients.allowed_origins);
            ours.any(|known| known.as_str().as_bytes() == origin.as_bytes())
        }
        (Some(_), Some(_)) => false,
        (None, _) => {
            let mut sites = headers.get_all("sec-fetch-state").iter();
            sites.all(|state| matches!(state.as_bytes(), b"same-origin" | b"same-state" | b"none"))
        }
    }
}

fn is_trusted(ip: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&ip))
}

/// The last address that a trusted proxy vouches for: X-Forwarded-For is read from its end, as long as the one who
/// wrote it is trusted. Anything that is no address ends the walk. Pure, so that it can be fuzzed.
#[must_use]
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer;
    let lines = headers.get_all(FORWARDED_FOR).iter().collect::<Vec<_>>();
    let hops = lines.iter().rev().flat_map(|line| line.to_str().unwrap_or("-").rsplit(','));
    for hop in hops {
        if !is_trusted(client, trusted) {
            break;
        }
        let Some(ip) = address_of(hop.trim()) else { break };
        client = ip.to_canonical();
    }
    client
}

/// An address with or without a port; some proxies write one.
fn address_of(hop: &str) -> Option<IpAddr> {
    hop.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// The id that a trusted proxy gave, if it is a plain one.
fn request_id(headers: &HeaderMap, trusted: bool) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID).filter(|_| trusted)?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
    (matches!(id.len(), 8..=64) && id.as_bytes().iter().all(plain)).then(|| id.clone())
}

/// The trace that a trusted proxy has begun; nobody else can have a request traced, or say in which trace. One of two is
/// none.
fn traceparent(headers: &HeaderMap, trusted: bool) -> Option<&str> {
    let mut lines = headers.get_all(TRACEPARENT).iter().filter(|_| trusted);
    match (lines.next(), lines.next()) {
        (Some(line), None) => line.to_str().ok(),
        _ => None,
    }
}

fn header_of(id: &str) -> HeaderValue {
    HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
}

fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::DELETE => "DELETE",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_due_once_a_minute() {
        let (proxies, begin) = (UntrustedProxies::default(), OffsetDateTime::UNIX_EPOCH);
        let due =
            [0, 1, 59, 60, 61, 119, 120].map(|second| proxies.is_due(begin + Duration::from_secs(second)));
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn only_trusted_hops_say_who_the_client_is() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let client = |peer: &str, lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, HeaderValue::from_static(line));
            }
            client_ip(peer.parse().unwrap(), &headers, &trusted).to_string()
        };
        assert_eq!(client("203.0.113.9", &["198.51.100.1"]), "203.0.113.9");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 198.51.100.1, 10.2.2.2"]), "198.51.100.1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1", "198.51.100.1:4711"]), "198.51.100.1");
        assert_eq!(client("::1", &["[2001:db8::1]:80"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["1.1.1.1, not an address"]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &[""]), "10.0.0.1");
    }
}
