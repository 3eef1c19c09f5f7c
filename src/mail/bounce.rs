//! Return paths, the addresses that bounces are sent to: one for all emails, or a signed one for
//! each account and day (VERP, docs/decisions/0029).
//!
//! A signed local part is 52 characters of lower-case base32 (RFC 4648 §6); RFC 5321 §4.5.3.1.1
//! allows 64. It encodes 32 octets:
//!
//! | Octets | Content |
//! |---|---|
//! | 16 | the account's id |
//! | 2 | the day |
//! | 4 | the beginning of a SHA-256 of the email address |
//! | 10 | the beginning of a MAC over the above |
//!
//! So a bounce identifies its account without a row in the database, and only this service can make
//! such an address.

use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use lettre::Address;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Unbuildable, sender};
use crate::config::ConfigError;
use crate::email_address::{EmailAddress, MAX_OCTETS};
use crate::secret::{Key, Keys};

/// How many days a signed address is valid after its own day. Mail servers usually give up after 4
/// to 5 days (RFC 5321 §4.5.4.1).
const VALID_DAYS: u16 = 7;
/// The length of a signed local part in characters.
const LOCAL_PART_LEN: usize = 52;

/// The purpose that the key signs for.
const LABEL: &str = "bounce-address/1";
const EMAIL_BYTES: usize = 4;
/// Account, day and email: the input of the MAC.
const CONTENT_BYTES: usize = 16 + 2 + EMAIL_BYTES;
const BYTES: usize = CONTENT_BYTES + 10;
/// The allowed difference of two machines' clocks: an address may be dated tomorrow in the last
/// seconds of a day.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// `MAIL_BOUNCES`: the sender in an email's envelope.
#[derive(Debug)]
pub(super) enum ReturnPath {
    /// One address for all emails.
    Plain(Address),
    /// Signed addresses of this domain.
    Signed { domain: String, key: Key },
}

impl ReturnPath {
    /// Reads an address, or `@` and a domain. The default is `from`.
    ///
    /// # Errors
    ///
    /// A sentence that names `MAIL_BOUNCES`.
    pub(super) fn new(setting: Option<&str>, from: &Address, key: &Key) -> Result<Self, ConfigError> {
        let wrong = |why: &str| ConfigError::new("MAIL_BOUNCES", why);
        match setting.map(|setting| (setting, setting.strip_prefix('@'))) {
            None => Ok(Self::Plain(from.clone())),
            Some((_, Some(domain))) => {
                let address = EmailAddress::parse(&format!("a@{domain}"))
                    .map_err(|_| wrong("is not @ and a domain, such as @bounces.verolabs.co"))?;
                let (_, domain) = address.as_str().split_once('@').unwrap_or_default();
                if LOCAL_PART_LEN + 1 + domain.len() > MAX_OCTETS {
                    return Err(wrong(
                        "has a domain that is too long for addresses with a signed local part of 52 octets",
                    ));
                }
                Ok(Self::Signed { domain: domain.to_owned(), key: key.clone() })
            }
            Some((setting, None)) => sender::address(setting).map(Self::Plain).map_err(wrong),
        }
    }

    /// The return path of an email to the account's `email`, sent at `now`.
    ///
    /// # Errors
    ///
    /// [`Unbuildable`] if the address is not valid, which [`ReturnPath::new`] rules out.
    pub(super) fn of(
        &self,
        account_id: Uuid,
        email: &str,
        now: OffsetDateTime,
    ) -> Result<Address, Unbuildable> {
        match self {
            Self::Plain(address) => Ok(address.clone()),
            Self::Signed { domain, key } => {
                Address::new(sign(key, account_id, email, now), domain).map_err(|_| Unbuildable)
            }
        }
    }
}

/// The local part of the return path for an email to this account's `email`.
#[must_use]
pub fn sign(key: &Key, account_id: Uuid, email: &str, now: OffsetDateTime) -> String {
    let mut bytes = [0; BYTES];
    bytes[..16].copy_from_slice(account_id.as_bytes());
    bytes[16..18].copy_from_slice(&day(now).to_be_bytes());
    bytes[18..CONTENT_BYTES].copy_from_slice(&digest(email));
    let mac = key.mac(LABEL, &[&bytes[..CONTENT_BYTES]]);
    bytes[CONTENT_BYTES..].copy_from_slice(&mac[..BYTES - CONTENT_BYTES]);
    BASE32_NOPAD.encode(&bytes).to_ascii_lowercase()
}

