//! The service accepts a device cookie only if it is exactly one that it issued, and never as a
//! ticket.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use time::{Duration, OffsetDateTime};
use vos_auth::email_address::EmailAddress;
use vos_auth::known_device::{COOKIE, DeviceId, KnownDevice, TICKET, issue};
use vos_auth::secret::{Key, Keys};

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::weeks(3_000));

struct Issued {
    keys: Keys,
    owner: EmailAddress,
    cookie: String,
}

static ISSUED: LazyLock<Issued> = LazyLock::new(|| {
    let keys = Keys::from(Key::random("fuzz"));
    let owner = EmailAddress::parse("trader@example.com").expect("an address");
    let cookie = issue(&COOKIE, &keys, DeviceId::new(NOW), &owner);
    Issued { keys, owner, cookie }
});

// The input is used twice: as a candidate value, and as a mask of bits to flip in an issued cookie.
// libFuzzer traces comparisons, so it can also find the issued cookie.
fuzz_target!(|input: &[u8]| {
    let Issued { keys, owner, cookie } = &*ISSUED;
    let is_accepted = |text: &str| {
        assert!(KnownDevice::read(&TICKET, keys, text, NOW).is_none(), "a cookie is not accepted as a ticket");
        KnownDevice::read(&COOKIE, keys, text, NOW).is_some_and(|known| known.of(owner).is_some())
    };
    let changes = input.iter().chain(std::iter::repeat(&0));
    let changed: Vec<u8> = cookie.bytes().zip(changes).map(|(byte, change)| byte ^ change).collect();
    for text in [input, &changed].into_iter().filter_map(|bytes| std::str::from_utf8(bytes).ok()) {
        assert_eq!(is_accepted(text), text == cookie);
    }
    let longer = format!("{cookie}{}", String::from_utf8_lossy(input));
    assert_eq!(is_accepted(&longer), input.is_empty());
});
