//! The device cookie (OWASP, "Device Cookies"): a browser that has signed in before has budgets of its own, so that
//! strangers who spend an address's budget lock nobody out of a browser they know.
//!
//! It is checked without a table: 16 bytes of a name that says since when, 16 of an owner tag, which is a MAC of the address that
//! signed in, and 16 of a MAC over both, under a key of `DEVICE_SECRETS`. The last one says that the cookie is ours before a request
//! is parsed, the tag for whom it speaks: all cookies of one address have the same tag, and share one bucket in memory.
//!
//! A cookie of the form before has a MAC over the name in place of the tag. It is good for its year and has no tag.
//!
//! A recovery ticket is the same for a victim on a new device: an operator prints it, it lives 15 minutes, and it stands
//! for a device cookie at one `start`.

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

/// What a value is for: one cannot be used as the other.
#[derive(Debug)]
pub struct Purpose {
    value: &'static str,
    tag: &'static str,
    former: Option<Former>,
    lifetime: Duration,
}

/// The labels of the form before.
#[derive(Debug)]
struct Former {
    issued: &'static str,
    owned: &'static str,
}

/// The cookie of a browser that has signed in.
pub const COOKIE: Purpose = Purpose {
    value: "device/2",
    tag: "device-owner/2",
    former: Some(Former { issued: "device/1", owned: "device-of/1" }),
    lifetime: DEVICE_LIFETIME,
};
/// The ticket of an operator.
pub const TICKET: Purpose =
    Purpose { value: "ticket/2", tag: "ticket-owner/2", former: None, lifetime: TICKET_LIFETIME };

/// The name of a browser that has signed in, or of a ticket: a UUIDv7, so that it says since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId(Uuid);

impl DeviceId {
    /// A new name.
    #[must_use]
    pub fn new(now: OffsetDateTime) -> Self {
        Self(new_id(now))
    }

    /// The bytes that its budgets are kept under.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Whether it was given within the last `lifetime`.
    fn is_within(self, lifetime: Duration, now: OffsetDateTime) -> bool {
        self.0 >= first_id_of(now - lifetime)
    }
}

/// A MAC of the address that a device cookie or a ticket speaks for.
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

/// A device cookie or a ticket that was issued here. Whose it is shows [`KnownDevice::of`].
#[derive(Clone)]
pub struct KnownDevice {
    id: DeviceId,
    owner: Owner,
    purpose: &'static Purpose,
    key: Key,
}

/// What says for whom a cookie speaks.
#[derive(Clone)]
enum Owner {
    Tag(OwnerTag),
    /// A MAC over name and address.
    Former([u8; PART]),
}

impl KnownDevice {
    /// Reads a value: 64 characters of base64url, made for `purpose` under one of `keys` within its lifetime.
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
        let former = |key: &Key| {
            let mac: [u8; PART] = part(&key.mac(purpose.former.as_ref()?.issued, &[&name]), 0);
            bool::from(mac.ct_eq(&second)).then(|| read(Owner::Former(third), key))
        };
        let known = keys.iter().find_map(|key| tagged(key).or_else(|| former(key)))?;
        id.is_within(purpose.lifetime, now).then_some(known)
    }

    /// The device, whoever signed in on it.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Whether its name has to be replaced at the next sign-in: a browser that is used stays known for ever.
    #[must_use]
    pub fn is_ageing(&self, now: OffsetDateTime) -> bool {
        !self.id.is_within(DEVICE_LIFETIME / 2, now)
    }

    /// The device, if the last one who signed in on it has this address; the ticket, if it is for this address.
    #[must_use]
    pub fn of(&self, address: &EmailAddress) -> Option<DeviceId> {
        let is_owner = match (&self.owner, &self.purpose.former) {
            (Owner::Tag(tag), _) => tag.0.ct_eq(&OwnerTag::of(&self.key, self.purpose, address).0),
            (Owner::Former(owner), Some(former)) => {
                let parts: [&[u8]; 2] = [self.id.as_bytes(), address.as_str().as_bytes()];
                owner.ct_eq(&part::<32>(&self.key.mac(former.owned, &parts), 0))
            }
            (Owner::Former(_), None) => return None,
        };
        bool::from(is_owner).then_some(self.id)
    }

    /// What all cookies of its address have in common; none in the form before.
    #[must_use]
    pub fn owner_tag(&self) -> Option<OwnerTag> {
        match self.owner {
            Owner::Tag(tag) => Some(tag),
            Owner::Former(_) => None,
        }
    }
}

