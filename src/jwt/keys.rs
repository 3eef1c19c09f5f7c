//! The folder of PEM files that JWTs are signed with: reading it, creating a key, rotating keys.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use p256::ecdsa::{SigningKey, VerifyingKey};
use p256::elliptic_curve::Generate as _;
use p256::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, LineEnding};
use serde::Serialize;
use serde_json::{Value, json};
use strum::Display;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use super::LEEWAY;
use crate::clock::serialize_rfc3339;
use crate::config::JWT_LIFETIME;

/// How long a new key is published before it signs: the 5 minutes that a verifier may cache the
/// JWKS, the minute in which replicas reread the folder, and time to distribute the folder.
pub const PUBLISHED_BEFORE_USE: Duration = Duration::from_mins(20);

/// How long a key stays published after the next one has begun to sign.
const PUBLISHED_AFTER_USE: Duration = JWT_LIFETIME.saturating_add(LEEWAY.saturating_mul(2));

/// The format of a key's file name.
const NAME: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// A key and the time from which it signs.
pub(super) struct JwtKey {
    pub(super) since: OffsetDateTime,
    pub(super) id: String,
    pub(super) secret: SigningKey,
    pub(super) decoding: DecodingKey,
}

/// Why keys cannot be used, as the second half of a sentence. It quotes no key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeysUnusable(String);

/// Creates the first key of a folder, which signs from now on, and returns its id.
///
/// # Errors
///
/// If the folder already has a key or cannot be written.
pub fn generate(folder: &Path, now: OffsetDateTime) -> Result<String, KeysUnusable> {
    fs::create_dir_all(folder).map_err(|error| KeysUnusable(format!("cannot be created: {error}")))?;
    if !read_keys(folder)?.is_empty() {
        return Err(KeysUnusable("already has a key: use `vos-auth key rotate`".into()));
    }
    write_key(folder, now)
}

/// The result of a rotation.
#[derive(Debug)]
pub struct Rotation {
    /// The id of the new key; `None` if one is already waiting.
    pub added: Option<String>,
    /// When the waiting key, new or not, begins to sign.
    pub waiting_until: OffsetDateTime,
    /// The ids of deleted keys: every JWT that they signed has expired.
    pub deleted: Vec<String>,
}

/// Adds a key that is published now and signs after [`PUBLISHED_BEFORE_USE`], unless one is already
/// waiting. Deletes keys whose JWTs have all expired. It is safe to run at any time and repeatedly.
///
/// # Errors
///
/// If the folder has no key yet or cannot be written.
pub fn rotate(folder: &Path, now: OffsetDateTime) -> Result<Rotation, KeysUnusable> {
    let keys = read_folder(folder)?;
    let expired = keys.len() - published(&keys, now).len();
    let mut deleted = Vec::new();
    for key in &keys[..expired] {
        fs::remove_file(folder.join(&key.id).with_extension("pem"))
            .map_err(|error| KeysUnusable(format!("cannot be written: {error}")))?;
        deleted.push(key.id.clone());
    }
    if let Some(waiting) = keys.iter().find(|key| key.since > now) {
        return Ok(Rotation { added: None, waiting_until: waiting.since, deleted });
    }
    let since = now + PUBLISHED_BEFORE_USE;
    Ok(Rotation { added: Some(write_key(folder, since)?), waiting_until: since, deleted })
}

/// A key of a folder, without the key itself.
#[derive(Debug, Serialize)]
pub struct KeyStatus {
    /// Its id.
    pub id: String,
    /// What it is used for.
    pub state: KeyState,
    /// From when it signs.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub signs_from: OffsetDateTime,
    /// When the next key takes over; `None` if there is none yet.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub signs_until: Option<OffsetDateTime>,
    /// When the last JWT that it signed has expired for every verifier; `None` if there is no next
    /// key yet.
    #[serde(serialize_with = "serialize_rfc3339")]
    pub published_until: Option<OffsetDateTime>,
}

/// What a key is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Display, Serialize)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum KeyState {
    /// It is published and does not sign yet.
    Waiting,
    /// It signs.
    Signing,
    /// Another key signs. It is published until the JWTs that it signed have expired.
    Retired,
    /// It is no longer published. The next rotation deletes it.
    Expired,
}

