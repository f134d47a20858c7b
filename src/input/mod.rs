//! Object store → prompt rows: stages 1, 2 and 4 of the road.
//!
//! Finds the job's objects, cuts them into partitions and reads partitions, as JSONL or Parquet. Knows
//! which columns a row needs; does not know tokens or templates.

mod discover;
mod error;
mod jsonl;
mod kept;
mod lines;
mod parquet;
mod rows;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Fields, Schema};
use serde_json::{Map, Value};

use self::discover::{Format, Found, Packing};
use self::jsonl::{Held, Jsonl, Mark, RawRow};
use self::parquet::Parquet;
use crate::row::{PartitionId, PromptRow, PromptSource, RowFailure, RowRef};
use crate::sampling::SamplingSpec;
use crate::storage::{Location, Storage};

pub use error::InputError;

/// Longest JSONL line, bytes: rows with their own test cases have tens of megabytes.
pub const DEFAULT_MAX_LINE_BYTES: usize = 128 << 20;
/// Rows that decide the types of kept JSONL columns, and the bytes of their lines at which they are enough.
const SAMPLED_ROWS: usize = 1000;
const SAMPLED_BYTES: usize = 16 << 20;

/// What a job says about its input.
#[derive(Clone, Debug)]
pub struct InputSpec {
    /// The folder that relative paths are relative to.
    pub base: PathBuf,
    /// Files, globs and folders.
    pub paths: Vec<String>,
    /// How objects are read.
    pub format: FormatChoice,
    /// Where prompts are.
    pub prompt: PromptColumns,
    /// The column that identifies rows.
    pub id: Option<String>,
    /// Columns that are passed through.
    pub keep: Vec<String>,
    /// Takes only so many rows; 0: all.
    pub limit: u64,
    /// Sampling, some of it in columns.
    pub sampling: SamplingSpec,
    /// Longest JSONL line, bytes.
    pub max_line_bytes: usize,
}

impl InputSpec {
    /// The same rows with all their columns, and nothing asked of them.
    #[must_use]
    pub fn all_columns(&self) -> Self {
        Self {
            prompt: PromptColumns::Template,
            id: None,
            keep: Vec::new(),
            sampling: SamplingSpec::default(),
            ..self.clone()
        }
    }
}

/// How objects are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormatChoice {
    /// By extension.
    Auto,
    /// As JSON lines.
    Jsonl,
    /// As Parquet.
    Parquet,
}

/// Where prompts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptColumns {
    /// Conversations in this column.
    Messages(String),
    /// Texts in this column.
    Text(String),
    /// Token ids in this column.
    TokenIds(String),
    /// Whatever the job's template uses.
    Template,
}

/// An object of the input.
#[derive(Debug)]
pub struct InputObject {
    /// As the job's pattern names it.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Its version in the store.
    pub etag: Option<String>,
    /// Its rows, as far as the job's limit lets them in.
    pub rows: u64,
    /// What its rows are, in short: SHA-256 over the lines read, or over a Parquet object's footer, size
    /// and version.
    pub fingerprint: String,
    location: Location,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Jsonl { packing: Packing, marks: Arc<[Mark]> },
    Parquet(Parquet),
}

/// A row range of one object: the unit of reading, committing and resuming.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its place among all partitions.
    pub id: PartitionId,
    /// Index of its object.
    pub object: u32,
    /// Its first row in the object.
    pub first_row: u64,
    /// Its rows.
    pub rows: u64,
}

/// A partition's rows.
#[derive(Debug)]
pub struct PartitionRows {
    /// The partition.
    pub partition: PartitionId,
    /// Its kept columns, a row for each input row.
    pub kept: RecordBatch,
    /// Its rows, in order.
    pub rows: Vec<PromptRow>,
}

/// A job's input, discovered.
pub struct Input {
    storage: Storage,
    spec: InputSpec,
    objects: Vec<InputObject>,
    partitions: Vec<Partition>,
    kept: Fields,
    rows_per_part: u64,
    held: Mutex<Option<Held>>,
}

