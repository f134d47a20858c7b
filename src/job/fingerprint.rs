//! A short name for everything that decides what an output holds.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// SHA-256 of a JSON value in canonical form (keys sorted), in hex.
pub fn fingerprint(value: &Value) -> String {
    let mut sorted = value.clone();
    sorted.sort_all_objects();
    Sha256::digest(sorted.to_string().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
