//! Checks before each call of the admin API: the operator's credential, the role, and the reason.
//! Then the audit event of the call.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{MutexGuard, PoisonError};

use axum::extract::{FromRequestParts as _, MatchedPath, Request, State};
use axum::http::header::{ALLOW, AUTHORIZATION};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use percent_encoding::percent_decode_str;
use uuid::Uuid;

use super::{AdminState, OPERATIONS, Operation};
use crate::admin::request::Actor;
use crate::app::App;
use crate::audit::{self, By, Call, OperatorInfo, Outcome};
use crate::client::Client;
use crate::error::{Error, Problem};
use crate::http::extract::bearer;
use crate::http::tls::PeerIdentity;
use crate::operator::{self, Operator};
use crate::secret::{OperatorToken, TokenHash};
use crate::throttle::{RateLimit, Source};

/// The header with the reason of a call.
const REASON: &str = "x-reason";
/// The longest reason, in characters.
const MAX_REASON: usize = 200;

/// Who calls, and why. An extension of every admitted request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The operator.
    pub operator: Operator,
    operation: &'static Operation,
    reason: Option<String>,
    client: Client,
}

impl Caller {
    /// The operator as the cause of an audit event.
    #[must_use]
    pub fn by(&self) -> Option<By<'_>> {
        Some(By::Operator(self.info()))
    }

    /// The audit event of this call, for a call that no event of a change records already.
    pub(super) fn call(&self, account_id: Option<Uuid>, outcome: Outcome) -> Call<'_> {
        Call { name: self.operation.name, account_id, operator: self.info(), outcome }
    }

    /// The operator as the actor of a change, with the operator's own rate limit.
    #[must_use]
    pub fn actor(&self, app: &App) -> Actor<'_> {
        Actor::calling(self.info(), RateLimit::for_operator(app.config.admin.operator_per_hour))
    }

    fn info(&self) -> OperatorInfo<'_> {
        let (name, reason) = (self.operator.name.as_str(), self.reason.as_deref());
        OperatorInfo { name, reason, client: Some((&self.client).into()) }
    }
}

/// Marks an answer whose call was recorded in the transaction of its change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded;

/// Admits a call that has a valid credential, a sufficient role, and a reason if it needs one. The
/// audit log records every call of [`OPERATIONS`] with a valid credential. If that fails, the
/// answer is 502.
pub async fn admit(State(admin): State<AdminState>, request: Request, next: Next) -> Response {
    match admitted(&admin, request, next).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn admitted(admin: &AdminState, request: Request, next: Next) -> Result<Response, Error> {
    let (mut parts, body) = request.into_parts();
    let Ok(client) = Client::from_request_parts(&mut parts, &()).await;
    let operator = authenticate(admin, &parts.headers, parts.extensions.get(), client.ip).await?;
    let path = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some(operation) = find(&parts.method, path) else { return Ok(not_allowed(path)) };
    let reason = reason(&parts.headers);
    let account_id = account_in(parts.uri.path());
    let caller = Caller { operator, operation, reason: reason.clone().ok().flatten(), client };
    let refusal = if caller.operator.role < operation.role {
        Some((Outcome::Refused, Problem::RoleInsufficient))
    } else {
        let is_missing = reason.is_err() || (operation.changes && caller.reason.is_none());
        is_missing.then_some((Outcome::Failed, Problem::ReasonInvalid))
    };
    if let Some((outcome, problem)) = refusal {
        record(admin, account_id, &caller, outcome).await?;
        return Err(problem.into());
    }
    let mut request = Request::from_parts(parts, body);
    request.extensions_mut().insert(caller.clone());
    let mut response = next.run(request).await;
    if response.extensions_mut().remove::<Recorded>().is_none() {
        let outcome = match response.status() {
            status if status.is_success() => Outcome::Allowed,
            StatusCode::FORBIDDEN => Outcome::Refused,
            _ => Outcome::Failed,
        };
        record(admin, account_id, &caller, outcome).await?;
    }
    Ok(response)
}

/// The operation of a request. HEAD is answered as GET.
fn find(method: &Method, path: &str) -> Option<&'static Operation> {
    let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
    OPERATIONS.iter().find(|operation| operation.method == method && operation.path == path)
}

fn not_allowed(path: &str) -> Response {
    let allowed = OPERATIONS.iter().filter(|operation| operation.path == path);
    let allowed: Vec<_> = allowed.map(|operation| operation.method).collect();
    ([(ALLOW, allowed.join(", "))], Error::from(Problem::MethodNotAllowed)).into_response()
}

/// The account in a path `/admin/accounts/{id}…`.
fn account_in(path: &str) -> Option<Uuid> {
    let id = path.strip_prefix("/admin/accounts/")?.split('/').next()?;
    // The router decodes the path too.
    percent_decode_str(id).decode_utf8().ok()?.parse().ok()
}

async fn record(
    admin: &AdminState,
    account_id: Option<Uuid>,
    caller: &Caller,
    outcome: Outcome,
) -> Result<(), Error> {
    let now = admin.app.time()?;
    let call = caller.call(account_id, outcome);
    admin.query("record a call", async |connection| audit::record_call(connection, now, &call).await).await
}

