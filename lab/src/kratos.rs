//! A double of Ory Kratos's admin API, written after its documentation and source (v26.2.0): the
//! list in pages, one identity, and a PUT that replaces it. A test can make it fail for some
//! identities, or go down.

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::Json;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Map, Value, json};
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use uuid::Uuid;

use crate::now;

/// The largest page, in identities, whatever the request says.
const MAX_PAGE: usize = 500;

/// A Kratos on a free port. It has a thread of its own, so that it answers while a test blocks
/// until the program ends.
pub struct Kratos {
    pub address: SocketAddr,
    inner: Shared,
}

type Shared = Arc<Mutex<Inner>>;

#[derive(Default)]
struct Inner {
    identities: BTreeMap<Uuid, Value>,
    /// The identities for which `GET /admin/identities/{id}` is answered 500.
    failing: HashSet<Uuid>,
    /// After this many requests with this method, the double goes down; `None`: never.
    until_gone: Option<(Method, usize)>,
    is_gone: bool,
    asked: Vec<Method>,
    authorization: Option<String>,
    /// After this many requests with this method, the double holds their answers.
    held: Option<(Method, usize, watch::Receiver<()>)>,
    /// The base URL of the links to other pages.
    links_to: String,
    /// Whether the last page links to the first one.
    is_endless: bool,
}

impl Kratos {
    pub fn start(identities: &[Value]) -> Self {
        let inner = Shared::default();
        let by_id = |identity: &Value| (identity["id"].as_str().unwrap().parse().unwrap(), identity.clone());
        inner.lock().unwrap().identities = identities.iter().map(by_id).collect();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new()
            .route("/admin/identities", get(list))
            .route("/admin/identities/{id}", get(one).put(put))
            .with_state(Arc::clone(&inner));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, routes).await.unwrap();
            });
        });
        Self { address, inner }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All identities, as the admin API returns them with passwords.
    pub fn identities(&self) -> Vec<Value> {
        self.inner.lock().unwrap().identities.values().cloned().collect()
    }

    /// Changes a member of an identity, as Kratos itself would.
    pub fn changes(&self, id: &str, pointer: &str, value: Value) {
        let mut inner = self.inner.lock().unwrap();
        let identity = inner.identities.get_mut(&id.parse::<Uuid>().unwrap()).unwrap();
        *identity.pointer_mut(pointer).unwrap() = value;
    }

    pub fn loses(&self, id: &str) {
        self.inner.lock().unwrap().identities.remove(&id.parse().unwrap()).unwrap();
    }

    pub fn fails_for(&self, ids: &[&str]) {
        self.inner.lock().unwrap().failing = ids.iter().map(|id| id.parse().unwrap()).collect();
    }

    /// Goes down after this many more requests with this method: it closes every connection without
    /// an answer.
    pub fn is_gone_after(&self, requests: usize, method: Method) {
        self.inner.lock().unwrap().until_gone = Some((method, requests));
    }

    pub fn is_back(&self) {
        let mut inner = self.inner.lock().unwrap();
        (inner.until_gone, inner.is_gone) = (None, false);
    }

    /// After this many more requests with this method, holds their answers until the returned
    /// sender is dropped.
    pub fn holds_after(&self, requests: usize, method: Method) -> watch::Sender<()> {
        let (hold, waits) = watch::channel(());
        self.inner.lock().unwrap().held = Some((method, requests, waits));
        hold
    }

    /// Sets the base URL of the links to other pages, as behind a proxy.
    pub fn links_to(&self, base: &str) {
        base.clone_into(&mut self.inner.lock().unwrap().links_to);
    }

    /// Makes the last page of the list link to the first one.
    pub fn never_ends(&self) {
        self.inner.lock().unwrap().is_endless = true;
    }

    /// The number of requests with this method since this function was last called for it.
    pub fn asked(&self, method: &Method) -> usize {
        let mut inner = self.inner.lock().unwrap();
        let before = inner.asked.len();
        inner.asked.retain(|asked| asked != method);
        before - inner.asked.len()
    }

    /// The Authorization header of the last request.
    pub fn authorization(&self) -> Option<String> {
        self.inner.lock().unwrap().authorization.clone()
    }
}

/// Counts a request, and holds it if a test asked for that. While Kratos is down, closes the
/// connection.
async fn asked(inner: &Shared, method: Method, headers: &HeaderMap) {
    let (is_gone, held) = inner.lock().unwrap().counts(method, headers);
    if is_gone {
        hangs_up();
    }
    if let Some(mut held) = held {
        // The error means that the test has dropped the sender.
        let _ = held.changed().await;
    }
}

impl Inner {
    fn counts(&mut self, method: Method, headers: &HeaderMap) -> (bool, Option<watch::Receiver<()>>) {
        if let Some((gone, left)) = &mut self.until_gone
            && *gone == method
        {
            self.is_gone = *left == 0;
            *left = left.saturating_sub(1);
        }
        let held = match &mut self.held {
            Some((held, 0, wait)) if *held == method => Some(wait.clone()),
            Some((held, left, _)) if *held == method => {
                *left -= 1;
                None
            }
            _ => None,
        };
        self.authorization = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.asked.push(method);
        (self.is_gone, held)
    }
}

/// Ends the task of the connection, and so the connection, without a message in the test's output.
fn hangs_up() -> ! {
    std::panic::resume_unwind(Box::new(()))
}

fn problem(status: StatusCode) -> Response {
    let body = json!({ "error": { "code": status.as_u16(), "status": status.canonical_reason() } });
    (status, Json(body)).into_response()
}

