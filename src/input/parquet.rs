//! Parquet objects: the footer at discovery, then only the row groups and columns that are needed.

use std::io::BufReader;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{InputError, InputSpec, PromptColumns};
use crate::storage::{Entry, Location, ObjectReader, Storage};

/// Rows that are decoded at a time.
const BATCH_ROWS: usize = 1024;

/// A Parquet object whose footer was read.
#[derive(Clone, Debug)]
pub(super) struct Parquet {
    metadata: ArrowReaderMetadata,
    size: u64,
}

impl Parquet {
    pub(super) fn open(storage: &Storage, entry: &Entry, name: &str) -> Result<Self, InputError> {
        let chunks =
            Chunks { storage: storage.clone(), location: entry.location.clone(), size: entry.size };
        let metadata = ArrowReaderMetadata::load(&chunks, ArrowReaderOptions::new())
            .map_err(|error| damaged(name, &error))?;
        Ok(Self { metadata, size: entry.size })
    }

    /// SHA-256 over the footer, the size and, in a remote store, the version.
    pub(super) fn fingerprint(
        &self,
        storage: &Storage,
        entry: &Entry,
        name: &str,
    ) -> Result<String, InputError> {
        let end = self.size.checked_sub(8).ok_or_else(|| damaged(name, &"it is too short"))?;
        let tail = storage.get_range(&entry.location, end..self.size)?;
        let length = tail.first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let footer = storage.get_range(&entry.location, end.saturating_sub(length.into())..end)?;
        let mut hasher = Sha256::new_with_prefix(self.size.to_le_bytes());
        hasher.update(footer);
        // A local file's version changes when it is copied.
        if let Some(etag) = entry.etag.as_ref().filter(|_| entry.location.local_path().is_none()) {
            hasher.update(etag);
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(super) fn rows(&self) -> u64 {
        self.metadata.metadata().file_metadata().num_rows() as u64
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// Refuses columns that are missing or of a type that no row could be read from.
    pub(super) fn check(&self, name: &str, spec: &InputSpec) -> Result<(), InputError> {
        let schema = self.schema();
        for column in super::needed_columns(spec) {
            schema.field_with_name(column).map_err(|_| {
                let names = schema.fields().iter().map(|field| field.name().as_str());
                super::missing(name, column, names)
            })?;
        }
        let (column, fits, expected): (_, fn(&DataType) -> bool, _) = match &spec.prompt {
            PromptColumns::Messages(column) => {
                (column, is_messages, "a list of structs with role and content")
            }
            PromptColumns::Text(column) => (column, is_text, "a string"),
            PromptColumns::TokenIds(column) => (column, is_ids, "a list of integers"),
            PromptColumns::Template => return Ok(()),
        };
        let found = schema.field_with_name(column).map(|field| field.data_type());
        match found {
            Ok(found) if !fits(found) => Err(InputError::ColumnType {
                object: name.into(),
                column: column.clone(),
                found: found.to_string(),
                expected,
            }),
            _ => Ok(()),
        }
    }

    /// Some columns of some rows; none named: all columns.
    pub(super) fn read(
        &self,
        (storage, location, name): (&Storage, &Location, &str),
        (first, count): (u64, u64),
        columns: Option<&[&str]>,
    ) -> Result<RecordBatch, InputError> {
        let chunks =
            Chunks { storage: storage.clone(), location: location.clone(), size: self.size };
        let fail = |error: &dyn std::fmt::Display| damaged(name, error);
        let groups = self.groups(first, count);
        let builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(chunks, self.metadata.clone());
        let projection = match columns {
            None => ProjectionMask::all(),
            Some(columns) => {
                let fields = self.schema().fields().iter().enumerate();
                let wanted = fields
                    .filter(|(_, field)| columns.contains(&field.name().as_str()))
                    .map(|(index, _)| index);
                ProjectionMask::roots(builder.parquet_schema(), wanted)
            }
        };
        let reader = builder
            .with_projection(projection)
            .with_row_groups(groups.indices)
            .with_offset((first - groups.first_row) as usize)
            .with_limit(count as usize)
            .with_batch_size(BATCH_ROWS)
            .build()
            .map_err(|error| fail(&error))?;
        let schema = arrow::array::RecordBatchReader::schema(&reader);
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|error| fail(&error))?;
        concat_batches(&schema, &batches).map_err(|error| fail(&error))
    }

    /// The row groups that hold some rows.
    fn groups(&self, first: u64, count: u64) -> Groups {
        let mut groups = Groups { indices: Vec::new(), first_row: 0 };
        let mut start = 0;
        for (index, group) in self.metadata.metadata().row_groups().iter().enumerate() {
            let end = start + group.num_rows() as u64;
            if end > first && start < first + count {
                if groups.indices.is_empty() {
                    groups.first_row = start;
                }
                groups.indices.push(index);
            }
            start = end;
        }
        if groups.indices.is_empty() {
            groups.first_row = first;
        }
        groups
    }
}

struct Groups {
    indices: Vec<usize>,
    /// Row of the object with which the first of them begins.
    first_row: u64,
}

fn damaged(name: &str, error: &dyn std::fmt::Display) -> InputError {
    InputError::Parquet { object: name.into(), message: error.to_string() }
}

/// Rows of a batch as JSON objects, nulls included.
pub(super) fn to_json(
    batch: &RecordBatch,
    name: &str,
) -> Result<Vec<Map<String, Value>>, InputError> {
    if batch.num_columns() == 0 {
        return Ok(vec![Map::new(); batch.num_rows()]);
    }
    let mut writer =
        WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    writer.write(batch).and_then(|()| writer.finish()).map_err(|error| damaged(name, &error))?;
    let text = writer.into_inner();
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(|error| damaged(name, &error))).collect()
}

/// The columns of a batch that `schema` names, in its order.
pub(super) fn project(batch: &RecordBatch, schema: &Arc<Schema>) -> RecordBatch {
    let column = |field: &Arc<arrow::datatypes::Field>| {
        batch.column_by_name(field.name()).cloned().expect("kept columns were read")
    };
    let columns = schema.fields().iter().map(column).collect();
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
        .expect("types were compared at discovery")
}

fn is_text(found: &DataType) -> bool {
    match found {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

fn item(found: &DataType) -> Option<&DataType> {
    match found {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => Some(item.data_type()),
        _ => None,
    }
}

fn is_messages(found: &DataType) -> bool {
    let has = |fields: &arrow::datatypes::Fields, names: [&str; 2]| {
        fields.iter().any(|field| names.contains(&field.name().as_str()))
    };
    match item(found) {
        Some(DataType::Struct(fields)) => {
            has(fields, ["role", "from"]) && has(fields, ["content", "value"])
        }
        Some(DataType::Null) => true,
        _ => false,
    }
}

fn is_ids(found: &DataType) -> bool {
    item(found).is_some_and(|item| item.is_integer() || *item == DataType::Null)
}

/// An object of the store as the Parquet reader wants it.
struct Chunks {
    storage: Storage,
    location: Location,
    size: u64,
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<ObjectReader>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        let reader = self
            .storage
            .reader(&self.location, start)
            .map_err(|error| ParquetError::External(Box::new(error)))?;
        Ok(BufReader::new(reader))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        let range = start..start + length as u64;
        self.storage
            .get_range(&self.location, range)
            .map_err(|error| ParquetError::External(Box::new(error)))
    }
}
