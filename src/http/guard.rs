//! Middleware: request id, client address, headers of every answer, log and metrics; rate limits of
//! networks; origin check.

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
use crate::metrics::{AnswerLabel, Metrics};
use crate::throttle::{Limiter, Source};
use crate::{recovery, session, traces};

/// The peer of the TCP connection, an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

const REQUEST_ID: &str = "x-request-id";
const FORWARDED_FOR: &str = "x-forwarded-for";
const TRACEPARENT: &str = "traceparent";
/// The longest wait of a request for other requests with the same session token.
const TOKEN_WAIT: Duration = Duration::from_secs(1);
/// Minimum time between two warnings about untrusted peers.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// Headers that every answer has unless its handler sets them.
const DEFAULT_HEADERS: [(HeaderName, HeaderValue); 4] = [
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
];

/// Assigns the request id, determines the client's address, writes error bodies and the default
/// headers, and logs and counts the answer.
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
        .unwrap_or_else(|| header_value(&new_id(state.app.clock.now()).to_string()));
    let method = known_method(request.method());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str);
    let locale = locale_of(request.headers()).unwrap_or(Locale::En);
    let request_id_text = request_id.to_str().unwrap_or_default();
    let traceparent = traceparent(request.headers(), by_proxy);
    let span = traces::request_span(method, route, request_id_text, traceparent);
    if !by_proxy && request.headers().contains_key(FORWARDED_FOR) {
        state.untrusted_proxies.report(peer, &state.app);
    }
    let route = route.unwrap_or("none");
    let metrics = &state.app.metrics;
    let mut record =
        RequestRecord { request_id: request_id_text, method, route, began, span, metrics, is_open: true };

    let response = next.run(request).instrument(record.span.clone()).await;

    let mut response = error::render(response, locale);
    for (name, value) in DEFAULT_HEADERS {
        response.headers_mut().entry(name).or_insert(value);
    }
    record.finish(response.status().as_u16());
    drop(record);
    response.headers_mut().insert(REQUEST_ID, request_id);
    if state.draining.load(Ordering::Relaxed) {
        // The connection is closed after the drain. If a proxy sent another POST on it, the proxy
        // could not tell whether the service has read the POST.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Logs and counts one request. hyper drops the handler of a request whose client closes the
/// connection: that counts as an answer 499.
struct RequestRecord<'a> {
    request_id: &'a str,
    method: &'static str,
    route: &'a str,
    began: Instant,
    span: Span,
    metrics: &'a Metrics,
    is_open: bool,
}

impl RequestRecord<'_> {
    fn finish(&mut self, status: u16) {
        let Self { request_id, method, route, .. } = *self;
        let duration = self.began.elapsed();
        let (duration_ms, trace_id) = (duration.as_secs_f64() * 1000.0, traces::trace_id(&self.span));
        traces::record_status(&self.span, status);
        self.metrics.http_answers.get_or_create(&AnswerLabel { route: route.to_owned(), status }).inc();
        self.is_open = false;
        if status == CLIENT_CLOSED_REQUEST {
            tracing::info!(request_id, method, route, status, duration_ms, trace_id, "aborted by the client");
        } else {
            self.metrics.http_duration.observe(duration.as_secs_f64());
            tracing::info!(request_id, method, route, status, duration_ms, trace_id, "answered");
        }
    }
}

impl Drop for RequestRecord<'_> {
    fn drop(&mut self) {
        // After a panic nothing is recorded here, because the panic logs its own message.
        if self.is_open && !std::thread::panicking() {
            self.finish(CLIENT_CLOSED_REQUEST);
        }
    }
}

/// Reports peers that send `X-Forwarded-For` and are not in TRUSTED_PROXIES.
#[derive(Debug, Default)]
pub struct UntrustedProxies {
    warned: Mutex<Option<OffsetDateTime>>,
}

