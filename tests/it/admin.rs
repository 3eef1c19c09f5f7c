//! The admin API: who may call what, by token and by certificate, and that each answer is as
//! described in `openapi/admin.json`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jsonschema::Draft;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ALL_VERSIONS, ClientConfig, RootCertStore};
use serde_json::{Value, json};
use sqlx::PgPool;
use strum::VariantArray as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use uuid::Uuid;
use vos_auth::config::AdminSettings;
use vos_auth::http::admin::{OPERATIONS, Operation};
use vos_auth::http::tls::Tls;
use vos_auth::metrics::Metrics;
use vos_auth::operator::{self, Role};

use crate::address_change::asks_for_a_ticket;
use crate::harness::client::{Answer, Client};
use crate::harness::{Service, certificate, now, place};
use crate::openapi::resolved;

pub const ADDRESS: &str = "--admin-addr=127.0.0.1:0";

/// The token of a new operator.
pub async fn operator(service: &Service, name: &str, role: Role) -> String {
    let month = Duration::from_hours(30 * 24);
    let created = operator::create(&service.pool, now(), &name.parse().unwrap(), role, month).await.unwrap();
    created.expect("the name is free").expose()
}

/// A client of the admin API that sends this token and a reason.
pub fn desk(service: &Service, token: &str) -> Client {
    let client = Client::new(service.admin_address.expect("an admin API"));
    client.with("authorization", &format!("Bearer {token}")).with("x-reason", "desk 4711")
}

/// Calls the admin API. If `body` is null, the request has no body.
pub async fn call(client: &Client, method: &str, path: &str, body: &Value) -> Answer {
    let request = client.request(method.parse::<Method>().unwrap(), path);
    if body.is_null() {
        return Client::answer(request).await;
    }
    Client::answer(request.header("content-type", "application/json").body(body.to_string())).await
}

pub async fn id_of(pool: &PgPool, email: &str) -> Uuid {
    let id = sqlx::query_scalar("SELECT id FROM account WHERE email = $1").bind(email);
    id.fetch_one(pool).await.unwrap()
}

/// The path and the body of a request about a new account. It succeeds if the role may send it.
async fn request(service: &Service, operation: &Operation, unique: &str) -> (String, Value) {
    let email = format!("{unique}@example.com");
    service.has_account(&email).await;
    let id = id_of(&service.pool, &email).await;
    let id = match operation.name {
        "request.approve" | "request.cancel" => {
            asks_for_a_ticket(&service.pool, service.app.clock.now(), id).await
        }
        _ => id,
    };
    let path = operation.path.replace("{id}", &id.to_string()).replace("{name}", "alice");
    let body = match operation.name {
        "account.create" => {
            json!({ "email": format!("new-{email}"), "traits": { "name": { "first": "Ánh" } } })
        }
        "account.set_email" | "account.recover_to" => json!({ "email": format!("moved-{email}") }),
        "account.set_locale" => json!({ "locale": "en" }),
        "limits.lift" => json!({ "email": email }),
        "outbox.retry" => json!({}),
        _ => Value::Null,
    };
    (path, body)
}

fn document() -> Value {
    serde_json::from_str(&std::fs::read_to_string(place::file("openapi/admin.json")).unwrap()).unwrap()
}

/// Translates OpenAPI's `nullable` into JSON Schema, where `null` is one of the types.
fn with_null(node: &Value) -> Value {
    match node {
        Value::Object(members) => {
            let mut members: serde_json::Map<_, _> =
                members.iter().map(|(name, value)| (name.clone(), with_null(value))).collect();
            if members.remove("nullable") == Some(json!(true)) {
                let kind = members["type"].take();
                members["type"] = json!([kind, "null"]);
            }
            Value::Object(members)
        }
        Value::Array(items) => items.iter().map(with_null).collect(),
        other => other.clone(),
    }
}

