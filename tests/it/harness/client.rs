//! A client of the API, with the cookie that it was given.

use std::net::SocketAddr;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    address: SocketAddr,
    pub cookie: Option<String>,
    pub headers: HeaderMap,
}

/// What was answered.
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
        Self { http, address, cookie: None, headers: HeaderMap::new() }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    /// Asks for a recovery code and keeps the cookie.
    pub async fn starts_recovery(&mut self, email: &str) -> Answer {
        let answer = self.post_json("/api/auth/recovery/start", &json!({ "email": email }).to_string()).await;
        if let Some((cookie, _)) = answer.set_cookie().and_then(|cookie| cookie.split_once(';')) {
            self.cookie = Some(cookie.to_owned());
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

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let mut request = self.http.request(method, format!("http://{}{path}", self.address));
        request = request.headers(self.headers.clone());
        match &self.cookie {
            Some(cookie) => request.header("cookie", cookie),
            None => request,
        }
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
    pub fn set_cookie(&self) -> Option<&str> {
        self.header("set-cookie")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().unwrap());
        assert!(values.next().is_none(), "{name} stands once");
        value
    }

    /// Status and machine code, after checking that the error has the one shape.
    pub fn error(&self) -> (u16, &str) {
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.text);
        assert_eq!(self.body["status"], self.status, "{}", self.text);
        assert!(self.body["message"].as_str().is_some_and(|message| message.len() > 10), "{}", self.text);
        assert!(self.header("x-request-id").is_some_and(|id| id.len() == 36));
        (self.status, self.body["error"].as_str().expect("an error has a code"))
    }

    pub fn retry_after(&self) -> u64 {
        self.header("retry-after").expect("Retry-After").parse().unwrap()
    }

    pub fn is_code_sent(&self) -> bool {
        self.status == 200 && self.text == r#"{"status":"code_sent"}"#
    }

    /// `Max-Age` of the cookie, in seconds.
    pub fn cookie_life(&self) -> u64 {
        let cookie = self.set_cookie().expect("a cookie");
        cookie.rsplit_once("Max-Age=").expect("Max-Age").1.parse().unwrap()
    }
}
