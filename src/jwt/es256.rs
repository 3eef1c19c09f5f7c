//! The cryptography of a JWT that is verified: ES256 alone, by p256.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey};
use p256::ecdsa::signature;
use p256::ecdsa::{Signature, VerifyingKey};

/// ES256 for the jsonwebtoken crate, and nothing else: its own choices of cryptography bring RSA and more along.
static ES256: CryptoProvider = CryptoProvider {
    // It would read the key anew for every JWT, half of what a session cost (docs/decisions/0009): `KeyRing::sign` signs.
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
    // Installed once a process; a second time says so, and nothing is lost.
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
