//! What a person does from a forgotten password to a logout, against any running service.

use crate::client::Client;
use crate::relay::Relay;

/// Requests a code, enters the one from the email, chooses a password, logs in with it, refreshes
/// the session and logs out. `email` must have an account, and `client` must be new. Checks every
/// answer.
pub async fn is_walked_by(client: &Client, relay: &Relay, email: &str) {
    let password = "night train in autumn rain";
    let before = relay.mails().len();
    let mut forgetful = client.clone();
    let started = forgetful.starts_recovery(email).await;
    assert!(started.is_code_sent(), "start: {}", started.text);
    let mail = relay.mail(before + 1).await;
    assert_eq!(mail.recipients, [email]);
    let verified = forgetful.verifies(&mail.code()).await;
    assert!(verified.is_verified(), "verify: {}", verified.text);
    let reset = forgetful.resets(password).await;
    assert!(reset.is_signed_in(), "reset-password: {}", reset.text);

    let mut later = client.clone();
    let logged_in = later.logs_in(email, password).await;
    assert!(logged_in.is_signed_in(), "login: {}", logged_in.text);
    for signed_in in [&forgetful, &later] {
        let refreshed = signed_in.refreshes().await;
        assert!(refreshed.is_signed_in(), "session: {}", refreshed.text);
        let logged_out = signed_in.logs_out().await;
        assert_eq!(logged_out.text, r#"{"status":"signed_out"}"#, "logout");
        assert_eq!(signed_in.refreshes().await.error(), (401, "session_invalid"));
    }
    // The notice of the changed password.
    assert_eq!(relay.mail(before + 2).await.recipients, [email]);
}
