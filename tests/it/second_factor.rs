//! Second factors: enrolment, sign-in and recovery, with the codes of another implementation.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sqlx::PgPool;

use crate::harness::Service;
use crate::harness::client::Client;

const TRADER: &str = "trader@example.com";
const PASSWORD: &str = "morning boat on a green river";
const NEW: &str = "night train in autumn rain";

/// An owner's authenticator app.
struct App {
    secret: String,
}

impl App {
    /// Its code now, from oathtool.
    fn code(&self, service: &Service) -> String {
        let now = format!("@{}", service.app.clock.now().unix_timestamp());
        let output = Command::new("/usr/bin/oathtool")
            .args(["--totp", "--base32", "--now", &now, &self.secret])
            .output();
        let output = output.expect("oathtool runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The code of the next step. Each code is accepted once.
    fn next_code(&self, service: &Service) -> String {
        service.clock.advance(Duration::from_secs(30));
        self.code(service)
    }
}

async fn posts(client: &Client, path: &str, body: Value) -> crate::harness::client::Answer {
    client.post_json(path, &body.to_string()).await
}

/// A trader who has enrolled an app: the signed-in client, the app, and the backup codes.
async fn enrolled(service: &Service) -> (Client, App, Vec<String>) {
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    assert!(client.logs_in(TRADER, PASSWORD).await.is_signed_in());
    let begun =
        posts(&client, "/api/auth/factors/totp", json!({ "password": PASSWORD, "name": "Phone" })).await;
    assert_eq!(begun.status, 200, "{}", begun.text);
    let app = App { secret: begun.body["secret"].as_str().unwrap().to_owned() };
    let confirm = format!("/api/auth/factors/{}/confirm", begun.body["id"].as_str().unwrap());
    let confirmed = posts(&client, &confirm, json!({ "code": app.code(service) })).await;
    assert_eq!(confirmed.status, 200, "{}", confirmed.text);
    let codes = confirmed.body["backup_codes"].as_array().unwrap();
    let codes = codes.iter().map(|code| code.as_str().unwrap().to_owned()).collect();
    (client, app, codes)
}

#[sqlx::test]
async fn an_enrolled_account_signs_in_with_both(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (_, app, codes) = enrolled(&service).await;
    assert_eq!(codes.len(), 10);
    let mut client = service.client();
    assert_eq!(client.logs_in(TRADER, NEW).await.error(), (401, "credentials_invalid"));
    assert_eq!(client.login, None, "only a right password tells that there is a second factor");
    let asked = client.logs_in(TRADER, PASSWORD).await;
    assert_eq!(asked.error(), (401, "second_factor_required"));
    assert_eq!(asked.body["methods"], json!(["totp", "backup_code"]));
    assert!(client.login.is_some() && client.token.is_none());

    let wrong = client.continues_login("totp", "000000").await;
    assert_eq!((wrong.error(), wrong.attempts_left()), ((400, "second_factor_invalid"), 4));
    let code = app.next_code(&service);
    let signed_in = client.continues_login("totp", &code).await;
    assert!(signed_in.is_signed_in(), "{}", signed_in.text);
    let session = &signed_in.body["session"];
    assert_eq!(session["authenticator_assurance_level"], "aal2");
    assert_eq!(session["authentication_methods"][1]["method"], "totp");
    assert_eq!(client.login, None, "the cookie is deleted");

    // The code is used, here and for any other login.
    let mut other = service.client();
    other.logs_in(TRADER, PASSWORD).await;
    assert_eq!(other.continues_login("totp", &code).await.error(), (400, "second_factor_invalid"));
    assert!(other.continues_login("backup_code", &codes[0].to_lowercase()).await.is_signed_in());
    assert_eq!(
        other.continues_login("totp", &app.next_code(&service)).await.error(),
        (401, "login_step_missing")
    );
    let mut again = service.client();
    again.logs_in(TRADER, PASSWORD).await;
    assert_eq!(again.continues_login("backup_code", &codes[0]).await.error(), (400, "second_factor_invalid"));
    let listed = client.get("/api/auth/factors").await;
    assert_eq!(
        (&listed.body["unused_backup_codes"], &listed.body["factors"][0]["name"]),
        (&json!(9), &json!("Phone"))
    );
    service.stops().await;
}

/// The password counts as a failed login until the second factor is right, and a login has five
/// attempts.
#[sqlx::test]
async fn a_known_password_gives_few_attempts_at_the_second_factor(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (_, app, _) = enrolled(&service).await;
    let mut thief = service.client();
    thief.logs_in(TRADER, PASSWORD).await;
    for left in (0..5).rev() {
        let wrong = thief.continues_login("totp", "000000").await;
        assert_eq!((wrong.error(), wrong.attempts_left()), ((400, "second_factor_invalid"), left));
    }
    let code = app.next_code(&service);
    assert_eq!(
        thief.continues_login("totp", &code).await.error(),
        (401, "login_step_missing"),
        "it has ended"
    );
    // 10 logins at once, of which one was used.
    let mut logins = 1;
    while thief.logs_in(TRADER, PASSWORD).await.status == 401 {
        logins += 1;
    }
    assert_eq!(logins, 10);
    service.stops().await;
}

#[sqlx::test]
async fn of_parallel_right_codes_one_is_accepted(pool: PgPool) {
    let service = Service::start_with_settings(&pool, &["--network-burst=1000000"]).await;
    let (_, app, codes) = enrolled(&service).await;
    for (method, code) in [("totp", app.next_code(&service)), ("backup_code", codes[3].clone())] {
        let mut client = service.client();
        client.logs_in(TRADER, PASSWORD).await;
        let attempts = (0..5).map(|_| {
            let (mut client, code) = (client.clone(), code.clone());
            tokio::spawn(async move { client.continues_login(method, &code).await.status })
        });
        let mut accepted = 0;
        for attempt in attempts.collect::<Vec<_>>() {
            accepted += u32::from(attempt.await.unwrap() == 200);
        }
        assert_eq!(accepted, 1, "{method}");
    }
    service.stops().await;
}

#[sqlx::test]
async fn a_recovery_does_not_bypass_the_second_factor(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (_, app, _) = enrolled(&service).await;
    let mut client = service.verified(TRADER).await;
    let progress = client.get("/api/auth/recovery").await;
    let waits = &progress.body["recovery"];
    assert_eq!(
        (&waits["state"], &waits["methods"]),
        (&json!("second_factor_required"), &json!(["totp", "backup_code"]))
    );
    let refused = client.resets(NEW).await;
    assert_eq!(refused.error(), (400, "second_factor_required"));
    assert_eq!(refused.body["methods"], json!(["totp", "backup_code"]));
    assert_eq!(client.continues_recovery("totp", "000000").await.error(), (400, "second_factor_invalid"));
    let accepted = client.continues_recovery("totp", &app.next_code(&service)).await;
    assert_eq!((accepted.status, accepted.text.as_str()), (200, r#"{"status":"accepted"}"#));
    assert_eq!(client.get("/api/auth/recovery").await.body["recovery"]["state"], "verified");
    let reset = client.resets(NEW).await;
    assert!(reset.is_signed_in(), "{}", reset.text);
    assert_eq!(reset.body["session"]["authenticator_assurance_level"], "aal2");
    service.stops().await;
}

/// An account without a second factor sees none of it.
#[sqlx::test]
async fn an_account_without_one_is_asked_for_none(pool: PgPool) {
    let service = Service::start(&pool).await;
    service.has_trader(TRADER, PASSWORD).await;
    let mut client = service.client();
    let answer = client.logs_in(TRADER, PASSWORD).await;
    assert!(answer.is_signed_in() && !answer.text.contains("aal"), "{}", answer.text);
    let mut client = service.verified(TRADER).await;
    let answer = client.resets(NEW).await;
    assert!(answer.is_signed_in() && !answer.text.contains("aal"), "{}", answer.text);
    service.stops().await;
}

#[sqlx::test]
async fn the_last_factor_takes_its_backup_codes_along(pool: PgPool) {
    let service = Service::start(&pool).await;
    let (client, app, codes) = enrolled(&service).await;
    let listed = client.get("/api/auth/factors").await;
    let remove = format!("/api/auth/factors/{}/remove", listed.body["factors"][0]["id"].as_str().unwrap());
    let with = |code: &str| json!({ "password": PASSWORD, "method": "totp", "code": code });
    assert_eq!(posts(&client, &remove, with("000000")).await.error(), (400, "second_factor_invalid"));
    assert_eq!(posts(&client, &remove, with(&app.next_code(&service))).await.status, 200);
    let mut after = service.client();
    assert!(after.logs_in(TRADER, PASSWORD).await.is_signed_in());
    assert_eq!(service.count("backup_code").await, 0);
    drop(codes);
    service.stops().await;
}
