//! Bytes by name: `s3://`, `gs://`, `az://`, `file://`, plain paths and `memory://` behind one blocking interface to list,
//! read in ranges, and put atomically. The only place that knows an async runtime; it does not know what
//! the bytes mean.

mod error;
mod location;
mod profile;
mod reader;
mod unfinished;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, UpdateVersion};
use tokio::runtime::Runtime;

pub use error::StorageError;
pub use location::Location;
pub use reader::ObjectReader;

use error::Operation;
use location::Store;

/// Opens stores by URL or path and keeps one per root; every call blocks until it is answered.
#[derive(Clone)]
pub struct Storage {
    shared: Arc<Shared>,
}

struct Shared {
    runtime: Runtime,
    stores: Mutex<HashMap<String, Arc<Store>>>,
}

/// An object as a listing shows it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it is.
    pub location: Location,
    /// Its size in bytes.
    pub size: u64,
    /// The store's tag of this version of it.
    pub etag: Option<String>,
    /// When it was last written.
    pub modified: SystemTime,
}

/// One level of a folder.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    /// The folders in it, sorted.
    pub folders: Vec<Location>,
    /// The objects in it, sorted.
    pub objects: Vec<Entry>,
}

/// What a create-only put found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is new.
    Created,
    /// An object of this name was there before; it is untouched.
    AlreadyExists,
}

