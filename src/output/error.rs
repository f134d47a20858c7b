//! Why the output cannot be written or read, told apart by what a person can do about it.

use arrow::error::ArrowError;
use parquet::errors::ParquetError;

use crate::storage::StorageError;

/// A job error of the output folder; none of them touches a part that is already there.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The store failed; it says itself what and where.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Not even the job record could be written.
    #[error("output `{output}` cannot be written")]
    NotWritable {
        /// The output folder.
        output: String,
        /// The store's error.
        source: StorageError,
    },
    /// There is no output here.
    #[error("`{output}` is not an output of nightshift: it has no `{record}`")]
    NotAnOutput {
        /// The folder that was named.
        output: String,
        /// The path of the record below it.
        record: &'static str,
    },
    /// A kept column has the name of an output column.
    #[error("kept column `{column}` has the name of an output column")]
    ColumnClash {
        /// The column.
        column: String,
    },
    /// A column is kept twice.
    #[error("column `{column}` is kept twice")]
    KeptTwice {
        /// The column.
        column: String,
    },
    /// A kept column's type has no form in Parquet.
    #[error("kept column `{column}` is {found}, which parts cannot hold")]
    KeptType {
        /// The column.
        column: String,
        /// Its Arrow type.
        found: String,
    },
    /// The folder holds the output of another job.
    #[error("output `{output}` was begun by a different job:\n  {}", differences.join("\n  "))]
    DifferentJob {
        /// The output folder.
        output: String,
        /// One line for each setting that differs, with both values.
        differences: Vec<String>,
    },
    /// The input is not what the output was made from.
    #[error("the input has changed since this output was begun{}", listed(changed, removed))]
    InputChanged {
        /// Objects that have other rows under the same name.
        changed: Vec<String>,
        /// Objects that are gone.
        removed: Vec<String>,
    },
    /// The job record cannot be understood.
    #[error("job record `{record}` is damaged: {cause}")]
    DamagedRecord {
        /// The record's place.
        record: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A part cannot be understood.
    #[error("part `{part}` is damaged: {cause}")]
    DamagedPart {
        /// The part's place.
        part: String,
        /// What is wrong with it.
        cause: String,
    },
    /// In a part's place lies a part with other rows or of another job.
    #[error("part `{part}` is not of this job: {difference}")]
    ForeignPart {
        /// The part's place.
        part: String,
        /// What it has and what was expected.
        difference: String,
    },
    /// A part is larger than a store takes in one put.
    #[error("part `{part}` has {bytes} bytes, and a store takes at most {limit} in one put")]
    PartTooLarge {
        /// The part's place.
        part: String,
        /// Its encoded size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The rows of a part could not be laid out in columns.
    #[error("part `{part}` could not be laid out")]
    Columns {
        /// The part's path.
        part: String,
        /// Arrow's words.
        source: ArrowError,
    },
    /// The expert ledger could not be laid out.
    #[error("the expert ledger could not be encoded")]
    Experts {
        /// Arrow's words.
        source: ArrowError,
    },
    /// The journal could not be encoded.
    #[error("the journal could not be encoded")]
    Journal {
        /// The encoder's words.
        source: std::io::Error,
    },
    /// The columns of a part could not be encoded.
    #[error("part `{part}` could not be encoded")]
    Encode {
        /// The part's path.
        part: String,
        /// Parquet's words.
        source: ParquetError,
    },
}

/// Most objects named in an error.
const MAX_NAMED: usize = 20;

fn listed(changed: &[String], removed: &[String]) -> String {
    let line = |what: &str, names: &[String]| -> String {
        let shown = names.iter().take(MAX_NAMED).map(|name| format!("\n  {what}: `{name}`"));
        let more = names.len().saturating_sub(MAX_NAMED);
        let more = (more > 0).then(|| format!("\n  {what}: and {more} more"));
        shown.chain(more).collect()
    };
    line("changed", changed) + &line("gone", removed)
}

impl OutputError {
    /// What to do about it, printed under the message.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Storage(source) | Self::NotWritable { source, .. } => return source.hint(),
            Self::NotAnOutput { .. } => "name the folder that `output.path` of the job names",
            Self::ColumnClash { .. } => {
                "leave it out of `input.keep`, or rename the column in the input"
            }
            Self::KeptTwice { .. } => "name each column once in `input.keep`",
            Self::KeptType { .. } => {
                "leave it out of `input.keep`, or convert the column in the input"
            }
            Self::DifferentJob { .. } => {
                "choose another `output.path`, delete the folder to start over, or restore the settings"
            }
            Self::InputChanged { .. } => {
                "restore the objects, choose another `output.path`, or run with `--redo-changed`: what was made from them is removed and done again"
            }
            Self::DamagedRecord { .. } => {
                "restore the file, or delete the whole output folder to start over"
            }
            Self::DamagedPart { .. } => {
                "delete this file and run the same command again: its rows are done again"
            }
            Self::ForeignPart { .. } => {
                "did the input change or another job write here? move the file away, or choose another `output.path`"
            }
            Self::PartTooLarge { .. } => {
                "lower `output.rows_per_part` and choose another `output.path`"
            }
            Self::Columns { .. }
            | Self::Experts { .. }
            | Self::Journal { .. }
            | Self::Encode { .. } => return None,
        };
        Some(hint.to_owned())
    }
}
