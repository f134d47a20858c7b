//! The parts as one ordered dataset: files of a size that readers like, in the order of the input.

use std::path::Path;

use arrow::array::RecordBatch;
use arrow::json::LineDelimitedWriter;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::RunError;
use super::verify::{Rows, Verification, walk};
use crate::storage::{Location, PutOutcome, Storage};

/// How merged rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeFormat {
    /// Parquet with zstd.
    Parquet,
    /// One JSON object a line.
    Jsonl,
}

/// Merges an output's parts into files of about `file_bytes` each, and verifies them on the way. Files
/// are never replaced; of an output that is not sound what was sound is merged, and the rest is told.
pub fn merge(
    storage: &Storage,
    output: &str,
    to: &str,
    format: MergeFormat,
    file_bytes: u64,
) -> Result<(Verification, u64), RunError> {
    let root = storage.locate(output, Path::new("."))?;
    let folder = storage.locate(to, Path::new("."))?;
    let mut merger = Merger { storage, folder, format, file_bytes, open: None, files: 0 };
    let verification = walk(storage, &root, true, &mut merger)?;
    merger.close()?;
    Ok((verification, merger.files))
}

struct Merger<'a> {
    storage: &'a Storage,
    folder: Location,
    format: MergeFormat,
    file_bytes: u64,
    open: Option<File>,
    files: u64,
}

enum File {
    Parquet(Box<ArrowWriter<Vec<u8>>>),
    Jsonl(LineDelimitedWriter<Vec<u8>>),
}

impl Rows for Merger<'_> {
    fn part(&mut self, batches: Vec<RecordBatch>) -> Result<(), RunError> {
        for batch in batches {
            let mut file = match self.open.take() {
                Some(file) => file,
                None => self.begin(&batch)?,
            };
            let bytes = match &mut file {
                File::Parquet(writer) => {
                    writer.write(&batch).map_err(|error| self.failed(&error))?;
                    (writer.bytes_written() + writer.in_progress_size()) as u64
                }
                File::Jsonl(writer) => {
                    writer.write(&batch).map_err(|error| self.failed(&error))?;
                    writer.get_ref().len() as u64
                }
            };
            self.open = Some(file);
            if bytes >= self.file_bytes {
                self.close()?;
            }
        }
        Ok(())
    }
}

impl Merger<'_> {
    fn begin(&self, batch: &RecordBatch) -> Result<File, RunError> {
        Ok(match self.format {
            MergeFormat::Parquet => {
                let zstd = Compression::ZSTD(ZstdLevel::default());
                let properties = WriterProperties::builder().set_compression(zstd).build();
                let writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties));
                File::Parquet(Box::new(writer.map_err(|error| self.failed(&error))?))
            }
            MergeFormat::Jsonl => File::Jsonl(LineDelimitedWriter::new(Vec::new())),
        })
    }

    fn close(&mut self) -> Result<(), RunError> {
        let (bytes, extension) = match self.open.take() {
            None => return Ok(()),
            Some(File::Parquet(writer)) => {
                (writer.into_inner().map_err(|error| self.failed(&error))?, "parquet")
            }
            Some(File::Jsonl(mut writer)) => {
                writer.finish().map_err(|error| self.failed(&error))?;
                (writer.into_inner(), "jsonl")
            }
        };
        let place = self.folder.child(&format!("part-{:05}.{extension}", self.files));
        if self.storage.put_create(&place, Bytes::from(bytes))? == PutOutcome::AlreadyExists {
            return Err(RunError::Merge {
                file: place.to_string(),
                cause: "it is there already; merge into an empty folder".into(),
            });
        }
        self.files += 1;
        Ok(())
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> RunError {
        RunError::Merge { file: self.folder.to_string(), cause: error.to_string() }
    }
}
