//! JWTs for the REST API (RFC 7519): signing with ES256 (RFC 7518 §3.4), verification, and the
//! public keys as a JWKS.
//!
//! Keys are PEM files in one folder. A file's name is the key's id and the time from which it
//! signs, so all replicas that read the folder change keys at the same moment. A key is published
//! before it signs, and stays until every JWT that it signed has expired.

mod es256;
mod keys;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Header, Validation};
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::Generate as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use self::keys::{JwtKey, published, read_folder, signing};
pub use self::keys::{
    KeyState, KeyStatus, KeysUnusable, PUBLISHED_BEFORE_USE, Rotation, generate, list, rotate,
};

/// How long a verifier may cache the JWKS.
pub const JWKS_MAX_AGE: Duration = Duration::from_mins(5);
/// How far a verifier's clock may differ from this machine's.
const LEEWAY: Duration = Duration::from_mins(1);

/// The claims of a JWT.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Claims {
    /// The issuer.
    pub iss: String,
    /// The account.
    pub sub: Uuid,
    /// The audience.
    pub aud: String,
    /// When it was signed, in seconds since 1970.
    pub iat: i64,
    /// When it expires, in seconds since 1970.
    pub exp: i64,
    /// The id of the JWT.
    pub jti: Uuid,
    /// The session it was issued for.
    pub sid: Uuid,
}

/// The keys of one folder, as last read.
pub struct KeyRing {
    folder: Option<PathBuf>,
    keys: RwLock<Arc<Vec<JwtKey>>>,
}

/// A key, and the time from which it signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The id of the key.
    pub id: String,
    /// When it begins to sign.
    pub since: OffsetDateTime,
}

/// Which key signs, and which one signs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The key that signs. Before the time of the first key, it is the first key.
    pub current: Turn,
    /// The key that signs after the current one, if there is one.
    pub next: Option<Turn>,
}

/// Why a JWT is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJwt {
    /// Not three parts of base64url with JSON in them, or a claim is missing or of another type.
    #[error("it is malformed")]
    Malformed,
    /// Its header names another algorithm or type than `ES256` and `JWT`.
    #[error("its header names another algorithm or type than ES256 and JWT")]
    Header,
    /// Its header names a key that is not published.
    #[error("its key is not published")]
    UnknownKey,
    /// Its signature was not made by the key that its header names.
    #[error("its signature does not match")]
    Signature,
    /// It is from another issuer.
    #[error("it is from another issuer")]
    Issuer,
    /// It is for another audience.
    #[error("it is for another audience")]
    Audience,
    /// It has expired or is not yet valid.
    #[error("it has expired or is not yet valid")]
    Time,
}

impl KeyRing {
    /// Reads every `*.pem` of a folder.
    ///
    /// # Errors
    ///
    /// [`KeysUnusable`] if there is no key, a file's name is not a time, or a file is not a P-256
    /// key in PKCS#8.
    pub fn read(folder: &Path) -> Result<Self, KeysUnusable> {
        let keys = RwLock::new(Arc::new(read_folder(folder)?));
        Ok(Self { folder: Some(folder.to_owned()), keys })
    }

    /// A key that exists as long as the process, for `vos-auth dev` and tests.
    #[must_use]
    pub fn ephemeral() -> Self {
        let key = JwtKey::new(OffsetDateTime::UNIX_EPOCH, SigningKey::generate());
        Self { folder: None, keys: RwLock::new(Arc::new(vec![key])) }
    }

    /// Reads the folder again. If that fails, the keys that were read before stay.
    ///
    /// # Errors
    ///
    /// As [`KeyRing::read`].
    pub fn reread(&self) -> Result<(), KeysUnusable> {
        if let Some(folder) = &self.folder {
            let keys = Arc::new(read_folder(folder)?);
            *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        }
        Ok(())
    }

    /// Signs with the newest key whose time has come; before the time of the first key, with the
    /// first key. The result is the compact serialization of RFC 7515 (§7.1).
    ///
    /// # Panics
    ///
    /// Never: header and claims are plain JSON.
    #[must_use]
    pub fn sign(&self, claims: &Claims, now: OffsetDateTime) -> String {
        let keys = self.keys();
        let key = &keys[signing(&keys, now)];
        let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::ES256) };
        let signed = format!("{}.{}", encoded(&header), encoded(claims));
        let signature: Signature = key.secret.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }

    /// Returns the claims of a JWT if its issuer, audience and time are right. The key is found
    /// only by its published id: nothing in the header (`jwk`, `jku`, `x5c`) can supply a key, and
    /// the algorithm is ES256 (RFC 8725 §3.1, §3.5).
    pub fn verify(
        &self,
        jwt: &str,
        issuer: &str,
        audience: &str,
        now: OffsetDateTime,
    ) -> Result<Claims, InvalidJwt> {
        es256::install();
        let header = jsonwebtoken::decode_header(jwt).map_err(|error| match error.kind() {
            ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName => InvalidJwt::Header,
            _ => InvalidJwt::Malformed,
        })?;
        if header.alg != Algorithm::ES256 || header.typ.as_deref() != Some("JWT") {
            return Err(InvalidJwt::Header);
        }
        let keys = self.keys();
        let published = published(&keys, now);
        let id = header.kid.ok_or(InvalidJwt::UnknownKey)?;
        let key = published.iter().find(|key| key.id == id).ok_or(InvalidJwt::UnknownKey)?;
        let mut rules = Validation::new(Algorithm::ES256);
        // The crate would check `exp` by the machine's clock, and `aud` against a list. The checks
        // below use `now` and one audience.
        (rules.validate_exp, rules.validate_aud) = (false, false);
        rules.required_spec_claims.clear();
        let claims: Claims = match jsonwebtoken::decode(jwt, &key.decoding, &rules) {
            Ok(token) => token.claims,
            Err(error) if *error.kind() == ErrorKind::InvalidSignature => return Err(InvalidJwt::Signature),
            Err(_) => return Err(InvalidJwt::Malformed),
        };
        let now = now.unix_timestamp();
        let leeway = i64::try_from(LEEWAY.as_secs()).unwrap_or_default();
        if claims.iss != issuer {
            return Err(InvalidJwt::Issuer);
        }
        if claims.aud != audience {
            return Err(InvalidJwt::Audience);
        }
        if claims.exp <= now - leeway || claims.iat > now + leeway {
            return Err(InvalidJwt::Time);
        }
        Ok(claims)
    }

    /// The public keys (RFC 7517): those that sign, will sign, or signed JWTs that have not
    /// expired.
    #[must_use]
    pub fn jwks(&self, now: OffsetDateTime) -> Value {
        let keys = self.keys();
        let keys: Vec<_> = published(&keys, now).iter().map(JwtKey::to_jwk).collect();
        json!({ "keys": keys })
    }

    /// Which key signs at `now`, and which one signs next.
    #[must_use]
    pub fn schedule(&self, now: OffsetDateTime) -> Schedule {
        let keys = self.keys();
        let current = signing(&keys, now);
        let turn = |key: &JwtKey| Turn { id: key.id.clone(), since: key.since };
        Schedule { current: turn(&keys[current]), next: keys.get(current + 1).map(turn) }
    }

    fn keys(&self) -> Arc<Vec<JwtKey>> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn encoded(part: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).expect("a header and claims are plain JSON"))
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing").field("folder", &self.folder).finish_non_exhaustive()
    }
}
