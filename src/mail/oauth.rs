//! The access token for relays with XOAUTH2: requests it (RFC 6749 §4.4 and §6), and renews it.
//!
//! An email uses the current token. It waits for the token endpoint only if there is no valid
//! token: before the first one, or after renewals have failed until the token expired.
//!
//! "Only the probe sets a relay's state" (an invariant of [`crate`]). So an email may request a
//! token only when the timer would, or after a relay has refused the current one. If such a request
//! after a refusal fails, it delays neither the timer nor the requests of the probe.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use oauth2::basic::{BasicClient, BasicErrorResponseType, BasicTokenResponse, BasicTokenType};
use oauth2::{
    AccessToken, AsyncHttpClient, ClientId, ClientSecret, EndpointNotSet, EndpointSet, HttpRequest,
    HttpResponse, RefreshToken, RequestTokenError, Scope, TokenResponse as _,
};
use tokio::sync::Notify;

use crate::config::{ConfigError, ConfigErrors, OauthSecrets, OauthSettings};
use crate::http_client::{Bounds, HttpClient};
use crate::mail::not_sent::{NotSent, Stage};
use crate::metrics::Metrics;

/// Bounds of a request. A probe has more time, so that its failure names the request's error.
const ANSWER_BOUNDS: Bounds = Bounds { time: Duration::from_secs(4), octets: 64 * 1024 };
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// The lifetime of a token if the endpoint gives none, which RFC 6749 §5.1 allows.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(10);
/// Bounds of a lifetime from the endpoint. The lower one lets the timer pause between requests.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
const MAX_LIFETIME: Duration = Duration::from_hours(24);
/// The first pause after a failed request, and the longest. Each pause is twice the previous one.
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_mins(1);
/// The shortest time between two renewals of refused tokens by the same [`Requester`].
const REFUSED_INTERVAL: Duration = Duration::from_mins(1);

type Client = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// The access token that all relays with `auth=xoauth2` share.
pub(super) struct Tokens {
    client: Client,
    scopes: Vec<Scope>,
    refresh_token: Option<RefreshToken>,
    http: HttpClient,
    state: Mutex<TokenState>,
    /// Held during a request, so that only one request runs at a time.
    request_lock: tokio::sync::Mutex<()>,
    renewed: Notify,
}

#[derive(Default)]
struct TokenState {
    token: Option<CurrentToken>,
    failure: Option<Failure>,
    /// When the probe or an email last had a refused token renewed.
    renewed_for_probe: Option<Instant>,
    renewed_for_mail: Option<Instant>,
    /// The refresh token of the last answer, which replaces the one before (RFC 6749 §6).
    refresh_token: Option<RefreshToken>,
}

/// Who needs the connection that the token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Requester {
    Probe,
    Mail,
}

struct CurrentToken {
    secret: AccessToken,
    renew_at: Instant,
    expires_at: Instant,
}

struct Failure {
    why: TokenError,
    pause: Duration,
    until: Instant,
}

/// Why a token request failed. Of the answer it quotes only the status or RFC 6749's error code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TokenError {
    #[error("the token endpoint answered {0}")]
    Refused(&'static str),
    #[error("the token endpoint answered {0}")]
    Status(u16),
    #[error("the token endpoint did not answer: {0}")]
    Unreachable(String),
    #[error("the token endpoint's answer is not one of RFC 6749")]
    Unreadable,
}

