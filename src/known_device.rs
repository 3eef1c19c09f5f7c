//! The device cookie (OWASP, "Device Cookies"): a browser that has signed in before has budgets of its own, so that
//! strangers who spend an address's budget lock nobody out of a browser they know.
//!
//! It is checked without a table: a name of 16 bytes that says since when, 16 of a MAC over it, and 16 of a MAC over it and
//! the address that signed in, under a key of `DEVICE_SECRETS`. The first MAC says that it is ours before a request is parsed, the second
//! for whom it speaks.
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
    issued: &'static str,
    owned: &'static str,
    lifetime: Duration,
}

/// The cookie of a browser that has signed in.
pub const COOKIE: Purpose = Purpose { issued: "device/1", owned: "device-of/1", lifetime: DEVICE_LIFETIME };
/// The ticket of an operator.
pub const TICKET: Purpose = Purpose { issued: "ticket/1", owned: "ticket-of/1", lifetime: TICKET_LIFETIME };

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

/// A device cookie or a ticket that was issued here. Whose it is shows [`KnownDevice::of`].
#[derive(Clone)]
pub struct KnownDevice {
    id: DeviceId,
    owner: [u8; PART],
    purpose: &'static Purpose,
    key: Key,
}

impl KnownDevice {
    /// Reads a value: 64 characters of base64url, made for `purpose` under one of `keys` within its lifetime.
    #[must_use]
    pub fn read(purpose: &'static Purpose, keys: &Keys, value: &str, now: OffsetDateTime) -> Option<Self> {
        let bytes: [u8; 3 * PART] = URL_SAFE_NO_PAD.decode(value).ok()?.try_into().ok()?;
        let (id, ours, owner) = (part(&bytes, 0), part(&bytes, 1), part(&bytes, 2));
        let key = keys.iter().find(|key| bool::from(name_mac(key, purpose.issued, id).ct_eq(&ours)))?;
        let id = DeviceId(Uuid::from_bytes(id));
        id.is_within(purpose.lifetime, now).then(|| Self { id, owner, purpose, key: key.clone() })
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
        bool::from(
            owner_mac(&self.key, self.purpose.owned, *self.id.0.as_bytes(), address).ct_eq(&self.owner),
        )
        .then_some(self.id)
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
    let (key, id) = (keys.newest(), *device.0.as_bytes());
    let (ours, owner) = (name_mac(key, purpose.issued, id), owner_mac(key, purpose.owned, id, address));
    URL_SAFE_NO_PAD.encode([id, ours, owner].concat())
}

fn name_mac(key: &Key, label: &'static str, id: [u8; PART]) -> [u8; PART] {
    part(&key.mac(label, &[&id]), 0)
}

fn owner_mac(key: &Key, label: &'static str, id: [u8; PART], address: &EmailAddress) -> [u8; PART] {
    part(&key.mac(label, &[&id, address.as_str().as_bytes()]), 0)
}

fn part(bytes: &[u8], place: usize) -> [u8; PART] {
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
