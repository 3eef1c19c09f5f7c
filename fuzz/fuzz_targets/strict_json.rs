#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| vos_auth_fuzz::strict_json(input));
