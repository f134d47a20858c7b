//! Proves an output: every input row has exactly one outcome, and no byte of it changed. Reads one part
//! at a time; the same walk merges the parts into ordered files.

use std::collections::HashSet;
use std::path::Path;

use arrow::array::RecordBatch;
use serde::Serialize;

use super::RunError;
use crate::input;
use crate::output::{InputFact, InputsRecord, check_part, read_job};
use crate::storage::{Location, Storage};

/// Most problems that are told one by one.
const MAX_PROBLEMS: usize = 100;

/// What a verification found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verification {
    /// Whether every row has its one outcome and nothing is wrong.
    pub sound: bool,
    /// Input objects.
    pub objects: u64,
    /// Input rows.
    pub rows: u64,
    /// Parts that were read and found right.
    pub parts: u64,
    /// Output rows in them.
    pub samples: u64,
    /// Input rows in them whose outcome is a failure.
    pub failed_rows: u64,
    /// Input rows without a sound part.
    pub missing_rows: u64,
    /// What is wrong, at most 100 of it.
    pub problems: Vec<String>,
    /// How much is wrong.
    pub problem_count: u64,
}

impl Verification {
    fn problem(&mut self, text: String) {
        self.problem_count += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(text);
        }
    }
}

/// Takes the rows of sound parts, in input order.
pub(super) trait Rows {
    /// Takes a part's rows, once all of them are known to be right.
    fn part(&mut self, batches: Vec<RecordBatch>) -> Result<(), RunError>;
}

/// Nobody takes them.
struct Nowhere;

impl Rows for Nowhere {
    fn part(&mut self, _: Vec<RecordBatch>) -> Result<(), RunError> {
        Ok(())
    }
}

/// Verifies an output; with `inputs`, also that the input is still what it was.
pub fn verify(storage: &Storage, output: &str, inputs: bool) -> Result<Verification, RunError> {
    let root = storage.locate(output, Path::new("."))?;
    walk(storage, &root, inputs, &mut Nowhere)
}

pub(super) fn walk(
    storage: &Storage,
    root: &Location,
    inputs: bool,
    rows: &mut impl Rows,
) -> Result<Verification, RunError> {
    let job = read_job(storage, root)?;
    let record = InputsRecord::read(storage, root)?.unwrap_or_default();
    let mut found = Verification {
        objects: record.objects.len() as u64,
        rows: record.rows(),
        ..Verification::default()
    };
    if inputs {
        for object in &record.objects {
            if let Some(problem) = changed(storage, object)? {
                found.problem(problem);
            }
        }
    }
    let listed = storage.list(&root.child("parts"))?;
    let mut listed: HashSet<String> = listed.into_iter().map(|e| e.location.to_string()).collect();
    for (id, part_rows) in record.wanted() {
        let place = root.child(&id.path());
        if !listed.remove(&place.to_string()) {
            found.missing_rows += part_rows;
            found.problem(format!("`{place}` is missing: {part_rows} rows"));
            continue;
        }
        let mut batches = Vec::new();
        let checked =
            check_part(storage.get(&place)?, (&id, part_rows), &job.job_fingerprint, |batch| {
                batches.push(batch.clone());
                Ok(())
            });
        match checked {
            Ok(content) => {
                found.parts += 1;
                found.samples += content.samples;
                found.failed_rows += content.failed;
                rows.part(batches)?;
            }
            Err(why) => {
                found.missing_rows += part_rows;
                found.problem(format!("`{place}` is damaged: {why}"));
            }
        }
    }
    let mut others: Vec<String> = listed.into_iter().collect();
    others.sort();
    for other in others {
        found.problem(format!("`{other}` is no part of this job"));
    }
    found.sound = found.problem_count == 0;
    Ok(found)
}

/// Says in what an input object is not what it was.
fn changed(storage: &Storage, object: &InputFact) -> Result<Option<String>, RunError> {
    let location = storage.locate(&object.url, Path::new("/"))?;
    if storage.head(&location)?.is_none() {
        return Ok(Some(format!("input `{}` is gone", object.name)));
    }
    let now = input::fingerprint(storage, &location, &object.format, object.rows)?;
    Ok((now != object.fingerprint).then(|| format!("input `{}` has changed", object.name)))
}
