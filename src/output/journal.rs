//! The journal: what runs generated of partitions that are not committed yet. It saves time, never
//! correctness: a restart without it, or with a torn one, computes the same rows again.
//!
//! A file is the SHA-256 of what follows, then zstd over postcard. It is replaced as a whole.

use std::collections::HashMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::row::Carried;

/// Where journals lie in the output folder.
pub(super) const JOURNAL_PATH: &str = "_nightshift/journal";

const DIGEST_BYTES: usize = 32;

/// A sample of an open partition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The input object as the `input` column names it.
    pub object_name: String,
    /// The row's 0-based position in it.
    pub row_index: u64,
    /// What was generated.
    pub carried: Carried,
}

#[derive(Serialize, Deserialize)]
struct File {
    job_fingerprint: String,
    entries: Vec<JournalEntry>,
}

/// What earlier runs generated, row by row.
#[derive(Debug, Default)]
pub struct Journal {
    rows: HashMap<(String, u64), Vec<Carried>>,
}

impl Journal {
    /// Takes what is known of a row.
    pub fn take(&mut self, object_name: &str, row_index: u64) -> Vec<Carried> {
        // Most restarts have none: no key is made for each row of those.
        if self.rows.is_empty() {
            return Vec::new();
        }
        self.rows.remove(&(object_name.to_owned(), row_index)).unwrap_or_default()
    }

    /// Samples that are known.
    pub fn samples(&self) -> usize {
        self.rows.values().map(Vec::len).sum()
    }

    /// Adds a file's entries; of two for one sample the one that is further stays.
    fn merge(&mut self, entries: Vec<JournalEntry>) {
        for JournalEntry { object_name, row_index, carried } in entries {
            let samples = self.rows.entry((object_name, row_index)).or_default();
            match samples.iter_mut().find(|sample| sample.sample_index == carried.sample_index) {
                None => samples.push(carried),
                Some(known) if further(&carried) > further(known) => *known = carried,
                Some(_) => {}
            }
        }
    }

    /// Reads a file into the journal; says why it cannot be used.
    pub(super) fn read(&mut self, bytes: &[u8], job_fingerprint: &str) -> Result<(), String> {
        let (digest, packed) =
            bytes.split_at_checked(DIGEST_BYTES).ok_or_else(|| "it is torn".to_owned())?;
        if Sha256::digest(packed).as_slice() != digest {
            return Err("its checksum is wrong".into());
        }
        let plain = zstd::decode_all(packed).map_err(|error| error.to_string())?;
        let file: File = postcard::from_bytes(&plain).map_err(|error| error.to_string())?;
        if file.job_fingerprint != job_fingerprint {
            return Err("it is another job's".into());
        }
        self.merge(file.entries);
        Ok(())
    }
}

fn further(carried: &Carried) -> (bool, usize) {
    (carried.ended, carried.generated.token_ids.len())
}

/// A journal file.
pub(super) fn encode(entries: Vec<JournalEntry>, job_fingerprint: &str) -> std::io::Result<Bytes> {
    let file = File { job_fingerprint: job_fingerprint.into(), entries };
    let plain = postcard::to_stdvec(&file).map_err(std::io::Error::other)?;
    let packed = zstd::encode_all(plain.as_slice(), 1)?;
    Ok([Sha256::digest(&packed).as_slice(), &packed].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Generated;

    fn entry(row_index: u64, tokens: u32, ended: bool) -> JournalEntry {
        let generated = Generated { token_ids: (0..tokens).collect(), ..Generated::default() };
        let carried = Carried { generated, ended, ..Carried::default() };
        JournalEntry { object_name: "a".into(), row_index, carried }
    }

    #[test]
    fn the_furthest_entry_of_a_sample_stays() {
        let mut journal = Journal::default();
        for entries in [vec![entry(1, 5, false), entry(2, 9, false)], vec![entry(1, 7, false)]] {
            journal.read(&encode(entries, "job").unwrap(), "job").unwrap();
        }
        journal.read(&encode(vec![entry(2, 3, true)], "job").unwrap(), "job").unwrap();
        let tokens = |carried: Vec<Carried>| carried[0].generated.token_ids.len();
        assert_eq!((tokens(journal.take("a", 1)), tokens(journal.take("a", 2))), (7, 3));
        assert_eq!(journal.take("a", 1), []);
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused() {
        let bytes = encode(vec![entry(1, 5, false)], "job").unwrap();
        let mut journal = Journal::default();
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1;
            assert!(journal.read(&flipped, "job").is_err(), "byte {at}");
            assert!(journal.read(&bytes[..at], "job").is_err(), "{at} bytes");
        }
        assert!(journal.read(&bytes, "other").is_err());
        assert_eq!(journal.samples(), 0);
    }
}
