//! The access token for relays that take XOAUTH2: requested (RFC 6749 §4.4 and §6), kept, and renewed ahead of its end.
//!
//! A mail takes the token that is kept. It waits for the token endpoint only while there is none: at first contact, or when
//! renewals have failed until the token's end.
//!
//! Promise 6: a mail requests a token when the timer does, or when its own was refused. Of the latter nothing is left but a
//! newer token: a failure changes neither the timer nor what the probe may request.

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

use crate::config::{ConfigError, OauthSecrets, OauthSettings};
use crate::http_client::{Bounds, HttpClient};
use crate::mail::not_sent::{NotSent, Stage};
use crate::metrics::Metrics;

/// Less than a probe may take, so that what the probe finds is `auth` and not `deadline`.
const ANSWER: Bounds = Bounds { time: Duration::from_secs(4), octets: 64 * 1024 };
const CONNECT: Duration = Duration::from_secs(3);
/// The life of a token whose endpoint names none: RFC 6749 §5.1 only recommends that it does.
const ASSUMED_LIFE: Duration = Duration::from_mins(10);
/// What an endpoint may name. A shorter life would mean requests without a pause.
const LIFE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(24));
/// The pause after a failed request: the first, and the longest. Each is twice the one before.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// How often at most a token is renewed because a relay refused it.
const REFUSED_PAUSE: Duration = Duration::from_mins(1);

type Client = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// The one token that all relays with `auth=xoauth2` are shown.
pub(super) struct Tokens {
    client: Client,
    scopes: Vec<Scope>,
    refresh_token: Option<RefreshToken>,
    http: HttpClient,
    state: Mutex<State>,
    /// Held during a request: there is one at a time.
    turn: tokio::sync::Mutex<()>,
    renewed: Notify,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    failure: Option<Failure>,
    /// When the probe, or a mail, last had a token renewed because a relay refused it.
    renewed_for_probe: Option<Instant>,
    renewed_for_mail: Option<Instant>,
    /// The one that came with the last token, and replaces the one before (RFC 6749 §6).
    refresh_token: Option<RefreshToken>,
}

/// For whom a relay is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Probe,
    Mail,
}

struct Token {
    secret: AccessToken,
    renew_at: Instant,
    ends_at: Instant,
}

struct Failure {
    why: NoToken,
    pause: Duration,
    until: Instant,
}

/// Why there is no token. It quotes nothing of the endpoint's but a code that RFC 6749 lists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoToken {
    #[error("the token endpoint answered {0}")]
    Refused(&'static str),
    #[error("the token endpoint answered {0}")]
    Status(u16),
    #[error("the token endpoint did not answer: {0}")]
    Away(String),
    #[error("the token endpoint's answer is not one of RFC 6749")]
    Unreadable,
}

