//! The seal of a part: a checksum of every byte of the file, inside of the file. It is taken with zeros
//! in its own place, so that it covers the footer that holds it.

use sha2::{Digest, Sha256};

use super::hex;
use super::metadata::FILE_SHA256;

/// What stands in the seal's place while it is taken.
pub(super) const OPEN: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Puts the seal in its place; says no if there is none.
pub(super) fn close(bytes: &mut [u8]) -> bool {
    let Some(at) = place(bytes) else { return false };
    let seal = hex(&Sha256::digest(&*bytes));
    bytes[at..at + OPEN.len()].copy_from_slice(seal.as_bytes());
    true
}

/// Whether every byte is as it was when the seal was put in its place.
pub(super) fn holds(bytes: &[u8]) -> bool {
    let Some(at) = place(bytes) else { return false };
    let (head, rest) = bytes.split_at(at);
    let (seal, tail) = rest.split_at(OPEN.len());
    let mut digest = Sha256::new_with_prefix(head);
    digest.update(OPEN);
    digest.update(tail);
    hex(&digest.finalize()).as_bytes() == seal
}

/// Where the seal stands: behind the last mention of its key and the value's length in the footer.
fn place(bytes: &[u8]) -> Option<usize> {
    let key = FILE_SHA256.as_bytes();
    let at = bytes.windows(key.len()).rposition(|window| window == key)? + key.len();
    // Thrift's compact form: the field's head, then the length 64.
    let at = at + 2;
    (bytes.get(at - 1) == Some(&(OPEN.len() as u8)) && bytes.len() >= at + OPEN.len()).then_some(at)
}