impl Tokens {
    /// Reads the `SMTP_OAUTH_*` settings; `None` if there are none.
    ///
    /// # Errors
    ///
    /// A sentence for each missing variable, or one about the URL if it is `https` and this machine
    /// has no root certificates.
    pub(super) fn new(
        settings: &OauthSettings,
        secrets: &OauthSecrets,
    ) -> Result<Option<Arc<Self>>, ConfigErrors> {
        let OauthSettings { smtp_oauth_token_url: url, smtp_oauth_client_id: id, smtp_oauth_scope: scope } =
            settings;
        let OauthSecrets { client_secret, refresh_token } = secrets;
        let missing = |variable, hint| ConfigError::new(variable, format!("is missing: {hint}"));
        let Some(url) = url else {
            let has_none = [id, scope, client_secret, refresh_token].iter().all(|setting| setting.is_none());
            let hint = "the other SMTP_OAUTH_* settings need it";
            return if has_none { Ok(None) } else { Err(missing("SMTP_OAUTH_TOKEN_URL", hint).into()) };
        };
        let mut problems = ConfigErrors::default();
        let need = missing("SMTP_OAUTH_CLIENT_ID", "SMTP_OAUTH_TOKEN_URL needs it");
        let id = problems.take(id.as_ref().ok_or(need));
        if client_secret.is_none() && refresh_token.is_none() {
            let hint = "set it or SMTP_OAUTH_REFRESH_TOKEN, or the _FILE form of one of them";
            problems.add(missing("SMTP_OAUTH_CLIENT_SECRET", hint));
        }
        let http = HttpClient::new(url.is_https(), CONNECT_DEADLINE).map_err(|error| {
            ConfigError::new("SMTP_OAUTH_TOKEN_URL", format!("cannot be checked: {error}"))
        })?;
        let endpoint = oauth2::TokenUrl::from_url(url.url().clone());
        let mut client = BasicClient::new(ClientId::new(problems.or(id)?.clone())).set_token_uri(endpoint);
        if let Some(secret) = client_secret {
            client = client.set_client_secret(ClientSecret::new(secret.clone()));
        }
        let scopes = scope.iter().flat_map(|scope| scope.split_whitespace());
        Ok(Some(Arc::new(Self {
            client,
            scopes: scopes.map(|scope| Scope::new(scope.to_owned())).collect(),
            refresh_token: refresh_token.clone().map(RefreshToken::new),
            http,
            state: Mutex::default(),
            request_lock: tokio::sync::Mutex::default(),
            renewed: Notify::new(),
        })))
    }

    /// The valid token. If there is none, requests one, but not in the pause after a failure.
    ///
    /// # Errors
    ///
    /// [`NotSent`] at [`Stage::Auth`].
    pub(super) async fn token(&self) -> Result<AccessToken, NotSent> {
        if self.state().valid_token().is_none() {
            self.request_if(Requester::Probe, TokenState::is_due).await;
        }
        let state = self.state();
        state.valid_token().cloned().ok_or_else(|| {
            let why = state.failure.as_ref().map(|failure| failure.why.to_string());
            NotSent { why, ..NotSent::just(Stage::Auth) }
        })
    }

    /// A token to replace a refused one: the current token if it is not the refused one, else a new
    /// one. `None` if the request fails or the requester renewed within [`REFUSED_INTERVAL`].
    pub(super) async fn replacement_for(&self, refused: &AccessToken, by: Requester) -> Option<AccessToken> {
        self.request_if(by, |state, now| state.may_replace(refused, by, now)).await;
        self.state().valid_token().filter(|token| token.secret() != refused.secret()).cloned()
    }

    /// Renews the token before it expires, for ever.
    pub(super) async fn keep_valid(&self, metrics: &Metrics) {
        loop {
            self.request_if(Requester::Probe, TokenState::is_due).await;
            let (is_failing, next) = {
                let state = self.state();
                (state.failure.is_some(), state.next_request(Instant::now()))
            };
            metrics.relay_token_failing.set(i64::from(is_failing));
            tokio::time::sleep_until(next.into()).await;
        }
    }

    /// Waits until no other request is running, and then requests a token if one is still needed.
    async fn request_if(
        &self,
        requester: Requester,
        is_needed: impl FnOnce(&mut TokenState, Instant) -> bool,
    ) {
        let _lock = self.request_lock.lock().await;
        if !is_needed(&mut self.state(), Instant::now()) {
            return;
        }
        let answer = self.request().await;
        let is_renewed = answer.is_ok();
        self.state().record_answer(answer, requester, Instant::now());
        if is_renewed {
            self.renewed.notify_waiters();
        }
    }

    /// Waits for the next token.
    pub(super) async fn renewed(&self) {
        self.renewed.notified().await;
    }

