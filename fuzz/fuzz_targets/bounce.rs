//! A message without a valid signature names no account, and only a failure report is a bounce.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use time::OffsetDateTime;
use vos_auth::mail::bounce::SignedAddress;
use vos_auth::mail::report;
use vos_auth::secret::{Key, Keys};

static KEYS: LazyLock<Keys> = LazyLock::new(|| Key::random("fuzz").into());

fuzz_target!(|message: &[u8]| {
    let lower = message.to_ascii_lowercase();
    let holds = |word: &str| lower.windows(word.len()).any(|octets| octets == word.as_bytes());
    if report::reports_failure(message) {
        assert!(["multipart", "report", "boundary", "message", "delivery-status", "action", "failed"].into_iter().all(holds));
    }
    let recipients = report::recipients(message);
    assert!(recipients.iter().map(String::len).sum::<usize>() <= 3 * message.len());
    // A day in 1970, and a day on which the addresses in the corpus have not expired.
    for now in [OffsetDateTime::UNIX_EPOCH, time::macros::datetime!(2026-11-23 18:05:07 UTC)] {
        assert!(recipients.iter().all(|text| SignedAddress::find(&KEYS, text, now).is_none()));
        assert_eq!(SignedAddress::find(&KEYS, &String::from_utf8_lossy(message), now), None);
    }
});