/// The operator of a Bearer token, or else of a client certificate.
async fn authenticate(
    admin: &AdminState,
    headers: &HeaderMap,
    certificate: Option<&PeerIdentity>,
    ip: IpAddr,
) -> Result<Operator, Error> {
    let operator = if headers.contains_key(AUTHORIZATION) {
        by_token(admin, headers, ip).await?
    } else {
        let known = certificate.and_then(|identity| by_certificate(admin, identity));
        if known.is_none() {
            throttle(admin, ip)?;
        }
        known
    };
    operator.ok_or_else(|| {
        admin.app.metrics.operators_unknown.inc();
        Problem::OperatorUnknown.into()
    })
}

/// Draws on the bucket of a network for a call without a valid credential.
fn throttle(admin: &AdminState, ip: IpAddr) -> Result<(), Error> {
    let drawn = admin.app.source_limits.unknown_operators.admit(Source::Network(ip));
    drawn.map_err(|wait| {
        admin.app.metrics.operators_unknown.inc();
        Error::retry_after(Problem::NetworkThrottled, wait)
    })
}

/// The operator of a Bearer token. A token that was valid at its last use draws on no rate limit.
/// Any other token draws on the bucket of the client's network, with a refund if it is valid or
/// PostgreSQL fails.
async fn by_token(admin: &AdminState, headers: &HeaderMap, ip: IpAddr) -> Result<Option<Operator>, Error> {
    let Some(token) = bearer(headers).and_then(OperatorToken::parse) else {
        throttle(admin, ip)?;
        return Ok(None);
    };
    let hash = token.hash();
    let was_valid = accepted(admin).contains(&hash);
    if !was_valid {
        throttle(admin, ip)?;
    }
    let now = admin.app.time()?;
    let find = async |connection: &mut sqlx::PgConnection| operator::by_token(connection, now, &hash).await;
    let found = admin.query("find operator", find).await.inspect_err(|_| {
        if !was_valid {
            admin.app.source_limits.unknown_operators.refund(Source::Network(ip), 1);
        }
    })?;
    match (&found, was_valid) {
        (Some(_), false) => {
            admin.app.source_limits.unknown_operators.refund(Source::Network(ip), 1);
            accepted(admin).insert(hash);
        }
        (None, true) => {
            accepted(admin).remove(&hash);
            throttle(admin, ip)?;
        }
        _ => {}
    }
    Ok(found)
}

fn accepted(admin: &AdminState) -> MutexGuard<'_, HashSet<TokenHash>> {
    admin.accepted.lock().unwrap_or_else(PoisonError::into_inner)
}

fn by_certificate(admin: &AdminState, identity: &PeerIdentity) -> Option<Operator> {
    let roles = &admin.app.config.admin.admin_client_roles;
    let known = roles.iter().find(|known| *known.identity == *identity.0)?;
    Some(Operator { name: known.identity.clone(), role: known.role })
}

/// The reason of a call: 1 to 200 characters without control characters. It is UTF-8, or an
/// extended value (RFC 8187) such as `UTF-8''%C3%81nh`. The console sends an extended value,
/// because a browser's `fetch` allows only Latin-1 in a header.
fn reason(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(REASON).iter();
    let (value, None) = (values.next(), values.next()) else { return Err(Problem::ReasonInvalid) };
    let Some(value) = value else { return Ok(None) };
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| Problem::ReasonInvalid)?.trim();
    let text = match text.get(..7) {
        Some(begin) if begin.eq_ignore_ascii_case("UTF-8''") => {
            let decoded = percent_decode_str(&text[7..]).decode_utf8();
            decoded.map_err(|_| Problem::ReasonInvalid)?.trim().to_owned()
        }
        _ => text.to_owned(),
    };
    let is_plain = (1..=MAX_REASON).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if is_plain { Ok(Some(text)) } else { Err(Problem::ReasonInvalid) }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_reason_is_plain_text_of_at_most_200_characters() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(REASON, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            reason(&headers)
        };
        let long = "á".repeat(200);
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[" ticket 4711 "]), Ok(Some("ticket 4711".into())));
        assert_eq!(read(&["Ánh gọi"]), Ok(Some("Ánh gọi".into())));
        assert_eq!(read(&["utf-8''%C3%81nh%20g%E1%BB%8Di"]), Ok(Some("Ánh gọi".into())));
        assert_eq!(read(&["100% sure"]), Ok(Some("100% sure".into())));
        assert_eq!(read(&[&long]), Ok(Some(long.clone())));
        for bad in [
            &[""][..],
            &[" "],
            &["a", "b"],
            &[&format!("{long}a")],
            &["UTF-8''a%0Ab"],
            &["UTF-8''%FF"],
            &["a\tb"],
        ] {
            assert_eq!(read(bad), Err(Problem::ReasonInvalid), "{bad:?}");
        }
    }

    #[test]
    fn the_account_of_a_path_is_recorded() {
        let id = Uuid::from_u128(7);
        assert_eq!(account_in(&format!("/admin/accounts/{id}/ticket")), Some(id));
        assert_eq!(account_in(&format!("/admin/accounts/{id}")), Some(id));
        let encoded = id.to_string().replace('0', "%30");
        assert_eq!(account_in(&format!("/admin/accounts/{encoded}/events")), Some(id));
        assert_eq!(account_in("/admin/accounts/x"), None);
        assert_eq!(account_in("/admin/accounts"), None);
    }

    #[test]
    fn each_operation_is_found_and_no_other() {
        for operation in &OPERATIONS {
            let method = Method::from_str(operation.method).unwrap();
            assert_eq!(find(&method, operation.path).unwrap().name, operation.name);
        }
        assert!(find(&Method::HEAD, "/admin/accounts").is_some());
        assert!(find(&Method::PATCH, "/admin/accounts").is_none());
    }
}