impl Tokens {
    /// Reads the `SMTP_OAUTH_*` settings; `None` if there are none.
    ///
    /// # Errors
    ///
    /// A sentence that names the variable which is missing, or for which this machine has no certificates.
    pub(super) fn new(
        settings: &OauthSettings,
        secrets: &OauthSecrets,
    ) -> Result<Option<Arc<Self>>, ConfigError> {
        let OauthSettings { smtp_oauth_token_url: url, smtp_oauth_client_id: id, smtp_oauth_scope: scope } =
            settings;
        let OauthSecrets { client_secret, refresh_token } = secrets;
        let missing = |variable, hint| Err(ConfigError::new(variable, format!("is missing: {hint}")));
        let Some(url) = url else {
            let is_alone = [id, scope, client_secret, refresh_token].iter().all(|setting| setting.is_none());
            let hint = "the other settings of SMTP_OAUTH_* need it";
            return if is_alone { Ok(None) } else { missing("SMTP_OAUTH_TOKEN_URL", hint) };
        };
        let Some(id) = id else {
            return missing("SMTP_OAUTH_CLIENT_ID", "SMTP_OAUTH_TOKEN_URL needs it");
        };
        if client_secret.is_none() && refresh_token.is_none() {
            let hint = "give it, or SMTP_OAUTH_REFRESH_TOKEN, or a file that holds one in their _FILE forms";
            return missing("SMTP_OAUTH_CLIENT_SECRET", hint);
        }
        let http = HttpClient::new(url.is_https(), CONNECT).map_err(|error| {
            ConfigError::new("SMTP_OAUTH_TOKEN_URL", format!("cannot be checked: {error}"))
        })?;
        let endpoint = oauth2::TokenUrl::from_url(url.url().clone());
        let mut client = BasicClient::new(ClientId::new(id.clone())).set_token_uri(endpoint);
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
            turn: tokio::sync::Mutex::default(),
            renewed: Notify::new(),
        })))
    }

    /// The token that is kept, or a new one if there is none that is good.
    ///
    /// # Errors
    ///
    /// [`NotSent`] at [`Stage::Auth`].
    pub(super) async fn token(&self) -> Result<AccessToken, NotSent> {
        if self.state().good().is_none() {
            self.request_if(Asker::Probe, State::is_due).await;
        }
        let state = self.state();
        state.good().cloned().ok_or_else(|| {
            let why = state.failure.as_ref().map(|failure| failure.why.to_string());
            NotSent { why, ..NotSent::just(Stage::Auth) }
        })
    }

    /// Another token than the one that a relay has refused: the one that has replaced it, or a new one if the last one
    /// that came so is long ago.
    pub(super) async fn other_than(&self, refused: &AccessToken, asker: Asker) -> Option<AccessToken> {
        self.request_if(asker, |state, now| state.may_replace(refused, asker, now)).await;
        self.state().good().filter(|token| token.secret() != refused.secret()).cloned()
    }

    /// Renews the token ahead of its end, for ever.
    pub(super) async fn keep(&self, metrics: &Metrics) {
        loop {
            self.request_if(Asker::Probe, State::is_due).await;
            let (is_failing, next) = {
                let state = self.state();
                (state.failure.is_some(), state.next_request(Instant::now()))
            };
            metrics.relay_token_failing.set(i64::from(is_failing));
            tokio::time::sleep_until(next.into()).await;
        }
    }

    /// Requests a token if one is still wanted when no other request is under way.
    async fn request_if(&self, asker: Asker, is_wanted: impl FnOnce(&mut State, Instant) -> bool) {
        let _turn = self.turn.lock().await;
        if !is_wanted(&mut self.state(), Instant::now()) {
            return;
        }
        let answer = self.request().await;
        let is_renewed = answer.is_ok();
        self.state().is_answered(answer, asker, Instant::now());
        if is_renewed {
            self.renewed.notify_waiters();
        }
    }

    /// Waits for the next token.
    pub(super) async fn renewed(&self) {
        self.renewed.notified().await;
    }

    async fn request(&self) -> Result<BasicTokenResponse, NoToken> {
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
                listed(error.error()).map_or(NoToken::Unreadable, NoToken::Refused)
            }
            RequestTokenError::Request(why) => why,
            RequestTokenError::Parse(..) | RequestTokenError::Other(_) => NoToken::Unreadable,
        })?;
        // RFC 6749 §7.1: a token of a type that is not understood is not used. Appendix A.12: visible ASCII, which ends
        // no field of XOAUTH2.
        let is_bearer = *answer.token_type() == BasicTokenType::Bearer;
        let is_visible = answer.access_token().secret().bytes().all(|byte| byte.is_ascii_graphic());
        if is_bearer && is_visible { Ok(answer) } else { Err(NoToken::Unreadable) }
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, NoToken> {
        let answer = self.http.send(request.map(Full::from), ANSWER).await;
        let answer = answer.map_err(|why| NoToken::Away(why.to_string()))?;
        // RFC 6749 §5.2: what says why has 400, or 401 for a client that is not known.
        match answer.status().as_u16() {
            200 | 400 | 401 => Ok(answer.map(Vec::from)),
            status => Err(NoToken::Status(status)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'c> AsyncHttpClient<'c> for Tokens {
    type Error = NoToken;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, NoToken>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(self.send(request))
    }
}

/// It holds nothing that may be shown.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(redacted)")
    }
}

impl State {
    fn good(&self) -> Option<&AccessToken> {
        self.token.as_ref().filter(|token| Instant::now() < token.ends_at).map(|token| &token.secret)
    }

    fn next_request(&self, now: Instant) -> Instant {
        let renew_at = self.token.as_ref().map_or(now, |token| token.renew_at);
        self.failure.as_ref().map_or(renew_at, |failure| failure.until.max(renew_at))
    }

    fn is_due(&mut self, now: Instant) -> bool {
        self.next_request(now) <= now
    }

