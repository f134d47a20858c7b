//! One object read from front to back. A file is read from its handle; a remote object in ranged requests,
//! each retried by itself, so that a reader may pause for as long as it likes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use bytes::{Buf, Bytes};
use object_store::{GetOptions, GetRange, ObjectStore};

use super::error::Operation;
use super::{Location, Storage, StorageError};

const CHUNK_BYTES: u64 = 8 << 20;

/// Streams the bytes of one object.
pub struct ObjectReader {
    source: Source,
}

enum Source {
    File(File),
    Remote(Box<Remote>),
}

struct Remote {
    storage: Storage,
    location: Location,
    etag: Option<String>,
    size: u64,
    /// Where the next request begins.
    next: u64,
    chunk: Bytes,
}

impl ObjectReader {
    pub(super) fn open(
        storage: &Storage,
        location: &Location,
        from: u64,
    ) -> Result<Self, StorageError> {
        if let Some(path) = location.local_path() {
            let mut file = File::open(path).map_err(|system| unreadable(location, &system))?;
            file.seek(SeekFrom::Start(from)).map_err(|system| unreadable(location, &system))?;
            return Ok(Self { source: Source::File(file) });
        }
        let entry = storage
            .head(location)?
            .ok_or_else(|| StorageError::NotFound { location: location.to_string() })?;
        let remote = Remote {
            storage: storage.clone(),
            location: location.clone(),
            etag: entry.etag,
            size: entry.size,
            next: from,
            chunk: Bytes::new(),
        };
        Ok(Self { source: Source::Remote(Box::new(remote)) })
    }
}

fn unreadable(location: &Location, system: &io::Error) -> StorageError {
    StorageError::from_system(Operation::Read, location.to_string(), system)
}

impl Remote {
    fn fetch(&mut self) -> Result<(), StorageError> {
        let range = self.next..self.size.min(self.next + CHUNK_BYTES);
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: self.etag.clone(),
            ..GetOptions::default()
        };
        let get = async {
            self.location.objects().get_opts(self.location.path(), options).await?.bytes().await
        };
        let chunk = self
            .storage
            .wait(get)
            .map_err(|error| StorageError::new(Operation::Read, &self.location, error))?;
        if chunk.is_empty() {
            return Err(StorageError::Changed { location: self.location.to_string() });
        }
        self.next += chunk.len() as u64;
        self.chunk = chunk;
        Ok(())
    }
}

impl Read for ObjectReader {
    /// A store's failure is an [`io::Error`] that wraps the [`StorageError`].
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let remote = match &mut self.source {
            Source::File(file) => return file.read(buffer),
            Source::Remote(remote) => remote,
        };
        if remote.chunk.is_empty() {
            if remote.next >= remote.size {
                return Ok(0);
            }
            remote.fetch().map_err(io::Error::other)?;
        }
        let bytes = buffer.len().min(remote.chunk.len());
        remote.chunk.copy_to_slice(&mut buffer[..bytes]);
        Ok(bytes)
    }
}
