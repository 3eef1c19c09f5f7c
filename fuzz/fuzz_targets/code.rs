//! The parser of codes accepts exactly 8 digits, whatever the user types.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vos_auth::secret::{CODE_DIGITS, Code};

fuzz_target!(|typed: &str| {
    let read = Code::parse(typed);
    let spaced = Code::parse(&format!(" {}\u{a0}-", typed.replace([' ', '-'], "")));
    assert_eq!(read.is_some(), spaced.is_some(), "spaces and hyphens do not count");
    let (Some(code), Some(spaced)) = (read, spaced) else { return };
    assert!(code.matches(&spaced) && typed.chars().count() >= CODE_DIGITS);
    let shown = code.expose_grouped();
    let (left, right) = shown.split_once(' ').expect("two groups");
    assert!([left, right].iter().all(|group| group.len() == 4 && group.bytes().all(|b| b.is_ascii_digit())));
    assert!(Code::parse(&shown).is_some_and(|again| again.matches(&code)));
});
