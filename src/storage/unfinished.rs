//! What writers that were killed leave on the local disk: an object is staged as `name#1` beside its place
//! until it is whole. Listings pass such files over; other programs that read the folder would not.

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
        match forget(&path, before) {
            // There is no such folder, or another process tidies it too.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(|error| {
                StorageError::from_system(Operation::Delete, folder.to_string(), &error)
            }),
        }
    }
}

fn forget(folder: &Path, before: SystemTime) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            forget(&entry.path(), before)?;
        } else if kind.is_file()
            && is_unfinished(&entry.file_name().to_string_lossy())
            && entry.metadata()?.modified()? < before
        {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_unfinished(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(object, number)| {
        !object.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    })
}
