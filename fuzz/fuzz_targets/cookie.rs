//! The service reads a recovery cookie only if it was sent exactly once, and reads it unchanged.
#![no_main]

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use vos_auth::http::cookie::recovery_token;
use vos_auth::secret::TOKEN_CHARS;

// Each of the first 16 lines of the input is the value of a header.
fuzz_target!(|input: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(16) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(COOKIE, value);
        }
    }
    let Some(token) = recovery_token(&headers) else { return };
    let text = token.expose();
    assert!(text.len() == TOKEN_CHARS && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
    let pair = format!("__Host-vos_recovery={text}");
    assert!(input.windows(pair.len()).any(|part| part == pair.as_bytes()), "the token was sent");

    headers.append(COOKIE, HeaderValue::from_static("a=b; __host-vos_recovery=c; d"));
    assert_eq!(recovery_token(&headers).map(|token| token.expose()), Some(text), "other cookies are ignored");
    headers.append(COOKIE, HeaderValue::from_str(&pair).expect("ASCII"));
    assert!(recovery_token(&headers).is_none(), "a cookie that is sent twice is ignored");
});
