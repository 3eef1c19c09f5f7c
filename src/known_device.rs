//! The device cookie (OWASP, "Device Cookies"): a browser that has signed in before has rate limits
//! of its own. Attackers who drain the bucket of an address then cannot lock its owner out of known
//! browsers.
//!
//! The cookie is checked without a table. It has three parts of 16 bytes:
//!
//! - an id that contains the time of issue,
//! - an owner tag: a MAC of the address that signed in,
//! - a MAC of both, under a key of `DEVICE_SECRETS`.
//!
//! The last part shows, before a request is parsed, that this service issued the cookie. The tag
//! shows for which address the cookie counts. All cookies of one address under one key have the
//! same tag. From one network they share one bucket in memory.
//!
//! A cookie of the previous format (version 1) has a MAC of the id in place of the tag. It remains
//! valid for its year and has no tag.
//!
//! A recovery ticket has the same format. An operator issues it to an account owner who is locked
//! out on a new device. It lives 15 minutes and replaces a device cookie at one `start`.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq as _;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::{first_id_of, new_id};
use crate::config::{DEVICE_LIFETIME, TICKET_LIFETIME};
use crate::email_address::EmailAddress;
use crate::secret::{Key, Keys};

const PART: usize = 16;

/// What a value, a cookie or a ticket, is used for. A value of one purpose is invalid for the
/// other.
#[derive(Debug)]
pub struct Purpose {
    value: &'static str,
    tag: &'static str,
    v1: Option<V1>,
    lifetime: Duration,
}

/// The labels of the previous format.
#[derive(Debug)]
struct V1 {
    issued: &'static str,
    owned: &'static str,
}

/// The cookie of a browser that has signed in.
pub const COOKIE: Purpose = Purpose {
    value: "device/2",
    tag: "device-owner/2",
    v1: Some(V1 { issued: "device/1", owned: "device-of/1" }),
    lifetime: DEVICE_LIFETIME,
};
/// The recovery ticket that an operator issues.
pub const TICKET: Purpose =
    Purpose { value: "ticket/2", tag: "ticket-owner/2", v1: None, lifetime: TICKET_LIFETIME };

/// The id of a browser that has signed in, or of a ticket: a UUIDv7, which contains the time of
/// issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(Uuid);

impl DeviceId {
    /// A new id.
    #[must_use]
    pub fn new(now: OffsetDateTime) -> Self {
        Self(new_id(now))
    }

    /// The bytes that its bucket keys are derived from.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Whether it was issued within the last `lifetime`.
    fn is_within(self, lifetime: Duration, now: OffsetDateTime) -> bool {
        self.0 >= first_id_of(now - lifetime)
    }
}

/// A MAC of the address that a device cookie or ticket counts for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnerTag([u8; PART]);

impl OwnerTag {
    fn of(key: &Key, purpose: &Purpose, address: &EmailAddress) -> Self {
        Self(part(&key.mac(purpose.tag, &[address.as_str().as_bytes()]), 0))
    }
}

impl std::fmt::Debug for OwnerTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnerTag(redacted)")
    }
}

/// A device cookie or ticket that this service issued. [`KnownDevice::owned_by`] tells whether it
/// counts for an address.
#[derive(Clone)]
pub struct KnownDevice {
    id: DeviceId,
    owner: Owner,
    purpose: &'static Purpose,
    key: Key,
}

/// What identifies the address that a cookie counts for.
#[derive(Clone)]
enum Owner {
    Tag(OwnerTag),
    /// A MAC of id and address, of the previous format.
    V1([u8; PART]),
}

impl KnownDevice {
    /// Reads a value: 64 characters of base64url, issued for `purpose` under one of `keys` within
    /// its lifetime.
    #[must_use]
    pub fn read(purpose: &'static Purpose, keys: &Keys, value: &str, now: OffsetDateTime) -> Option<Self> {
        let bytes: [u8; 3 * PART] = URL_SAFE_NO_PAD.decode(value).ok()?.try_into().ok()?;
        let (name, second, third) = (part(&bytes, 0), part(&bytes, 1), part(&bytes, 2));
        let id = DeviceId(Uuid::from_bytes(name));
        let read = |owner, key: &Key| Self { id, owner, purpose, key: key.clone() };
        let tagged = |key: &Key| {
            let tag = OwnerTag(second);
            bool::from(value_mac(key, purpose, name, tag).ct_eq(&third)).then(|| read(Owner::Tag(tag), key))
        };
        let v1 = |key: &Key| {
            let mac: [u8; PART] = part(&key.mac(purpose.v1.as_ref()?.issued, &[&name]), 0);
            bool::from(mac.ct_eq(&second)).then(|| read(Owner::V1(third), key))
        };
        let known = keys.iter().find_map(|key| tagged(key).or_else(|| v1(key)))?;
        id.is_within(purpose.lifetime, now).then_some(known)
    }

    /// The id of the device, whichever account has signed in on it.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Whether its id has to be replaced at the next sign-in, so that a browser in use never
    /// becomes unknown.
    #[must_use]
    pub fn needs_renewal(&self, now: OffsetDateTime) -> bool {
        !self.id.is_within(DEVICE_LIFETIME / 2, now)
    }

