//! What writers that were killed leave on the local disk: an object is staged as `name#1` beside its place
//! until it is whole. Listings pass such files over; other programs that read the folder would not.

use std::fs::DirEntry;
use std::path::Path;
use std::time::SystemTime;

use super::error::Operation;
use super::{Location, Storage, StorageError};

impl Storage {
    /// Removes unfinished objects at any depth of a folder that nobody has touched since `before`; a younger
    /// one may be another process's that is still writing. Other stores keep none.
    pub fn forget_unfinished(
        &self,
        folder: &Location,
        before: SystemTime,
    ) -> Result<(), StorageError> {
        let Some(path) = folder.local_path() else { return Ok(()) };
        forget(&path, before).map_err(|error| {
            StorageError::from_system(Operation::Delete, folder.to_string(), &error)
        })
    }
}

/// Takes a folder that is not there for an empty one.
fn forget(folder: &Path, before: SystemTime) -> std::io::Result<()> {
    let Some(entries) = there(std::fs::read_dir(folder))? else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            forget(&entry.path(), before)?;
        } else if is_unfinished(&entry.file_name().to_string_lossy()) {
            there(forget_file(&entry, before))?;
        }
    }
    Ok(())
}

fn forget_file(entry: &DirEntry, before: SystemTime) -> std::io::Result<()> {
    let facts = entry.metadata()?;
    match facts.is_file() && facts.modified()? < before {
        true => std::fs::remove_file(entry.path()),
        false => Ok(()),
    }
}

/// None for what is not there, or not any more: another process may tidy too.
fn there<T>(found: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(object, number)| {
        !object.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    })
}
