//! An address that parses is one plain ASCII address, however it was spelled.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vos_auth::email_address::{EmailAddress, MAX_OCTETS};

fuzz_target!(|input: &str| {
    let Ok(address) = EmailAddress::parse(input) else { return };
    let text = address.as_str();
    assert!(text.len() <= MAX_OCTETS && text.is_ascii());
    assert!(!text.contains(|c: char| c.is_ascii_control() || c.is_ascii_whitespace() || c.is_ascii_uppercase()));
    assert!(text.matches('@').count() == 1 && !text.contains(['<', '>', ',', ';', '"', '(', ')']));
    assert_eq!(EmailAddress::parse(text).as_ref(), Ok(&address), "its text is its normal form");
    let uppercase = format!("\t{} ", input.trim().to_ascii_uppercase());
    assert_eq!(EmailAddress::parse(&uppercase).as_ref(), Ok(&address), "ASCII case and surrounding white space do not matter");
    // Only case changes in the local part, so that no look-alike becomes another account's address.
    let (local, _) = input.trim().rsplit_once('@').expect("an address has an @");
    assert!(text.strip_prefix(&local.to_ascii_lowercase()).is_some_and(|rest| rest.starts_with('@')));
});
