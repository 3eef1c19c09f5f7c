//! Encryption of secrets that the service has to read again: those of TOTP.

use rand::TryRng as _;
use rand::rngs::SysRng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::Key;

impl Key {
    /// Encrypts `secret` with AES-256-GCM (NIST SP 800-38D) and a random nonce of 96 bits, which is
    /// the beginning of the result. `context` names the row, so that the result means nothing in
    /// another one.
    ///
    /// # Panics
    ///
    /// If the operating system cannot provide random bytes; nothing safe could be done then.
    #[must_use]
    pub fn seal(&self, context: &[u8], secret: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        SysRng.try_fill_bytes(&mut nonce).expect("the operating system gives random bytes");
        let mut sealed = secret.to_vec();
        let tag = self.aead().seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(context),
            &mut sealed,
        );
        let tag = tag.expect("a secret is shorter than the limit of AES-GCM, 64 GiB");
        [&nonce, sealed.as_slice(), tag.as_ref()].concat()
    }

    /// Decrypts the result of [`Key::seal`]. Returns `None` if it was changed, or belongs to another
    /// key or context.
    #[must_use]
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        Some(self.aead().open_in_place(nonce, Aad::from(context), &mut sealed).ok()?.to_vec())
    }

    fn aead(&self) -> LessSafeKey {
        let key = UnboundKey::new(&AES_256_GCM, &self.mac("seal/1", &[])).expect("a MAC has 32 bytes");
        LessSafeKey::new(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_and_context_open_a_sealed_secret() {
        let (key, other) = (Key::random("1"), Key::random("1"));
        let sealed = key.seal(b"row 1", b"a secret");
        assert_eq!(key.open(b"row 1", &sealed).as_deref(), Some(&b"a secret"[..]));
        assert_ne!(sealed, key.seal(b"row 1", b"a secret"), "each has a nonce of its own");
        assert_eq!((key.open(b"row 2", &sealed), other.open(b"row 1", &sealed)), (None, None));
        for place in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[place] ^= 1;
            assert_eq!(key.open(b"row 1", &changed), None, "{place}");
        }
        for shorter in 0..sealed.len() {
            assert_eq!(key.open(b"row 1", &sealed[..shorter]), None, "{shorter}");
        }
    }
}