/// Asserts that an answer is as the OpenAPI document describes it.
pub fn is_as_described(document: &Value, operation: &Operation, answer: &Answer) {
    let called = format!("{} {}: {} {}", operation.method, operation.path, answer.status, answer.text);
    let described = &document["paths"][operation.path][operation.method.to_lowercase()]["responses"];
    let described = &described[answer.status.to_string()];
    assert!(described.is_object(), "not described: {called}");
    let described = resolved(document, described);
    for (name, header) in described["headers"].as_object().unwrap() {
        let is_needed = resolved(document, header)["required"] == true;
        assert!(!is_needed || answer.header(&name.to_lowercase()).is_some(), "no {name}: {called}");
    }
    if let Some(code) = answer.body["error"].as_str() {
        let text = described["description"].as_str().unwrap();
        let introduction = document["info"]["description"].as_str().unwrap();
        let code = format!("`{code}`");
        assert!(text.contains(&code) || introduction.contains(&code), "{code} is not explained: {called}");
    }
    let Some(content) = described["content"]["application/json"]["schema"].as_object() else { return };
    let mut root = with_null(&json!({ "components": document["components"] }));
    root["allOf"] = json!([with_null(&Value::Object(content.clone()))]);
    let schema = jsonschema::options().with_draft(Draft::Draft4).build(&root).unwrap();
    let errors: Vec<_> = schema.iter_errors(&answer.body).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}: {called}");
}

/// The number of an operator's audit events with this outcome.
async fn recorded(service: &Service, name: &str, outcome: &str) -> i64 {
    service.count(&format!("audit_event WHERE operator = '{name}' AND outcome = '{outcome}'")).await
}

/// The table of roles: each call of each role is answered or refused, and recorded once.
#[sqlx::test]
async fn each_role_may_call_what_its_row_says_with_a_token(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    let document = document();
    for &role in Role::VARIANTS {
        let name = role.to_string();
        let client = desk(&service, &operator(&service, &name, role).await);
        for (place, operation) in OPERATIONS.iter().enumerate() {
            let (path, body) = request(&service, operation, &format!("{name}-{place}")).await;
            let answer = call(&client, operation.method, &path, &body).await;
            is_as_described(&document, operation, &answer);
            let outcome = if role >= operation.role {
                assert!([200, 201].contains(&answer.status), "{name} {path}: {}", answer.text);
                "allowed"
            } else {
                assert_eq!(answer.error(), (403, "role_insufficient"), "{name} {path}");
                "refused"
            };
            let all = service
                .count(&format!("audit_event WHERE operator = '{name}' AND outcome IS NOT NULL"))
                .await;
            assert_eq!(all, i64::try_from(place).unwrap() + 1, "{name} {path}: one event a call");
            assert!(recorded(&service, &name, outcome).await > 0, "{name} {path}");
        }
        let allowed = OPERATIONS.iter().filter(|operation| role >= operation.role).count();
        assert_eq!(recorded(&service, &name, "allowed").await, i64::try_from(allowed).unwrap());
    }
    let with_reason =
        "audit_event WHERE operator IS NOT NULL AND reason = 'desk 4711' AND client_ip = '127.0.0.1'";
    let total = i64::try_from(Role::VARIANTS.len() * OPERATIONS.len()).unwrap();
    assert_eq!(service.count(with_reason).await, total);
    service.stops().await;
}

/// A client that presents a certificate, or none.
pub struct Holder {
    service: std::net::SocketAddr,
    connector: TlsConnector,
}

