//! JWTs for the REST API (RFC 7519): signed with ES256 (RFC 7518 §3.4), verified, and their public keys as a JWKS.
//!
//! Keys are PEM files of one folder. A file's name is the key's id and the time from which it signs, so every replica
//! that reads the same folder changes keys at the same moment: a key is published before it is used, and stays until
//! what it signed has died.

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

use self::keys::{Key, published, read_folder, signing};
pub use self::keys::{KeysUnusable, PUBLISHED_BEFORE_USE, Rotation, generate, rotate};

/// How long a verifier may keep the JWKS.
pub const JWKS_MAX_AGE: Duration = Duration::from_mins(5);
/// How far a verifier's clock may be from ours.
const LEEWAY: Duration = Duration::from_mins(1);

/// What a JWT says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Claims {
    /// Who signed it.
    pub iss: String,
    /// The account.
    pub sub: Uuid,
    /// Whom it is for.
    pub aud: String,
    /// When it was signed, in seconds since 1970.
    pub iat: i64,
    /// When it dies.
    pub exp: i64,
    /// Its own id.
    pub jti: Uuid,
    /// The session it comes from.
    pub sid: Uuid,
}

/// The keys of one folder, as last read.
pub struct KeyRing {
    folder: Option<PathBuf>,
    keys: RwLock<Arc<Vec<Key>>>,
}

/// A JWT that is not ours, not for here, or dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not three parts of base64url with JSON in them, or a claim is missing or of another type.
    #[error("it is malformed")]
    Malformed,
    /// Its header names another algorithm or type than `ES256` and `JWT`.
    #[error("its header names another algorithm or type than ES256 and JWT")]
    Header,
    /// Its header names a key that is not published.
    #[error("its key is not published")]
    UnknownKey,
    /// Its signature is not of that key.
    #[error("its signature does not match")]
    Signature,
    /// It was not signed by the expected issuer.
    #[error("it is from another issuer")]
    Issuer,
    /// It is for somebody else.
    #[error("it is for another audience")]
    Audience,
    /// Its time is over, or has not begun.
    #[error("its time is over or has not begun")]
    Time,
}

impl KeyRing {
    /// Reads every `*.pem` of a folder.
    ///
    /// # Errors
    ///
    /// Why the keys cannot be used: none there, a name that is no time, a file that is no P-256 key in PKCS#8.
    pub fn read(folder: &Path) -> Result<Self, KeysUnusable> {
        let keys = RwLock::new(Arc::new(read_folder(folder)?));
        Ok(Self { folder: Some(folder.to_owned()), keys })
    }

    /// One key that is gone with the process, for `vos-auth dev` and tests.
    #[must_use]
    pub fn ephemeral() -> Self {
        let key = Key::new(OffsetDateTime::UNIX_EPOCH, SigningKey::generate());
        Self { folder: None, keys: RwLock::new(Arc::new(vec![key])) }
    }

    /// Reads the folder again; what was read before stays if it cannot be.
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

    /// Signs with the newest key whose time has begun; before the first one's, with the first. The form is RFC 7515's
    /// compact serialization (§7.1).
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

    /// What a JWT says, if it is ours, for `audience`, and alive. The key is found by its published id alone: nothing in
    /// the header (`jwk`, `jku`, `x5c`) can bring one, and the algorithm is ES256 (RFC 8725 §3.1, §3.5).
    pub fn verify(
        &self,
        jwt: &str,
        issuer: &str,
        audience: &str,
        now: OffsetDateTime,
    ) -> Result<Claims, Refused> {
        es256::install();
        let header = jsonwebtoken::decode_header(jwt).map_err(|error| match error.kind() {
            ErrorKind::Json(_) | ErrorKind::InvalidAlgorithmName => Refused::Header,
            _ => Refused::Malformed,
        })?;
        if header.alg != Algorithm::ES256 || header.typ.as_deref() != Some("JWT") {
            return Err(Refused::Header);
        }
        let keys = self.keys();
        let published = published(&keys, now);
        let id = header.kid.ok_or(Refused::UnknownKey)?;
        let key = published.iter().find(|key| key.id == id).ok_or(Refused::UnknownKey)?;
        let mut rules = Validation::new(Algorithm::ES256);
        // Its own look at exp and aud reads the machine's clock and takes lists: ours are below.
        (rules.validate_exp, rules.validate_aud) = (false, false);
        rules.required_spec_claims.clear();
        let claims: Claims = match jsonwebtoken::decode(jwt, &key.decoding, &rules) {
            Ok(token) => token.claims,
            Err(error) if *error.kind() == ErrorKind::InvalidSignature => return Err(Refused::Signature),
            Err(_) => return Err(Refused::Malformed),
        };
        let now = now.unix_timestamp();
        let leeway = i64::try_from(LEEWAY.as_secs()).unwrap_or_default();
        if claims.iss != issuer {
            return Err(Refused::Issuer);
        }
        if claims.aud != audience {
            return Err(Refused::Audience);
        }
        if claims.exp <= now - leeway || claims.iat > now + leeway {
            return Err(Refused::Time);
        }
        Ok(claims)
    }

    /// The public keys (RFC 7517): those that sign, will sign, or signed what still lives.
    #[must_use]
    pub fn jwks(&self, now: OffsetDateTime) -> Value {
        let keys = self.keys();
        let keys: Vec<_> = published(&keys, now).iter().map(Key::to_jwk).collect();
        json!({ "keys": keys })
    }

    fn keys(&self) -> Arc<Vec<Key>> {
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