    /// The id of the device, if the account that last signed in on it has this address; or of the
    /// ticket, if it is for this address.
    #[must_use]
    pub fn owned_by(&self, address: &EmailAddress) -> Option<DeviceId> {
        let is_owner = match (&self.owner, &self.purpose.v1) {
            (Owner::Tag(tag), _) => tag.0.ct_eq(&OwnerTag::of(&self.key, self.purpose, address).0),
            (Owner::V1(owner), Some(v1)) => {
                let parts: [&[u8]; 2] = [self.id.as_bytes(), address.as_str().as_bytes()];
                owner.ct_eq(&part::<32>(&self.key.mac(v1.owned, &parts), 0))
            }
            (Owner::V1(_), None) => return None,
        };
        bool::from(is_owner).then_some(self.id)
    }

    /// The tag that all cookies of its address share; `None` in the previous format.
    #[must_use]
    pub fn owner_tag(&self) -> Option<OwnerTag> {
        match self.owner {
            Owner::Tag(tag) => Some(tag),
            Owner::V1(_) => None,
        }
    }
}

impl std::fmt::Debug for KnownDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KnownDevice(redacted)")
    }
}

/// The value of a cookie for a device on which `address` has signed in, or of a ticket for
/// `address`.
#[must_use]
pub fn issue(purpose: &Purpose, keys: &Keys, device: DeviceId, address: &EmailAddress) -> String {
    let (key, name) = (keys.newest(), *device.0.as_bytes());
    let tag = OwnerTag::of(key, purpose, address);
    URL_SAFE_NO_PAD.encode([name, tag.0, value_mac(key, purpose, name, tag)].concat())
}

fn value_mac(key: &Key, purpose: &Purpose, name: [u8; PART], tag: OwnerTag) -> [u8; PART] {
    part(&key.mac(purpose.value, &[&name, &tag.0]), 0)
}

fn part<const N: usize>(bytes: &[u8; N], place: usize) -> [u8; PART] {
    std::array::from_fn(|n| bytes[place * PART + n])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::from_hours(400_000)
    }

    #[test]
    fn a_cookie_counts_only_for_the_address_that_signed_in() {
        let (keys, alice) = (Keys::from(Key::random("a")), EmailAddress::parse("alice@example.com").unwrap());
        let (now, device) = (now(), DeviceId::new(now()));
        let value = issue(&COOKIE, &keys, device, &alice);
        assert_eq!(value.len(), 64);
        let known = KnownDevice::read(&COOKIE, &keys, &value, now).unwrap();
        assert_eq!((known.id(), known.owned_by(&alice)), (device, Some(device)));
        assert_eq!(known.owned_by(&EmailAddress::parse("bob@example.com").unwrap()), None);
        assert!(
            KnownDevice::read(&COOKIE, &Keys::from(Key::random("a")), &value, now).is_none(),
            "another secret"
        );
        assert!(!known.needs_renewal(now) && known.needs_renewal(now + DEVICE_LIFETIME));
        let later = now + DEVICE_LIFETIME + Duration::from_secs(1);
        assert!(KnownDevice::read(&COOKIE, &keys, &value, later).is_none(), "a year later");
    }

    #[test]
    fn cookies_of_one_address_share_a_tag_and_the_previous_format_has_none() {
        let (keys, now) = (Keys::from(Key::random("a")), now());
        let address = |text: &str| EmailAddress::parse(text).unwrap();
        let read = |value: &str| KnownDevice::read(&COOKIE, &keys, value, now).unwrap();
        let tag = |email: &str| read(&issue(&COOKIE, &keys, DeviceId::new(now), &address(email))).owner_tag();
        assert_eq!(tag("alice@example.com"), tag("alice@example.com"));
        assert_ne!(tag("alice@example.com"), tag("bob@example.com"));

        let (id, key) = (DeviceId::new(now), keys.newest());
        let ours: [u8; PART] = part(&key.mac("device/1", &[id.as_bytes()]), 0);
        let owner: [u8; PART] = part(&key.mac("device-of/1", &[id.as_bytes(), b"alice@example.com"]), 0);
        let v1 = URL_SAFE_NO_PAD.encode([id.as_bytes(), &ours[..], &owner[..]].concat());
        let known = read(&v1);
        assert_eq!((known.owned_by(&address("alice@example.com")), known.owner_tag()), (Some(id), None));
        assert_eq!(known.owned_by(&address("bob@example.com")), None);
    }

    #[test]
    fn a_ticket_is_no_cookie_and_lives_15_minutes() {
        let (keys, alice) = (Keys::from(Key::random("a")), EmailAddress::parse("alice@example.com").unwrap());
        let ticket = issue(&TICKET, &keys, DeviceId::new(now()), &alice);
        let read = |purpose, after| KnownDevice::read(purpose, &keys, &ticket, now() + after);
        assert!(read(&TICKET, TICKET_LIFETIME).and_then(|ticket| ticket.owned_by(&alice)).is_some());
        assert!(read(&TICKET, TICKET_LIFETIME + Duration::from_secs(1)).is_none());
        assert!(read(&COOKIE, Duration::ZERO).is_none());
    }

    #[test]
    fn a_changed_cookie_is_rejected() {
        let (keys, alice) = (Keys::from(Key::random("a")), EmailAddress::parse("alice@example.com").unwrap());
        let value = issue(&COOKIE, &keys, DeviceId::new(now()), &alice);
        for place in 0..value.len() {
            let mut changed = value.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            let known = KnownDevice::read(&COOKIE, &keys, std::str::from_utf8(&changed).unwrap(), now());
            assert!(known.and_then(|known| known.owned_by(&alice)).is_none(), "{place}");
        }
        for bad in ["", "A", &value[1..], &format!("{value}A"), "é"] {
            assert!(KnownDevice::read(&COOKIE, &keys, bad, now()).is_none());
        }
    }
}