    /// Whether a refused token may be renewed ahead of its time; if so, for a minute no other one of this asker's.
    fn may_replace(&mut self, refused: &AccessToken, asker: Asker, now: Instant) -> bool {
        let is_this = self.token.as_ref().is_some_and(|token| token.secret.secret() == refused.secret());
        let last = match asker {
            Asker::Probe => &mut self.renewed_for_probe,
            Asker::Mail => &mut self.renewed_for_mail,
        };
        let may = is_this && last.is_none_or(|last| last + REFUSED_PAUSE <= now);
        if may {
            *last = Some(now);
        }
        may
    }

    fn is_answered(&mut self, answer: Result<BasicTokenResponse, NoToken>, asker: Asker, now: Instant) {
        match answer {
            Ok(answer) => self.has(&answer, now),
            Err(why) => {
                let failed = self.failure.as_ref();
                if failed.is_none_or(|failed| failed.why != why) {
                    tracing::warn!(%why, "the access token for relays cannot be renewed");
                }
                if why == NoToken::Refused("invalid_grant") {
                    // The one of the settings may be good again.
                    self.refresh_token = None;
                }
                if asker == Asker::Probe {
                    let pause = failed.map_or(PAUSE.0, |failed| (failed.pause * 2).min(PAUSE.1));
                    self.failure = Some(Failure { why, pause, until: now + pause });
                }
            }
        }
    }

    fn has(&mut self, answer: &BasicTokenResponse, now: Instant) {
        let life = answer.expires_in().unwrap_or(ASSUMED_LIFE).clamp(LIFE.0, LIFE.1);
        let secret = answer.access_token().clone();
        self.token = Some(Token { secret, renew_at: now + life * 3 / 4, ends_at: now + life });
        if let Some(token) = answer.refresh_token() {
            self.refresh_token = Some(token.clone());
        }
        if self.failure.take().is_some() {
            tracing::info!("the access token for relays is renewed again");
        }
    }
}

/// A code of RFC 6749 §5.2, in words of ours; anything else is the endpoint's own text.
fn listed(code: &BasicErrorResponseType) -> Option<&'static str> {
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
    fn a_token_is_renewed_ahead_of_its_end_whatever_life_it_is_given() {
        let now = Instant::now();
        for (life, renewed_after) in [
            (Some(3600 * SECOND), 2700 * SECOND),
            (Some(Duration::ZERO), SECOND * 3 / 4),
            (Some(Duration::MAX), Duration::from_hours(18)),
            (None, 450 * SECOND),
        ] {
            let mut state = State::default();
            assert!(state.is_due(now));
            state.is_answered(Ok(issued("a", life)), Asker::Probe, now);
            assert_eq!(state.next_request(now), now + renewed_after, "{life:?}");
            assert!(!state.is_due(now) && state.is_due(now + renewed_after));
        }
    }

    #[test]
    fn pauses_after_failures_grow_to_a_minute_and_end_with_a_success() {
        let (mut state, mut now) = (State::default(), Instant::now());
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(state.is_due(now));
            state.is_answered(Err(NoToken::Status(503)), Asker::Probe, now);
            assert!(!state.is_due(now + (pause - 1) * SECOND), "{pause}");
            now += pause * SECOND;
        }
        state.is_answered(Ok(issued("a", None)), Asker::Probe, now);
        state.is_answered(Err(NoToken::Status(503)), Asker::Probe, now + 600 * SECOND);
        assert_eq!(state.next_request(now), now + 601 * SECOND);
    }

    /// Promise 6: whatever mails have met, the probe and the timer do as they would have done.
    #[test]
    fn a_refused_token_is_renewed_once_a_minute_for_the_probe_and_for_mails_apart() {
        let (mut state, now) = (State::default(), Instant::now());
        state.is_answered(Ok(issued("a", None)), Asker::Probe, now);
        let [a, b] = ["a", "b"].map(|secret| AccessToken::new(secret.to_owned()));
        assert!(!state.may_replace(&b, Asker::Mail, now), "another one is kept by now");
        assert!(state.may_replace(&a, Asker::Mail, now));
        state.is_answered(Err(NoToken::Status(503)), Asker::Mail, now);
        assert!(!state.may_replace(&a, Asker::Mail, now + 59 * SECOND));
        assert!(state.failure.is_none());
        assert!(state.may_replace(&a, Asker::Probe, now));
        assert!(!state.may_replace(&a, Asker::Probe, now + 59 * SECOND));
        assert!(state.may_replace(&a, Asker::Mail, now + 60 * SECOND));
    }
}
