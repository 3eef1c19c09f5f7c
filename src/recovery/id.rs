//! The public id of a recovery. A page compares it to learn whether the cookie still belongs to the
//! recovery that it shows.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const LABEL: &[u8] = b"recovery-id/1|";
const BYTES: usize = 16;

/// Identifies a recovery from `start` to `reset`. The recovery's token changes in that time, this
/// id does not. It is not a secret and grants nothing. It is a hash of the session's id, so it does
/// not reveal that id or when the recovery began. It uses no key, because a key rotation would
/// change the id during a recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryId([u8; BYTES]);

impl RecoveryId {
    /// The public id of the recovery whose row has the id `session`.
    #[must_use]
    pub fn of(session: Uuid) -> Self {
        let hash: [u8; 32] = Sha256::new().chain_update(LABEL).chain_update(session).finalize().into();
        Self(std::array::from_fn(|n| hash[n]))
    }
}

/// The id as text: 22 characters of base64url.
impl fmt::Display for RecoveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl serde::Serialize for RecoveryId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_belongs_to_one_session_and_does_not_change() {
        let id = RecoveryId::of(Uuid::from_u128(1)).to_string();
        assert_eq!(id, "9CHoy9SBFMTcdgE_ketObg");
        assert_ne!(id, RecoveryId::of(Uuid::from_u128(2)).to_string());
    }
}
