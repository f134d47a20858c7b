//! The samples of a committed part, read back for scoring, and the scores stored beside them.
//!
//! Scores lie in `eval/scores/`, a file for each part under the part's own name, so that they are joined by
//! `input`, `row_index` and `sample_index`. They follow from parts and input and are replaced as a whole.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray,
};
use arrow::datatypes::{Float32Type, Int32Type, Int64Type};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::{OutputError, PartId, check_part, read_job};
use crate::storage::{Location, Storage};

/// Where everything that scoring writes lies in the output folder.
pub(super) const EVAL_FOLDER: &str = "eval";

/// A sample of a part.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSample {
    /// 0-based position of its row in the input object.
    pub row_index: u64,
    /// Its row's id.
    pub id: String,
    /// 0-based index among the row's samples.
    pub sample_index: u32,
    /// Its text, or "code: message" of its failure.
    pub completion: Result<String, String>,
    /// Natural-log probability of each token, where the part has them.
    pub logprobs: Option<Vec<f32>>,
}

/// The score of a sample, a row of a scores file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredScore {
    /// 0-based position of its row in the input object.
    pub row_index: u64,
    /// Its row's id.
    pub id: String,
    /// 0-based index among the row's samples.
    pub sample_index: u32,
    /// 0 (wrong) to 1 (right); null if it was not judged.
    pub score: Option<f64>,
    /// What was taken for its answer.
    pub answer: Option<String>,
    /// The right answer.
    pub reference: Option<String>,
    /// Why there is no score, or why a command failed.
    pub reason: Option<String>,
    /// Log-probability of the sample.
    pub logprob: Option<f64>,
    /// The same divided by its tokens.
    pub mean_logprob: Option<f64>,
    /// Whether it stands for the answer that most samples of its row give.
    pub majority: bool,
    /// Whether it is the most probable sample of its row.
    pub best: bool,
    /// The row's group.
    pub group: Option<String>,
}

/// Reads the samples of parts, each checked against its own checksums.
pub struct SampleReader {
    storage: Storage,
    root: Location,
    job_fingerprint: String,
}

impl SampleReader {
    /// Opens an output folder.
    pub fn open(storage: &Storage, root: &Location) -> Result<Self, OutputError> {
        let job_fingerprint = read_job(storage, root)?.job_fingerprint;
        Ok(Self { storage: storage.clone(), root: root.clone(), job_fingerprint })
    }

    /// The samples of a part of so many rows, in order.
    pub fn read(&self, id: &PartId, rows: u64) -> Result<Vec<StoredSample>, OutputError> {
        let place = self.root.child(&id.path());
        let mut samples = Vec::new();
        check_part(self.storage.get(&place)?, (id, rows), &self.job_fingerprint, |batch| {
            samples_of(batch, &mut samples)
        })
        .map_err(|cause| OutputError::DamagedPart { part: place.to_string(), cause })?;
        Ok(samples)
    }
}

fn samples_of(batch: &RecordBatch, samples: &mut Vec<StoredSample>) -> Result<(), String> {
    let column = |name: &str| {
        batch.column_by_name(name).cloned().ok_or_else(|| format!("it has no column `{name}`"))
    };
    let text = |name: &str| -> Result<StringArray, String> {
        let column = column(name)?;
        let text = column.as_string_opt::<i32>().cloned();
        text.ok_or_else(|| format!("its column `{name}` has another type"))
    };
    // Types of the first two were looked at when the order of rows was.
    let (rows, indices) = (column("row_index")?, column("sample_index")?);
    let (rows, indices) = (rows.as_primitive::<Int64Type>(), indices.as_primitive::<Int32Type>());
    let (ids, completions) = (text("id")?, text("completion")?);
    let (codes, messages) = (text("error_code")?, text("error_message")?);
    let logprobs = batch.column_by_name("logprobs").and_then(|column| column.as_list_opt::<i32>());
    for index in 0..batch.num_rows() {
        let value =
            |array: &StringArray| (!array.is_null(index)).then(|| array.value(index).to_owned());
        let completion = value(&completions).ok_or_else(|| {
            let code = value(&codes).unwrap_or_default();
            format!("{code}: {}", value(&messages).unwrap_or_default())
        });
        let logprobs = logprobs.filter(|lists| !lists.is_null(index)).map(|lists| {
            let values = lists.value(index);
            values.as_primitive_opt::<Float32Type>().map_or(Vec::new(), |v| v.values().to_vec())
        });
        samples.push(StoredSample {
            row_index: rows.value(index) as u64,
            id: value(&ids).unwrap_or_default(),
            sample_index: indices.value(index) as u32,
            completion,
            logprobs,
        });
    }
    Ok(())
}