impl Holder {
    pub fn new(service: &Service, folder: &Path, name: Option<&str>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_protocol_versions(ALL_VERSIONS).unwrap();
        let config = config.with_root_certificates(roots);
        let config = match name {
            Some(name) => {
                let certificate = CertificateDer::from_pem_file(folder.join(format!("{name}.pem"))).unwrap();
                let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).unwrap();
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        Self { service: service.admin_address.unwrap(), connector: Arc::new(config).into() }
    }

    /// The answer; `None` if the handshake is refused.
    pub async fn calls(&self, method: &str, path: &str, body: &Value) -> Option<Answer> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-reason: desk 4711\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let stream = tokio::net::TcpStream::connect(self.service).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = self.connector.connect(name, stream).await.ok()?;
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let answer = String::from_utf8(answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n")?;
        let mut headers = HeaderMap::new();
        for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
            headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_str(text).unwrap_or(Value::Null);
        Some(Answer { status, headers, text: text.to_owned(), body })
    }
}

/// Makes certificates of the service and of operators, and returns the settings for them.
pub fn certificates(folder: &Path) -> Vec<String> {
    std::fs::create_dir_all(folder).unwrap();
    certificate::make(folder, "localhost");
    certificate::make_client(folder, "auditor", "");
    certificate::make_client(folder, "support", "spiffe://verolabs.co/desk");
    certificate::make_client(folder, "admin", "spiffe://verolabs.co/admin");
    certificate::make_client(folder, "stranger", "");
    let file = |name: &str| folder.join(name).display().to_string();
    vec![
        ADDRESS.to_owned(),
        format!("--admin-tls-cert={}", file("cert.pem")),
        format!("--admin-tls-key={}", file("key.pem")),
        format!("--admin-client-ca={}", file("ca.pem")),
        // The common name of a certificate with a SPIFFE ID does not count.
        "--admin-client-roles=CN=auditor=auditor,CN=support=admin,spiffe://verolabs.co/desk=support,\
         spiffe://verolabs.co/admin=admin"
            .to_owned(),
    ]
}

/// The table of roles, with client certificates. A setting gives each certificate its role.
#[sqlx::test]
async fn each_role_may_call_what_its_row_says_with_a_certificate(pool: PgPool) {
    let folder = PathBuf::from(place::temporary("admin-tls"));
    let settings = certificates(&folder);
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    let service = Service::start_with_settings(&pool, &settings).await;
    for &role in Role::VARIANTS {
        let name = role.to_string();
        let holder = Holder::new(&service, &folder, Some(&name));
        for (place, operation) in OPERATIONS.iter().enumerate() {
            let (path, body) = request(&service, operation, &format!("{name}-{place}")).await;
            let answer = holder.calls(operation.method, &path, &body).await.expect("a handshake");
            if role >= operation.role {
                assert!([200, 201].contains(&answer.status), "{name} {path}: {}", answer.text);
            } else {
                assert_eq!(answer.error(), (403, "role_insufficient"), "{name} {path}");
            }
        }
    }
    let all = i64::try_from(OPERATIONS.len()).unwrap();
    for (identity, calls) in [("CN=auditor", all), ("spiffe://verolabs.co/desk", all), ("CN=support", 0)] {
        assert_eq!(service.count(&format!("audit_event WHERE operator = '{identity}'")).await, calls);
    }
    let holder = Holder::new(&service, &folder, Some("auditor"));
    let console = holder.calls("GET", "/console", &Value::Null).await.unwrap();
    assert!(console.text.contains("data-certificates"), "the console first tries the certificate");
    // A certificate without a role, and none at all.
    for name in [Some("stranger"), None] {
        let answer = Holder::new(&service, &folder, name).calls("GET", "/admin/outbox", &Value::Null).await;
        assert_eq!(answer.unwrap().error(), (401, "operator_unknown"), "{name:?}");
    }
    // A certificate of another authority.
    let other = folder.join("other");
    std::fs::create_dir_all(&other).unwrap();
    certificate::make(&other, "localhost");
    certificate::make_client(&other, "admin", "spiffe://verolabs.co/admin");
    std::fs::copy(folder.join("ca.pem"), other.join("ca.pem")).unwrap();
    let refused =
        Holder::new(&service, &other, Some("admin")).calls("GET", "/admin/outbox", &Value::Null).await;
    assert!(refused.is_none(), "{refused:?}");
    service.stops().await;
}

#[test]
fn a_certificate_that_cannot_be_read_again_sets_its_metric() {
    let folder = PathBuf::from(place::temporary("admin-tls-reread"));
    certificates(&folder);
    let settings = AdminSettings {
        admin_addr: None,
        admin_tls_cert: Some(folder.join("cert.pem")),
        admin_tls_key: Some(folder.join("key.pem")),
        admin_client_ca: Some(folder.join("ca.pem")),
        admin_client_roles: Vec::new(),
        operator_per_hour: 20,
    };
    let (tls, metrics) = (Tls::read(&settings).unwrap().unwrap(), Metrics::default());
    let unreadable_after = |name: &str, content: &[u8]| {
        let before = std::fs::read(folder.join(name)).unwrap();
        std::fs::write(folder.join(name), content).unwrap();
        tls.reread(&metrics);
        let unreadable = metrics.admin_certificate_unreadable.get();
        std::fs::write(folder.join(name), before).unwrap();
        tls.reread(&metrics);
        assert_eq!(metrics.admin_certificate_unreadable.get(), 0, "{name} is back");
        unreadable
    };
    for (name, content) in [("cert.pem", &b""[..]), ("key.pem", b"-----BEGIN"), ("ca.pem", b"\xff")] {
        assert_eq!(unreadable_after(name, content), 1, "{name}");
    }
    // A certificate was renewed before its key.
    std::fs::create_dir(folder.join("renewed")).unwrap();
    certificate::make(&folder.join("renewed"), "localhost");
    let renewed = std::fs::read(folder.join("renewed/cert.pem")).unwrap();
    assert_eq!(unreadable_after("cert.pem", &renewed), 1);
}

#[sqlx::test]
async fn the_public_port_has_none_of_it(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &[ADDRESS]).await;
    let token = operator(&service, "alice", Role::Admin).await;
    let public = desk(&service, &token).at(service.address);
    for (place, operation) in OPERATIONS.iter().enumerate() {
        let (path, body) = request(&service, operation, &format!("a{place}")).await;
        let answer = call(&public, operation.method, &path, &body).await;
        assert_eq!(answer.error(), (404, "not_found"), "{path}");
    }
    assert_eq!(service.count("audit_event WHERE outcome IS NOT NULL").await, 0);
    service.stops().await;
    let without = Service::start(&pool).await;
    assert_eq!(without.admin_address, None, "off by default");
    without.stops().await;
}