    async fn request(&self) -> Result<BasicTokenResponse, TokenError> {
        let renewed = self.state().refresh_token.clone();
        let scopes = self.scopes.iter().cloned();
        let answer = match renewed.as_ref().or(self.refresh_token.as_ref()) {
            Some(token) => {
                let request = self.client.exchange_refresh_token(token).add_scopes(scopes);
                request.request_async(self).await
            }
            None => self.client.exchange_client_credentials().add_scopes(scopes).request_async(self).await,
        };
        let answer = answer.map_err(|error| match error {
            RequestTokenError::ServerResponse(error) => {
                standard_code(error.error()).map_or(TokenError::Unreadable, TokenError::Refused)
            }
            RequestTokenError::Request(why) => why,
            RequestTokenError::Parse(..) | RequestTokenError::Other(_) => TokenError::Unreadable,
        })?;
        // A token of an unknown type must not be used (RFC 6749 §7.1). A token is visible ASCII
        // (appendix A.12), and so cannot contain the separators of XOAUTH2.
        let is_bearer = *answer.token_type() == BasicTokenType::Bearer;
        let is_visible = answer.access_token().secret().bytes().all(|byte| byte.is_ascii_graphic());
        if is_bearer && is_visible { Ok(answer) } else { Err(TokenError::Unreadable) }
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, TokenError> {
        let answer = self.http.send(request.map(Full::from), ANSWER_BOUNDS).await;
        let answer = answer.map_err(|why| TokenError::Unreachable(why.to_string()))?;
        // An error code has the status 400, or 401 for an unknown client (RFC 6749 §5.2).
        match answer.status().as_u16() {
            200 | 400 | 401 => Ok(answer.map(Vec::from)),
            status => Err(TokenError::Status(status)),
        }
    }

    fn state(&self) -> MutexGuard<'_, TokenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'c> AsyncHttpClient<'c> for Tokens {
    type Error = TokenError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, TokenError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

/// Shows nothing, because every field may contain a secret.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(redacted)")
    }
}

impl TokenState {
    fn valid_token(&self) -> Option<&AccessToken> {
        self.token.as_ref().filter(|token| Instant::now() < token.expires_at).map(|token| &token.secret)
    }

    fn next_request(&self, now: Instant) -> Instant {
        let renew_at = self.token.as_ref().map_or(now, |token| token.renew_at);
        self.failure.as_ref().map_or(renew_at, |failure| failure.until.max(renew_at))
    }

    fn is_due(&mut self, now: Instant) -> bool {
        self.next_request(now) <= now
    }

    /// Whether a refused token may be renewed early: once in [`REFUSED_INTERVAL`] per requester.
    fn may_replace(&mut self, refused: &AccessToken, requester: Requester, now: Instant) -> bool {
        let is_current = self.token.as_ref().is_some_and(|token| token.secret.secret() == refused.secret());
        let last = match requester {
            Requester::Probe => &mut self.renewed_for_probe,
            Requester::Mail => &mut self.renewed_for_mail,
        };
        let may = is_current && last.is_none_or(|last| last + REFUSED_INTERVAL <= now);
        if may {
            *last = Some(now);
        }
        may
    }

    fn record_answer(
        &mut self,
        answer: Result<BasicTokenResponse, TokenError>,
        requester: Requester,
        now: Instant,
    ) {
        match answer {
            Ok(answer) => self.store(&answer, now),
            Err(why) => {
                let failed = self.failure.as_ref();
                if failed.is_none_or(|failed| failed.why != why) {
                    tracing::warn!(%why, "the access token for relays cannot be renewed");
                }
                if why == TokenError::Refused("invalid_grant") {
                    // Next, the refresh token of the settings is used: it may still be valid.
                    self.refresh_token = None;
                }
                if requester == Requester::Probe {
                    let pause = failed.map_or(MIN_PAUSE, |failed| (failed.pause * 2).min(MAX_PAUSE));
                    self.failure = Some(Failure { why, pause, until: now + pause });
                }
            }
        }
    }