impl UntrustedProxies {
    /// Counts a request of the peer, and logs a warning at most once a minute.
    fn report(&self, peer: IpAddr, app: &App) {
        app.metrics.untrusted_forwarded.inc();
        if self.is_due(app.clock.now()) {
            tracing::warn!(
                %peer,
                "X-Forwarded-For is ignored, because TRUSTED_PROXIES does not name its sender: if this is your proxy, \
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

/// Admits a POST that costs an email or a hash, before its body is parsed. It checks the origin,
/// then draws on the rate limit of the network. A known browser or a ticket draws on the limit of
/// its account in that network instead.
pub async fn admit(State(state): State<AppState>, request: Request, next: Next) -> Response {
    admit_by(&state, &state.app.source_limits.requests, request, next).await
}

/// Admits a login as [`admit`] does, with the rate limit of logins. This draws one unit;
/// [`session::Login::run`] draws the rest of the login's price.
pub async fn admit_login(State(state): State<AppState>, request: Request, next: Next) -> Response {
    admit_by(&state, &state.app.source_limits.logins, request, next).await
}

async fn admit_by(state: &AppState, limiter: &Limiter, mut request: Request, next: Next) -> Response {
    // The origin is checked first, so that a foreign page in one browser does not exhaust the rate
    // limit of its whole network.
    if !has_allowed_origin(request.headers(), &state.app.config.clients) {
        return Error::from(Problem::OriginRefused).into_response();
    }
    let source = source_of(&request, &state.app);
    if let Err(wait) = limiter.admit(source) {
        return Error::retry_after(Problem::NetworkThrottled, wait).into_response();
    }
    request.extensions_mut().insert(source);
    next.run(request).await
}

/// Admits a step of a recovery as [`admit`] does, but each recovery cookie that this service issued
/// has its own limit. Otherwise another client of the same network could block the recovery.
pub async fn admit_recovery(State(state): State<AppState>, request: Request, next: Next) -> Response {
    // The origin is checked first, so that a foreign page exhausts neither the network's limit nor
    // the cookie's.
    if !has_allowed_origin(request.headers(), &state.app.config.clients) {
        return Error::from(Problem::OriginRefused).into_response();
    }
    let cookie =
        cookie::recovery_token(request.headers()).filter(|token| recovery::was_issued(&state.app, token));
    let admitted = state.app.source_limits.admit_recovery(
        cookie.map(|token| token.hash()).as_ref(),
        Source::Network(client_of(&request)),
        source_of(&request, &state.app),
    );
    if let Err(wait) = admitted {
        return Error::retry_after(Problem::NetworkThrottled, wait).into_response();
    }
    next.run(request).await
}

/// Admits the look-up of a session token. A token that this service issued is free, unless it was
/// refused repeatedly. Any other token draws on the bucket of the client's network or known
/// browser, with a refund if the token is valid.
pub async fn admit_token(
    State(state): State<AppState>,
    SessionToken(token): SessionToken,
    request: Request,
    next: Next,
) -> Response {
    // A request without a token causes no look-up.
    let Some(token) = token else { return next.run(request).await };
    let (limits, hash, source) = (&state.app.source_limits, token.hash(), source_of(&request, &state.app));
    let is_free = session::was_issued(&state.app, &token) && limits.is_free(&hash);
    if !is_free && let Err(wait) = limits.unknown_tokens.admit(source) {
        return Error::retry_after(Problem::NetworkThrottled, wait).into_response();
    }
    // One request at a time for each token, so that one session cannot occupy all look-up
    // connections.
    let turn = state.app.session_turns.take(hash.to_bytes(), tokio::time::Instant::now() + TOKEN_WAIT);
    let Some(_turn) = turn.await else {
        return Error::retry_after(Problem::NetworkThrottled, TOKEN_WAIT).into_response();
    };
    let response = next.run(request).await;
    match (is_free, response.status()) {
        (true, StatusCode::UNAUTHORIZED) => limits.was_refused(&hash),
        // With these statuses the token is valid. With 502 that is unknown, so nothing is refunded.
        (false, StatusCode::OK | StatusCode::NOT_FOUND) => limits.unknown_tokens.refund(source, 1),
        _ => {}
    }
    response
}

/// The source whose bucket a request draws on.
fn source_of(request: &Request, app: &App) -> Source {
    let known = cookie::known_device(request.headers(), app).or_else(|| ticket(request.headers(), app));
    let tag = known.and_then(|device| device.owner_tag());
    let client = client_of(request);
    tag.map_or(Source::Network(client), |tag| Source::Owner(tag, client))
}

fn client_of(request: &Request) -> IpAddr {
    request.extensions().get::<ClientIp>().map_or(IpAddr::from([0, 0, 0, 0]), |client| client.0)
}

/// Checks `Origin`, or `Sec-Fetch-Site` if there is no `Origin`. Browsers send at least one of them
/// with a POST from another site. So a request with neither is admitted.
fn has_allowed_origin(headers: &HeaderMap, clients: &ClientSettings) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (Some(origin), None) => {
            let mut allowed = clients.public_origin.iter().chain(&clients.allowed_origins);
            allowed.any(|allowed| allowed.as_str().as_bytes() == origin.as_bytes())
        }
        (Some(_), Some(_)) => false,
        (None, _) => {
            let mut sites = headers.get_all("sec-fetch-site").iter();
            sites.all(|site| matches!(site.as_bytes(), b"same-origin" | b"same-site" | b"none"))
        }
    }
}

fn is_trusted(ip: IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|network| network.contains(&ip))
}

/// The client's address. X-Forwarded-For is read from its end for as long as each hop is trusted; a
/// malformed hop ends the search. A function of its own, so that it can be fuzzed.
#[must_use]
pub fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let mut client = peer;
    let lines = headers.get_all(FORWARDED_FOR).iter().collect::<Vec<_>>();
    let hops = lines.iter().rev().flat_map(|line| line.to_str().unwrap_or("-").rsplit(','));
    for hop in hops {
        if !is_trusted(client, trusted) {
            break;
        }
        let Some(ip) = parse_hop(hop.trim()) else { break };
        client = ip.to_canonical();
    }
    client
}

/// Parses an address with or without a port, because some proxies append one.
fn parse_hop(hop: &str) -> Option<IpAddr> {
    hop.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// The request id of a trusted proxy, if it has 8 to 64 letters, digits, hyphens or underscores.
fn request_id(headers: &HeaderMap, trusted: bool) -> Option<HeaderValue> {
    let id = headers.get(REQUEST_ID).filter(|_| trusted)?;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-' || *byte == b'_';
    (matches!(id.len(), 8..=64) && id.as_bytes().iter().all(plain)).then(|| id.clone())
}

/// The `traceparent` of a trusted proxy. Other clients must not choose what is traced. A repeated
/// header is ignored.
fn traceparent(headers: &HeaderMap, trusted: bool) -> Option<&str> {
    let mut lines = headers.get_all(TRACEPARENT).iter().filter(|_| trusted);
    match (lines.next(), lines.next()) {
        (Some(line), None) => line.to_str().ok(),
        _ => None,
    }
}

fn header_value(id: &str) -> HeaderValue {
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
    fn only_trusted_hops_determine_the_client_address() {
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
