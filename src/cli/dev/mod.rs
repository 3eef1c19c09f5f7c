//! `vos-auth dev`: the whole service on this machine, with its own secrets, accounts and mailbox.
//! `serve` has none of these.

pub mod docs;
pub mod mailbox;

use std::net::{Ipv4Addr, SocketAddr};

use askama::Template;
use axum::extract::RawQuery;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Map;
use sqlx::Connection as _;
use sqlx::PgConnection;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_cookies::Cookies;

use crate::account::{self, CreateError, NewAccount};
use crate::app::{App, Limits};
use crate::cli::dev::mailbox::Mailbox;
use crate::clock::Clock;
use crate::config::{self, Config, OauthSecrets, OauthSettings, Secrets};
use crate::database::{self, Endpoint};
use crate::email_address::EmailAddress;
use crate::http::page;
use crate::locale::Locale;
use crate::password::{Cost, Password};
use crate::secret::Key;
use crate::server::Server;
use crate::throttle;

/// The demo accounts: address, language, password.
const ACCOUNTS: [(&str, Locale, &str); 2] = [
    ("trader.vi@example.com", Locale::Vi, "chuyen tau dem mua thu"),
    ("trader.en@example.com", Locale::En, "night train in autumn rain"),
];

/// The Content-Security-Policy of the mailbox. It allows the page's script and style, and the frame
/// that shows the HTML of a mail with its inline style.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; \
                           form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

/// Runs until `stop`: migrations, demo accounts, mailbox, service.
///
/// # Errors
///
/// A sentence that says why it cannot start or continue.
pub async fn run(
    mut config: Config,
    port: u16,
    limits: Limits,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error>> {
    let database_url = config::database_url()?;
    let options = database::options(&database_url)?;
    database::migrate(&options, database::MIGRATOR.iter().as_slice(), |line| tracing::info!("{line}"))
        .await?;
    let mut connection = Endpoint::new(options).connect().await?;
    seed(&mut connection).await?;
    if limits == Limits::Off {
        throttle::refill_all(&mut connection).await?;
    }
    connection.close().await?;

    let smtp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let smtp_address = smtp.local_addr()?;
    let mailbox = Mailbox::default();
    tokio::spawn(mailbox.clone().serve(smtp, Clock::system()));

    config.listening.http_addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    config.listening.metrics_addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.clients.public_origin = Some(format!("http://localhost:{port}").parse()?);
    config.clients.allowed_origins.push(format!("http://127.0.0.1:{port}").parse()?);
    config.page.sign_in_url = Some("/dev/mailbox".parse()?);
    config.mail.recovery_url = Some(format!("http://localhost:{port}/recovery").parse()?);
    config.stopping.drain_delay = std::time::Duration::ZERO;
    config.relays.smtp_oauth = OauthSettings::default();
    // `dev` connects as the owner of the database, who may also do what the admin API does.
    let admin_database_url = config.admin.admin_addr.map(|_| database_url.clone());
    let secrets = Secrets {
        database_url: Some(database_url),
        admin_database_url,
        code_keys: Some(Key::random("dev").into()),
        device_keys: Some(Key::random("dev").into()),
        // TODO-35: it must outlive the process.
        factor_keys: Some(Key::random("dev").into()),
        smtp_relays: Some(vec![format!("smtp://{smtp_address}?tls=none")]),
        smtp_oauth: OauthSecrets::default(),
        event_hooks: String::new(),
    };
    let (app, courier) = App::new(config, secrets, Clock::system(), limits)?;
    let server = Server::bind(app, courier)?;
    println!("{}", welcome(port, server.metrics_address()?, limits));
    Ok(server.run_with(routes(mailbox), stop).await?)
}

/// Creates the demo accounts. If they exist, resets their passwords to those that the welcome
/// message shows, because a recovery may have changed them.
async fn seed(connection: &mut PgConnection) -> Result<(), CreateError> {
    for (email, locale, password) in ACCOUNTS {
        let email = EmailAddress::parse(email).expect("the demo addresses are valid");
        let (now, hash) = (Clock::system().now(), Password::new(password).hash(Cost::default()));
        if let Some(known) = account::login_candidate(&mut *connection, &email).await? {
            account::set_password(connection, now, known.account.id, &hash).await?;
        } else {
            let (locale, traits, password_hash) = (Some(locale), Map::new(), Some(hash));
            account::create(connection, now, NewAccount { email, locale, traits, password_hash }, None)
                .await?;
        }
    }
    Ok(())
}

fn routes(mailbox: Mailbox) -> Router {
    let file = |body: &'static str, content_type: &'static str| {
        get(async move || ([(CONTENT_TYPE, content_type)], body))
    };
    let emptied = mailbox.clone();
    let emails = get(async move || Json(mailbox.newest_first())).delete(async move || {
        emptied.clear();
        StatusCode::NO_CONTENT
    });
    Router::new()
        .route("/", get(async || Redirect::to("/dev/mailbox")))
        .route("/dev/mailbox", get(mailbox_page))
        .route("/dev/mailbox.css", file(include_str!("mailbox.css"), "text/css; charset=utf-8"))
        .route("/dev/mailbox.js", file(include_str!("mailbox.js"), "text/javascript; charset=utf-8"))
        .route("/dev/mailbox.json", emails)
        .merge(docs::routes())
}

async fn mailbox_page(RawQuery(query): RawQuery, headers: HeaderMap, cookies: Cookies) -> Response {
    if let Some(chosen) = page::choose_language(query.as_deref(), "/dev/mailbox", &cookies) {
        return chosen;
    }
    let html = match page::language(&headers) {
        Locale::Vi => MailboxPage::Vi.render(),
        Locale::En => MailboxPage::En.render(),
    };
    let head = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, PAGE_POLICY)];
    (head, html.expect("nothing in the template can fail")).into_response()
}

#[derive(Template)]
enum MailboxPage {
    #[template(path = "mailbox.vi.html")]
    Vi,
    #[template(path = "mailbox.en.html")]
    En,
}

fn welcome(port: u16, metrics: SocketAddr, limits: Limits) -> String {
    let [(vi, _, vi_password), (en, _, en_password)] = ACCOUNTS;
    let limits = if limits == Limits::Off { "\n  Rate limits are off (DEV_NO_LIMITS=1).\n" } else { "" };
    format!(
        "
  vos-auth is at http://localhost:{port}. Recover a password at http://localhost:{port}/recovery, or with curl:

    curl -i http://localhost:{port}/api/auth/recovery/start --json '{{\"email\":\"{vi}\"}}'

  The mail arrives at http://localhost:{port}/dev/mailbox (for programs: /dev/mailbox.json).
  {limits}
  Accounts: {vi} (Vietnamese), password \"{vi_password}\"
            {en} (English), password \"{en_password}\"
  The API:  http://localhost:{port}/docs    Metrics: http://{metrics}/metrics
  Ctrl-C stops it and leaves nothing running.
"
    )
}
