//! TOTP (RFC 6238): the code of an authenticator app, with SHA-1, 6 digits and steps of 30 seconds,
//! which every app supports.

use rand::TryRng as _;
use rand::rngs::SysRng;
use time::OffsetDateTime;
use totp_rs::{Algorithm, Builder, Totp};

/// The length that RFC 4226 §4 recommends: 160 bits.
const SECRET_BYTES: usize = 20;
const DIGITS: u8 = 6;
/// In seconds (RFC 6238 §5.2).
const STEP: u64 = 30;

/// The secret that the service shares with the owner's app.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret of random bytes of the operating system.
    ///
    /// # Panics
    ///
    /// If the operating system cannot provide random bytes; nothing safe could be done then.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = vec![0; SECRET_BYTES];
        SysRng.try_fill_bytes(&mut bytes).expect("the operating system gives random bytes");
        Self(bytes)
    }

    pub(super) const fn of(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The secret in base32, for an owner who types it.
    #[must_use]
    pub fn expose(&self) -> String {
        totp_rs::Secret::from(self.0.clone()).to_base32()
    }

    /// The URI that an app reads from a QR code (Key Uri Format). `:` separates `issuer` and
    /// `account` in it, so it is left out of both.
    #[must_use]
    pub fn uri(&self, issuer: &str, account: &str) -> String {
        let [issuer, account] = [issuer, account].map(|name| name.replace(':', " "));
        let totp = self.builder().with_issuer(Some(issuer)).with_account_name(account);
        totp.build_noncompliant().to_url().unwrap_or_default()
    }

    /// The time step whose code this is. One step before and one after the current one count,
    /// because clocks differ (RFC 6238 §6). Steps up to `last_step` are used.
    #[must_use]
    pub fn step_of(&self, code: &str, now: OffsetDateTime, last_step: i64) -> Option<i64> {
        let code: String = code.chars().filter(|c| !c.is_whitespace()).collect();
        let now = u64::try_from(now.unix_timestamp()).ok()?;
        let step = self.totp().check(&code, now)?;
        i64::try_from(step).ok().filter(|step| *step > last_step)
    }

    fn totp(&self) -> Totp {
        self.builder().build_noncompliant()
    }

    fn builder(&self) -> Builder {
        Builder::new()
            .with_algorithm(Algorithm::SHA1)
            .with_digits(DIGITS)
            .with_skew(1)
            .with_step_duration(STEP)
            .with_secret(self.0.clone())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    /// The vectors of RFC 6238, appendix B, for SHA-1: the last 6 of its 8 digits.
    #[test]
    fn codes_are_those_of_rfc_6238() {
        let secret = Secret::of(b"12345678901234567890".to_vec());
        for (seconds, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_111_111_111, "050471"),
            (1_234_567_890, "005924"),
            (2_000_000_000, "279037"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(secret.step_of(code, at(seconds), 0), Some(seconds / 30), "{seconds}");
        }
    }

    #[test]
    fn a_code_counts_one_step_early_or_late_and_once() {
        let secret = Secret::of(b"12345678901234567890".to_vec());
        let step = 1_111_111_111 / 30;
        let begins = step * 30;
        for (seconds, counts) in [
            (begins - 31, false),
            (begins - 30, true),
            (begins, true),
            (begins + 59, true),
            (begins + 60, false),
        ] {
            assert_eq!(secret.step_of("050471", at(seconds), 0).is_some(), counts, "{seconds}");
        }
        assert_eq!(secret.step_of("050471", at(begins), step - 1), Some(step));
        assert_eq!(secret.step_of("050471", at(begins), step), None, "the step is used");
        assert_eq!(secret.step_of(" 050 471\n", at(begins), 0), Some(step), "as apps show it");
        for wrong in ["", "05047", "0504711", "050472", "O50471", "-50471"] {
            assert_eq!(secret.step_of(wrong, at(begins), 0), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_uri_is_read_by_apps() {
        let secret = Secret::of(b"12345678901234567890".to_vec());
        let uri = secret.uri("Vero: OMS", "trader@example.com");
        assert!(uri.starts_with("otpauth://totp/Vero%20%20OMS:trader%40example.com?"), "{uri}");
        assert!(uri.contains("secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"), "{uri}");
        assert!(!format!("{secret:?}").contains("49"));
        assert_ne!(Secret::random().expose(), Secret::random().expose());
        assert_eq!(Secret::random().expose().len(), 32);
    }
}