impl Storage {
    /// Starts the runtime that the stores run on.
    pub fn new() -> Result<Self, StorageError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("storage")
            .enable_all()
            .build()
            .map_err(|cause| StorageError::Runtime { cause: cause.to_string() })?;
        Ok(Self { shared: Arc::new(Shared { runtime, stores: Mutex::default() }) })
    }

    /// The same, with a store of the caller's own behind `memory://`.
    pub fn with_memory(objects: Arc<dyn ObjectStore>) -> Result<Self, StorageError> {
        let storage = Self::new()?;
        let (root, store) = Store::memory(objects);
        storage.shared.stores.lock().expect("no holder of the stores panics").insert(root, store);
        Ok(storage)
    }

    /// Finds out where a path (relative to `base`) or a URL leads; nothing needs to be there yet.
    pub fn locate(&self, text: &str, base: &Path) -> Result<Location, StorageError> {
        let place = location::parse(text, base)?;
        let mut stores = self.shared.stores.lock().expect("no holder of the stores panics");
        let store = match stores.get(&place.root) {
            Some(store) => store.clone(),
            None => {
                let store = Arc::new(Store::open(&place.root)?);
                stores.insert(place.root, store.clone());
                store
            }
        };
        Ok(Location::new(store, place.path, place.shown))
    }

    /// Lists all objects below a folder, at any depth, sorted by path; a missing folder is empty.
    pub fn list(&self, folder: &Location) -> Result<Vec<Entry>, StorageError> {
        let listing = folder.objects().list(Some(folder.path())).try_collect::<Vec<_>>();
        let metas = self.wait(listing).or_else(|error| no_such_folder(folder, error))?;
        let mut entries: Vec<Entry> = metas.into_iter().map(|meta| entry(folder, meta)).collect();
        entries.sort_by(|a, b| a.location.path().cmp(b.location.path()));
        Ok(entries)
    }

    /// Lists one level of a folder; a missing folder is empty.
    pub fn list_folder(&self, folder: &Location) -> Result<Folder, StorageError> {
        let listing = folder.objects().list_with_delimiter(Some(folder.path()));
        let level = match self.wait(listing) {
            Ok(level) => level,
            Err(error) => return no_such_folder(folder, error).map(|()| Folder::default()),
        };
        let mut folders: Vec<Location> =
            level.common_prefixes.into_iter().map(|path| folder.below(path)).collect();
        let mut objects: Vec<Entry> =
            level.objects.into_iter().map(|meta| entry(folder, meta)).collect();
        folders.sort_by(|a, b| a.path().cmp(b.path()));
        objects.sort_by(|a, b| a.location.path().cmp(b.location.path()));
        Ok(Folder { folders, objects })
    }

    /// Looks one object up; a folder is none.
    pub fn head(&self, location: &Location) -> Result<Option<Entry>, StorageError> {
        if location.path().is_root() {
            return Ok(None);
        }
        match self.wait(location.objects().head(location.path())) {
            Ok(meta) => Ok(Some(Entry { location: location.clone(), ..entry(location, meta) })),
            Err(error) => match StorageError::new(Operation::Read, location, error) {
                StorageError::NotFound { .. } => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Reads a whole object.
    pub fn get(&self, location: &Location) -> Result<Bytes, StorageError> {
        let get = async { location.objects().get(location.path()).await?.bytes().await };
        self.wait(get).map_err(|error| StorageError::new(Operation::Read, location, error))
    }

    /// Reads the bytes of a range, which must lie inside of the object.
    pub fn get_range(&self, location: &Location, range: Range<u64>) -> Result<Bytes, StorageError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.wait(location.objects().get_range(location.path(), range))
            .map_err(|error| StorageError::new(Operation::Read, location, error))
    }

    /// Reads an object from byte `from` to its end, in bounded chunks.
    ///
    /// A remote object that is replaced meanwhile is an error, not a mixture of both.
    pub fn reader(&self, location: &Location, from: u64) -> Result<ObjectReader, StorageError> {
        ObjectReader::open(self, location, from)
    }

    /// Writes a new object, whole or not at all; durable when this returns.
    pub fn put_create(
        &self,
        location: &Location,
        bytes: Bytes,
    ) -> Result<PutOutcome, StorageError> {
        let put = location.objects().put_opts(
            location.path(),
            PutPayload::from(bytes.clone()),
            PutMode::Create.into(),
        );
        match self.wait(put) {
            Ok(_) => Ok(PutOutcome::Created),
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Ok(PutOutcome::AlreadyExists),
            Err(error) if error::lacks_hard_links(&error) => {
                self.put_create_by_rename(location, bytes)
            }
            Err(error) => Err(StorageError::new(Operation::Write, location, error)),
        }
    }

    /// The fallback where a file system has no hard links: two writers that race may both be told
    /// `Created`, and the last one's object stays, whole.
    fn put_create_by_rename(
        &self,
        location: &Location,
        bytes: Bytes,
    ) -> Result<PutOutcome, StorageError> {
        if self.head(location)?.is_some() {
            return Ok(PutOutcome::AlreadyExists);
        }
        self.put(location, bytes).map(|()| PutOutcome::Created)
    }

    /// Writes an object, replacing what was there, whole or not at all; durable when this returns.
    pub fn put(&self, location: &Location, bytes: Bytes) -> Result<(), StorageError> {
        match self.wait(location.objects().put(location.path(), PutPayload::from(bytes))) {
            Ok(_) => Ok(()),
            Err(error) => Err(StorageError::new(Operation::Write, location, error)),
        }
    }

    /// Replaces an object that nobody changed meanwhile, where the store can tell; on a disk the last
    /// writer's object stays, whole.
    pub fn replace(&self, entry: &Entry, bytes: Bytes) -> Result<(), StorageError> {
        let location = &entry.location;
        let version = UpdateVersion { e_tag: entry.etag.clone(), version: None };
        let put = location.objects().put_opts(
            location.path(),
            PutPayload::from(bytes.clone()),
            PutMode::Update(version).into(),
        );
        match self.wait(put) {
            Ok(_) => Ok(()),
            Err(
                object_store::Error::NotImplemented { .. }
                | object_store::Error::NotSupported { .. },
            ) => self.put(location, bytes),
            Err(error) => Err(StorageError::new(Operation::Write, location, error)),
        }
    }

    /// Removes an object; one that is not there counts as removed.
    pub fn delete(&self, location: &Location) -> Result<(), StorageError> {
        match self.wait(location.objects().delete(location.path())) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StorageError::new(Operation::Delete, location, error)),
        }
    }

    fn wait<T>(
        &self,
        answer: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        self.shared.runtime.block_on(answer)
    }
}

fn entry(folder: &Location, meta: ObjectMeta) -> Entry {
    Entry {
        location: folder.below(meta.location),
        size: meta.size,
        etag: meta.e_tag,
        modified: meta.last_modified.into(),
    }
}

/// Takes "there is no such folder" for an empty one; a missing bucket stays an error.
fn no_such_folder<T: Default>(
    folder: &Location,
    error: object_store::Error,
) -> Result<T, StorageError> {
    match StorageError::new(Operation::List, folder, error) {
        StorageError::NotFound { .. } => Ok(T::default()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests;
