//! Where bounces go: one address for all, or a signed one for each account and day (VERP, docs/decisions/0029).
//!
//! The local part is 52 characters of lower-case base32 (RFC 4648 §6) of 32 octets: the account's id (16), the day (2), the
//! beginning of a SHA-256 of the email (4), and 80 bits of a MAC over all of them (10). RFC 5321 §4.5.3.1.1 allows 64. So no row
//! says whom a bounce is about, and an address that was not signed here says nothing.

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

/// How many days after its own a signed address is good. A mail server gives up after 5 days (RFC 5321 §4.5.4.1).
pub const DAYS: u16 = 7;
/// Characters of a signed local part.
pub const LOCAL_PART: usize = 52;

/// What the key signs here.
const LABEL: &str = "bounce-address/1";
const EMAIL_BYTES: usize = 4;
/// Account, day and email: what the MAC is over.
const NAMED_BYTES: usize = 16 + 2 + EMAIL_BYTES;
const BYTES: usize = NAMED_BYTES + 10;
/// Clocks of two machines may differ by a few seconds, and midnight may lie between them.
const CLOCKS: Duration = Duration::from_secs(5);

/// `MAIL_BOUNCES`: the envelope's sender of a mail.
#[derive(Debug)]
pub(super) enum ReturnPath {
    /// The same of every mail.
    Plain(Address),
    /// A signed one of this domain.
    Signed { domain: String, key: Key },
}

impl ReturnPath {
    /// Reads an address, or `@` and a domain; without either it is `from`.
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
                if LOCAL_PART + 1 + domain.len() > MAX_OCTETS {
                    return Err(wrong(
                        "has a domain that leaves no room for a signed local part of 52 octets",
                    ));
                }
                Ok(Self::Signed { domain: domain.to_owned(), key: key.clone() })
            }
            Some((setting, None)) => sender::address(setting).map(Self::Plain).map_err(wrong),
        }
    }

    /// The sender of a mail to the account's `email`, sent at `now`.
    ///
    /// # Errors
    ///
    /// [`Unbuildable`]: never, after [`ReturnPath::new`].
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

/// The local part to which a mail to this account's `email` bounces.
#[must_use]
pub fn sign(key: &Key, account_id: Uuid, email: &str, now: OffsetDateTime) -> String {
    let mut bytes = [0; BYTES];
    bytes[..16].copy_from_slice(account_id.as_bytes());
    bytes[16..18].copy_from_slice(&day(now).to_be_bytes());
    bytes[18..NAMED_BYTES].copy_from_slice(&digest(email));
    let mac = key.mac(LABEL, &[&bytes[..NAMED_BYTES]]);
    bytes[NAMED_BYTES..].copy_from_slice(&mac[..BYTES - NAMED_BYTES]);
    BASE32_NOPAD.encode(&bytes).to_ascii_lowercase()
}

/// What an address says that was signed here within the last [`DAYS`] days.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signed {
    /// Whose mail it was.
    pub account_id: Uuid,
    email: [u8; EMAIL_BYTES],
}

impl Signed {
    /// The first in `text`, which may be an address or a header's value. Relays may have changed the case of letters, and may
    /// have put their own words before it, with an `=` or a `+` between.
    #[must_use]
    pub fn find(keys: &Keys, text: &str, now: OffsetDateTime) -> Option<Self> {
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric());
        words.filter(|word| word.len() == LOCAL_PART).find_map(|word| Self::read(keys, word, now))
    }

    fn read(keys: &Keys, local_part: &str, now: OffsetDateTime) -> Option<Self> {
        let bytes = BASE32_NOPAD.decode(local_part.to_ascii_uppercase().as_bytes()).ok()?;
        let bytes: [u8; BYTES] = bytes.try_into().ok()?;
        let (named, mac) = bytes.split_at(NAMED_BYTES);
        let (account_id, rest) = named.split_first_chunk()?;
        let (signed_on, rest) = rest.split_first_chunk()?;
        let signed_on = u16::from_be_bytes(*signed_on);
        let is_recent = signed_on <= day(now + CLOCKS) && day(now) <= signed_on.saturating_add(DAYS);
        let is_ours = || keys.iter().any(|key| key.mac(LABEL, &[named])[..mac.len()].ct_eq(mac).into());
        (is_recent && is_ours())
            .then_some(Self { account_id: Uuid::from_bytes(*account_id), email: rest.try_into().ok()? })
    }

    /// Whether the mail went to this address: the account may have another one since.
    #[must_use]
    pub fn is_about(&self, email: &str) -> bool {
        self.email == digest(email)
    }
}

fn digest(email: &str) -> [u8; EMAIL_BYTES] {
    let digest: [u8; 32] = Sha256::digest(email).into();
    [digest[0], digest[1], digest[2], digest[3]]
}

/// Days since 1970, in UTC; until 2149.
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

    /// Keys by their ids, which say what they are.
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

    fn found(text: &str, at: OffsetDateTime) -> Option<Signed> {
        Signed::find(&keys(&["a"]), text, at)
    }

    /// Computed by another program: a release must read what the one before has signed.
    #[test]
    fn an_address_is_written_as_ever() {
        assert_eq!(signed(NOW), "agnllqd6ab5lzdppaerukz4jvnisypf7m2hd4wqwr3idjgv472zq");
        assert!(LOCAL_PART <= 64 && signed(NOW).len() == LOCAL_PART);
    }

    #[test]
    fn an_address_is_read_whatever_relays_made_of_it() {
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
            assert!(found.is_about(EMAIL) && !found.is_about("moved@example.com"), "{text}");
        }
    }

    #[test]
    fn no_other_address_says_anything() {
        let local = signed(NOW);
        for place in 0..LOCAL_PART {
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
    fn an_address_is_good_for_its_day_and_seven_more() {
        for at in [datetime!(2026-11-23 0:00 UTC), datetime!(2026-11-23 23:59:59 UTC)] {
            let local = signed(at);
            assert_eq!(local, signed(NOW), "one a day");
            assert!(found(&local, at).is_some());
            assert!(found(&local, datetime!(2026-11-30 23:59:59 UTC)).is_some());
            assert_eq!(found(&local, datetime!(2026-12-01 0:00 UTC)), None, "too old");
            assert!(found(&local, datetime!(2026-11-22 23:59:58 UTC)).is_some(), "a clock that is late");
            assert_eq!(found(&local, datetime!(2026-11-22 23:59:54 UTC)), None, "of tomorrow");
        }
        assert_ne!(signed(datetime!(2026-11-24 0:00 UTC)), signed(NOW));
    }

    #[test]
    fn a_bounce_outlives_the_rotation_of_the_secret() {
        let local = signed(NOW);
        for (ids, is_known) in [(&["b", "a"][..], true), (&["a", "b"], true), (&["b"], false)] {
            assert_eq!(Signed::find(&keys(ids), &local, NOW).is_some(), is_known, "{ids:?}");
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
