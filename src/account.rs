//! Owns `account`: who may sign in.

use serde_json::{Map, Value};
use sqlx::{Connection as _, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::audit;
use crate::clock::new_id;
use crate::email_address::EmailAddress;
use crate::locale::Locale;
use crate::password::Password;

/// An account that is to be created.
#[derive(Debug)]
pub struct NewAccount {
    /// Its address; no other account may have it.
    pub email: EmailAddress,
    /// The language of its mails; `None`: that of each request.
    pub locale: Option<Locale>,
    /// What is known of the person beside the address, such as a name. The address is kept in there too.
    pub traits: Map<String, Value>,
    /// `None`: the owner recovers by mail first.
    pub password: Option<Password>,
}

/// Why an account was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The address has an account.
    #[error("there is an account with this email already")]
    EmailTaken,
    /// The password could not be hashed.
    #[error("the password could not be hashed: {0}")]
    Hashing(#[from] tokio::task::JoinError),
    /// What PostgreSQL answered.
    #[error(transparent)]
    Storage(#[from] sqlx::Error),
}

/// Creates an active account and says so in the audit log, both or neither.
///
/// # Errors
///
/// [`CreateError::EmailTaken`], or what PostgreSQL answers.
pub async fn create(
    connection: &mut PgConnection,
    now: OffsetDateTime,
    new: NewAccount,
) -> Result<Uuid, CreateError> {
    let id = new_id(now);
    let mut traits = new.traits;
    traits.insert("email".into(), new.email.as_str().into());
    let password_hash = match new.password {
        Some(password) => Some(tokio::task::spawn_blocking(move || password.hash()).await?),
        None => None,
    };
    let mut transaction = connection.begin().await?;
    sqlx::query!(
        "INSERT INTO account (id, email, locale, traits, password_hash, password_changed_at, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $7)",
        id,
        new.email.as_str(),
        new.locale.map(Locale::as_str),
        Value::Object(traits),
        password_hash,
        password_hash.is_some().then_some(now),
        now,
    )
    .execute(&mut *transaction)
    .await
    .map_err(|error| match error.as_database_error().and_then(|error| error.constraint()) {
        Some("account_email_key") => CreateError::EmailTaken,
        _ => error.into(),
    })?;
    audit::record(&mut *transaction, now, audit::Event::AccountCreated, id, None).await?;
    transaction.commit().await?;
    Ok(id)
}
