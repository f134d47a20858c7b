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
use super::metadata::{
    CONTENT_SHA256, FAILED_ROWS, FAILURES, FILE_SHA256, FIRST_ROW, JOB_FINGERPRINT, MODEL,
    MODEL_FINGERPRINT, OBJECT, OK_ROWS, ROWS, VERSION,
};
use super::{
    Compression, FinishedPartition, JobFacts, OutputError, OutputSpec, PartId, schema, seal,
};

/// Output rows laid out in columns at a time: few enough that the offsets of their longest lists fit.
const MAX_CHUNK_ROWS: usize = 256;
/// Text laid out in columns at a time, for the same reason.
const MAX_CHUNK_BYTES: usize = 64 << 20;
/// Output rows in a row group: a reader that takes some columns of some groups is served well.
const MAX_GROUP_ROWS: usize = 16 * 1024;
/// Bytes in a row group, near what readers expect.
const MAX_GROUP_BYTES: usize = 128 << 20;

/// Failed input rows by error code.
pub(super) type Failures = BTreeMap<String, u64>;

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
        let mut failures = Failures::new();
        for failure in part.outcomes.iter().filter_map(|outcome| outcome.failure()) {
            *failures.entry(failure.code.as_str().to_owned()).or_default() += 1;
        }
        self.write((&part.id, part.rows), failures, self.chunks(part))
    }

    /// Output rows of a part, some of them at a time.
    pub(super) fn chunks<'a>(
        &'a self,
        part: &'a FinishedPartition,
    ) -> impl Iterator<Item = Result<RecordBatch, ArrowError>> + 'a {
        let mut rows = columns::rows(part).peekable();
        std::iter::from_fn(move || {
            rows.peek()?;
            Some(self.columns(&next_chunk(&mut rows), &part.kept))
        })
    }

    /// Encodes rows that are laid out already.
    pub(super) fn write(
        &self,
        (id, input_rows): (&PartId, u64),
        failures: Failures,
        chunks: impl Iterator<Item = Result<RecordBatch, ArrowError>>,
    ) -> Result<Bytes, OutputError> {
        let columns_error = |source| OutputError::Columns { part: id.path(), source };
        let encode_error = |source| OutputError::Encode { part: id.path(), source };
        let mut writer = ArrowWriter::try_new(
            Vec::new(),
            self.schema.clone(),
            Some(properties(self.spec.compression)),
        )
        .map_err(encode_error)?;
        let mut checksum = ContentChecksum::new(&self.schema);
        for chunk in chunks {
            let chunk = chunk.map_err(columns_error)?;
            checksum.update(&chunk);
            writer.write(&chunk).map_err(encode_error)?;
        }
        for (key, value) in self.metadata((id, input_rows), &failures, checksum.finish()) {
            writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        let mut bytes = writer.into_inner().map_err(encode_error)?;
        let sealed = seal::close(&mut bytes);
        debug_assert!(sealed, "the footer has a place for the seal");
        Ok(bytes.into())
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
        (id, input_rows): (&PartId, u64),
        failures: &Failures,
        content_sha256: String,
    ) -> Vec<(&'static str, String)> {
        let failed: u64 = failures.values().sum();
        vec![
            (VERSION, env!("CARGO_PKG_VERSION").to_owned()),
            (MODEL, self.facts.model_name.clone()),
            (MODEL_FINGERPRINT, self.facts.model_fingerprint.clone()),
            (JOB_FINGERPRINT, self.facts.job_fingerprint.clone()),
            (OBJECT, id.object_name.clone()),
            (FIRST_ROW, id.first_row.to_string()),
            (ROWS, input_rows.to_string()),
            (OK_ROWS, (input_rows - failed).to_string()),
            (FAILED_ROWS, failed.to_string()),
            (FAILURES, serde_json::json!(failures).to_string()),
            (CONTENT_SHA256, content_sha256),
            (FILE_SHA256, seal::OPEN.to_owned()),
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