impl Input {
    /// Finds the objects, counts their rows, checks their columns and cuts them into partitions.
    pub fn discover(
        storage: &Storage,
        spec: InputSpec,
        rows_per_part: u64,
    ) -> Result<Self, InputError> {
        let mut objects = Vec::new();
        let mut sample = Vec::new();
        let mut left = if spec.limit == 0 { u64::MAX } else { spec.limit };
        for found in discover::discover(storage, &spec)? {
            let object = open(storage, &spec, found, (left, rows_per_part), &mut sample)?;
            left -= object.rows;
            objects.push(object);
        }
        check_sample(&spec, &objects, &sample)?;
        let kept = kept_fields(&spec, &objects, &sample)?;
        let partitions = partitions(&objects, rows_per_part);
        let (storage, held) = (storage.clone(), Mutex::default());
        Ok(Self { storage, spec, objects, partitions, kept, rows_per_part, held })
    }

    /// The objects, by name.
    pub fn objects(&self) -> &[InputObject] {
        &self.objects
    }

    /// The partitions, object by object.
    pub fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    /// The kept columns with their types.
    pub fn kept_fields(&self) -> &Fields {
        &self.kept
    }

    /// The columns of a partition's rows, of an input that asks for all of them; or why a row has none.
    #[allow(clippy::type_complexity, reason = "rows, each with its own outcome")]
    pub fn columns(
        &self,
        partition: &Partition,
    ) -> Result<Vec<Result<Map<String, Value>, RowFailure>>, InputError> {
        let columns = |row: PromptRow| match row.request?.source {
            PromptSource::Columns(columns) => Ok(columns),
            _ => Ok(Map::new()),
        };
        Ok(self.read(partition)?.rows.into_iter().map(columns).collect())
    }

    /// Reads a partition: stage 4.
    pub fn read(&self, partition: &Partition) -> Result<PartitionRows, InputError> {
        let object = &self.objects[partition.object as usize];
        let (kept, raw) = match &object.content {
            Content::Jsonl { packing, marks } => {
                let jsonl = Jsonl {
                    storage: &self.storage,
                    location: &object.location,
                    packing: *packing,
                    name: &object.name,
                    spec: &self.spec,
                };
                let mark = marks.get((partition.first_row / self.rows_per_part) as usize);
                let mut held = self.held.lock().expect("no reader panics");
                let mut raw = jsonl.read(mark, partition.rows, &mut held)?;
                (
                    kept::decode(&self.kept, &mut raw),
                    raw.into_iter().map(|RawRow { line, columns }| (Some(line), columns)).collect(),
                )
            }
            Content::Parquet(parquet) => self.read_parquet(object, parquet, partition)?,
        };
        let raw: Vec<(Option<u64>, _)> = raw;
        let all_columns = self.spec.prompt == PromptColumns::Template;
        let rows = raw.into_iter().enumerate().map(|(offset, (line, mut columns))| {
            if let Ok(columns) = columns.as_mut()
                && all_columns
            {
                name_object(&object.name, columns);
            }
            let row_index = partition.first_row + offset as u64;
            let place = match line {
                Some(line) => format!("`{}` line {line} (row {row_index})", object.name),
                None => format!("`{}` row {row_index}", object.name),
            };
            let row = RowRef { partition: partition.id, offset: offset as u32 };
            rows::prompt_row(&self.spec, row, row_index, place, columns)
        });
        Ok(PartitionRows { partition: partition.id, kept, rows: rows.collect() })
    }

