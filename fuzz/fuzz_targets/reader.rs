//! The reader of packs, on any bytes. A mutation of the header would be refused for its hash alone, so each input is
//! tried a second time with the hash made right.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

fn exercise(bytes: &[u8]) {
    include!("../exercise.rs")
}

fuzz_target!(|bytes: &[u8]| {
    exercise(bytes);
    let mut bytes = bytes.to_vec();
    if let Some(length) = bytes.get(16..24).map(|n| u64::from_le_bytes(n.try_into().unwrap()))
        && let Some(end) = usize::try_from(length).ok().and_then(|n| n.checked_add(56))
        && let Some(json) = bytes.get(56..end)
    {
        let hash = Sha256::new().chain_update(&bytes[..24]).chain_update(json).finalize();
        bytes[24..56].copy_from_slice(&hash);
        exercise(&bytes);
    }
});
