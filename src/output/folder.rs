//! The output folder: whose it is, which parts it has, and how a part enters it. A part exists whole or
//! not at all, and its place in the listing is the only record that it is done.

use std::collections::HashMap;
use std::time::SystemTime;

use arrow::datatypes::Fields;
use bytes::Bytes;

use super::experts::{self, ExpertLoad};
use super::footer::{self, MIN_PART_BYTES, PartFacts};
use super::journal::{self, JOURNAL_PATH, Journal, JournalEntry};
use super::part::Encoder;
use super::record::RECORD_PATH;
use super::samples::EVAL_FOLDER;
use super::{FinishedPartition, JobFacts, JobRecord, OutputError, OutputSpec, PartId};
use crate::storage::{Entry, Location, PutOutcome, Storage};

/// The largest object that S3 takes in one put, and only a single put can be create-only.
const MAX_PART_BYTES: u64 = 5 << 30;
/// Most unknown files named in a warning.
const MAX_NAMED: usize = 5;

/// The output folder of one job; parts may be committed from several threads.
pub struct Output {
    storage: Storage,
    root: Location,
    encoder: Encoder,
}

/// How a part came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// This call wrote it.
    New,
    /// The same part was there already.
    Found,
}

impl Output {
    /// Opens a folder for a job: begins it, or finds that the same job has begun it.
    ///
    /// Nothing is written but the job record, which also shows that the folder can be written.
    pub fn open(
        storage: Storage,
        root: Location,
        spec: OutputSpec,
        kept: Fields,
        facts: JobFacts,
    ) -> Result<Self, OutputError> {
        let encoder = Encoder::new(spec, &kept, facts)?;
        let output = Self { storage, root, encoder };
        output.begin_or_compare()?;
        Ok(output)
    }

    /// The folder itself.
    pub fn root(&self) -> &Location {
        &self.root
    }

    pub(super) fn place_of_records(&self) -> (&Storage, &Location) {
        (&self.storage, &self.root)
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.storage
    }

    pub(super) fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    fn begin_or_compare(&self) -> Result<(), OutputError> {
        let place = self.root.child(RECORD_PATH);
        let now = JobRecord::new(self.encoder.facts());
        let put = || {
            let put = self.storage.put_create(&place, Bytes::from(now.to_json()));
            put.map_err(|source| self.not_writable(source))
        };
        // Looked for first: a store that ignores conditions would replace another job's record.
        let there = self.storage.head(&place).map_err(|source| self.not_writable(source))?;
        if there.is_none() && put()? == PutOutcome::Created {
            if put()? == PutOutcome::Created {
                tracing::warn!(
                    output = self.root.to_string(),
                    "this store replaces objects that it was told to create: two runners at once do the same work twice, and the last one's parts stay"
                );
            }
            return Ok(());
        }
        let differences = JobRecord::read(&self.storage, &place)?.differences(&now);
        if differences.is_empty() {
            return Ok(());
        }
        Err(OutputError::DifferentJob { output: self.root.to_string(), differences })
    }

    fn not_writable(&self, source: crate::storage::StorageError) -> OutputError {
        OutputError::NotWritable { output: self.root.to_string(), source }
    }

    /// Tells for each wanted part whether it is there, by one listing.
    ///
    /// The last one found is also opened: a changed input or a folder put together by hand shows there.
    /// Files that are no wanted part are reported to the log and left alone.
    pub fn committed(&self, wanted: &[(PartId, u64)]) -> Result<Vec<bool>, OutputError> {
        let entries = self.storage.list(&self.root.child("parts"))?;
        let mut listed: HashMap<String, Entry> =
            entries.into_iter().map(|entry| (entry.location.to_string(), entry)).collect();
        let mut done = Vec::with_capacity(wanted.len());
        let mut last = None;
        for (id, rows) in wanted {
            let entry = listed.remove(&self.place(id).to_string());
            done.push(entry.is_some());
            let Some(entry) = entry else { continue };
            if entry.size < MIN_PART_BYTES {
                return Err(footer::too_small(&entry.location, entry.size));
            }
            last = Some((id, *rows, entry.size));
        }
        if let Some((id, rows, size)) = last {
            self.expect_same(id, rows, size)?;
        }
        warn_of_unknown(listed.into_keys().collect());
        Ok(done)
    }

    /// Writes a part, whole or not at all.
    ///
    /// A part that is there already is right if it is this job's and has these rows: another runner was
    /// faster, or our own first attempt succeeded and its answer was lost.
    pub fn commit(&self, part: FinishedPartition) -> Result<Committed, OutputError> {
        let bytes = self.encoder.encode(&part)?;
        let place = self.place(&part.id);
        check_size(&place, bytes.len() as u64)?;
        if self.storage.put_create(&place, bytes)? == PutOutcome::Created {
            return Ok(Committed::New);
        }
        let size = self.storage.head(&place)?.map_or(0, |entry| entry.size);
        self.expect_same(&part.id, part.rows, size)?;
        Ok(Committed::Found)
    }