    #[allow(clippy::type_complexity, reason = "a local pair of kept columns and raw rows")]
    fn read_parquet(
        &self,
        object: &InputObject,
        parquet: &Parquet,
        partition: &Partition,
    ) -> Result<(RecordBatch, Vec<(Option<u64>, Result<Map<String, Value>, RowFailure>)>), InputError>
    {
        let needed = needed_columns(&self.spec);
        let all = self.spec.prompt == PromptColumns::Template;
        let place = (&self.storage, &object.location, object.name.as_str());
        let batch = parquet.read(
            place,
            (partition.first_row, partition.rows),
            (!all).then_some(&needed),
        )?;
        let kept = parquet::project(&batch, &Arc::new(Schema::new(self.kept.clone())));
        let of_rows: Vec<usize> = (0..batch.num_columns())
            .filter(|&index| {
                let name = batch.schema_ref().field(index).name();
                all || row_columns(&self.spec).contains(&name.as_str())
            })
            .collect();
        let columns = batch.project(&of_rows).expect("the indices are the batch's own");
        let rows = parquet::to_json(&columns, &object.name)?;
        Ok((kept, rows.into_iter().map(|columns| (None, Ok(columns))).collect()))
    }
}

/// Gives a row that shows all its columns two more: benchmarks have a subject a file, or a folder. `_file` is
/// the object's name up to its first dot, `_folder` that of the folder it is in.
fn name_object(object_name: &str, columns: &mut Map<String, Value>) {
    let mut names = object_name.rsplit('/');
    let file = names.next().unwrap_or_default();
    let file = file.split_once('.').map_or(file, |(stem, _)| stem);
    for (column, name) in [("_file", file), ("_folder", names.next().unwrap_or_default())] {
        columns.entry(column).or_insert_with(|| name.into());
    }
}

impl InputObject {
    /// Where it is, without credentials.
    pub fn url(&self) -> String {
        self.location.url()
    }

    /// How it is read: the name by which [`fingerprint`] knows it.
    pub fn format(&self) -> &'static str {
        match &self.content {
            Content::Jsonl { packing: Packing::Plain, .. } => "jsonl",
            Content::Jsonl { packing: Packing::Gzip, .. } => "jsonl.gz",
            Content::Jsonl { packing: Packing::Zstd, .. } => "jsonl.zst",
            Content::Parquet(_) => "parquet",
        }
    }
}

/// The fingerprint of the first `rows` rows of an object, read again.
pub fn fingerprint(
    storage: &Storage,
    location: &Location,
    format: &str,
    rows: u64,
) -> Result<String, InputError> {
    let name = location.to_string();
    let packing = match format {
        "jsonl" => Packing::Plain,
        "jsonl.gz" => Packing::Gzip,
        "jsonl.zst" => Packing::Zstd,
        _ => {
            let gone = || InputError::NoMatch { pattern: name.clone() };
            let entry = storage.head(location)?.ok_or_else(gone)?;
            return Parquet::open(storage, &entry, &name)?.fingerprint(storage, &entry, &name);
        }
    };
    jsonl::fingerprint(storage, (location, packing), &name, rows)
}

/// Columns from which a row is made; a template may use any.
fn row_columns(spec: &InputSpec) -> Vec<&str> {
    let prompt = match &spec.prompt {
        PromptColumns::Messages(column)
        | PromptColumns::Text(column)
        | PromptColumns::TokenIds(column) => Some(column.as_str()),
        PromptColumns::Template => None,
    };
    prompt.into_iter().chain(spec.id.as_deref()).chain(spec.sampling.columns()).collect()
}

/// Columns that the input must have.
fn needed_columns(spec: &InputSpec) -> Vec<&str> {
    row_columns(spec).into_iter().chain(spec.keep.iter().map(String::as_str)).collect()
}

/// An error that names the column which is probably meant.
fn missing<'a>(object: &str, column: &str, names: impl Iterator<Item = &'a str>) -> InputError {
    let nearest = names.min_by_key(|name| strsim::damerau_levenshtein(name, column));
    let near =
        nearest.filter(|name| strsim::damerau_levenshtein(name, column) <= 1 + column.len() / 3);
    InputError::MissingColumn {
        object: object.into(),
        column: column.into(),
        nearest: near.map(str::to_owned),
    }
}

