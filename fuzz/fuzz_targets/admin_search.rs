#![no_main]

libfuzzer_sys::fuzz_target!(|input: &str| vos_auth_fuzz::admin_search(input));
