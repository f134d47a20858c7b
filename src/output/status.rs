//! How far an output is, from the store alone: the job record, the footers of the parts, and the newest
//! run report. It needs neither the job file nor the input, and works while a run is writing.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::folder::RUNS_PATH;
use super::footer::{self, PartFacts};
use super::record::RECORD_PATH;
use super::{InputsRecord, JobRecord, OutputError};
use crate::storage::{Entry, Location, Storage};

/// Footers that are read at the same time.
const FOOTERS_AT_ONCE: usize = 32;

/// The progress of an output.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The output folder.
    pub output: String,
    /// Whether every part is there.
    pub complete: bool,
    /// Parts.
    pub parts: PartCounts,
    /// Input rows.
    pub rows: RowCounts,
    /// Failed input rows by error code.
    pub failures: BTreeMap<String, u64>,
    /// Files among the parts that are not parts of this job.
    pub unknown: Vec<String>,
    /// Parts that cannot be read, with the reason.
    pub damaged: Vec<String>,
    /// The newest run's report, once a run has written one.
    pub last_run: Option<LastRun>,
    /// The job that the output belongs to.
    pub record: JobRecord,
}

/// Parts: of the job, and there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PartCounts {
    /// Parts of the whole job.
    pub total: u64,
    /// Committed parts.
    pub committed: u64,
    /// Their size.
    pub bytes: u64,
}

/// Input rows: of the job, and in committed parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RowCounts {
    /// Input rows of the whole job.
    pub total: u64,
    /// Rows with all samples ok.
    pub ok: u64,
    /// Rows that failed, or of which a sample did.
    pub failed: u64,
    /// Output rows.
    pub samples: u64,
}

/// The report that a run left.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LastRun {
    /// The run's id.
    pub id: String,
    /// Its report.
    pub report: Value,
}

impl Status {
    /// Reads the status of an output folder.
    pub fn read(storage: &Storage, root: &Location) -> Result<Self, OutputError> {
        let inputs = InputsRecord::read(storage, root)?.unwrap_or_default();
        let mut status = Self::begun(root, read_job(storage, root)?, &inputs);
        // Footers of a remote store are waited for, not computed: many at a time.
        let entries = storage.list(&root.child("parts"))?;
        for entries in entries.chunks(FOOTERS_AT_ONCE) {
            let facts = std::thread::scope(|scope| {
                let read = |entry| scope.spawn(move || read_facts(storage, entry));
                let readers: Vec<_> = entries.iter().map(read).collect();
                let join = |reader: std::thread::ScopedJoinHandle<'_, _>| {
                    reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                };
                readers.into_iter().map(join).collect::<Vec<_>>()
            });
            for (entry, facts) in entries.iter().zip(facts) {
                status.count(entry, facts)?;
            }
        }
        status.complete = inputs.parts() > 0 && status.parts.committed >= inputs.parts();
        status.last_run = read_last_run(storage, root)?;
        Ok(status)
    }

    fn begun(root: &Location, record: JobRecord, inputs: &InputsRecord) -> Self {
        Self {
            output: root.to_string(),
            complete: false,
            parts: PartCounts { total: inputs.parts(), ..PartCounts::default() },
            rows: RowCounts { total: inputs.rows(), ..RowCounts::default() },
            failures: BTreeMap::new(),
            unknown: Vec::new(),
            damaged: Vec::new(),
            last_run: None,
            record,
        }
    }

    /// Adds one file of the listing.
    fn count(
        &mut self,
        entry: &Entry,
        facts: Result<Option<PartFacts>, OutputError>,
    ) -> Result<(), OutputError> {
        let name = entry.location.to_string();
        let facts = match facts {
            Err(error @ OutputError::DamagedPart { .. }) => {
                self.damaged.push(error.to_string());
                return Ok(());
            }
            facts => facts?,
        };
        let Some(facts) =
            facts.filter(|facts| facts.job_fingerprint == self.record.job_fingerprint)
        else {
            self.unknown.push(name);
            return Ok(());
        };
        self.parts.committed += 1;
        self.parts.bytes += entry.size;
        self.rows.ok += facts.ok_rows;
        self.rows.failed += facts.failed_rows;
        self.rows.samples += facts.samples;
        for (code, rows) in facts.failures {
            *self.failures.entry(code).or_default() += rows;
        }
        Ok(())
    }
}

/// What a file says about itself; none if it is no part.
fn read_facts(storage: &Storage, entry: &Entry) -> Result<Option<PartFacts>, OutputError> {
    match entry.location.file_name().ends_with(".parquet") {
        true => footer::read_facts(storage, &entry.location, entry.size),
        false => Ok(None),
    }
}

/// The job that an output belongs to.
pub fn read_job(storage: &Storage, root: &Location) -> Result<JobRecord, OutputError> {
    let place = root.child(RECORD_PATH);
    if storage.head(&place)?.is_none() {
        return Err(OutputError::NotAnOutput { output: root.to_string(), record: RECORD_PATH });
    }
    JobRecord::read(storage, &place)
}

/// Finds the newest readable report; a torn one is passed over.
fn read_last_run(storage: &Storage, root: &Location) -> Result<Option<LastRun>, OutputError> {
    let mut entries = storage.list(&root.child(RUNS_PATH))?;
    entries.sort_by_key(|entry| (entry.modified, entry.location.to_string()));
    for entry in entries.iter().rev() {
        let name = entry.location.to_string();
        let Some(id) = name.rsplit('/').next().and_then(|name| name.strip_suffix(".json")) else {
            continue;
        };
        match serde_json::from_slice(&storage.get(&entry.location)?) {
            Ok(report) => return Ok(Some(LastRun { id: id.to_owned(), report })),
            Err(cause) => {
                tracing::warn!(report = name, %cause, "a run report is damaged and passed over")
            }
        }
    }
    Ok(None)
}