fn open(
    storage: &Storage,
    spec: &InputSpec,
    found: Found,
    (left, rows_per_part): (u64, u64),
    sample: &mut Vec<Map<String, Value>>,
) -> Result<InputObject, InputError> {
    let Found { name, entry, format } = found;
    let (rows, fingerprint, content) = match format {
        Format::Jsonl(packing) => {
            let jsonl = Jsonl { storage, location: &entry.location, packing, name: &name, spec };
            let mut bytes = 0;
            let scan = jsonl.scan(left, rows_per_part, |columns, line_bytes| {
                sample.push(columns);
                bytes += line_bytes;
                sample.len() < SAMPLED_ROWS && bytes < SAMPLED_BYTES
            })?;
            (scan.rows, scan.fingerprint, Content::Jsonl { packing, marks: scan.marks })
        }
        Format::Parquet => {
            let parquet = Parquet::open(storage, &entry, &name)?;
            parquet.check(&name, spec)?;
            let fingerprint = parquet.fingerprint(storage, &entry, &name)?;
            (parquet.rows().min(left), fingerprint, Content::Parquet(parquet))
        }
    };
    Ok(InputObject {
        name,
        size: entry.size,
        etag: entry.etag,
        rows,
        fingerprint,
        location: entry.location,
        content,
    })
}

/// Refuses columns that no sampled JSONL row has: a typing error would otherwise fail every row.
fn check_sample(
    spec: &InputSpec,
    objects: &[InputObject],
    sample: &[Map<String, Value>],
) -> Result<(), InputError> {
    let Some(object) =
        objects.iter().find(|object| matches!(object.content, Content::Jsonl { .. }))
    else {
        return Ok(());
    };
    if sample.is_empty() {
        return Ok(());
    }
    match needed_columns(spec)
        .into_iter()
        .find(|column| !sample.iter().any(|row| row.contains_key(*column)))
    {
        Some(column) => Err(missing(
            &object.name,
            column,
            sample.iter().flat_map(|row| row.keys().map(String::as_str)),
        )),
        None => Ok(()),
    }
}

/// The kept columns' types: those of the Parquet objects if there are any, else what JSONL rows show.
fn kept_fields(
    spec: &InputSpec,
    objects: &[InputObject],
    sample: &[Map<String, Value>],
) -> Result<Fields, InputError> {
    let mut kept: Option<(&str, Vec<Field>)> = None;
    for object in objects {
        let Content::Parquet(parquet) = &object.content else { continue };
        let field = |column: &String| {
            let field = parquet
                .schema()
                .field_with_name(column)
                .expect("columns were checked when the object was opened");
            Field::new(column, field.data_type().clone(), true)
        };
        let fields: Vec<Field> = spec.keep.iter().map(field).collect();
        let Some((first, before)) = &kept else {
            kept = Some((&object.name, fields));
            continue;
        };
        if let Some((a, b)) =
            before.iter().zip(&fields).find(|(a, b)| a.data_type() != b.data_type())
        {
            return Err(InputError::KeptType {
                column: a.name().clone(),
                first: (*first).into(),
                first_type: a.data_type().to_string(),
                second: object.name.clone(),
                second_type: b.data_type().to_string(),
            });
        }
    }
    Ok(kept.map_or_else(|| kept::infer(&spec.keep, sample), |(_, fields)| fields).into())
}

/// Cuts objects into row ranges; an object without rows has one, so that it gets its part too.
fn partitions(objects: &[InputObject], rows_per_part: u64) -> Vec<Partition> {
    let mut partitions = Vec::new();
    for (object, rows) in objects.iter().map(|object| object.rows).enumerate() {
        for first_row in (0..rows.max(1)).step_by(rows_per_part as usize) {
            let id = PartitionId(partitions.len() as u32);
            let rows = rows_per_part.min(rows - first_row);
            partitions.push(Partition { id, object: object as u32, first_row, rows });
        }
    }
    partitions
}