impl std::fmt::Debug for KnownDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KnownDevice(redacted)")
    }
}

/// The value of a cookie that says that `address` has signed in on this device, or of a ticket for `address`.
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
    fn a_cookie_speaks_for_the_address_that_signed_in_and_nobody_else() {
        let (keys, alice) = (Keys::from(Key::random("a")), EmailAddress::parse("alice@example.com").unwrap());
        let (now, device) = (now(), DeviceId::new(now()));
        let value = issue(&COOKIE, &keys, device, &alice);
        assert_eq!(value.len(), 64);
        let known = KnownDevice::read(&COOKIE, &keys, &value, now).unwrap();
        assert_eq!((known.id(), known.of(&alice)), (device, Some(device)));
        assert_eq!(known.of(&EmailAddress::parse("bob@example.com").unwrap()), None);
        assert!(
            KnownDevice::read(&COOKIE, &Keys::from(Key::random("a")), &value, now).is_none(),
            "another secret"
        );
        assert!(!known.is_ageing(now) && known.is_ageing(now + DEVICE_LIFETIME));
        let later = now + DEVICE_LIFETIME + Duration::from_secs(1);
        assert!(KnownDevice::read(&COOKIE, &keys, &value, later).is_none(), "a year later");
    }

    #[test]
    fn cookies_of_one_address_share_a_tag_and_the_form_before_has_none() {
        let (keys, now) = (Keys::from(Key::random("a")), now());
        let address = |text: &str| EmailAddress::parse(text).unwrap();
        let read = |value: &str| KnownDevice::read(&COOKIE, &keys, value, now).unwrap();
        let tag = |email: &str| read(&issue(&COOKIE, &keys, DeviceId::new(now), &address(email))).owner_tag();
        assert_eq!(tag("alice@example.com"), tag("alice@example.com"));
        assert_ne!(tag("alice@example.com"), tag("bob@example.com"));

        let (id, key) = (DeviceId::new(now), keys.newest());
        let ours: [u8; PART] = part(&key.mac("device/1", &[id.as_bytes()]), 0);
        let owner: [u8; PART] = part(&key.mac("device-of/1", &[id.as_bytes(), b"alice@example.com"]), 0);
        let former = URL_SAFE_NO_PAD.encode([id.as_bytes(), &ours[..], &owner[..]].concat());
        let known = read(&former);
        assert_eq!((known.of(&address("alice@example.com")), known.owner_tag()), (Some(id), None));
        assert_eq!(known.of(&address("bob@example.com")), None);
    }

    #[test]
    fn a_ticket_is_no_cookie_and_lives_15_minutes() {
        let (keys, alice) = (Keys::from(Key::random("a")), EmailAddress::parse("alice@example.com").unwrap());
        let ticket = issue(&TICKET, &keys, DeviceId::new(now()), &alice);
        let read = |purpose, after| KnownDevice::read(purpose, &keys, &ticket, now() + after);
        assert!(read(&TICKET, TICKET_LIFETIME).and_then(|ticket| ticket.of(&alice)).is_some());
        assert!(read(&TICKET, TICKET_LIFETIME + Duration::from_secs(1)).is_none());
        assert!(read(&COOKIE, Duration::ZERO).is_none());
    }

    #[test]
    fn a_changed_cookie_is_none() {
        let (keys, alice) = (Keys::from(Key::random("a")), EmailAddress::parse("alice@example.com").unwrap());
        let value = issue(&COOKIE, &keys, DeviceId::new(now()), &alice);
        for place in 0..value.len() {
            let mut changed = value.clone().into_bytes();
            changed[place] = if changed[place] == b'A' { b'B' } else { b'A' };
            let known = KnownDevice::read(&COOKIE, &keys, std::str::from_utf8(&changed).unwrap(), now());
            assert!(known.and_then(|known| known.of(&alice)).is_none(), "{place}");
        }
        for bad in ["", "A", &value[1..], &format!("{value}A"), "é"] {
            assert!(KnownDevice::read(&COOKIE, &keys, bad, now()).is_none());
        }
    }
}
