//! Completions to committed parts: stages 9 and 10 of the road. Rows come in any order, a partition
//! leaves as one Parquet file when its last row is in, and the output folder is the only ledger of what
//! is done. This room does not know where rows come from, nor how they are generated.

mod checksum;
mod collect;
mod columns;
mod error;
mod experts;
mod folder;
mod footer;
mod inputs;
mod journal;
mod metadata;
mod part;
mod record;
mod replace;
mod samples;
mod schema;
mod seal;
mod status;
mod verify;

use arrow::array::RecordBatch;
use sha2::{Digest, Sha256};

use crate::row::{Completion, Message, RowFailure};

pub use checksum::content_checksum;
pub use collect::{Collector, OpenPartition, RowFacts};
pub use error::OutputError;
pub use experts::ExpertLoad;
pub use folder::{Committed, Output};
pub use inputs::{InputFact, InputsRecord};
pub use journal::{Journal, JournalEntry};
pub use record::{JobFacts, JobRecord};
pub use samples::{SampleReader, ScoreWriter, StoredSample, StoredScore};
pub use schema::{completion_schema, completion_schema_json};
pub use status::{LastRun, PartCounts, RowCounts, Status, read_job};
pub use verify::{PartContent, check_part};

/// What the parts hold besides the fixed columns, and how they are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputSpec {
    /// The optional columns.
    pub include: Include,
    /// How pages are compressed.
    pub compression: Compression,
}

/// The optional columns of the output, each switched by its own name in `output.include`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Include {
    /// The generated token ids.
    pub token_ids: bool,
    /// The log-probability of each generated token.
    pub logprobs: bool,
    /// The most probable tokens of each position.
    pub top_logprobs: bool,
    /// The routed experts of each token.
    pub routed_experts: bool,
    /// The conversation with the completion as its last turn.
    pub messages: bool,
    /// The prompt's text as the model saw it.
    pub prompt: bool,
}

impl Include {
    /// Every optional column.
    pub const ALL: Self = Self {
        token_ids: true,
        logprobs: true,
        top_logprobs: true,
        routed_experts: true,
        messages: true,
        prompt: true,
    };
}

/// How the pages of a part are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Zstandard, level 3.
    #[default]
    Zstd,
    /// Snappy.
    Snappy,
    /// Gzip.
    Gzip,
    /// LZ4 in its raw framing.
    Lz4,
    /// None at all.
    None,
}

/// The name of a part: it follows from the input object and the first row alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartId {
    /// The input object as the `input` column names it.
    pub object_name: String,
    /// 0-based row of the object that the part starts with.
    pub first_row: u64,
}

/// Longest piece of an object's name in a folder name; the hash tells longer ones apart.
const MAX_STEM: usize = 64;

impl PartId {
    /// The part's path below the output folder.
    pub fn path(&self) -> String {
        let digest = hex(&Sha256::digest(self.object_name.as_bytes()));
        format!("parts/{}-{}/{:012}.parquet", stem(&self.object_name), &digest[..8], self.first_row)
    }
}

/// The object's file name without its extensions, in characters that no store or reader gives a meaning:
/// a leading `_` or `.` hides a folder from dataset readers, and `=` makes it a partition column.
fn stem(object_name: &str) -> String {
    let name = object_name.rsplit(['/', '\\']).find(|piece| !piece.is_empty()).unwrap_or_default();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
    let name = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' };
    let name: String = name.chars().map(plain).collect();
    let name: String = name.trim_start_matches(['_', '.', '-']).chars().take(MAX_STEM).collect();
    if name.is_empty() { "object".to_owned() } else { name }
}

/// A partition with the outcome of each of its rows, ready to become a part.
#[derive(Clone, Debug)]
pub struct FinishedPartition {
    /// The part it becomes.
    pub id: PartId,
    /// Input rows.
    pub rows: u64,
    /// The kept columns, one row per input row.
    pub kept: RecordBatch,
    /// One outcome per input row, in input order.
    pub outcomes: Vec<RowOutcome>,
}

/// What became of one input row.
#[derive(Clone, Debug)]
pub struct RowOutcome {
    /// 0-based position in the input object.
    pub row_index: u64,
    /// The row's id.
    pub id: String,
    /// What is repeated of the row's prompt.
    pub echo: Echo,
    /// All its samples in order, each of which may itself be failed; or why there are none.
    pub result: Result<Vec<Completion>, RowFailure>,
}

impl RowOutcome {
    /// The row's failure: its own, else that of its first failed sample.
    pub fn failure(&self) -> Option<&RowFailure> {
        match &self.result {
            Ok(samples) => {
                samples.iter().find_map(|sample| sample.generation.result.as_ref().err())
            }
            Err(failure) => Some(failure),
        }
    }
}

/// The parts of a prompt that the output may repeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Echo {
    /// The conversation, where the prompt is one.
    pub messages: Option<Vec<Message>>,
    /// The prompt's text.
    pub prompt: Option<String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_named_by_its_object_and_first_row() {
        for (object_name, first_row, path) in [
            ("prompts/a.jsonl", 0, "parts/a-ae39f2cb/000000000000.parquet"),
            ("s3://bucket/x/a.b.jsonl.gz", 2000, "parts/a.b-8d3ae7a7/000000002000.parquet"),
        ] {
            let id = PartId { object_name: object_name.into(), first_row };
            assert_eq!(id.path(), path, "{object_name}");
        }
    }

    #[test]
    fn a_folder_name_has_no_character_with_a_meaning() {
        for (object_name, expected) in [
            ("a.parquet", "a"),
            ("x/_hidden.jsonl", "hidden"),
            ("..jsonl", "object"),
            ("", "object"),
            ("day=1.jsonl", "day_1"),
            ("été #1.jsonl", "t___1"),
            ("folder/", "folder"),
            ("noext", "noext"),
        ] {
            assert_eq!(stem(object_name), expected, "{object_name}");
        }
        assert_eq!(stem(&"x".repeat(500)).len(), MAX_STEM);
    }
}