    /// Stores the report of a run, replacing an earlier one of the same run.
    pub fn write_report(&self, run_id: &str, json: &str) -> Result<(), OutputError> {
        let place = self.root.child(&format!("{RUNS_PATH}/{run_id}.json"));
        Ok(self.storage.put(&place, Bytes::from(json.to_owned()))?)
    }

    /// Stores where the tokens of a run were routed.
    pub fn write_experts(&self, run_id: &str, loads: &[ExpertLoad]) -> Result<(), OutputError> {
        let place = self.root.child(&format!("{RUNS_PATH}/{run_id}.experts.parquet"));
        let bytes = experts::encode(loads).map_err(|source| OutputError::Experts { source })?;
        Ok(self.storage.put(&place, bytes)?)
    }

    /// Reads what runs left of open partitions; what cannot be used is reported to the log and left alone.
    pub fn read_journals(&self) -> Result<Journal, OutputError> {
        let mut journal = Journal::default();
        for entry in self.storage.list(&self.root.child(JOURNAL_PATH))? {
            let bytes = self.storage.get(&entry.location)?;
            if let Err(why) = journal.read(&bytes, &self.encoder.facts().job_fingerprint) {
                tracing::warn!(
                    journal = entry.location.to_string(),
                    why,
                    "a journal is passed over"
                );
            }
        }
        Ok(journal)
    }

    /// Stores what a run has of open partitions, replacing what it stored before.
    pub fn write_journal(
        &self,
        run_id: &str,
        entries: Vec<JournalEntry>,
    ) -> Result<(), OutputError> {
        let place = self.root.child(&format!("{JOURNAL_PATH}/{run_id}.zst"));
        let bytes = journal::encode(entries, &self.encoder.facts().job_fingerprint)
            .map_err(|source| OutputError::Journal { source })?;
        Ok(self.storage.put(&place, bytes)?)
    }

    /// Removes all journals: nothing is open any more.
    pub(super) fn forget_journals(&self) -> Result<(), OutputError> {
        for entry in self.storage.list(&self.root.child(JOURNAL_PATH))? {
            self.storage.delete(&entry.location)?;
        }
        Ok(())
    }

    /// Leaves nothing behind that a complete job does not need: journals, and what runs that were killed
    /// before this one `began` had not finished writing.
    pub fn tidy(&self, began: SystemTime) -> Result<(), OutputError> {
        for folder in ["parts", "_nightshift", EVAL_FOLDER] {
            let folder = self.root.child(folder);
            if let Err(error) = self.storage.forget_unfinished(&folder, began) {
                tracing::warn!(%error, "unfinished files of killed runs are left in the output");
            }
        }
        self.forget_journals()
    }

    pub(super) fn place(&self, id: &PartId) -> Location {
        self.root.child(&id.path())
    }

    fn expect_same(&self, id: &PartId, rows: u64, size: u64) -> Result<(), OutputError> {
        let place = self.place(id);
        let facts = footer::read_facts(&self.storage, &place, size)?;
        match foreign(facts.as_ref(), id, rows, &self.encoder.facts().job_fingerprint) {
            Some(difference) => {
                Err(OutputError::ForeignPart { part: place.to_string(), difference })
            }
            None => Ok(()),
        }
    }
}

/// Where the reports of runs lie in the output folder.
pub(super) const RUNS_PATH: &str = "_nightshift/runs";

/// Says in what a part is not the expected one.
fn foreign(
    facts: Option<&PartFacts>,
    id: &PartId,
    rows: u64,
    job_fingerprint: &str,
) -> Option<String> {
    let Some(facts) = facts else { return Some("nightshift did not write it".to_owned()) };
    if facts.job_fingerprint != job_fingerprint {
        return Some(format!(
            "its job fingerprint is {}, expected {job_fingerprint}",
            facts.job_fingerprint
        ));
    }
    let span =
        |object: &str, first: u64, rows: u64| format!("{rows} rows from row {first} of `{object}`");
    let found = span(&facts.object, facts.first_row, facts.rows);
    let expected = span(&id.object_name, id.first_row, rows);
    (found != expected).then(|| format!("it holds {found}, expected {expected}"))
}

fn check_size(place: &Location, bytes: u64) -> Result<(), OutputError> {
    if bytes > MAX_PART_BYTES {
        return Err(OutputError::PartTooLarge {
            part: place.to_string(),
            bytes,
            limit: MAX_PART_BYTES,
        });
    }
    Ok(())
}

fn warn_of_unknown(mut names: Vec<String>) {
    if names.is_empty() {
        return;
    }
    names.sort();
    let count = names.len();
    names.truncate(MAX_NAMED);
    tracing::warn!(
        count,
        first = names.join(", "),
        "files among the parts are not of this job; they are left alone"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_over_the_limit_of_one_put_names_the_setting() {
        let storage = Storage::new().unwrap();
        let place = storage.locate("memory:///out", std::path::Path::new("/")).unwrap();
        assert!(check_size(&place, MAX_PART_BYTES).is_ok());
        let error = check_size(&place, MAX_PART_BYTES + 1).unwrap_err();
        assert!(error.hint().unwrap().contains("rows_per_part"), "{error}");
    }
}
