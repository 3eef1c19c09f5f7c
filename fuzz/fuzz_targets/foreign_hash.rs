//! A stored hash of another system cannot stop the service: it is refused, or its cost is known and bounded.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use vos_auth::password::Memory;
use vos_auth::password::stored::{effort, matches};

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

fuzz_target!(|stored: &str| {
    MEMORY.with_borrow_mut(|memory| match effort(stored) {
        None => assert!(!matches(stored, b"password", memory)),
        Some(effort) => {
            assert!(effort.memory_kib <= 1 << 20 && effort.steps <= 4 << 20);
            // The cheap ones alone, so that thousands are tried in a second.
            if effort.memory_kib <= 64 && effort.steps <= 1 << 10 {
                let right = matches(stored, b"password", memory);
                assert!(!(right && matches(stored, b"another", memory)));
            }
        }
    });
});
