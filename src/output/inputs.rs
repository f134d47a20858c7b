//! The record of the input, `_nightshift/inputs.json`: which objects the output was made from. It grows
//! when objects are added; an object that changed under its name is refused, or its parts are done again.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::folder::Output;
use super::{OutputError, PartId};
use crate::storage::{Location, Storage};

/// Where the record lies in the output folder.
const INPUTS_PATH: &str = "_nightshift/inputs.json";

/// One object of the input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFact {
    /// As the `input` column names it.
    pub name: String,
    /// Where it is, without credentials.
    pub url: String,
    /// How it is read: `jsonl`, `jsonl.gz`, `jsonl.zst` or `parquet`.
    pub format: String,
    /// Bytes.
    pub size: u64,
    /// Rows, as far as the job's limit lets them in.
    pub rows: u64,
    /// What its rows are, in short: equal for equal rows.
    pub fingerprint: String,
}

/// All objects of the input, and how they are cut into parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputsRecord {
    /// Rows of a part.
    pub rows_per_part: u64,
    /// The objects, by name.
    pub objects: Vec<InputFact>,
}

impl InputsRecord {
    /// Rows of all objects.
    pub fn rows(&self) -> u64 {
        self.objects.iter().map(|object| object.rows).sum()
    }

    /// Parts of all objects; an object without rows has one too.
    pub fn parts(&self) -> u64 {
        let per_part = self.rows_per_part.max(1);
        self.objects.iter().map(|object| object.rows.max(1).div_ceil(per_part)).sum()
    }

    /// Every part that the output shall have, with its rows.
    pub fn wanted(&self) -> impl Iterator<Item = (PartId, u64)> + '_ {
        self.objects.iter().flat_map(|object| {
            (0..object.rows.max(1)).step_by(self.rows_per_part as usize).map(|first_row| {
                let part = PartId { object_name: object.name.clone(), first_row };
                (part, self.rows_per_part.min(object.rows - first_row))
            })
        })
    }

    /// Reads the record of an output; none if no run has got as far as writing it.
    pub fn read(storage: &Storage, root: &Location) -> Result<Option<Self>, OutputError> {
        let place = root.child(INPUTS_PATH);
        if storage.head(&place)?.is_none() {
            return Ok(None);
        }
        let bytes = storage.get(&place)?;
        let record = serde_json::from_slice::<Self>(&bytes);
        match record {
            Ok(record) if record.rows_per_part > 0 => Ok(Some(record)),
            Ok(_) => Err(damaged(&place, "no rows per part")),
            Err(cause) => Err(damaged(&place, &cause.to_string())),
        }
    }

    /// The names of objects that are other than they were, and of those that are gone.
    fn lost(&self, now: &Self) -> (Vec<&InputFact>, Vec<&InputFact>) {
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        for object in &self.objects {
            match now.objects.iter().find(|other| other.name == object.name) {
                None => removed.push(object),
                Some(other)
                    if (other.rows, &other.fingerprint) != (object.rows, &object.fingerprint) =>
                {
                    changed.push(object);
                }
                Some(_) => {}
            }
        }
        (changed, removed)
    }
}

fn damaged(place: &Location, cause: &str) -> OutputError {
    OutputError::DamagedRecord { record: place.to_string(), cause: cause.to_owned() }
}

impl Output {
    /// Compares the input with that of earlier runs and records it. Added objects are new work; parts of
    /// objects that changed or are gone are an error, or are removed if they shall be done again.
    pub fn accept_inputs(&self, now: &InputsRecord, redo_changed: bool) -> Result<(), OutputError> {
        let (storage, root) = self.place_of_records();
        let before = InputsRecord::read(storage, root)?;
        if before.as_ref() == Some(now) {
            return Ok(());
        }
        if let Some(before) = &before {
            let (changed, removed) = before.lost(now);
            let names = |facts: &[&InputFact]| facts.iter().map(|fact| fact.name.clone()).collect();
            if !(changed.is_empty() && removed.is_empty()) {
                if !redo_changed {
                    return Err(OutputError::InputChanged {
                        changed: names(&changed),
                        removed: names(&removed),
                    });
                }
                // The journal goes first: it may hold rows of what changed.
                self.forget_journals()?;
                for object in changed.into_iter().chain(removed) {
                    self.remove_parts(&object.name)?;
                }
            }
        }
        let json = serde_json::to_string_pretty(now).expect("a record has text keys only");
        Ok(storage.put(&root.child(INPUTS_PATH), Bytes::from(json))?)
    }

    fn remove_parts(&self, object_name: &str) -> Result<(), OutputError> {
        let (storage, root) = self.place_of_records();
        let first = PartId { object_name: object_name.to_owned(), first_row: 0 }.path();
        let folder = first.rsplit_once('/').map_or(first.as_str(), |(folder, _)| folder);
        for entry in storage.list(&root.child(folder))? {
            storage.delete(&entry.location)?;
        }
        Ok(())
    }
}
