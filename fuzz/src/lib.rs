//! What each fuzz target asserts of an input. `fuzz_targets/` gives these functions to libFuzzer;
//! `tests/it/fuzz.rs` runs them on the corpus.

use std::cell::RefCell;
use std::io::Cursor;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};
use vos_auth::admin::search::Query;
use vos_auth::email_address::{EmailAddress, MAX_OCTETS};
use vos_auth::error::Problem;
use vos_auth::http::admin::query;
use vos_auth::http::cookie::recovery_token;
use vos_auth::http::extract::parse;
use vos_auth::http::guard::client_ip;
use vos_auth::known_device::{self, DeviceId, KnownDevice, TICKET};
use vos_auth::mail::bounce::SignedAddress;
use vos_auth::mail::report;
use vos_auth::password::blocklist::Blocklist;
use vos_auth::password::{Memory, Password, StoredHash};
use vos_auth::secret::{CODE_DIGITS, Code, Key, Keys, TOKEN_CHARS};

/// A target's name, and its function, which panics if an input breaks the rule of the target.
pub type Target<Input> = (&'static str, fn(&Input));

/// The targets that read text.
pub const OF_TEXT: &[Target<str>] = &[
    ("email_address", email_address),
    ("code", code),
    ("foreign_hash", foreign_hash),
    ("admin_search", admin_search),
];

/// The targets that read octets.
pub const OF_OCTETS: &[Target<[u8]>] = &[
    ("strict_json", strict_json),
    ("cookie", cookie),
    ("forwarded_for", forwarded_for),
    ("device_cookie", device_cookie),
    ("bounce", bounce),
    ("blocklist", blocklist),
];

/// An address that parses is one plain ASCII address, however it was spelled.
pub fn email_address(input: &str) {
    let Ok(address) = EmailAddress::parse(input) else { return };
    let text = address.as_str();
    assert!(text.len() <= MAX_OCTETS && text.is_ascii());
    assert!(
        !text.contains(|c: char| c.is_ascii_control() || c.is_ascii_whitespace() || c.is_ascii_uppercase())
    );
    assert!(text.matches('@').count() == 1 && !text.contains(['<', '>', ',', ';', '"', '(', ')']));
    assert_eq!(EmailAddress::parse(text).as_ref(), Ok(&address), "its text is its normal form");
    let uppercase = format!("\t{} ", input.trim().to_ascii_uppercase());
    assert_eq!(
        EmailAddress::parse(&uppercase).as_ref(),
        Ok(&address),
        "ASCII case and surrounding white space do not matter"
    );
    // Parsing changes nothing but the case in the local part, so that no look-alike becomes another
    // account's address.
    let (local, _) = input.trim().rsplit_once('@').expect("an address has an @");
    assert!(text.strip_prefix(&local.to_ascii_lowercase()).is_some_and(|rest| rest.starts_with('@')));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    identifier: String,
    password: String,
}

/// Compares the strict body parser with serde_json: the strict parser accepts a subset, with the
/// same values.
pub fn strict_json(body: &[u8]) {
    let lax = serde_json::from_slice::<Value>(body);
    let problem = match parse::<Login>(&Bytes::copy_from_slice(body)) {
        Ok(Login { identifier, password }) => {
            assert_eq!(lax.ok(), Some(json!({ "identifier": identifier, "password": password })));
            return;
        }
        Err(error) => error.problem,
    };
    match lax {
        Err(_) => assert!(matches!(problem, Problem::JsonMalformed | Problem::JsonNotObject)),
        Ok(Value::Object(members)) => {
            let is_text = |name| members.get(name).is_some_and(Value::is_string);
            let looks_right = members.len() == 2 && is_text("identifier") && is_text("password");
            // serde_json keeps only the last value of a duplicate member.
            let names_are_right = members.keys().all(|name| name == "identifier" || name == "password");
            match problem {
                Problem::FieldUnknown => assert!(!names_are_right),
                Problem::FieldMissing => assert!(members.len() < 2 || !names_are_right),
                Problem::FieldTypeInvalid => assert!(!looks_right),
                problem => assert_eq!(problem, Problem::FieldDuplicate),
            }
        }
        Ok(_) => assert_eq!(problem, Problem::JsonNotObject),
    }
}

/// The service reads a recovery cookie only if it was sent exactly once, and reads it unchanged.
///
/// Each of the first 16 lines of the input is the value of a header.
pub fn cookie(input: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(16) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(COOKIE, value);
        }
    }
    let Some(token) = recovery_token(&headers) else { return };
    let text = token.expose();
    assert!(
        text.len() == TOKEN_CHARS
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    );
    let pair = format!("__Host-vos_recovery={text}");
    assert!(input.windows(pair.len()).any(|part| part == pair.as_bytes()), "the token was sent");

    headers.append(COOKIE, HeaderValue::from_static("a=b; __host-vos_recovery=c; d"));
    assert_eq!(recovery_token(&headers).map(|token| token.expose()), Some(text), "other cookies are ignored");
    headers.append(COOKIE, HeaderValue::from_str(&pair).expect("ASCII"));
    assert!(recovery_token(&headers).is_none(), "a cookie that is sent twice is ignored");
}

