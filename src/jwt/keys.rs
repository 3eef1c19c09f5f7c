//! The folder of PEM files that JWTs are signed with: reading it, making a key, rotating.

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
use serde_json::{Value, json};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

use super::LEEWAY;
use crate::config::JWT_LIFETIME;

/// How long a new key is published before it signs: what a verifier may keep of the JWKS (5 minutes), the replicas'
/// minute of reading the folder, and time to roll the folder out.
pub const PUBLISHED_BEFORE_USE: Duration = Duration::from_mins(20);

/// How a key's file is named.
const NAME: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// A key, and the time from which it signs.
pub(super) struct Key {
    pub(super) since: OffsetDateTime,
    pub(super) id: String,
    pub(super) secret: SigningKey,
    pub(super) decoding: DecodingKey,
}

/// Keys that cannot be used, as the second half of a sentence; it quotes no key.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeysUnusable(String);

/// Makes the first key of a folder, which signs from now, and says its id.
///
/// # Errors
///
/// If the folder has a key already, or cannot be written.
pub fn generate(folder: &Path, now: OffsetDateTime) -> Result<String, KeysUnusable> {
    fs::create_dir_all(folder).map_err(|error| KeysUnusable(format!("cannot be made: {error}")))?;
    if !read_keys(folder)?.is_empty() {
        return Err(KeysUnusable("has a key already: use `vos-auth key rotate`".into()));
    }
    write_key(folder, now)
}

/// What a rotation did.
#[derive(Debug)]
pub struct Rotation {
    /// The new key, and the time from which it signs; none if one is waiting already.
    pub added: Option<String>,
    /// When the key that waits, new or not, begins to sign.
    pub waiting_until: OffsetDateTime,
    /// Keys that were deleted: everything they signed has died.
    pub deleted: Vec<String>,
}

/// Adds a key that is published now and signs after [`PUBLISHED_BEFORE_USE`], unless one is waiting already, and deletes
/// keys whose signatures are all dead. Can be run at any time and again.
///
/// # Errors
///
/// If the folder has no key yet, or cannot be written.
pub fn rotate(folder: &Path, now: OffsetDateTime) -> Result<Rotation, KeysUnusable> {
    let keys = read_folder(folder)?;
    let dead = keys.len() - published(&keys, now).len();
    let mut deleted = Vec::new();
    for key in &keys[..dead] {
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

impl Key {
    pub(super) fn new(since: OffsetDateTime, secret: SigningKey) -> Self {
        let (x, y) = coordinates(secret.verifying_key());
        Self {
            since,
            id: since.format(NAME).expect("a time of this age has four digits for its year"),
            secret,
            decoding: DecodingKey::from_ec_components(&x, &y).expect("base64url as it was just written"),
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

/// The place of the key that signs at `now`.
pub(super) fn signing(keys: &[Key], now: OffsetDateTime) -> usize {
    keys.iter().rposition(|key| key.since <= now).unwrap_or(0)
}

/// Without the keys whose successor has signed so long that everything of theirs is dead.
pub(super) fn published(keys: &[Key], now: OffsetDateTime) -> &[Key] {
    let over = |next: &Key| next.since + JWT_LIFETIME + 2 * LEEWAY <= now;
    let dead = keys.windows(2).take_while(|pair| over(&pair[1])).count();
    &keys[dead..]
}

pub(super) fn read_folder(folder: &Path) -> Result<Vec<Key>, KeysUnusable> {
    let keys = read_keys(folder)?;
    if keys.is_empty() {
        return Err(KeysUnusable("has no key in it: make one with `vos-auth key generate`".into()));
    }
    Ok(keys)
}

fn read_keys(folder: &Path) -> Result<Vec<Key>, KeysUnusable> {
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
        keys.push(Key::new(since.assume_utc(), secret));
    }
    keys.sort_by_key(|key| key.since);
    Ok(keys)
}

/// Written beside and renamed, so that nobody ever reads half a key; readable by its owner alone.
fn write_key(folder: &Path, since: OffsetDateTime) -> Result<String, KeysUnusable> {
    let unwritable = |error: std::io::Error| KeysUnusable(format!("cannot be written: {error}"));
    let key = Key::new(since.truncate_to_second(), SigningKey::generate());
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
