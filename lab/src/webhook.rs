//! A receiver of events (webhooks) over TLS, at `localhost`. A test can make it refuse, stall, go
//! down and come back. It runs on a thread of its own, so that going down closes every connection.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use crate::{PATIENCE, certificate, place};

/// 24 bytes in base64 for tests alone.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// How the receiver answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Answers 204.
    Takes,
    /// Answers with this status.
    Answers(u16),
    /// Answers 500 for events of this subject, and 204 for others.
    RefusesSubject(String),
    /// Answers only after the mood has changed.
    Stalls,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub headers: HeaderMap,
    pub raw: Bytes,
    pub body: Value,
    /// Whether it was answered with success.
    pub taken: bool,
}

impl Call {
    pub fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub fn id(&self) -> &str {
        self.body["id"].as_str().unwrap()
    }

    pub fn subject(&self) -> &str {
        self.body["subject"].as_str().unwrap_or_default()
    }
}

pub struct Webhook {
    pub address: SocketAddr,
    folder: PathBuf,
    mood: watch::Sender<Mood>,
    calls: Arc<Mutex<Vec<Call>>>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Webhook {
    pub fn start(mood: Mood) -> Self {
        let folder = place::folder("webhook");
        certificate::make(&folder, "localhost");
        let (address, mood) = ((Ipv4Addr::LOCALHOST, 0).into(), watch::Sender::new(mood));
        let mut webhook = Self { address, folder, mood, calls: Arc::default(), running: None };
        webhook.is_back();
        webhook
    }

    /// An entry of `EVENT_HOOKS` that leads to this receiver.
    pub fn entry(&self, name: &str, kinds: &str) -> String {
        format!("{name} https://localhost:{}/events {SECRET} {kinds}", self.address.port())
    }

    /// The settings with which a service can reach this receiver.
    pub fn settings(&self) -> Vec<String> {
        vec![
            "--event-hook-networks=127.0.0.0/8".into(),
            format!("--event-hook-ca-file={}", self.ca()),
            "--event-hook-poll-interval=20ms".into(),
        ]
    }

    /// The same settings as environment variables, with an entry of `EVENT_HOOKS` for all events.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [
            ("EVENT_HOOKS", self.entry("rest", "all")),
            ("EVENT_HOOK_NETWORKS", "127.0.0.0/8".into()),
            ("EVENT_HOOK_CA_FILE", self.ca()),
            ("EVENT_HOOK_POLL_INTERVAL", "20ms".into()),
        ]
    }

    /// The path of its CA certificate.
    pub fn ca(&self) -> String {
        self.file("ca.pem")
    }

    /// The path of a file of its certificate: `cert.pem` or `key.pem`.
    pub fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    pub fn is_in_mood(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// All requests that have arrived, in their order.
    pub fn calls(&self) -> Vec<Call> {
        self.locked().clone()
    }

    /// The requests that were answered with success.
    pub fn taken(&self) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.taken).collect()
    }

    /// Waits until this many requests have arrived, and returns all requests.
    pub async fn called(&self, count: usize) -> Vec<Call> {
        self.until(|calls| calls.len() >= count).await
    }

    /// Waits until this many requests were answered with success, and returns all such requests.
    pub async fn has_taken(&self, count: usize) -> Vec<Call> {
        self.until(|calls| calls.iter().filter(|call| call.taken).count() >= count).await;
        self.taken()
    }

    async fn until(&self, holds: impl Fn(&[Call]) -> bool) -> Vec<Call> {
        let waiting = async {
            while !holds(&self.locked()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{:?}", self.calls()));
        self.calls()
    }

    /// Ends as if the receiver was killed: every connection is closed, and new ones are refused.
    pub fn goes_down(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }

    /// Listens again at the same address.
    pub fn is_back(&mut self) {
        let listener = TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let (mood, calls, tls) = (self.mood.subscribe(), Arc::clone(&self.calls), self.tls());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let tcp = tokio::net::TcpListener::from_std(listener).unwrap();
                let routes =
                    Router::new().fallback(async move |uri: Uri, headers: HeaderMap, body: Bytes| {
                        answer(mood.clone(), &calls, &uri, headers, body).await
                    });
                let serving = async { axum::serve(Listener { tcp, tls }, routes).await.unwrap() };
                tokio::select! { () = serving => {} _ = stopped => {} }
            });
        });
        self.running = Some((stop, thread));
    }

    fn tls(&self) -> TlsAcceptor {
        let certificates = CertificateDer::pem_file_iter(self.file("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.file("key.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates.map(Result::unwrap).collect(), key)
            .unwrap();
        Arc::new(config).into()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap()
    }
}

impl Drop for Webhook {
    fn drop(&mut self) {
        self.goes_down();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn answer(
    mut mood: watch::Receiver<Mood>,
    calls: &Mutex<Vec<Call>>,
    uri: &Uri,
    headers: HeaderMap,
    raw: Bytes,
) -> StatusCode {
    let body: Value = serde_json::from_slice(&raw).unwrap();
    let call = Call { path: uri.to_string(), headers, raw, body, taken: false };
    let subject = call.subject().to_owned();
    let place = {
        let mut calls = calls.lock().unwrap();
        calls.push(call);
        calls.len() - 1
    };
    let status = match &*mood.wait_for(|mood| *mood != Mood::Stalls).await.unwrap() {
        Mood::Answers(status) => *status,
        Mood::RefusesSubject(refused) if *refused == subject => 500,
        _ => 204,
    };
    calls.lock().unwrap()[place].taken = (200..300).contains(&status);
    StatusCode::from_u16(status).unwrap()
}

struct Listener {
    tcp: tokio::net::TcpListener,
    tls: TlsAcceptor,
}

impl axum::serve::Listener for Listener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok((stream, peer)) = self.tcp.accept().await
                && let Ok(stream) = self.tls.accept(stream).await
            {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