/// A code that parses has exactly 8 digits. Spaces and hyphens do not count.
pub fn code(typed: &str) {
    let read = Code::parse(typed);
    let spaced = Code::parse(&format!(" {}\u{a0}-", typed.replace([' ', '-'], "")));
    assert_eq!(read.is_some(), spaced.is_some(), "spaces and hyphens do not count");
    let (Some(code), Some(spaced)) = (read, spaced) else { return };
    assert!(code.matches(&spaced) && typed.chars().count() >= CODE_DIGITS);
    let shown = code.expose();
    assert!(shown.len() == CODE_DIGITS && shown.bytes().all(|byte| byte.is_ascii_digit()));
    assert!(Code::parse(&shown).is_some_and(|again| again.matches(&code)));
}

const NAME: &str = "x-forwarded-for";

/// The service reads X-Forwarded-For only from trusted proxies. The last hop that is no trusted
/// proxy is the client.
///
/// Each of the first 16 lines of the input is the value of a header.
pub fn forwarded_for(input: &[u8]) {
    let trusted: [IpNet; 2] = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a network"));
    let (proxy, stranger) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([203, 0, 113, 9]));
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(16) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(NAME, value);
        }
    }
    assert_eq!(client_ip(proxy, &headers, &[]), proxy, "no proxy is trusted");
    assert_eq!(client_ip(stranger, &headers, &trusted), stranger, "an untrusted peer's header is ignored");
    let client = client_ip(proxy, &headers, &trusted);
    let sent = String::from_utf8_lossy(input);
    let named = |hop: &str| {
        let plain =
            hop.parse::<IpAddr>().or_else(|_| hop.parse::<SocketAddr>().map(|with_port| with_port.ip()));
        plain.is_ok_and(|ip| ip.to_canonical() == client)
    };
    assert!(client == proxy || sent.split([',', '\n']).any(|hop| named(hop.trim())), "a header named it");

    // The address that the proxy itself appends decides, whatever came before it.
    let after = |last: &'static str| {
        let mut headers = headers.clone();
        headers.append(NAME, HeaderValue::from_static(last));
        client_ip(proxy, &headers, &trusted)
    };
    assert_eq!(after("203.0.113.9"), stranger);
    assert_eq!(after("x, 203.0.113.9, 10.1.1.1"), stranger);
    assert_eq!(after("203.0.113.9, unknown"), proxy);
}

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::weeks(3_000));

struct Issued {
    keys: Keys,
    owner: EmailAddress,
    cookie: String,
}

static ISSUED: LazyLock<Issued> = LazyLock::new(|| {
    let keys = Keys::from(Key::random("fuzz"));
    let owner = EmailAddress::parse("trader@example.com").expect("an address");
    let cookie = known_device::issue(&known_device::COOKIE, &keys, DeviceId::new(NOW), &owner);
    Issued { keys, owner, cookie }
});

