//! What a part says about itself, from its last bytes alone.

use std::collections::{BTreeMap, HashMap};

use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::{OutputError, metadata};
use crate::storage::{Location, Storage};

/// Size of the smallest file that can be Parquet: two magic words and the footer's length.
pub(super) const MIN_PART_BYTES: u64 = 12;
/// Read at first; the footer of all but the widest parts is shorter.
const TAIL_BYTES: u64 = 64 << 10;
/// The footer's length and the magic word.
const END_BYTES: u64 = 8;

/// A part's own account of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartFacts {
    pub(super) job_fingerprint: String,
    pub(super) object: String,
    pub(super) first_row: u64,
    /// Input rows.
    pub(super) rows: u64,
    pub(super) ok_rows: u64,
    pub(super) failed_rows: u64,
    pub(super) failures: BTreeMap<String, u64>,
    /// Output rows.
    pub(super) samples: u64,
}

/// Reads a part's facts; none if it is a Parquet file of some other program.
pub(super) fn read_facts(
    storage: &Storage,
    part: &Location,
    size: u64,
) -> Result<Option<PartFacts>, OutputError> {
    let metadata = read_metadata(storage, part, size)?;
    let pairs = metadata.file_metadata().key_value_metadata();
    let pairs: HashMap<&str, &str> = pairs
        .into_iter()
        .flatten()
        .map(|pair| (pair.key.as_str(), pair.value.as_deref().unwrap_or_default()))
        .collect();
    if !pairs.contains_key(metadata::JOB_FINGERPRINT) {
        return Ok(None);
    }
    let samples = u64::try_from(metadata.file_metadata().num_rows()).unwrap_or_default();
    match facts(&pairs, samples) {
        Some(facts) => Ok(Some(facts)),
        None => Err(damaged(part, "its metadata is incomplete")),
    }
}

fn facts(pairs: &HashMap<&str, &str>, samples: u64) -> Option<PartFacts> {
    let text = |key| pairs.get(key).copied();
    let number = |key| text(key)?.parse().ok();
    Some(PartFacts {
        job_fingerprint: text(metadata::JOB_FINGERPRINT)?.to_owned(),
        object: text(metadata::OBJECT)?.to_owned(),
        first_row: number(metadata::FIRST_ROW)?,
        rows: number(metadata::ROWS)?,
        ok_rows: number(metadata::OK_ROWS)?,
        failed_rows: number(metadata::FAILED_ROWS)?,
        failures: serde_json::from_str(text(metadata::FAILURES)?).ok()?,
        samples,
    })
}

fn read_metadata(
    storage: &Storage,
    part: &Location,
    size: u64,
) -> Result<ParquetMetaData, OutputError> {
    if size < MIN_PART_BYTES {
        return Err(too_small(part, size));
    }
    let tail_start = size - size.min(TAIL_BYTES);
    let mut tail = storage.get_range(part, tail_start..size)?;
    let Some((rest, [l0, l1, l2, l3, b'P', b'A', b'R', b'1'])) = tail.split_last_chunk::<8>()
    else {
        return Err(damaged(part, "it does not end as a Parquet file"));
    };
    let length = u64::from(u32::from_le_bytes([*l0, *l1, *l2, *l3]));
    if length > size - MIN_PART_BYTES {
        return Err(damaged(part, "its footer is longer than the file"));
    }
    if length > rest.len() as u64 {
        tail = storage.get_range(part, size - END_BYTES - length..size)?;
    }
    let end = tail.len() - END_BYTES as usize;
    ParquetMetaDataReader::decode_metadata(&tail[end - length as usize..end])
        .map_err(|cause| damaged(part, &format!("its footer cannot be read ({cause})")))
}

/// The error of a part too small to be one.
pub(super) fn too_small(part: &Location, size: u64) -> OutputError {
    damaged(part, &format!("it has {size} bytes"))
}

fn damaged(part: &Location, cause: &str) -> OutputError {
    OutputError::DamagedPart { part: part.to_string(), cause: cause.to_owned() }
}
