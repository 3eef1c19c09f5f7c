//! What nginx itself answers at `/recovery`: a page for people, in both languages. Programs get
//! JSON.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use serde_json::Value;

use crate::harness::browser::Browser;
use crate::harness::nginx::{Nginx, Setup, is_installed};
use crate::harness::place::free_address;
use crate::harness::raw::Raw;

const WITHOUT_TLS: (&str, &str) = (" ssl;", ";");

/// Starts nginx without TLS, so that a browser can open its address.
fn start(replica: SocketAddr, changes: &[(&str, &str)]) -> (Nginx, SocketAddr) {
    let changes = [&[WITHOUT_TLS], changes].concat();
    let nginx = Nginx::start([replica; 2], &Setup { changes: &changes, ..Setup::default() });
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, nginx.tls));
    (nginx, address)
}

async fn asks(address: SocketAddr, path: &str, cookie: &str) -> reqwest::Response {
    let request = reqwest::Client::new().get(format!("http://{address}{path}"));
    request.header("cookie", cookie).send().await.unwrap()
}

async fn is_the_page(answer: reqwest::Response, status: u16) {
    assert_eq!(answer.status().as_u16(), status);
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/html; charset=utf-8");
    assert_eq!((header("retry-after"), header("cache-control")), ("5".to_owned(), "no-store".to_owned()));
    assert!(header("content-security-policy").starts_with("default-src 'none'"));
    has_both_languages(&answer.text().await.unwrap());
}

fn has_both_languages(page: &str) {
    for sentence in ["Trang tạm thời chưa mở được", "This page is temporarily unavailable"] {
        assert!(page.contains(sentence), "{page}");
    }
}

async fn is_json(answer: reqwest::Response, status: u16) {
    assert_eq!(answer.status().as_u16(), status);
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(answer.json::<Value>().await.unwrap()["status"], status);
}

#[tokio::test]
async fn without_a_replica_people_see_a_page_and_programs_json() {
    if !is_installed() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    let (none, slow) = (free_address(), ("proxy_read_timeout 30s", "proxy_read_timeout 200ms"));
    let closed = ("location = /recovery {\n", "location = /recovery {\n    return 503;\n");
    for (replica, change, status) in [(none, None, 502), (silent, Some(slow), 504), (none, Some(closed), 503)]
    {
        let (_nginx, address) = start(replica, change.as_slice());
        is_the_page(asks(address, "/recovery", "").await, status).await;
        is_json(asks(address, "/api/auth/recovery", "").await, 502).await;
    }
    let (_nginx, address) = start(none, &[]);
    is_the_page(asks(address, "/recovery/?utm_source=zalo", "").await, 502).await;
    let cookie = format!("sibling={}", "a".repeat(20_000));
    is_the_page(asks(address, "/recovery?lang=vi", &cookie).await, 400).await;
    is_json(asks(address, "/recovering", &cookie).await, 400).await;
    let long = reqwest::Client::new().post(format!("http://{address}/recovery")).body("a".repeat(20_000));
    is_the_page(long.send().await.unwrap(), 400).await;

    let browser = Browser::open("vi").await;
    browser.goes_to(&format!("http://{address}/recovery")).await;
    assert_eq!(browser.reads("h1").await, "Trang tạm thời chưa mở được");
    browser.inspect("recovery-unavailable").await;
    browser.closes().await;
}

/// nginx limits the parallel requests of one address.
#[tokio::test]
async fn at_the_limit_of_nginx_people_see_a_page() {
    if !is_installed() {
        return;
    }
    let one = ("limit_conn vos_auth_clients 4000", "limit_conn vos_auth_clients 1");
    let (_nginx, address) = start(free_address(), &[one]);
    let request = "POST /recovery HTTP/1.1\r\nHost: platform.verolabs.co\r\nContent-Length: 9\r\n";
    let mut first = Raw::says(address, format!("{request}Expect: 100-continue\r\n\r\n")).await;
    first.hears("100 Continue").await;
    is_the_page(asks(address, "/recovery", "").await, 429).await;
    is_json(asks(address, "/api/auth/session", "").await, 429).await;
}
