//! Why a job cannot read its input. It stops the job; a bad row is a `RowFailure` instead.

use crate::storage::StorageError;

#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A pattern names nothing.
    #[error("no object matches `{pattern}`")]
    NoMatch { pattern: String },
    /// A pattern is not a glob.
    #[error("`{pattern}` is not a valid pattern: {message}")]
    Pattern { pattern: String, message: String },
    /// An object's format cannot be told.
    #[error("`{object}`: the extension names no known format")]
    UnknownFormat { object: String },
    /// A column of the job is not in the input.
    #[error("`{object}` has no column `{column}`{}", nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default())]
    MissingColumn { object: String, column: String, nearest: Option<String> },
    /// A column has a type that the job cannot use.
    #[error("`{object}`: column `{column}` is {found}, expected {expected}")]
    ColumnType { object: String, column: String, found: String, expected: &'static str },
    /// Two objects disagree about a kept column.
    #[error("kept column `{column}` is {first_type} in `{first}` and {second_type} in `{second}`")]
    KeptType {
        column: String,
        first: String,
        first_type: String,
        second: String,
        second_type: String,
    },
    /// A Parquet file is damaged.
    #[error("`{object}` is not a readable Parquet file: {message}")]
    Parquet { object: String, message: String },
    /// A compressed or changing object could not be read to its end.
    #[error("`{object}` could not be read: {message}")]
    Read { object: String, message: String },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl InputError {
    /// What to do about it, printed as a `hint:` line under the message.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoMatch { .. } => {
                "check `input.paths`; relative paths are relative to the job file"
            }
            Self::UnknownFormat { .. } => "set `input.format` to \"jsonl\" or \"parquet\"",
            Self::MissingColumn { .. } => {
                "the columns are named in `[input]` and `[sampling]`; each must be in the input"
            }
            Self::ColumnType { .. } => "name another column in `[input]`",
            Self::KeptType { .. } => {
                "run the objects as two jobs, or leave the column out of `input.keep`"
            }
            Self::Parquet { .. } | Self::Read { .. } => {
                "the file may be incomplete, or of another format: see `input.format`"
            }
            Self::Pattern { .. } => return None,
            Self::Storage(error) => return error.hint(),
        };
        Some(hint.into())
    }
}
