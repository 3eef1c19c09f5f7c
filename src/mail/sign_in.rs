//! Signing in at a relay: by a password, or by an access token (XOAUTH2).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lettre::transport::smtp::Error as SmtpError;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::AsyncSmtpConnection;
use oauth2::AccessToken;

use crate::mail::not_sent::{NotSent, Stage, exactly};
use crate::mail::oauth::{Asker, Tokens};

/// The longest line of a command, with its end (RFC 5321 §4.5.3.1.4). A longer initial response of AUTH is a line of its own
/// (RFC 4954 §4), which may have 12,288 octets.
const LONGEST_COMMAND: usize = 512;

/// How the service signs in at a relay.
pub(super) enum SignIn {
    Nothing,
    Password(Credentials),
    Token { user: String, tokens: Arc<Tokens> },
}

/// What one connection signs in with.
pub(super) enum Proof<'a> {
    Nothing,
    Password(&'a Credentials),
    Token { user: &'a str, token: AccessToken },
}

impl SignIn {
    /// What a connection signs in with; to be had before the relay is connected to.
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

    /// What is worth another try after the relay has refused `proof`: a newer access token.
    pub(super) async fn other_proof(
        &self,
        refused: &Proof<'_>,
        why: &NotSent,
        asker: Asker,
    ) -> Option<Proof<'_>> {
        match (self, refused) {
            (Self::Token { user, tokens }, Proof::Token { token, .. })
                if why.stage == Stage::Auth && why.code == Some(535) =>
            {
                Some(Proof::Token { user, token: tokens.other_than(token, asker).await? })
            }
            _ => None,
        }
    }

    /// Waits until there may be something else to sign in with: for ever, unless it is an access token.
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

/// Google's XOAUTH2, which Microsoft has too. Not by lettre's `auth`: it takes the 334 that says why for a challenge that
/// it cannot answer, and never hears the relay's code.
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
    let mut answer = if command.len() <= LONGEST_COMMAND {
        connection.command(command).await.map_err(&failed)?
    } else {
        let asked = connection.command("AUTH XOAUTH2\r\n").await.map_err(&failed)?;
        exactly(&asked, 334, Stage::Auth)?;
        connection.command(format!("{response}\r\n")).await.map_err(&failed)?
    };
    if answer.has_code(334) {
        // Why the token is refused, as JSON; an empty line asks for the code.
        answer = connection.command("\r\n").await.map_err(&failed)?;
    }
    exactly(&answer, 235, Stage::Auth)
}
