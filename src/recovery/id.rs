//! The public id of a recovery, by which a page knows whether the cookie is still of the recovery that it shows.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const LABEL: &[u8] = b"recovery-id/1|";
const BYTES: usize = 16;

/// Names a recovery from `start` to `reset`, while its token changes. It is no secret and opens nothing; one hash away from
/// the session's id, so that it tells neither that nor when the recovery began. No key: a rotation would change it midway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryId([u8; BYTES]);

impl RecoveryId {
    /// The id of a session.
    #[must_use]
    pub fn of(session: Uuid) -> Self {
        let hash: [u8; 32] = Sha256::new().chain_update(LABEL).chain_update(session).finalize().into();
        Self(std::array::from_fn(|n| hash[n]))
    }
}

/// 22 characters of base64url.
impl fmt::Display for RecoveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_that_of_one_session_and_does_not_change() {
        let id = RecoveryId::of(Uuid::from_u128(1)).to_string();
        assert_eq!(id, "9CHoy9SBFMTcdgE_ketObg");
        assert_ne!(id, RecoveryId::of(Uuid::from_u128(2)).to_string());
    }
}