/// The content of an address that this service signed today or within the last 7 days.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignedAddress {
    /// The account that the email was sent to.
    pub account_id: Uuid,
    email: [u8; EMAIL_BYTES],
}

impl SignedAddress {
    /// Finds the first valid signed address in `text`, which may be an address or a header's value.
    /// Relays may have changed the case of its letters, or put words before it, separated by `=` or
    /// `+`.
    #[must_use]
    pub fn find(keys: &Keys, text: &str, now: OffsetDateTime) -> Option<Self> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
        words.filter(|word| word.len() == LOCAL_PART_LEN).find_map(|word| Self::read(keys, word, now))
    }

    fn read(keys: &Keys, local_part: &str, now: OffsetDateTime) -> Option<Self> {
        let bytes = BASE32_NOPAD.decode(local_part.to_ascii_uppercase().as_bytes()).ok()?;
        let bytes: [u8; BYTES] = bytes.try_into().ok()?;
        let (content, mac) = bytes.split_at(CONTENT_BYTES);
        let (account_id, rest) = content.split_first_chunk()?;
        let (signed_on, rest) = rest.split_first_chunk()?;
        let signed_on = u16::from_be_bytes(*signed_on);
        let is_recent = signed_on <= day(now + MAX_SKEW) && day(now) <= signed_on.saturating_add(VALID_DAYS);
        let is_ours = || keys.iter().any(|key| key.mac(LABEL, &[content])[..mac.len()].ct_eq(mac).into());
        (is_recent && is_ours())
            .then_some(Self { account_id: Uuid::from_bytes(*account_id), email: rest.try_into().ok()? })
    }

    /// Whether the email was sent to this address. The account's address may have changed since.
    #[must_use]
    pub fn was_sent_to(&self, email: &str) -> bool {
        self.email == digest(email)
    }
}

fn digest(email: &str) -> [u8; EMAIL_BYTES] {
    let digest: [u8; 32] = Sha256::digest(email).into();
    [digest[0], digest[1], digest[2], digest[3]]
}

