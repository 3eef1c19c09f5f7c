//! A client of the API. It keeps cookies as a browser does, and the session token as the login page
//! does.

use std::net::SocketAddr;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

const RECOVERY: &str = "__Host-vos_recovery";
const DEVICE: &str = "__Host-vos_device";
const LOGIN: &str = "__Host-vos_login";

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    address: SocketAddr,
    /// The recovery cookie, as `name=value`.
    pub cookie: Option<String>,
    /// The device cookie, as `name=value`.
    pub device: Option<String>,
    /// The cookie of a login that waits for its second factor, as `name=value`.
    pub login: Option<String>,
    /// The session token.
    pub token: Option<String>,
    pub headers: HeaderMap,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        let http = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
        Self {
            http,
            address,
            cookie: None,
            device: None,
            login: None,
            token: None,
            headers: HeaderMap::new(),
        }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    /// The same client, at another replica.
    pub fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..self.clone() }
    }

    /// Asks for a recovery code and keeps the cookie.
    pub async fn starts_recovery(&mut self, email: &str) -> Answer {
        self.posts("/api/auth/recovery/start", json!({ "email": email })).await
    }

    /// Enters a code, and keeps the rotated cookie.
    pub async fn verifies(&mut self, code: &str) -> Answer {
        self.posts("/api/auth/recovery/verify", json!({ "code": code })).await
    }

    /// Chooses a new password, and is signed in.
    pub async fn resets(&mut self, password: &str) -> Answer {
        self.posts("/api/auth/recovery/reset-password", json!({ "password": password })).await
    }

    pub async fn logs_in(&mut self, identifier: &str, password: &str) -> Answer {
        self.posts("/api/auth/login", json!({ "identifier": identifier, "password": password })).await
    }

    /// Gives the second factor of a login.
    pub async fn continues_login(&mut self, method: &str, code: &str) -> Answer {
        self.posts("/api/auth/login/second-factor", json!({ "method": method, "code": code })).await
    }

    /// Gives the second factor of a recovery.
    pub async fn continues_recovery(&mut self, method: &str, code: &str) -> Answer {
        self.posts("/api/auth/recovery/second-factor", json!({ "method": method, "code": code })).await
    }

    pub async fn changes_password(&mut self, current: &str, new: &str) -> Answer {
        self.posts("/api/auth/password", json!({ "currentPassword": current, "newPassword": new })).await
    }

    /// Stops an approved change of the account's address.
    pub async fn stops_address_change(&self, password: &str) -> Answer {
        self.post_json("/api/auth/address-change/stop", &json!({ "password": password }).to_string()).await
    }

    pub async fn refreshes(&self) -> Answer {
        self.get("/api/auth/session").await
    }

    pub async fn logs_out(&self) -> Answer {
        self.post_json("/api/auth/logout", "{}").await
    }

    /// Sends a POST, and keeps the cookies and the token of the answer.
    async fn posts(&mut self, path: &str, body: Value) -> Answer {
        let answer = self.post_json(path, &body.to_string()).await;
        for (name, kept) in
            [(RECOVERY, &mut self.cookie), (DEVICE, &mut self.device), (LOGIN, &mut self.login)]
        {
            if let Some(cookie) = answer.cookie(name) {
                let pair = cookie.split_once(';').unwrap().0.to_owned();
                *kept = Some(pair).filter(|_| !cookie.contains("Max-Age=0"));
            }
        }
        if let Some(token) = answer.body["sessionToken"].as_str() {
            self.token = Some(token.to_owned());
        }
        answer
    }

    pub async fn post_json(&self, path: &str, body: &str) -> Answer {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        Self::answer(request.body(body.to_owned())).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        Self::answer(self.request(Method::GET, path)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Self::answer(self.request(Method::DELETE, path)).await
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("http://{}{path}", self.address));
        request = request.headers(self.headers.clone());
        if let Some(token) = &self.token {
            request = request.header("x-session-token", token);
        }
        let cookies: Vec<_> =
            [&self.cookie, &self.device, &self.login].into_iter().flatten().map(String::as_str).collect();
        if cookies.is_empty() { request } else { request.header("cookie", cookies.join("; ")) }
    }

    pub async fn answer(request: RequestBuilder) -> Answer {
        let response = request.send().await.expect("the service answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Answer { status, headers, text, body }
    }
}

impl Answer {
    /// The recovery cookie, with its attributes.
    pub fn set_cookie(&self) -> Option<&str> {
        self.cookie(RECOVERY)
    }

    /// The device cookie, with its attributes.
    pub fn device_cookie(&self) -> Option<&str> {
        self.cookie(DEVICE)
    }

    fn cookie(&self, name: &str) -> Option<&str> {
        let cookies = self.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap());
        let mut named =
            cookies.filter(|cookie| cookie.split_once('=').is_some_and(|(known, _)| known == name));
        let cookie = named.next();
        assert_eq!(named.next(), None, "{name} is set once");
        cookie
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().unwrap());
        assert!(values.next().is_none() || name == "set-cookie", "{name} stands once");
        value
    }

    /// The status and the error code. Checks that the body has the form of all errors.
    pub fn error(&self) -> (u16, &str) {
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.text);
        assert_eq!(self.body["status"], self.status, "{}", self.text);
        assert!(self.body["message"].as_str().is_some_and(|message| message.len() > 10), "{}", self.text);
        assert!(self.header("x-request-id").is_some_and(|id| id.len() == 36));
        assert_eq!(self.header("www-authenticate").is_some(), self.status == 401);
        (self.status, self.body["error"].as_str().expect("an error has a code"))
    }

    /// The number of attempts left, in the answer to a wrong code.
    pub fn attempts_left(&self) -> u64 {
        assert!([(400, "code_invalid"), (400, "second_factor_invalid")].contains(&self.error()));
        self.body["attempts_left"].as_u64().expect("attempts_left")
    }

    pub fn retry_after(&self) -> u64 {
        self.header("retry-after").expect("Retry-After").parse().unwrap()
    }

    pub fn is_code_sent(&self) -> bool {
        self.status == 200 && self.text == r#"{"status":"code_sent"}"#
    }

    pub fn is_verified(&self) -> bool {
        self.status == 200 && self.text == r#"{"status":"verified"}"#
    }

    /// Whether the answer signs the client in: it has an active session and a session token.
    pub fn is_signed_in(&self) -> bool {
        self.status == 200 && self.body["session"]["active"] == true && self.body["sessionToken"].is_string()
    }

    /// `Max-Age` of the recovery cookie, in seconds.
    pub fn cookie_life(&self) -> u64 {
        let cookie = self.set_cookie().expect("a cookie");
        cookie.rsplit_once("Max-Age=").expect("Max-Age").1.parse().unwrap()
    }
}
