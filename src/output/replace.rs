//! Failed rows done again: the part is read, the rows that are better now are put in their places, and the
//! whole of it is written again. A success is never replaced by a failure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::{concat_batches, interleave_record_batch};
use arrow::datatypes::Int64Type;
use bytes::Bytes;

use super::folder::Output;
use super::part::Failures;
use super::{FinishedPartition, OutputError, PartId, check_part};
use crate::row::FailureCode;
use crate::storage::{Entry, Location};

/// A part as it is stored.
struct Stored {
    entry: Entry,
    rows: RecordBatch,
}

impl Output {
    /// The rows of a part, by their index in the object, that failed with one of these codes.
    pub fn failed_rows(
        &self,
        id: &PartId,
        rows: u64,
        codes: &[FailureCode],
    ) -> Result<BTreeSet<u64>, OutputError> {
        let stored = self.stored(id, rows)?;
        let wanted = |code: &str| codes.is_empty() || codes.iter().any(|c| c.as_str() == code);
        let failed = failed(&stored.rows).into_iter().filter(|(_, code)| wanted(code));
        Ok(failed.map(|(row, _)| row).collect())
    }

    /// Puts rows of a part that were done again in the place of the old ones; tells how many changed.
    pub fn replace(&self, rows: u64, again: FinishedPartition) -> Result<u64, OutputError> {
        let stored = self.stored(&again.id, rows)?;
        let error = |source| OutputError::Columns { part: again.id.path(), source };
        let chunks = self.encoder().chunks(&again).collect::<Result<Vec<_>, _>>().map_err(error)?;
        let new = concat_batches(&stored.rows.schema(), &chunks).map_err(error)?;
        let (was, is) = (failed(&stored.rows), failed(&new));
        let answered = answered(&stored.rows);
        let again_rows: BTreeSet<u64> = indices(&new).collect();
        let better: BTreeSet<u64> = again_rows
            .into_iter()
            .filter(|row| was.contains_key(row))
            .filter(|row| !is.contains_key(row) || !answered.contains(row))
            .collect();
        let merged = merged(&stored.rows, &new, &better).map_err(error)?;
        let mut failures = Failures::new();
        for code in failed(&merged).into_values() {
            *failures.entry(code).or_default() += 1;
        }
        let bytes = self.encoder().write((&again.id, rows), failures, [Ok(merged)].into_iter())?;
        self.storage().replace(&stored.entry, bytes)?;
        Ok(better.iter().filter(|row| !is.contains_key(row)).count() as u64)
    }

    fn stored(&self, id: &PartId, rows: u64) -> Result<Stored, OutputError> {
        let place: Location = self.place(id);
        let damaged = |cause: String| OutputError::DamagedPart { part: place.to_string(), cause };
        let entry = self.storage().head(&place)?.ok_or_else(|| damaged("it is gone".into()))?;
        let bytes: Bytes = self.storage().get(&place)?;
        let mut batches = Vec::new();
        let fingerprint = &self.encoder().facts().job_fingerprint;
        check_part(bytes, (id, rows), fingerprint, |batch| {
            batches.push(batch.clone());
            Ok(())
        })
        .map_err(damaged)?;
        let schema = batches.first().map(RecordBatch::schema);
        let schema = schema.ok_or_else(|| damaged("it has no rows".into()))?;
        let rows = concat_batches(&schema, &batches).map_err(|error| damaged(error.to_string()))?;
        Ok(Stored { entry, rows })
    }
}

fn indices(rows: &RecordBatch) -> impl Iterator<Item = u64> + '_ {
    let column = rows.column_by_name("row_index").map(|c| c.as_primitive::<Int64Type>());
    column.into_iter().flat_map(|column| column.values().iter().map(|&row| row as u64))
}

/// Each row with a failed sample, and the code of the first.
fn failed(rows: &RecordBatch) -> BTreeMap<u64, String> {
    let codes = rows.column_by_name("error_code").map(|column| column.as_string::<i32>());
    let mut failed = BTreeMap::new();
    for (at, row) in indices(rows).enumerate() {
        if let Some(codes) = codes.filter(|codes| codes.is_valid(at)) {
            failed.entry(row).or_insert_with(|| codes.value(at).to_owned());
        }
    }
    failed
}

/// The rows with a sample that did not fail.
fn answered(rows: &RecordBatch) -> BTreeSet<u64> {
    let codes = rows.column_by_name("error_code");
    let ok = |at: usize| codes.is_some_and(|codes| codes.is_null(at));
    indices(rows).enumerate().filter(|(at, _)| ok(*at)).map(|(_, row)| row).collect()
}

/// The old rows in order, those of `better` taken from the new ones.
fn merged(
    old: &RecordBatch,
    new: &RecordBatch,
    better: &BTreeSet<u64>,
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let mut places: HashMap<u64, Vec<usize>> = HashMap::new();
    for (at, row) in indices(new).enumerate() {
        places.entry(row).or_default().push(at);
    }
    let mut order = Vec::with_capacity(old.num_rows());
    for (at, row) in indices(old).enumerate() {
        match better.contains(&row) {
            false => order.push((0, at)),
            // All of the row's new samples come where its first old one was.
            true => {
                order.extend(places.remove(&row).unwrap_or_default().into_iter().map(|at| (1, at)))
            }
        }
    }
    interleave_record_batch(&[old, new], &order)
}