    fn store(&mut self, answer: &BasicTokenResponse, now: Instant) {
        let life = answer.expires_in().unwrap_or(DEFAULT_LIFETIME).clamp(MIN_LIFETIME, MAX_LIFETIME);
        let secret = answer.access_token().clone();
        self.token = Some(CurrentToken { secret, renew_at: now + life * 3 / 4, expires_at: now + life });
        if let Some(token) = answer.refresh_token() {
            self.refresh_token = Some(token.clone());
        }
        if self.failure.take().is_some() {
            tracing::info!("the access token for relays is renewed again");
        }
    }
}

/// The error code if RFC 6749 §5.2 defines it. Any other one is free text and is not shown.
fn standard_code(code: &BasicErrorResponseType) -> Option<&'static str> {
    match code {
        BasicErrorResponseType::InvalidClient => Some("invalid_client"),
        BasicErrorResponseType::InvalidGrant => Some("invalid_grant"),
        BasicErrorResponseType::InvalidRequest => Some("invalid_request"),
        BasicErrorResponseType::InvalidScope => Some("invalid_scope"),
        BasicErrorResponseType::UnauthorizedClient => Some("unauthorized_client"),
        BasicErrorResponseType::UnsupportedGrantType => Some("unsupported_grant_type"),
        BasicErrorResponseType::Extension(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use oauth2::EmptyExtraTokenFields;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn issued(secret: &str, life: Option<Duration>) -> BasicTokenResponse {
        let secret = AccessToken::new(secret.to_owned());
        let mut answer = BasicTokenResponse::new(secret, BasicTokenType::Bearer, EmptyExtraTokenFields {});
        answer.set_expires_in(life.as_ref());
        answer
    }

    #[test]
    fn a_token_of_any_lifetime_is_renewed_before_it_expires() {
        let now = Instant::now();
        for (life, renewed_after) in [
            (Some(3600 * SECOND), 2700 * SECOND),
            (Some(Duration::ZERO), SECOND * 3 / 4),
            (Some(Duration::MAX), Duration::from_hours(18)),
            (None, 450 * SECOND),
        ] {
            let mut state = TokenState::default();
            assert!(state.is_due(now));
            state.record_answer(Ok(issued("a", life)), Requester::Probe, now);
            assert_eq!(state.next_request(now), now + renewed_after, "{life:?}");
            assert!(!state.is_due(now) && state.is_due(now + renewed_after));
        }
    }

    #[test]
    fn pauses_after_failures_grow_to_a_minute_and_end_with_a_success() {
        let (mut state, mut now) = (TokenState::default(), Instant::now());
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(state.is_due(now));
            state.record_answer(Err(TokenError::Status(503)), Requester::Probe, now);
            assert!(!state.is_due(now + (pause - 1) * SECOND), "{pause}");
            now += pause * SECOND;
        }
        state.record_answer(Ok(issued("a", None)), Requester::Probe, now);
        state.record_answer(Err(TokenError::Status(503)), Requester::Probe, now + 600 * SECOND);
        assert_eq!(state.next_request(now), now + 601 * SECOND);
    }

    /// A failed renewal for an email delays neither a renewal for the probe nor the timer.
    #[test]
    fn a_refused_token_is_renewed_once_a_minute_for_the_probe_and_for_emails_separately() {
        let (mut state, now) = (TokenState::default(), Instant::now());
        state.record_answer(Ok(issued("a", None)), Requester::Probe, now);
        let [a, b] = ["a", "b"].map(|secret| AccessToken::new(secret.to_owned()));
        assert!(!state.may_replace(&b, Requester::Mail, now), "the refused token is not the current one");
        assert!(state.may_replace(&a, Requester::Mail, now));
        state.record_answer(Err(TokenError::Status(503)), Requester::Mail, now);
        assert!(!state.may_replace(&a, Requester::Mail, now + 59 * SECOND));
        assert!(state.failure.is_none());
        assert!(state.may_replace(&a, Requester::Probe, now));
        assert!(!state.may_replace(&a, Requester::Probe, now + 59 * SECOND));
        assert!(state.may_replace(&a, Requester::Mail, now + 60 * SECOND));
    }
}
