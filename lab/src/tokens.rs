//! A token endpoint for tests (RFC 6749 §3.2), and the relay's side of XOAUTH2.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use url::form_urlencoded;

use crate::PATIENCE;

pub const CLIENT: &str = "the client:1";
pub const SECRET: &str = "the client's secret%+";

/// Decides whether an access token is valid.
pub type Judge = dyn Fn(&str) -> bool + Send + Sync;

/// What the endpoint does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Issues a token that is valid for this many seconds.
    Issues(u32),
    Answers(u16, &'static str),
    /// Answers only after the mood has changed.
    Holds,
}

/// One request to the endpoint.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The user and password of HTTP Basic, without the encoding of RFC 6749 §2.3.1.
    pub client: Option<(String, String)>,
    pub form: HashMap<String, String>,
}

struct Held {
    mood: Mood,
    asked: Vec<Asked>,
    /// The number of characters added to each token, because Microsoft's tokens are long.
    padding: usize,
    issued: Vec<(String, bool)>,
}

/// An endpoint on a free port, which runs on a thread of its own. Clones are the same endpoint.
#[derive(Clone)]
pub struct TokenEndpoint {
    address: SocketAddr,
    held: Arc<Mutex<Held>>,
}

impl TokenEndpoint {
    pub fn start(mood: Mood) -> Self {
        let held = Held { mood, asked: Vec::new(), padding: 0, issued: Vec::new() };
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = Self { address: listener.local_addr().unwrap(), held: Arc::new(Mutex::new(held)) };
        let routes = Router::new()
            .route("/token", post(token))
            .route("/is-good", get(is_good))
            .with_state(endpoint.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), routes).await.unwrap();
            });
        });
        endpoint
    }

    pub fn url(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// The URL at which a relay asks whether `?token=` is valid.
    pub fn introspection(&self) -> String {
        format!("http://{}/is-good", self.address)
    }

    pub fn is_in_mood(&self, mood: Mood) {
        self.held().mood = mood;
    }

    pub fn pads_tokens(&self, characters: usize) {
        self.held().padding = characters;
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.held().asked.clone()
    }

    /// Waits for the `count`th request, and returns it.
    pub async fn asked_for(&self, count: usize) -> Asked {
        let waiting = async {
            while self.held().asked.len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("it is asked");
        self.asked()[count - 1].clone()
    }

    /// Whether the endpoint has issued this token and has not revoked it.
    pub fn is_good(&self, token: &str) -> bool {
        self.held().issued.iter().any(|(issued, is_good)| issued == token && *is_good)
    }

    pub fn revokes_every_token(&self) {
        self.held().issued.iter_mut().for_each(|(_, is_good)| *is_good = false);
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }
}

async fn is_good(State(endpoint): State<TokenEndpoint>, query: Query<HashMap<String, String>>) -> String {
    endpoint.is_good(&query["token"]).to_string()
}

async fn token(State(endpoint): State<TokenEndpoint>, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers[CONTENT_TYPE], "application/x-www-form-urlencoded");
    let form: HashMap<_, _> = form_urlencoded::parse(&body).into_owned().collect();
    let client = headers.get(AUTHORIZATION).map(|header| {
        let basic = header.to_str().unwrap().strip_prefix("Basic ").expect("HTTP Basic");
        let pair = String::from_utf8(STANDARD.decode(basic).unwrap()).unwrap();
        let (user, password) = pair.split_once(':').unwrap();
        let decoded = |text: &str| form_urlencoded::parse(text.as_bytes()).next().unwrap().0.into_owned();
        (decoded(user), decoded(password))
    });
    endpoint.held().asked.push(Asked { client, form });
    while endpoint.held().mood == Mood::Holds {
        tokio::task::yield_now().await;
    }
    let mut held = endpoint.held();
    let (status, answer) = match held.mood {
        Mood::Answers(status, answer) => (status, answer.to_owned()),
        Mood::Issues(life) => {
            let number = held.issued.len() + 1;
            let token = format!("token-{number}-{}", "x".repeat(held.padding));
            held.issued.push((token.clone(), true));
            let answer = serde_json::json!({ "access_token": token, "token_type": "bearer", "expires_in": life,
                                             "refresh_token": format!("refresh-{number}") });
            (200, answer.to_string())
        }
        Mood::Holds => unreachable!("it was waited for"),
    };
    (StatusCode::from_u16(status).unwrap(), [(CONTENT_TYPE, "application/json")], answer).into_response()
}

/// The server's side of AUTH XOAUTH2, after the client's first line. Returns the user and the
/// token; `None` if the token is not valid.
pub async fn heard_token(
    stream: &mut BufReader<TcpStream>,
    line: &str,
    is_good: &Judge,
) -> io::Result<Option<(String, String)>> {
    // The limit of RFC 5321 §4.5.3.1.4. By RFC 4954 §4, a longer response is sent on a line of its
    // own.
    assert!(line.len() <= 512, "{} octets", line.len());
    let mut response = String::new();
    match line.trim_end().split(' ').collect::<Vec<_>>()[..] {
        ["AUTH", "XOAUTH2", initial] => response.push_str(initial),
        ["AUTH", "XOAUTH2"] => {
            stream.write_all(b"334 \r\n").await?;
            stream.read_line(&mut response).await?;
        }
        _ => panic!("{line:?}"),
    }
    let response = String::from_utf8(STANDARD.decode(response.trim_end()).unwrap()).unwrap();
    let [user, token, "", ""] = response.split('\x01').collect::<Vec<_>>()[..] else {
        panic!("{response:?}")
    };
    let (user, token) = (user.strip_prefix("user=").unwrap(), token.strip_prefix("auth=Bearer ").unwrap());
    if is_good(token) {
        return Ok(Some((user.to_owned(), token.to_owned())));
    }
    let why = STANDARD.encode(r#"{"status":"400","schemes":"Bearer","scope":"https://mail.google.com/"}"#);
    stream.write_all(format!("334 {why}\r\n").as_bytes()).await?;
    let mut empty = String::new();
    stream.read_line(&mut empty).await?;
    assert_eq!(empty, "\r\n");
    Ok(None)
}
