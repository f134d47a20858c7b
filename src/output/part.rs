//! A finished partition as the bytes of one Parquet file. Two runs of a job give the same bytes, but for
//! the columns that tell how a run went: nothing in a part knows a clock, a machine or a run.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{Fields, SchemaRef};
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression as Codec;
use parquet::basic::{GzipLevel, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::checksum::ContentChecksum;
use super::columns::{self, Row};
use super::{Compression, FinishedPartition, JobFacts, OutputError, OutputSpec, schema};

/// Output rows laid out in columns at a time: few enough that the offsets of their longest lists fit.
const MAX_CHUNK_ROWS: usize = 256;
/// Text laid out in columns at a time, for the same reason.
const MAX_CHUNK_BYTES: usize = 64 << 20;
/// Output rows in a row group: a reader that takes some columns of some groups is served well.
const MAX_GROUP_ROWS: usize = 16 * 1024;
/// Bytes in a row group, near what readers expect.
const MAX_GROUP_BYTES: usize = 128 << 20;

pub(super) const VERSION: &str = "nightshift.version";
pub(super) const MODEL: &str = "nightshift.model";
pub(super) const MODEL_FINGERPRINT: &str = "nightshift.model_fingerprint";
pub(super) const JOB_FINGERPRINT: &str = "nightshift.job_fingerprint";
pub(super) const OBJECT: &str = "nightshift.object";
pub(super) const FIRST_ROW: &str = "nightshift.first_row";
pub(super) const ROWS: &str = "nightshift.rows";
pub(super) const OK_ROWS: &str = "nightshift.ok_rows";
pub(super) const FAILED_ROWS: &str = "nightshift.failed_rows";
pub(super) const FAILURES: &str = "nightshift.failures";
pub(super) const CONTENT_SHA256: &str = "nightshift.content_sha256";

/// The key-value metadata of a part, with what each key means.
pub(super) const METADATA: &[(&str, &str)] = &[
    (VERSION, "Version of nightshift that wrote the part."),
    (MODEL, "Name of the model."),
    (MODEL_FINGERPRINT, "Fingerprint of the model's files."),
    (JOB_FINGERPRINT, "Fingerprint of everything in the job that changes a completion."),
    (OBJECT, "The input object, as in the column `input`."),
    (FIRST_ROW, "0-based input row of the object that the part starts with."),
    (ROWS, "Input rows."),
    (OK_ROWS, "Input rows with all samples ok."),
    (FAILED_ROWS, "Input rows that failed, or of which a sample did."),
    (FAILURES, "Failed input rows by error code, a JSON object."),
    (
        CONTENT_SHA256,
        "SHA-256 of a canonical form of all columns but `cached_tokens` and the timings; equal in all runs of a job.",
    ),
];

/// Turns finished partitions of one job into bytes.
pub(super) struct Encoder {
    spec: OutputSpec,
    facts: JobFacts,
    schema: SchemaRef,
}

impl Encoder {
    /// Prepares for a job, or says which kept column does not fit in.
    pub(super) fn new(
        spec: OutputSpec,
        kept: &Fields,
        facts: JobFacts,
    ) -> Result<Self, OutputError> {
        Ok(Self { schema: schema::completion_schema(spec.include, kept)?, spec, facts })
    }

    pub(super) fn facts(&self) -> &JobFacts {
        &self.facts
    }

    /// Encodes a part.
    pub(super) fn encode(&self, part: &FinishedPartition) -> Result<Bytes, OutputError> {
        let columns_error = |source| OutputError::Columns { part: part.id.path(), source };
        let encode_error = |source| OutputError::Encode { part: part.id.path(), source };
        let mut writer = ArrowWriter::try_new(
            Vec::new(),
            self.schema.clone(),
            Some(properties(self.spec.compression)),
        )
        .map_err(encode_error)?;
        let mut checksum = ContentChecksum::new(&self.schema);
        let mut rows = columns::rows(part).peekable();
        while rows.peek().is_some() {
            let chunk = self.columns(&next_chunk(&mut rows), &part.kept).map_err(columns_error)?;
            checksum.update(&chunk);
            writer.write(&chunk).map_err(encode_error)?;
        }
        for (key, value) in self.metadata(part, checksum.finish()) {
            writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        writer.into_inner().map(Bytes::from).map_err(encode_error)
    }

    fn columns(&self, rows: &[Row<'_>], kept: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let offsets: UInt32Array = rows.iter().map(|row| row.offset).collect::<Vec<_>>().into();
        let mut columns: Vec<ArrayRef> =
            schema::columns(self.spec.include).map(|column| (column.values)(rows)).collect();
        for column in kept.columns() {
            columns.push(take(column, &offsets, None)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
    }

    fn metadata(
        &self,
        part: &FinishedPartition,
        content_sha256: String,
    ) -> Vec<(&'static str, String)> {
        let mut failures: BTreeMap<&str, u64> = BTreeMap::new();
        for failure in part.outcomes.iter().filter_map(|outcome| outcome.failure()) {
            *failures.entry(failure.code.as_str()).or_default() += 1;
        }
        let failed: u64 = failures.values().sum();
        vec![
            (VERSION, env!("CARGO_PKG_VERSION").to_owned()),
            (MODEL, self.facts.model_name.clone()),
            (MODEL_FINGERPRINT, self.facts.model_fingerprint.clone()),
            (JOB_FINGERPRINT, self.facts.job_fingerprint.clone()),
            (OBJECT, part.id.object_name.clone()),
            (FIRST_ROW, part.id.first_row.to_string()),
            (ROWS, part.rows.to_string()),
            (OK_ROWS, (part.rows - failed).to_string()),
            (FAILED_ROWS, failed.to_string()),
            (FAILURES, serde_json::json!(failures).to_string()),
            (CONTENT_SHA256, content_sha256),
        ]
    }
}

fn next_chunk<'a>(rows: &mut impl Iterator<Item = Row<'a>>) -> Vec<Row<'a>> {
    let mut chunk = Vec::new();
    let mut bytes = 0;
    while chunk.len() < MAX_CHUNK_ROWS && bytes < MAX_CHUNK_BYTES {
        let Some(row) = rows.next() else { break };
        bytes += row.text_bytes();
        chunk.push(row);
    }
    chunk
}

fn properties(compression: Compression) -> WriterProperties {
    let codec = match compression {
        Compression::Zstd => Codec::ZSTD(ZstdLevel::try_new(3).expect("3 is a level of zstd")),
        Compression::Snappy => Codec::SNAPPY,
        Compression::Gzip => Codec::GZIP(GzipLevel::default()),
        Compression::Lz4 => Codec::LZ4_RAW,
        Compression::None => Codec::UNCOMPRESSED,
    };
    WriterProperties::builder()
        .set_compression(codec)
        .set_max_row_group_row_count(Some(MAX_GROUP_ROWS))
        .set_max_row_group_bytes(Some(MAX_GROUP_BYTES))
        .build()
}