/// An identity as a response has it: a credential has its config only if the query has
/// `include_credential` with its kind.
fn shown(identity: &Value, query: &[(String, String)]) -> Value {
    let mut identity = identity.clone();
    if let Some(kinds) = identity["credentials"].as_object_mut() {
        for (kind, credential) in kinds {
            let asked = query.iter().any(|(name, value)| name == "include_credential" && value == kind);
            if !asked {
                credential.as_object_mut().unwrap().remove("config");
            }
        }
    }
    identity
}

async fn list(
    State(inner): State<Shared>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    asked(&inner, Method::GET, &headers).await;
    let of = |name: &str| query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let size = of("page_size").map_or(250, |size| size.parse().unwrap()).clamp(1, MAX_PAGE);
    let after: Uuid = of("page_token").map_or(Uuid::nil(), |token| token.parse().unwrap());
    let inner = inner.lock().unwrap();
    let mut following = inner.identities.range(after..).filter(|(id, _)| **id != after);
    let page: Vec<_> = following.by_ref().take(size).collect();
    let link = |rel: &str, token: Uuid| {
        let base = &inner.links_to;
        format!(
            "<{base}/admin/identities?include_credential=password&page_size={size}&page_token={token}>; rel=\"{rel}\""
        )
    };
    let mut links = vec![link("first", Uuid::nil())];
    if following.next().is_some() {
        links.push(link("next", *page.last().unwrap().0));
    } else if inner.is_endless {
        links.push(link("next", Uuid::nil()));
    }
    // The list omits all credentials unless the query has `include_credential`.
    let wanted = query.iter().any(|(name, _)| name == "include_credential");
    let page: Vec<_> = page
        .into_iter()
        .map(|(_, identity)| {
            let mut identity = shown(identity, &query);
            if !wanted {
                identity.as_object_mut().unwrap().remove("credentials");
            }
            identity
        })
        .collect();
    ([("link", links.join(","))], Json(page)).into_response()
}

async fn one(
    State(inner): State<Shared>,
    Path(id): Path<Uuid>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Response {
    asked(&inner, Method::GET, &headers).await;
    let inner = inner.lock().unwrap();
    match inner.identities.get(&id) {
        _ if inner.failing.contains(&id) => problem(StatusCode::INTERNAL_SERVER_ERROR),
        Some(identity) => Json(shown(identity, &query)).into_response(),
        None => problem(StatusCode::NOT_FOUND),
    }
}

/// Replaces the identity. If the body lacks `schema_id`, `state` or credentials, the old ones stay;
/// other members that it lacks become null. The body cannot set the organization or the times.
async fn put(
    State(inner): State<Shared>,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
    Json(body): Json<Map<String, Value>>,
) -> Response {
    asked(&inner, Method::PUT, &headers).await;
    let mut inner = inner.lock().unwrap();
    let Some(old) = inner.identities.get(&id) else { return problem(StatusCode::NOT_FOUND) };
    match replaced(old, &body) {
        Ok(new) => {
            let takes = |other: &Value| other["traits"]["email"] == new["traits"]["email"];
            if inner.identities.iter().any(|(known, other)| *known != id && takes(other)) {
                return problem(StatusCode::CONFLICT);
            }
            let answer = shown(&new, &[]);
            inner.identities.insert(id, new);
            Json(answer).into_response()
        }
        Err(status) => problem(status),
    }
}

fn replaced(old: &Value, body: &Map<String, Value>) -> Result<Value, StatusCode> {
    let known =
        ["schema_id", "state", "traits", "metadata_public", "metadata_admin", "external_id", "credentials"];
    let at = json!(now().format(&Rfc3339).unwrap());
    let of = |name: &str| body.get(name).filter(|value| !value.is_null());
    // Stricter than Kratos, which ignores unknown members.
    if body.keys().any(|name| !known.contains(&name.as_str()))
        || of("traits").is_none_or(|traits| traits["email"].as_str().is_none())
    {
        return Err(StatusCode::BAD_REQUEST);
    }
    let mut new = old.clone();
    new["schema_id"] = of("schema_id").unwrap_or(&old["schema_id"]).clone();
    if let Some(state) = of("state").filter(|state| **state != old["state"]) {
        if !["active", "inactive"].contains(&state.as_str().unwrap_or_default()) {
            return Err(StatusCode::BAD_REQUEST);
        }
        (new["state"], new["state_changed_at"]) = (state.clone(), at.clone());
    }
    for name in ["traits", "metadata_public", "metadata_admin", "external_id"] {
        new[name] = of(name).cloned().unwrap_or_default();
    }
    if let Some(password) = of("credentials").and_then(|credentials| credentials.get("password")) {
        let hash = password["config"]["hashed_password"].as_str().unwrap_or_default();
        if !["$argon2id$", "$argon2i$", "$2a$", "$2b$", "$2y$"].iter().any(|kind| hash.starts_with(kind)) {
            return Err(StatusCode::BAD_REQUEST);
        }
        let config = json!({ "hashed_password": hash });
        new["credentials"]["password"] =
            json!({ "type": "password", "version": 0, "config": config, "created_at": at, "updated_at": at });
    }
    let email = json!(new["traits"]["email"].as_str().unwrap_or_default().to_lowercase());
    if let Some(password) = new["credentials"].get_mut("password") {
        password["identifiers"] = json!([email]);
    }
    if old["traits"]["email"] != new["traits"]["email"] {
        new["verifiable_addresses"] =
            json!([{ "value": email, "verified": false, "via": "email", "status": "pending" }]);
        new["recovery_addresses"] = json!([{ "value": email, "via": "email" }]);
    }
    new["updated_at"] = at;
    Ok(new)
}