/// The router cannot be asked for its routes, so its source is read.
#[test]
fn the_table_of_operations_the_routes_and_the_description_agree() {
    let source = include_str!("../../src/http/admin/mod.rs");
    let routes = source.split(".route(\"").skip(1).map(|route| route.split('"').next().unwrap());
    let routes: BTreeSet<_> = routes.filter(|path| path.starts_with("/admin/")).collect();
    let table: BTreeSet<_> = OPERATIONS.iter().map(|operation| operation.path).collect();
    assert_eq!(routes, table);
    let document = document();
    let mut described = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            described.insert((
                method.to_uppercase(),
                path.clone(),
                operation["x-role"].as_str().unwrap().to_owned(),
            ));
            let reason = operation["parameters"].as_array().unwrap().iter().any(|parameter| {
                resolved(&document, parameter)["name"] == "X-Reason"
                    && resolved(&document, parameter)["required"] == true
            });
            let of_table =
                OPERATIONS.iter().find(|known| known.path == path && known.method == method.to_uppercase());
            assert_eq!(of_table.map(|known| known.changes), Some(reason), "{method} {path}");
        }
    }
    let table: BTreeSet<_> = OPERATIONS
        .iter()
        .map(|operation| (operation.method.to_owned(), operation.path.to_owned(), operation.role.to_string()))
        .collect();
    assert_eq!(described, table);
}
