//! The cryptography that verifies a JWT: ES256 only, with the p256 crate.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey};
use p256::ecdsa::signature;
use p256::ecdsa::{Signature, VerifyingKey};

/// ES256 for the jsonwebtoken crate, and no other algorithm: its built-in providers bring RSA and
/// more.
static ES256: CryptoProvider = CryptoProvider {
    // This factory would parse the key for every JWT, half of the time of a session request
    // (docs/decisions/0009). `KeyRing::sign` signs instead.
    signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
    verifier_factory: |algorithm, key: &DecodingKey| match algorithm {
        Algorithm::ES256 => Ok(Box::new(Es256Verifier(
            VerifyingKey::from_sec1_bytes(key.try_get_as_bytes()?).map_err(|_| ErrorKind::InvalidEcdsaKey)?,
        ))),
        _ => Err(ErrorKind::InvalidAlgorithm.into()),
    },
    key_utils: KeyUtils::new_unimplemented(),
};

pub(super) fn install() {
    // The provider is installed once a process; a second call fails harmlessly.
    let _ = ES256.install_default();
}

struct Es256Verifier(VerifyingKey);

impl signature::Verifier<Vec<u8>> for Es256Verifier {
    fn verify(&self, message: &[u8], signed: &Vec<u8>) -> Result<(), signature::Error> {
        let signed = Signature::from_slice(signed).map_err(|_| signature::Error::new())?;
        self.0.verify(message, &signed).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Es256Verifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::ES256
    }
}