/// Writes scores and what is made of them.
pub struct ScoreWriter {
    storage: Storage,
    folder: Location,
}

impl ScoreWriter {
    /// Begins anew: scores that an earlier evaluation left are removed.
    pub fn begin(storage: &Storage, root: &Location) -> Result<Self, OutputError> {
        let folder = root.child(EVAL_FOLDER);
        for entry in storage.list(&folder.child("scores"))? {
            storage.delete(&entry.location)?;
        }
        Ok(Self { storage: storage.clone(), folder })
    }

    /// Writes the scores of a part's samples.
    pub fn write(&self, id: &PartId, scores: &[StoredScore]) -> Result<(), OutputError> {
        let path = id.path().replacen("parts/", "scores/", 1);
        let failed = |source| OutputError::Encode { part: path.clone(), source };
        let batch = batch(id, scores)
            .map_err(|source| OutputError::Columns { part: path.clone(), source })?;
        let zstd = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(zstd).build();
        let mut writer =
            ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).map_err(failed)?;
        writer.write(&batch).map_err(failed)?;
        let bytes = writer.into_inner().map_err(failed)?;
        Ok(self.storage.put(&self.folder.child(&path), Bytes::from(bytes))?)
    }

    /// Writes another file of the evaluation; none: removes what an earlier one left.
    pub fn write_file(&self, name: &str, text: Option<String>) -> Result<(), OutputError> {
        let place = self.folder.child(name);
        match text {
            Some(text) => self.storage.put(&place, Bytes::from(text))?,
            None => self.storage.delete(&place)?,
        }
        Ok(())
    }
}

fn batch(id: &PartId, scores: &[StoredScore]) -> Result<RecordBatch, arrow::error::ArrowError> {
    fn texts<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
        Arc::new(values.collect::<StringArray>())
    }
    let text = |of: fn(&StoredScore) -> Option<&str>| texts(scores.iter().map(of));
    let number = |of: fn(&StoredScore) -> Option<f64>| -> ArrayRef {
        Arc::new(scores.iter().map(of).collect::<Float64Array>())
    };
    let flag = |of: fn(&StoredScore) -> bool| -> ArrayRef {
        Arc::new(scores.iter().map(|score| Some(of(score))).collect::<BooleanArray>())
    };
    let row_indices = scores.iter().map(|score| score.row_index as i64);
    let sample_indices = scores.iter().map(|score| score.sample_index as i32);
    RecordBatch::try_from_iter_with_nullable([
        ("input", texts(scores.iter().map(|_| Some(id.object_name.as_str()))), false),
        ("row_index", Arc::new(Int64Array::from_iter_values(row_indices)) as ArrayRef, false),
        ("id", text(|score| Some(&score.id)), false),
        ("sample_index", Arc::new(Int32Array::from_iter_values(sample_indices)), false),
        ("score", number(|score| score.score), true),
        ("answer", text(|score| score.answer.as_deref()), true),
        ("reference", text(|score| score.reference.as_deref()), true),
        ("reason", text(|score| score.reason.as_deref()), true),
        ("logprob", number(|score| score.logprob), true),
        ("mean_logprob", number(|score| score.mean_logprob), true),
        ("majority", flag(|score| score.majority), false),
        ("best", flag(|score| score.best), false),
        ("group", text(|score| score.group.as_deref()), true),
    ])
}