/// Lists the keys of a folder, the oldest first.
///
/// # Errors
///
/// As [`super::KeyRing::read`].
pub fn list(folder: &Path, now: OffsetDateTime) -> Result<Vec<KeyStatus>, KeysUnusable> {
    let keys = read_folder(folder)?;
    let (expired, signing) = (keys.len() - published(&keys, now).len(), signing(&keys, now));
    let status = |(n, key): (usize, &JwtKey)| {
        let next = keys.get(n + 1).map(|next| next.since);
        let state = match n {
            _ if n < expired => KeyState::Expired,
            _ if n < signing => KeyState::Retired,
            _ if n == signing => KeyState::Signing,
            _ => KeyState::Waiting,
        };
        let published_until = next.map(|next| next + PUBLISHED_AFTER_USE);
        KeyStatus { id: key.id.clone(), state, signs_from: key.since, signs_until: next, published_until }
    };
    Ok(keys.iter().enumerate().map(status).collect())
}

impl JwtKey {
    pub(super) fn new(since: OffsetDateTime, secret: SigningKey) -> Self {
        let (x, y) = coordinates(secret.verifying_key());
        Self {
            since,
            id: since.format(NAME).expect("a year of this era has four digits"),
            secret,
            decoding: DecodingKey::from_ec_components(&x, &y)
                .expect("the coordinates were just encoded as base64url"),
        }
    }

    pub(super) fn to_jwk(&self) -> Value {
        let (x, y) = coordinates(self.secret.verifying_key());
        json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id, "x": x, "y": y })
    }
}

fn coordinates(public: &VerifyingKey) -> (String, String) {
    let point = public.to_sec1_point(false);
    let text = |octets: Option<&[u8]>| URL_SAFE_NO_PAD.encode(octets.unwrap_or_default());
    (text(point.x().map(AsRef::as_ref)), text(point.y().map(AsRef::as_ref)))
}

/// The index of the key that signs at `now`.
pub(super) fn signing(keys: &[JwtKey], now: OffsetDateTime) -> usize {
    keys.iter().rposition(|key| key.since <= now).unwrap_or(0)
}

/// The keys that are published: all but the keys whose JWTs have all expired, because the next key
/// has signed for long enough.
pub(super) fn published(keys: &[JwtKey], now: OffsetDateTime) -> &[JwtKey] {
    let is_expired = |next: &JwtKey| next.since + PUBLISHED_AFTER_USE <= now;
    let expired = keys.windows(2).take_while(|pair| is_expired(&pair[1])).count();
    &keys[expired..]
}

pub(super) fn read_folder(folder: &Path) -> Result<Vec<JwtKey>, KeysUnusable> {
    let keys = read_keys(folder)?;
    if keys.is_empty() {
        return Err(KeysUnusable("has no key: create one with `vos-auth key generate`".into()));
    }
    Ok(keys)
}

fn read_keys(folder: &Path) -> Result<Vec<JwtKey>, KeysUnusable> {
    let unreadable = |error: std::io::Error| KeysUnusable(format!("cannot be read: {error}"));
    let mut keys = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if path.extension().is_none_or(|extension| extension != "pem") {
            continue;
        }
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let since = PrimitiveDateTime::parse(name, NAME).map_err(|_| {
            KeysUnusable(format!(
                "has a file {name}.pem whose name is not the time (UTC) from which it signs, such as 20261123T200000Z.pem"
            ))
        })?;
        let pem = fs::read_to_string(&path).map_err(unreadable)?;
        let secret = SigningKey::from_pkcs8_pem(&pem).map_err(|_| {
            KeysUnusable(format!("has a file {name}.pem that is not a P-256 private key in PKCS#8 PEM"))
        })?;
        keys.push(JwtKey::new(since.assume_utc(), secret));
    }
    keys.sort_by_key(|key| key.since);
    Ok(keys)
}

/// Writes a temporary file and renames it, so that no process reads a partial key. Only the owner
/// may read it.
fn write_key(folder: &Path, since: OffsetDateTime) -> Result<String, KeysUnusable> {
    let unwritable = |error: std::io::Error| KeysUnusable(format!("cannot be written: {error}"));
    let key = JwtKey::new(since.truncate_to_second(), SigningKey::generate());
    let pem = key.secret.to_pkcs8_pem(LineEnding::LF).expect("a P-256 key fits PKCS#8");
    let path = folder.join(&key.id).with_extension("pem");
    let half = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&half)
        .map_err(unwritable)?;
    file.write_all(pem.as_bytes()).and_then(|()| file.sync_all()).map_err(unwritable)?;
    fs::rename(&half, &path).map_err(unwritable)?;
    Ok(key.id)
}
