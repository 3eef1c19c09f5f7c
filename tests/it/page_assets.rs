//! The files of the recovery page: their compression, and their number.

use std::process::Command;

use serde_json::json;
use sqlx::PgPool;

use crate::harness::browser::Browser;
use crate::harness::needs;
use crate::page::page_of;
use crate::page_people::before_load;

/// Fetches by `curl --compressed`. Returns the headers, the decompressed body, and the size that
/// was sent.
async fn curl(url: String) -> (String, String, usize) {
    let asking = tokio::task::spawn_blocking(move || {
        let arguments = ["-sS", "--compressed", "-D", "-", "-w", "\n%{size_download}", &url];
        Command::new("curl").args(arguments).output().unwrap().stdout
    });
    let output = String::from_utf8(asking.await.unwrap()).unwrap();
    let (head, rest) = output.split_once("\r\n\r\n").unwrap();
    let (body, size) = rest.rsplit_once('\n').unwrap();
    (head.to_lowercase(), body.to_owned(), size.parse().unwrap())
}

#[sqlx::test]
async fn the_files_of_the_page_are_sent_compressed_and_answers_of_the_api_never(pool: PgPool) {
    if !needs::has_program("/usr/bin/curl") {
        return;
    }
    let (service, page) = page_of(&pool, &[]).await;
    let (client, origin) = (service.client(), page.trim_end_matches("/recovery"));
    let html = client.get("/recovery").await.text;
    let files = html.split('"').filter(|text| text.starts_with("/recovery/"));
    let mut sent = 0;
    for path in ["/recovery"].into_iter().chain(files) {
        let plain = client.get(path).await;
        assert_eq!(plain.header("content-encoding"), None, "{path}");
        assert!(plain.headers.get_all("vary").iter().any(|vary| vary == "accept-encoding"), "{path}");
        let (head, body, size) = curl(format!("{origin}{path}")).await;
        assert!(head.contains("content-encoding: gzip") && head.contains("vary: accept-encoding"), "{head}");
        assert_eq!(head.matches("content-type:").count(), 1, "{head}");
        assert_eq!(body, plain.text, "{path}");
        println!("{path}: {} octets, {size} compressed", plain.text.len());
        sent += size;
    }
    assert!(sent < 16_000, "{sent} octets are sent for the whole page");
    for path in ["/api/auth/recovery", "/.well-known/jwks.json", "/openapi.json"] {
        let (head, ..) = curl(format!("{origin}{path}")).await;
        assert!(!head.contains("content-encoding"), "{path}: {head}");
    }
    service.stops().await;
}

/// The three requests are for the page, its style and its script. The field waits for no answer of
/// the API.
#[sqlx::test]
async fn the_first_field_can_be_used_after_three_requests(pool: PgPool) {
    let (service, page) = page_of(&pool, &[]).await;
    let browser = Browser::open("en").await;
    before_load(&browser, "window.fetch = () => new Promise(() => {})").await;
    browser.goes_to(&page).await;
    browser.sees("#address").await;
    browser.types("#address", "trader@example.com").await;
    // Nothing waits for the icon.
    let loaded = "return performance.getEntriesByType('resource').map(({ name }) => new URL(name).pathname)
        .filter((path) => path !== '/recovery/icon.svg')";
    assert_eq!(browser.script(loaded).await, json!(["/recovery/page.css", "/recovery/page.js"]));
    browser.closes().await;
    service.stops().await;
}
