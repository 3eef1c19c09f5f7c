//! A damaged or forged filter of breached passwords cannot stop the service: it is refused, or
//! every lookup in it returns. Each input is read twice: as a whole file, and as the parts of a
//! file, to which a header and a footer with the right checksum are added.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use vos_auth::password::Password;
use vos_auth::password::blocklist::Blocklist;

fuzz_target!(|file: &[u8]| {
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
});
