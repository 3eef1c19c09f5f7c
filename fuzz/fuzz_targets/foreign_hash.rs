//! A stored hash of another system cannot stop the service: it is refused, or its cost is bounded.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use vos_auth::password::{Memory, StoredHash};

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

fuzz_target!(|text: &str| {
    let Ok(stored) = StoredHash::parse(text) else { return };
    assert!(stored.work() <= 4 << 20);
    // Only cheap hashes are computed, so that the fuzzer tries thousands a second.
    if stored.work() <= 1 << 10 {
        MEMORY.with_borrow_mut(|memory| {
            let right = stored.matches(b"password", memory);
            assert!(!(right && stored.matches(b"another", memory)));
        });
    }
});
