//! A filter of breached passwords cannot stop the service: it is refused, or every lookup in it
//! ends. The input is a file without its footer, so that its parts are read as if the checksum of a
//! forged file were right; and it is a whole file.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use vos_auth::password::Password;
use vos_auth::password::blocklist::Blocklist;

fuzz_target!(|file: &[u8]| {
    let _ = Blocklist::read_from(Cursor::new(file));
    // The first two octets are the number of sums, which only the parts determine.
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