/// The number of days since 1970 in UTC, until 2149.
fn day(at: OffsetDateTime) -> u16 {
    u16::try_from(at.unix_timestamp().div_euclid(24 * 60 * 60)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use time::macros::datetime;

    use super::*;

    const EMAIL: &str = "trader@example.com";
    const NOW: OffsetDateTime = datetime!(2026-11-23 18:05:07 UTC);

    /// Keys with these ids. The id determines the key.
    fn keys(ids: &[&str]) -> Keys {
        let secret = |id: &&str| {
            let first = id.bytes().fold(0, u8::wrapping_add) - b'a';
            format!("{id}:{}", STANDARD.encode((first..first + 32).collect::<Vec<_>>()))
        };
        ids.iter().map(secret).collect::<Vec<_>>().join(",").parse().unwrap()
    }

    fn account() -> Uuid {
        "019ab5c0-7e00-7abc-8def-0123456789ab".parse().unwrap()
    }

    fn signed(at: OffsetDateTime) -> String {
        sign(keys(&["a"]).newest(), account(), EMAIL, at)
    }

    fn found(text: &str, at: OffsetDateTime) -> Option<SignedAddress> {
        SignedAddress::find(&keys(&["a"]), text, at)
    }

    /// The value was computed by another program. A release must read addresses that the release
    /// before has signed.
    #[test]
    fn the_format_of_an_address_is_stable() {
        assert_eq!(signed(NOW), "agnllqd6ab5lzdppaerukz4jvnisypf7m2hd4wqwr3idjgv472zq");
        assert!(LOCAL_PART_LEN <= 64 && signed(NOW).len() == LOCAL_PART_LEN);
    }

    #[test]
    fn an_address_is_found_although_relays_changed_it() {
        let local = signed(NOW);
        for text in [
            local.clone(),
            format!("{local}@bounces.example.com"),
            format!("{}@Bounces.Example.COM", local.to_ascii_uppercase()),
            format!("\"Bounces\" <{local}@bounces.example.com>,\r\n\tsomebody@example.com"),
            format!("prvs=0123456789={local}@bounces.example.com"),
            format!("SRS0=abcd=XY=bounces.example.com={local}@relay.example.net"),
        ] {
            let found = found(&text, NOW).expect(&text);
            assert_eq!(found.account_id, account());
            assert!(found.was_sent_to(EMAIL) && !found.was_sent_to("moved@example.com"), "{text}");
        }
    }

    #[test]
    fn a_changed_or_forged_address_is_refused() {
        let local = signed(NOW);
        for place in 0..LOCAL_PART_LEN {
            for other in ["a", "q", "7"] {
                let mut changed = local.clone();
                changed.replace_range(place..=place, other);
                assert_eq!(found(&changed, NOW).is_some(), changed == local, "{place} {other}");
            }
        }
        let (other_key, long) = (Key::random("a"), format!("{local}a"));
        let forged = sign(&other_key, account(), EMAIL, NOW);
        for text in
            ["", "@", "bounces@example.com", &local[1..], &long, &forged, &"8".repeat(52), &"é".repeat(26)]
        {
            assert_eq!(found(text, NOW), None, "{text}");
        }
    }

    #[test]
    fn an_address_is_valid_for_its_day_and_seven_more() {
        for at in [datetime!(2026-11-23 0:00 UTC), datetime!(2026-11-23 23:59:59 UTC)] {
            let local = signed(at);
            assert_eq!(local, signed(NOW), "one address a day");
            assert!(found(&local, at).is_some());
            assert!(found(&local, datetime!(2026-11-30 23:59:59 UTC)).is_some());
            assert_eq!(found(&local, datetime!(2026-12-01 0:00 UTC)), None, "too old");
            assert!(found(&local, datetime!(2026-11-22 23:59:58 UTC)).is_some(), "a slow clock");
            assert_eq!(found(&local, datetime!(2026-11-22 23:59:54 UTC)), None, "of tomorrow");
        }
        assert_ne!(signed(datetime!(2026-11-24 0:00 UTC)), signed(NOW));
    }

    #[test]
    fn a_bounce_is_read_after_a_rotation_of_the_secret() {
        let local = signed(NOW);
        for (ids, is_known) in [(&["b", "a"][..], true), (&["a", "b"], true), (&["b"], false)] {
            assert_eq!(SignedAddress::find(&keys(ids), &local, NOW).is_some(), is_known, "{ids:?}");
        }
    }

    #[test]
    fn the_setting_is_an_address_or_a_domain() {
        let from: Address = "no-reply@example.com".parse().unwrap();
        let sender = |setting: Option<&str>| {
            let path = ReturnPath::new(setting, &from, keys(&["a"]).newest())?;
            Ok::<_, ConfigError>(path.of(account(), EMAIL, NOW).unwrap().to_string())
        };
        let signed = signed(NOW);
        for (setting, expected) in [
            (None, "no-reply@example.com"),
            (Some("bounces@example.com"), "bounces@example.com"),
            (Some("@bounces.example.com"), &format!("{signed}@bounces.example.com")),
            (Some("@BÜCHER.example"), &format!("{signed}@xn--bcher-kva.example")),
        ] {
            assert_eq!(sender(setting).unwrap(), expected);
        }
        let label = "b".repeat(50);
        let of_octets = |octets: usize| format!("@{label}.{label}.{label}.{}", "c".repeat(octets - 153));
        assert!(sender(Some(&of_octets(201))).is_ok());
        for wrong in
            ["", "@", "bounces", "@a@b.example", "@ex ample.com", "@a.example\r\nX: y", &of_octets(202)]
        {
            let why = sender(Some(wrong)).unwrap_err().to_string();
            assert!(why.starts_with("MAIL_BOUNCES ") && !why.contains('\r'), "{wrong:?}: {why}");
        }
    }
}