/// The service accepts a device cookie only if it is exactly one that it issued, and never as a
/// ticket.
///
/// The input is used twice: as a candidate value, and as a mask of bits to flip in an issued cookie.
/// libFuzzer traces comparisons, so it can also find the issued cookie.
pub fn device_cookie(input: &[u8]) {
    let Issued { keys, owner, cookie } = &*ISSUED;
    let is_accepted = |text: &str| {
        assert!(
            KnownDevice::read(&TICKET, keys, text, NOW).is_none(),
            "a cookie is not accepted as a ticket"
        );
        KnownDevice::read(&known_device::COOKIE, keys, text, NOW)
            .is_some_and(|known| known.owned_by(owner).is_some())
    };
    let changes = input.iter().chain(std::iter::repeat(&0));
    let changed: Vec<u8> = cookie.bytes().zip(changes).map(|(byte, change)| byte ^ change).collect();
    for text in [input, &changed].into_iter().filter_map(|bytes| std::str::from_utf8(bytes).ok()) {
        assert_eq!(is_accepted(text), text == cookie);
    }
    let longer = format!("{cookie}{}", String::from_utf8_lossy(input));
    assert_eq!(is_accepted(&longer), input.is_empty());
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// A stored hash of another system cannot stop the service: it is refused, or its cost is bounded.
pub fn foreign_hash(text: &str) {
    let Ok(stored) = StoredHash::parse(text) else { return };
    assert!(stored.work() <= 4 << 20);
    // Only cheap hashes are computed, so that the fuzzer tries thousands a second.
    if stored.work() <= 1 << 10 {
        MEMORY.with_borrow_mut(|memory| {
            let right = stored.matches(b"password", memory);
            assert!(!(right && stored.matches(b"another", memory)));
        });
    }
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Key::random("fuzz").into());

/// A message without a valid signature names no account, and only a failure report is a bounce.
pub fn bounce(message: &[u8]) {
    let lower = message.to_ascii_lowercase();
    let holds = |word: &str| lower.windows(word.len()).any(|octets| octets == word.as_bytes());
    if report::reports_failure(message) {
        assert!(
            ["multipart", "report", "boundary", "message", "delivery-status", "action", "failed"]
                .into_iter()
                .all(holds)
        );
    }
    let recipients = report::recipients(message);
    assert!(recipients.iter().map(String::len).sum::<usize>() <= 3 * message.len());
    // A day in 1970, and a day on which the addresses in the corpus have not expired.
    for now in [OffsetDateTime::UNIX_EPOCH, time::macros::datetime!(2026-11-23 18:05:07 UTC)] {
        assert!(recipients.iter().all(|text| SignedAddress::find(&KEYS, text, now).is_none()));
        assert_eq!(SignedAddress::find(&KEYS, &String::from_utf8_lossy(message), now), None);
    }
}

/// A damaged or forged filter of breached passwords cannot stop the service: it is refused, or
/// every lookup in it returns. Each input is read twice: as a whole file, and as the parts of a
/// file, to which a header and a footer with the right checksum are added.
pub fn blocklist(file: &[u8]) {
    let _ = Blocklist::read_from(Cursor::new(file));
    // The footer contains the number of sums, which must match the parts: it is taken from the
    // first two octets of the input.
    let Some((sums, parts)) = file.split_first_chunk() else { return };
    let mut forged = [b"VOSPWBL\n\x01\0\0\0".as_slice(), parts].concat();
    forged.extend(u64::from(u16::from_le_bytes(*sums)).to_le_bytes());
    forged.extend((forged.len() as u64 + 40).to_le_bytes());
    forged.extend(Sha256::digest(&forged));
    let Ok(blocklist) = Blocklist::read_from(Cursor::new(forged)) else { return };
    for password in ["password", "mật khẩu", "lavender anchor sidewalk mug"] {
        let _ = blocklist.contains(&Password::new(password));
    }
}

/// The query parser of the admin API's search accepts at most one criterion, no parameter twice,
/// and a page of 1 to 1000 accounts.
pub fn admin_search(text: &str) {
    let search = match query::search(text) {
        Ok(search) => search,
        Err(error) => {
            assert!(matches!(error.problem, Problem::QueryInvalid | Problem::EmailInvalid));
            return;
        }
    };
    assert!((1..=1000).contains(&search.page.limit));
    let names: Vec<_> =
        url::form_urlencoded::parse(text.as_bytes()).map(|(name, _)| name.into_owned()).collect();
    let has = |name: &str| names.iter().filter(|known| *known == name).count() == 1;
    assert_eq!(search.page.from.is_some(), has("after"));
    let criterion = match search.query {
        Query::All => None,
        Query::Email(_) => Some("email"),
        Query::Prefix(value) | Query::ExternalId(value) if value.is_empty() => {
            panic!("an empty value finds all")
        }
        Query::Prefix(_) => Some("prefix"),
        Query::Id(_) => Some("id"),
        Query::ExternalId(_) => Some("external_id"),
    };
    assert!(criterion.is_none_or(has));
    assert_eq!(names.len(), ["after", "limit"].into_iter().chain(criterion).filter(|name| has(name)).count());
}
