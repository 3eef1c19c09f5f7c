//! A device cookie or a ticket that was not issued here, to the letter, speaks for nobody.
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

// The input is a value, and then what is changed in an issued one: a bit that is set is turned over. The fuzzer sees what
// is compared, so the issued cookie itself comes up as well.
fuzz_target!(|input: &[u8]| {
    let Issued { keys, owner, cookie } = &*ISSUED;
    let is_taken = |text: &str| {
        assert!(KnownDevice::read(&TICKET, keys, text, NOW).is_none(), "a cookie is no ticket");
        KnownDevice::read(&COOKIE, keys, text, NOW).is_some_and(|known| known.owned_by(owner).is_some())
    };
    let changes = input.iter().chain(std::iter::repeat(&0));
    let changed: Vec<u8> = cookie.bytes().zip(changes).map(|(byte, change)| byte ^ change).collect();
    for text in [input, &changed].into_iter().filter_map(|bytes| std::str::from_utf8(bytes).ok()) {
        assert_eq!(is_taken(text), text == cookie);
    }
    let longer = format!("{cookie}{}", String::from_utf8_lossy(input));
    assert_eq!(is_taken(&longer), input.is_empty());
});
