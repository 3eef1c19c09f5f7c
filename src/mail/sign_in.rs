//! Signing in at a relay, with a password or an access token (XOAUTH2).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use oauth2::AccessToken;

use crate::mail::not_sent::{NotSent, Stage, expect_code};
use crate::mail::oauth::{Requester, Tokens};

/// The longest command line in octets, with its end (RFC 5321 §4.5.3.1.4). A longer initial
/// response of AUTH is sent as a line of its own, of at most 12,288 octets (RFC 4954 §4).
const MAX_COMMAND: usize = 512;

/// How the service signs in at a relay.
pub(super) enum SignIn {
    Nothing,
    Password(Credentials),
    Token { user: String, tokens: Arc<Tokens> },
}

/// The credentials of one connection.
pub(super) enum Proof<'a> {
    Nothing,
    Password(&'a Credentials),
    Token { user: &'a str, token: AccessToken },
}

impl SignIn {
    /// The credentials for the next connection. Call it before connecting, because it may wait for
    /// the token endpoint.
    ///
    /// # Errors
    ///
    /// [`NotSent`] at [`Stage::Auth`] if there is no access token.
    pub(super) async fn proof(&self) -> Result<Proof<'_>, NotSent> {
        Ok(match self {
            Self::Nothing => Proof::Nothing,
            Self::Password(credentials) => Proof::Password(credentials),
            Self::Token { user, tokens } => Proof::Token { user, token: tokens.token().await? },
        })
    }

    /// Credentials with a newer access token, if the relay has refused `refused` with 535. `None`
    /// if there is no newer token, and for any other failure.
    pub(super) async fn renewed_proof(
        &self,
        refused: &Proof<'_>,
        why: &NotSent,
        requester: Requester,
    ) -> Option<Proof<'_>> {
        match (self, refused) {
            (Self::Token { user, tokens }, Proof::Token { token, .. })
                if why.stage == Stage::Auth && why.code == Some(535) =>
            {
                Some(Proof::Token { user, token: tokens.replacement_for(token, requester).await? })
            }
            _ => None,
        }
    }

    /// Waits for a renewed access token. Without access tokens it waits for ever.
    pub(super) async fn renewed(&self) {
        match self {
            Self::Token { tokens, .. } => tokens.renewed().await,
            Self::Nothing | Self::Password(_) => std::future::pending().await,
        }
    }
}

impl Proof<'_> {
    /// Signs in.
    ///
    /// # Errors
    ///
    /// [`NotSent`] at [`Stage::Auth`].
    pub(super) async fn sign_in(&self, connection: &mut AsyncSmtpConnection) -> Result<(), NotSent> {
        match self {
            Self::Nothing => Ok(()),
            Self::Password(credentials) => {
                let mechanisms = [Mechanism::Plain, Mechanism::Login];
                let signed_in = connection.auth(&mechanisms, credentials).await;
                signed_in.map(drop).map_err(|error| NotSent::explained(Stage::Auth, &error))
            }
            Self::Token { user, token } => xoauth2(connection, user, token).await,
        }
    }
}

/// Signs in with XOAUTH2, the mechanism of Google and Microsoft.
///
/// lettre's `auth` cannot be used. A relay gives the reason of a refusal in a 334 answer; lettre
/// treats this answer as a challenge and misses the final code.
async fn xoauth2(
    connection: &mut AsyncSmtpConnection,
    user: &str,
    token: &AccessToken,
) -> Result<(), NotSent> {
    if !connection.server_info().supports_auth_mechanism(Mechanism::Xoauth2) {
        return Err(NotSent::because(Stage::Auth, "the relay does not offer XOAUTH2"));
    }
    let failed = |error: SmtpError| NotSent::explained(Stage::Auth, &error);
    let credentials = Credentials::new(user.to_owned(), token.secret().clone());
    let response = STANDARD.encode(Mechanism::Xoauth2.response(&credentials, None).map_err(&failed)?);
    let command = format!("AUTH XOAUTH2 {response}\r\n");
    let mut answer = if command.len() <= MAX_COMMAND {
        connection.command(command).await.map_err(&failed)?
    } else {
        let challenge = connection.command("AUTH XOAUTH2\r\n").await.map_err(&failed)?;
        expect_code(&challenge, 334, Stage::Auth)?;
        connection.command(format!("{response}\r\n")).await.map_err(&failed)?
    };
    if answer.has_code(334) {
        // The reason of a refusal, as JSON. The relay sends its final code after an empty line.
        answer = connection.command("\r\n").await.map_err(&failed)?;
    }
    expect_code(&answer, 235, Stage::Auth)
}
